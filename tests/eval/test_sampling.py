"""Sampling and grading: pairs that pair, batches that do not mix, and an engine that leaves no trace."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eval.sampling import (
    Completion,
    Messages,
    ModelSampler,
    VllmSampler,
    _Draw,
    evaluate,
    rows_that_fit,
    score,
    settle_generation,
)
from rewards.qa import choice_reward

QUESTIONS = ["a long question, longer than the others", "short?", "of middle length?"]


class ScriptedSampler:
    """Answers each question from a text by temperature, and keeps what it was asked."""

    name = "script"

    def __init__(self, batch_size: int, write: Callable[[str, float], str] | None = None) -> None:
        self.batch_size = batch_size
        self.write = write or (lambda question, temperature: f"{temperature:g}: {question}")
        self.calls: list[dict[str, Any]] = []

    def sample(self, prompts: list[Messages], *, temperature: float, max_tokens: int, seed: int) -> list[Completion]:
        questions = [prompt[-1]["content"] for prompt in prompts]
        self.calls.append({"questions": questions, "temperature": temperature, "max_tokens": max_tokens, "seed": seed})
        texts = [self.write(question, temperature) for question in questions]
        return [Completion(text, tuple(range(len(text))), len(text) >= max_tokens) for text in texts]


def length_reward(completions: list[Messages], **kwargs: Any) -> list[float | None]:
    return [len(completion[0]["content"]) / 100 for completion in completions]


def gold_reward(completions: list[Messages], answer: list[str], **kwargs: Any) -> list[float | None]:
    """None for the gold "?", which nobody can grade."""
    texts = [completion[0]["content"] for completion in completions]
    return [None if gold == "?" else float(gold in text) for text, gold in zip(texts, answer, strict=True)]


@pytest.fixture
def dataset() -> Any:
    from datasets import Dataset

    return Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": question}] for question in QUESTIONS],
            "question": QUESTIONS,
            "answer": ["long", "short", "?"],
        }
    )


def run(sampler: Any, dataset: Any, **changes: Any) -> list[dict[str, Any]]:
    settings = {"stage": "before", "samples": 2, "temperature": 0.5, "max_tokens": 30, "seed": 7} | changes
    return evaluate(sampler, dataset, [length_reward, gold_reward], [1.0, 2.0], **settings)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_records_are_the_same_in_any_batch(batch_size: int, dataset: Any) -> None:
    records = run(ScriptedSampler(batch_size), dataset)
    assert [(r["index"], r["kind"], r["sample"]) for r in records] == [
        (index, kind, sample) for index in range(3) for kind, sample in (("greedy", 0), ("sampled", 0), ("sampled", 1))
    ]
    for record in records:
        temperature = {"greedy": "0", "sampled": "0.5"}[record["kind"]]
        assert record["question"] == QUESTIONS[record["index"]]
        assert record["completion"] == f"{temperature}: {record['question']}"
        assert record["gold"] == ["long", "short", "?"][record["index"]]


def test_a_record_holds_what_metrics_read(dataset: Any) -> None:
    records = run(ScriptedSampler(4), dataset)
    text = f"0: {QUESTIONS[0]}"
    assert records[0] == {
        "stage": "before",
        "kind": "greedy",
        "index": 0,
        "sample": 0,
        "question": QUESTIONS[0],
        "gold": "long",
        "completion": text,
        "tokens": len(text),
        "truncated": True,
        "scores": {"length_reward": len(text) / 100, "gold_reward": 1.0},
        "reward": pytest.approx(len(text) / 100 + 2.0),
    }
    assert [records[i]["truncated"] for i in (0, 3, 6)] == [True, False, False]


def test_batches_never_mix_temperatures_and_keep_lengths_together(dataset: Any) -> None:
    sampler = ScriptedSampler(2)
    run(sampler, dataset)
    assert [(call["temperature"], len(call["questions"])) for call in sampler.calls] == [
        *((0.0, 2), (0.0, 1)),
        *((0.5, 2), (0.5, 2), (0.5, 2)),
    ]
    for heat in (0.0, 0.5):
        asked = [q for call in sampler.calls if call["temperature"] == heat for q in call["questions"]]
        assert asked == sorted(asked, key=len)
    assert {call["max_tokens"] for call in sampler.calls} == {30}


def test_seeds_are_the_same_at_every_stage_and_never_twice_in_one(dataset: Any) -> None:
    before, after, other = ScriptedSampler(2), ScriptedSampler(2), ScriptedSampler(2)
    run(before, dataset)
    run(after, dataset, stage="after")
    run(other, dataset, seed=8)
    assert before.calls == after.calls
    # A call may give its completions seed, seed + 1, ...: none of those may come again.
    seeds = [call["seed"] + i for call in before.calls for i in range(len(call["questions"]))]
    assert seeds == [*range(7, 7 + 9)]
    assert before.calls != other.calls


def test_rewards_get_the_prompts_and_every_column_but_what_training_imitates() -> None:
    from datasets import Dataset

    rows = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": letter}] for letter in "BA"],
            "completion": [[{"role": "assistant", "content": letter}] for letter in "BB"],
            "question": ["the longer one", "two"],
            "answer": ["B", "B"],
            "options": [["cold", "heat"], ["up", "down"]],
        }
    )
    given: list[set[str]] = []
    asked: list[str] = []

    def columns_reward(prompts: list[Messages], completions: list[Messages], **kwargs: Any) -> list[float]:
        given.append(set(kwargs))
        asked.extend(prompt[-1]["content"] for prompt in prompts)
        return [0.5] * len(completions)

    echo = ScriptedSampler(9, lambda question, temperature: question)
    settings = {"stage": "before", "samples": 0, "temperature": 0.0, "max_tokens": 8, "seed": 1}
    records = evaluate(echo, rows, [choice_reward, columns_reward], [1.0, 0.0], **settings)
    assert given == [{"question", "answer", "options"}]
    assert asked == ["A", "B"]  # in the order of the batch, shortest question first
    assert [record["scores"] for record in records] == [
        {"choice_reward": 1.0, "columns_reward": 0.5},
        {"choice_reward": 0.0, "columns_reward": 0.5},
    ]


def test_extra_figures_join_the_greedy_record_and_no_reward(dataset: Any) -> None:
    def likelihood(rows: Any) -> list[dict[str, float | None]]:
        assert rows is dataset
        return [{"likeliest": len(gold) / 10, "nll": None, "nll_tokens": 2} for gold in rows["answer"]]

    plain = run(ScriptedSampler(2), dataset)
    records = run(ScriptedSampler(2), dataset, extra=likelihood)
    for before, record in zip(plain, records, strict=True):
        if record["kind"] == "greedy":
            gold = record["gold"]
            before["scores"]["likeliest"] = len(gold) / 10
            before |= {"nll": None, "nll_tokens": 2}
        assert record == before


def test_extra_figures_must_be_of_every_problem(dataset: Any) -> None:
    with pytest.raises(ValueError):
        run(ScriptedSampler(9), dataset, extra=lambda rows: [{"likeliest": 1.0}] * 2)


def test_no_samples_means_greedy_only(dataset: Any) -> None:
    assert [record["kind"] for record in run(ScriptedSampler(9), dataset, samples=0)] == ["greedy"] * 3


def test_what_cannot_be_graded_is_left_out_of_the_reward() -> None:
    def nobody_reward(completions: list[Messages], **kwargs: Any) -> list[None]:
        return [None] * len(completions)

    columns = {"answer": ["x", "?"]}
    graded = score(["x" * 50, "y" * 50], columns, [length_reward, gold_reward, nobody_reward], [1.0, 2.0, 4.0])
    assert graded == [
        {"scores": {"length_reward": 0.5, "gold_reward": 1.0, "nobody_reward": None}, "reward": 2.5},
        {"scores": {"length_reward": 0.5, "gold_reward": None, "nobody_reward": None}, "reward": 0.5},
    ]
    assert score(["x"], {}, [nobody_reward], [1.0])[0]["reward"] is None
    assert score([], {"answer": []}, [length_reward, gold_reward], [1.0, 1.0]) == []


def test_a_weight_too_few_is_an_error() -> None:
    with pytest.raises(ValueError):
        score(["x"], {"answer": ["x"]}, [length_reward, gold_reward], [1.0])


# The model itself

PROMPTS = [
    [{"role": "user", "content": text}]
    for text in ("Hi", "Tom has 3 apples and buys 4 more. How many apples does he have now?", "2 + 2?")
]


@pytest.fixture(scope="module")
def sampler(tiny: Path, load_lora: Any) -> ModelSampler:
    return ModelSampler(*load_lora(tiny))


def texts(sampler: ModelSampler, prompts: list[Messages] = PROMPTS, **changes: Any) -> list[str]:
    settings = {"temperature": 1.0, "max_tokens": 12, "seed": 1} | changes
    return [completion.text for completion in sampler.sample(prompts, **settings)]


def test_greedy_needs_no_seed(sampler: ModelSampler) -> None:
    assert texts(sampler, temperature=0.0, seed=1) == texts(sampler, temperature=0.0, seed=2)


def test_a_seed_decides_the_samples(sampler: ModelSampler) -> None:
    same = texts(sampler, seed=1)
    assert same == texts(sampler, seed=1)
    assert same != texts(sampler, seed=2)
    assert len(set(texts(sampler, PROMPTS[:1] * 4))) == 4  # of one problem, each is its own


def test_padding_changes_nothing(sampler: ModelSampler) -> None:
    together = texts(sampler, temperature=0.0)
    assert together == [text for prompt in PROMPTS for text in texts(sampler, [prompt], temperature=0.0)]


def test_sampling_leaves_no_trace(sampler: ModelSampler) -> None:
    import torch

    state = torch.random.get_rng_state()
    texts(sampler)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(module.training for module in sampler.model.modules())


@pytest.fixture(scope="module")
def exact(tiny: Path, load_lora: Any) -> tuple[Any, Any]:
    """In float32, where a row does not depend on its batch by rounding either."""
    model, tokenizer = load_lora(tiny)
    model.float()
    model.config.dtype = "float32"  # Unsloth's generate casts to what the config says
    return model, tokenizer


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_runs_out_of_memory_twice_halves_twice_and_writes_the_same(
    temperature: float, exact: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    prompts = PROMPTS * 3
    expected = ModelSampler(*exact).sample(prompts, temperature=temperature, max_tokens=12, seed=1)
    given: list[int] = []
    generate = exact[0].generate

    def small(**kwargs: Any) -> Any:
        given.append(len(kwargs["input_ids"]))
        if len(given) <= 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return generate(**kwargs)

    monkeypatch.setattr(exact[0], "generate", small)
    halved = ModelSampler(*exact)
    assert halved.sample(prompts, temperature=temperature, max_tokens=12, seed=1) == expected
    assert given == [9, 4, 2, 2, 2, 2, 1]
    halved.sample(prompts[:3], temperature=temperature, max_tokens=1, seed=1)
    assert given[7:] == [2, 1]  # what did not fit once is not tried again


def test_a_failure_leaves_the_model_in_training(exact: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact[0], "generate", lambda **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        texts(ModelSampler(*exact))
    assert all(module.training for module in exact[0].modules())


def test_what_is_sampled_does_not_depend_on_the_batch(exact: tuple[Any, Any]) -> None:
    together = texts(ModelSampler(*exact), PROMPTS * 2)
    assert texts(ModelSampler(*exact, batch_size=1), PROMPTS * 2) == together
    assert texts(ModelSampler(*exact), PROMPTS[1:] * 2, seed=2)[:2] == together[1:3]  # the i-th draws with seed + i
    assert len({*together}) == 6


def test_draws_are_those_of_the_softmax(unsloth: Any) -> None:
    import torch

    logits, n = torch.tensor([[2.0, 1.0, 0.0, -1.0]]), 4000
    for temperature in (0.5, 1.0):
        draws = _Draw(temperature, list(range(n)), "cpu")(None, logits.repeat(n, 1)).argmax(-1)
        shares = torch.bincount(draws, minlength=4) / n
        # Four standard errors of a share of one half.
        assert shares.tolist() == pytest.approx(torch.softmax(logits[0] / temperature, -1).tolist(), abs=0.032)


FOLDERS_WISHES: dict[str, Any] = {
    **{"repetition_penalty": 3.0, "no_repeat_ngram_size": 2, "num_beams": 2, "min_new_tokens": 9, "typical_p": 0.2},
    **{"suppress_tokens": [*range(300, 900)], "min_p": 0.9, "temperature": 0.1, "do_sample": False, "top_k": 1},
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_recipe_decides_how_is_written_and_not_the_model_folder(temperature: float, exact: tuple[Any, Any]) -> None:
    from transformers import GenerationConfig

    expected = texts(ModelSampler(*exact), temperature=temperature)
    exact[0].generation_config = GenerationConfig(**FOLDERS_WISHES, eos_token_id=[5, 6])
    assert texts(ModelSampler(*exact), temperature=temperature) == expected
    exact[0].generation_config = GenerationConfig(eos_token_id=exact[1].eos_token_id)


def test_a_completion_ends_with_the_tokenizers_and_the_folders_end_tokens(exact: tuple[Any, Any]) -> None:
    from transformers import GenerationConfig

    model, tokenizer = exact
    own = tokenizer.eos_token_id
    for published, stops in ((None, [own]), (7, sorted({7, own})), ([7, 9, own], sorted({7, 9, own}))):
        model.generation_config = GenerationConfig(eos_token_id=published)
        sampler = ModelSampler(model, tokenizer)
        assert sampler.stops == stops == model.generation_config.eos_token_id
        assert ModelSampler(model, tokenizer).stops == stops  # of a later stage
    assert sampler._completion([3, 9, 4]).ids == (3, 9) and not sampler._completion([3, 9, 4]).truncated
    # The model itself stops there: whatever it writes first is made an end token.
    model.generation_config = GenerationConfig()
    (first,) = ModelSampler(model, tokenizer).sample(PROMPTS[:1], temperature=0.0, max_tokens=3, seed=1)
    model.generation_config = GenerationConfig(eos_token_id=first.ids[0])
    (short,) = ModelSampler(model, tokenizer).sample(PROMPTS[:1], temperature=0.0, max_tokens=3, seed=1)
    assert short.ids == first.ids[:1] and (first.truncated, short.truncated) == (True, False)
    model.generation_config = GenerationConfig(eos_token_id=own)


def test_a_generation_config_that_cannot_be_saved_is_mended(tiny: Path, unsloth: Any, tmp_path: Path) -> None:
    """transformers 5.17 loads a temperature without `do_sample`, as Hermes' and others' folders have, and refuses to
    write it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny)
    model.generation_config.temperature, model.generation_config.do_sample = 0.6, False
    with pytest.raises(ValueError, match="temperature"):
        model.save_pretrained(tmp_path)
    settle_generation(model, AutoTokenizer.from_pretrained(tiny))
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()


def test_as_many_rows_as_free_memory_holds(unsloth: Any) -> None:
    from transformers import MistralConfig

    zephyr = MistralConfig(vocab_size=32_000)  # 32 layers of 8 key-value heads: 128 KiB a token
    gib = 2**30
    # 64 prompts of 512 tokens took 15.9 GiB of a card, weights in 4 bit (about 4) included.
    assert [rows_that_fit(zephyr, 512, 256, free * gib) for free in (2, 5, 10, 20)] == [8, 16, 32, 64]
    assert rows_that_fit(zephyr, 4096, 1024, gib) == rows_that_fit(zephyr, 512, 256, 0) == 1


class Engine:
    """What `VllmSampler` needs of vLLM, which does not run here: it writes the prompt's length."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, Any, Any]] = []

    def generate(self, prompts: list[Any], params: Any, use_tqdm: bool, lora_request: Any) -> list[Any]:
        self.calls.append((len(prompts), params, lora_request))
        lengths = [len(prompt["prompt_token_ids"]) for prompt in prompts]
        return [
            SimpleNamespace(outputs=[SimpleNamespace(text=str(n), token_ids=[n], finish_reason="stop")])
            for n in lengths
        ]


def test_vllm_gets_a_stage_at_once_and_the_adapter_once(
    dataset: Any, exact: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=dict))
    engine, synced = Engine(), iter("abcdef")
    sampler = VllmSampler(engine, exact[1], lambda: next(synced), [2, 9])
    records = run(sampler, dataset.select([0, 1, 2] * 50))
    assert len(records) == 450 and records[0]["tokens"] == 1
    assert [(n, params["temperature"], lora) for n, params, lora in engine.calls] == [(150, 0.0, "a"), (300, 0.5, "a")]
    assert {tuple(params["stop_token_ids"]) for _, params, _ in engine.calls} == {(2, 9)}
    sampler.sample(PROMPTS, temperature=1.0, max_tokens=3, seed=1)  # a rollout, after training moved the weights
    sampler.sample(PROMPTS, temperature=1.0, max_tokens=3, seed=1)
    assert [lora for _, _, lora in engine.calls[2:]] == ["b", "c"]


def test_truncated_means_without_an_end(sampler: ModelSampler) -> None:
    for completion in sampler.sample(PROMPTS, temperature=0.0, max_tokens=5, seed=1):
        assert (completion.tokens, completion.truncated) == (5, True)


def test_the_end_token_counts_and_the_rest_does_not(sampler: ModelSampler) -> None:
    tokenizer = sampler.tokenizer
    word, end, pad = tokenizer.encode("apples")[0], tokenizer.eos_token_id, tokenizer.pad_token_id
    text = tokenizer.decode([word])
    assert sampler._completion([word, end, pad, word]) == Completion(text, (word, end), False)
    assert sampler._completion([word, word]) == Completion(text * 2, (word, word), True)
    assert sampler._completion([end]) == Completion("", (end,), False)


def test_a_model_that_stops_is_not_truncated(nano: Any, load_lora: Any) -> None:
    sampler = ModelSampler(*load_lora(nano.folder))
    written = sampler.sample(nano.dataset()["prompt"][:], temperature=0.0, max_tokens=4, seed=1)
    assert all(c.text in "0123456789" and (c.tokens, c.truncated) == (2, False) for c in written)
    cut_off = sampler.sample(nano.dataset()["prompt"][:], temperature=0.0, max_tokens=1, seed=1)
    assert [c.text for c in cut_off] == [c.text for c in written]
    assert all(c.truncated for c in cut_off)
