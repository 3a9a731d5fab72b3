"""A judge in this process: whatever the model, its reply is JSON of the rubric's schema, and nothing else changes."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
from pydantic import BaseModel, create_model

from recipes.common.stand_ins.smollm2 import converted_folder
from recipes.common.stand_ins.tiny import tiny_folder
from rewards.contract import Failure, Reply
from rewards.deepeval import answer_relevancy_reward, rag_correctness_reward, summarization_reward
from rewards.evidently import evidently_correctness_reward
from rewards.judge import Judge, connect
from rewards.local_judge import BATCH, MAX_CHARACTERS, MAX_ITEMS, LocalModel, bounded
from rewards.memory import Batches

PASSAGES = ["Paris\nParis is the capital of France.", "Berlin\nBerlin is not."]


def columns(n: int) -> dict[str, Any]:
    row = {"question": "What is the capital?", "answer": "Paris", "aliases": ["Paris"], "passages": PASSAGES}
    return {name: [value] * n for name, value in row.items()}


def parsed(*answers: str) -> list[str]:
    return [f"<reasoning>I read it.</reasoning><answer>{answer}</answer>" for answer in answers]


FITTING: dict[str, Any] = {
    "ReasonScore": {"score": 5},
    "Truths": {"truths": ["a"]},
    "Claims": {"claims": ["a", "b"]},
    "Answers": {"answers": ["yes"]},
    "Statements": {"statements": ["a", "b", "c"]},
    "Correctness": {"category": "UNKNOWN"},
}


class Collector:
    """Keeps the schemas that the libraries pass, and fulfils them."""

    name = "collector"

    def __init__(self) -> None:
        self.schemas: dict[str, type[BaseModel]] = {}

    def reply(self, prompt: str, schema: type[BaseModel]) -> Reply:
        items = schema.model_json_schema()["properties"].get("verdicts", {}).get("minItems", "")
        self.schemas[f"{schema.__name__}{items}"] = schema
        return Reply(json.dumps(FITTING.get(schema.__name__, {"verdicts": [{"verdict": "yes"}] * (items or 0)})))


@pytest.fixture(scope="module")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, type[BaseModel]]:
    """Every schema of every judged reward."""
    collector = Collector()
    judge = Judge(collector, cache=tmp_path_factory.mktemp("cache"))
    for make in (
        rag_correctness_reward,
        summarization_reward,
        answer_relevancy_reward,
        evidently_correctness_reward,
    ):
        make(judge)(completions=parsed("Paris"), **columns(1))
    assert judge.counts.failed == 0
    return collector.schemas


NAMES = {"ReasonScore", "Truths", "Claims", "Answers", "Statements", "Verdicts2", "Verdicts3", "Correctness"}


@pytest.fixture(scope="module")
def tiny() -> LocalModel:
    """A random model: what it says is noise, within what the grammar lets through."""
    return LocalModel(str(tiny_folder()))


def test_the_libraries_schemas_are_known(schemas):
    assert set(schemas) == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_noise_fits_every_schema(tiny, schemas, name):
    """Greedy noise of several prompts, in one batch, so that replies of different lengths end at different times."""
    with ThreadPoolExecutor(4) as threads:
        prompts = [f"How many {word}?" for word in ("apples", "trains\n\nand planes", "14", "")]
        replies = list(threads.map(lambda prompt: tiny.reply(prompt, schemas[name]), prompts))
    for reply in replies:
        schemas[name].model_validate_json(reply.text)
        assert reply.prompt_tokens > 0 and reply.reply_tokens > 0


class Everything(BaseModel):
    """One of each, of which noise makes as much as it may."""

    texts: list[str]
    number: float
    kind: Literal["a", "b"]
    note: str = ""


def test_replies_are_the_same_where_memory_runs_out(tiny, monkeypatch):
    import torch

    prompts, given, generate = ["Write.", "How many apples?", "Why?"], [], tiny._model.generate
    alone = [tiny.reply(prompt, Everything) for prompt in prompts]

    def small(**inputs):
        given.append(len(inputs["input_ids"]))
        if given[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return generate(**inputs)

    monkeypatch.setattr(tiny._model, "generate", small)
    monkeypatch.setattr(tiny, "_batches", Batches(BATCH))
    jobs = [tiny.job(prompt, Everything) for prompt in prompts]
    tiny._answer(jobs)
    assert [job.reply.result() for job in jobs] == alone and given[:2] == [3, 1]


def test_a_judge_is_greedy_whatever_its_folder_asks_for(tmp_path):
    shutil.copytree(tiny_folder(), tmp_path, dirs_exist_ok=True)
    wishes = {"repetition_penalty": 5.0, "do_sample": True, "temperature": 9.0, "eos_token_id": 7}
    (tmp_path / "generation_config.json").write_text(json.dumps(wishes))
    judge = LocalModel(str(tmp_path))
    config = judge._model.generation_config
    assert config.repetition_penalty is None and config.temperature is None
    assert judge._stops == sorted({7, judge._tokenizer.eos_token_id})


def test_replies_are_bounded(tiny):
    reply = json.loads(tiny.reply("Write.", Everything).text)
    assert reply.keys() == {"texts", "number", "kind"}
    assert len(reply["texts"]) <= MAX_ITEMS and all(len(text) <= MAX_CHARACTERS for text in reply["texts"])
    assert type(reply["number"]) is int


def accepts(tiny: LocalModel, schema: type[BaseModel], text: str) -> bool:
    import xgrammar

    wanted = json.dumps(bounded(schema.model_json_schema()))
    matcher = xgrammar.GrammarMatcher(tiny._compiler.compile_json_schema(wanted, any_whitespace=False))
    return matcher.accept_string(text) and matcher.accept_token(tiny._stops[0])


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("", True),
        ("Łódź, 東京", True),
        ("x" * MAX_CHARACTERS, True),
        ("x" * (MAX_CHARACTERS + 1), False),
        *((text, False) for text in ('"', "\\", "\n", "\r", "\t", "\x00", "\x1b", "\x7f")),
    ],
)
def test_the_grammar_of_a_text(tiny, text, fits):
    schema = create_model("Note", note=(str, ...))
    assert accepts(tiny, schema, f'{{"note": "{text}"}}') is fits
    assert not accepts(tiny, schema, f'{{"note": "{text}"')
    assert not accepts(tiny, schema, f'{{"note": "{text}"}} ')


@pytest.mark.parametrize(("items", "fits"), [(0, False), (1, True), (MAX_ITEMS, True), (MAX_ITEMS + 1, False)])
def test_the_grammar_of_a_list(tiny, schemas, items, fits):
    assert accepts(tiny, schemas["Claims"], json.dumps({"claims": ["a"] * items})) is fits
    assert not accepts(tiny, schemas["Claims"], json.dumps({"claims": [""]}))


@pytest.mark.parametrize(("score", "fits"), [("0", True), ("10", True), ("11", False), ("-1", False), ("0.5", False)])
def test_the_grammar_of_a_score(tiny, schemas, score, fits):
    assert accepts(tiny, schemas["ReasonScore"], f'{{"score": {score}}}') is fits


def test_judging_leaves_torchs_generators_alone(tiny, schemas):
    import torch

    before = torch.get_rng_state()
    LocalModel(str(tiny_folder()))
    tiny.reply("How many?", schemas["Claims"])
    assert torch.equal(before, torch.get_rng_state())
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_threads_are_answered_together(tiny, schemas, monkeypatch):
    sizes = []
    generate = tiny._generate

    def counted(jobs: list[Any]) -> list[list[int]]:
        sizes.append(len(jobs))
        return generate(jobs)

    monkeypatch.setattr(tiny, "_generate", counted)
    with ThreadPoolExecutor(12) as threads:
        replies = list(threads.map(lambda n: tiny.reply(f"{n}?", schemas["ReasonScore"]), range(12)))
    assert len(replies) == sum(sizes) == 12 and max(sizes) > 1


def test_what_goes_wrong_reaches_every_thread(tiny, schemas, monkeypatch):
    def broken(jobs: list[Any]) -> list[list[int]]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(tiny, "_generate", broken)
    with ThreadPoolExecutor(3) as threads:
        tasks = [threads.submit(tiny.reply, "?", schemas["ReasonScore"]) for _ in range(3)]
        assert {str(task.exception()) for task in tasks} == {"out of memory"}


def test_a_prompt_that_does_not_fit_is_a_failure(tiny, schemas):
    with pytest.raises(Failure, match=r"does not fit the 8,192 of local tiny") as failure:
        tiny.reply("how many " * 8000, schemas["Claims"])
    assert not failure.value.again


def test_a_reply_without_an_end_is_a_failure(tiny, schemas, monkeypatch):
    monkeypatch.setattr("rewards.local_judge.MAX_REPLY_TOKENS", 4)
    with pytest.raises(Failure, match="did not end in 4 tokens") as failure:
        tiny.reply("How many?", schemas["Claims"])
    assert not failure.value.again


def test_another_model_in_the_folder_is_another_judge(tmp_path):
    import shutil

    folder = tmp_path / "judge"
    shutil.copytree(tiny_folder(), folder)
    name = LocalModel(str(folder)).name
    assert LocalModel(str(folder)).name == name
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    assert LocalModel(str(folder)).name != name and name.startswith("local judge ")


@pytest.mark.parametrize("prepare", ["empty", "no template"])
def test_what_is_no_judge_is_refused_in_a_sentence(tmp_path, prepare):
    import shutil

    if prepare == "no template":
        shutil.copytree(tiny_folder(), tmp_path, dirs_exist_ok=True)
        (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="judge") as refusal:
        connect("local", model=str(tmp_path), cache=tmp_path / "cache")
    assert "\n" not in str(refusal.value)


def test_smollm2_judges_an_answer(tmp_path: Path):
    """The embedded default, over DeepEval's own prompt."""
    judge = connect("local", model=str(converted_folder()), cache=tmp_path)
    assert judge is not None
    (score,) = rag_correctness_reward(judge)(completions=parsed("It is Paris"), **columns(1))
    assert score is not None and 0 <= score <= 1
    assert judge.counts.requests == judge.counts.judged == 1


def test_beside_unsloth(unsloth: ModuleType, schemas):
    """Unsloth patches transformers, and is there first in every recipe."""
    model = LocalModel(str(tiny_folder()))
    for schema in schemas.values():
        schema.model_validate_json(model.reply("How many?", schema).text)
