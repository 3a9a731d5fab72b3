"""Held-out problems, sampled and graded: the same prompts, engine and rewards at every stage of a run.

A stage is a list of records, one for every completion, and is what `eval.metrics` summarises and compares.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol

from eval.results import Grade, Records
from rewards.contract import Messages, Reward
from rewards.memory import Batches

if TYPE_CHECKING:
    from datasets import Dataset

LOSS = ("nll", "nll_tokens")


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model wrote: text without special tokens, token ids with the end token, whether the limit cut it off."""

    text: str
    ids: tuple[int, ...]
    truncated: bool

    @property
    def tokens(self) -> int:
        """Length in tokens, the end token included."""
        return len(self.ids)


class Sampler(Protocol):
    """An engine that completes conversations. Temperature 0 is greedy; top-p and top-k are off, because GRPO
    optimises the whole distribution and a narrowed one would measure another policy than the one trained.

    One that has `hold()`, a context in which the weights do not change, is brought up to date once for its length.
    """

    batch_size: int

    def sample(self, prompts: list[Messages], *, temperature: float, max_tokens: int, seed: int) -> list[Completion]:
        """One completion for each of at most `batch_size` prompts."""
        ...


def settle_generation(model: Any, tokenizer: Any) -> list[int]:
    """Replace the generation config that came with `model`, so that nothing but the recipe decides how it writes.

    A model folder may ask for penalties, beams, banned tokens or a narrowed distribution, which `generate` would heed
    in evaluation and rollouts and vLLM would not, and may hold settings that transformers refuses to save again.
    Returns the tokens that end a completion, and keeps them in the config: the tokenizer's end token and those of the
    config that came, such as Llama 3's three.
    """
    from transformers import GenerationConfig

    published = model.generation_config
    found = published.eos_token_id
    ends = {*(found if isinstance(found, list) else [found]), tokenizer.eos_token_id} - {None}
    stops = sorted(ends)
    plain = GenerationConfig(
        bos_token_id=published.bos_token_id, eos_token_id=stops, pad_token_id=tokenizer.pad_token_id
    )
    for owner in (model, *([model.get_base_model()] if hasattr(model, "get_base_model") else [])):
        owner.generation_config = plain
    return stops


class ModelSampler:
    """Completes through the model itself (`generate`): slower than vLLM, there wherever it trains.

    A completion depends on its prompt, its temperature and its seed, not on what is written beside it; on a GPU as
    many are written at once as free memory holds, and fewer where it does not.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int = 64) -> None:
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.stops = settle_generation(model, tokenizer)
        self._batches = Batches(batch_size)

    def sample(self, prompts: list[Messages], *, temperature: float, max_tokens: int, seed: int) -> list[Completion]:
        """One completion for each prompt; the i-th draws with `seed` + i."""
        from unsloth import FastLanguageModel

        rows = self.tokenizer.apply_chat_template(prompts, add_generation_prompt=True, return_dict=False)
        free, longest = free_memory(self.model), max(map(len, rows), default=0)
        held = None if free is None else rows_that_fit(self.model.config.get_text_config(), longest, max_tokens, free)

        def write(batch: Sequence[tuple[int, list[int]]]) -> list[list[int]]:
            return self._generate([ids for _, ids in batch], temperature, max_tokens, [seed + i for i, _ in batch])

        FastLanguageModel.for_inference(self.model)
        try:
            written = self._batches.run(write, list(enumerate(rows)), held)
        finally:
            FastLanguageModel.for_training(self.model)
        return [self._completion(ids) for ids in written]

    def _generate(
        self, rows: list[list[int]], temperature: float, max_tokens: int, seeds: list[int]
    ) -> list[list[int]]:
        """The tokens after each row, up to the batch's longest."""
        import torch

        self.tokenizer.padding_side = "left"  # for whoever reads it; the argument reaches `pad` alone
        encoded = self.tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
        encoded = encoded.to(self.model.device)
        with torch.inference_mode():
            output = self.model.generate(
                **encoded,
                max_new_tokens=max_tokens,
                do_sample=False,
                eos_token_id=self.stops,
                pad_token_id=self.tokenizer.pad_token_id,
                logits_processor=[_Draw(temperature, seeds, self.model.device)] if temperature else None,
            )
        return output[:, encoded["input_ids"].shape[1] :].tolist()

    def _completion(self, ids: list[int]) -> Completion:
        end = next((i for i, token in enumerate(ids) if token in self.stops), None)
        kept = ids if end is None else ids[: end + 1]
        return Completion(self.tokenizer.decode(kept, skip_special_tokens=True), tuple(kept), end is None)


class _Draw:
    """A logits processor that makes greedy choice a draw: the largest of logits / temperature + Gumbel noise is
    distributed as their softmax (Gumbel 1954). Each row has a generator of its own, so that what is drawn for it does
    not depend on the batch, and no one else's generator moves."""

    def __init__(self, temperature: float, seeds: list[int], device: Any) -> None:
        import torch

        self.temperature = temperature
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        import torch

        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float() / self.temperature - noise.log_()


def free_memory(model: Any) -> int | None:
    """Bytes of the model's card that can still be allocated; None on a CPU."""
    if model.device.type != "cuda":
        return None
    import torch

    unused = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    return torch.cuda.mem_get_info(model.device)[0] + unused


def rows_that_fit(config: Any, prompt: int, completion: int, free: int) -> int:
    """How many rows of `prompt` and `completion` tokens can be written at once in `free` bytes: a power of two.

    Counted in 16 bits: keys and values of all tokens, the widest activations of the prompt in one layer, and some
    float32 copies of the last position's logits. A fifth stays free.
    """
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    wide = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    cache = 2 * 2 * config.num_hidden_layers * keys * head * (prompt + completion)
    row = cache + 2 * prompt * (4 * config.hidden_size + 3 * wide) + 16 * config.vocab_size
    held = int(0.8 * free // row)
    return 1 << max(0, held.bit_length() - 1)


class VllmSampler:
    """Completes through the vLLM engine in this process that the rollouts use: all prompts at once, which it batches.

    `prepare` brings the engine up to date with the trained weights and returns the LoRA request to generate
    with, or None where the weights were merged into the engine. `stops` are the tokens that end a completion.
    """

    def __init__(self, llm: Any, tokenizer: Any, prepare: Callable[[], Any], stops: list[int]) -> None:
        self.llm, self.tokenizer, self.prepare, self.stops = llm, tokenizer, prepare, stops
        self.batch_size = sys.maxsize
        self._held: list[Any] = []

    @contextmanager
    def hold(self) -> Iterator[None]:
        """The weights do not change in here: the engine is brought up to date once."""
        self._held = [self.prepare()]
        try:
            yield
        finally:
            self._held = []

    def sample(self, prompts: list[Messages], *, temperature: float, max_tokens: int, seed: int) -> list[Completion]:
        import torch
        from vllm import SamplingParams

        (lora,) = self._held or [self.prepare()]
        ids = self.tokenizer.apply_chat_template(prompts, add_generation_prompt=True, return_dict=False)
        # The engine lives in this process and draws from its generator. Seeds of single requests crash on a CPU
        # (vLLM 0.27.1: "CPU Generator does not use offset").
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            outputs = self.llm.generate(
                [{"prompt_token_ids": prompt} for prompt in ids],
                SamplingParams(temperature=temperature, max_tokens=max_tokens, stop_token_ids=self.stops),
                use_tqdm=sys.stdout.isatty(),  # one call may be a whole stage
                lora_request=lora,
            )
        written = [output.outputs[0] for output in outputs]
        return [Completion(o.text, tuple(o.token_ids), o.finish_reason == "length") for o in written]


def score(
    completions: Sequence[str], columns: dict[str, list[Any]], rewards: Sequence[Reward], weights: Sequence[float]
) -> list[Grade]:
    """Grade texts with the objects that training uses.

    The reward is the weighted sum over the scores that are not None, as TRL forms it; None where all are.
    """
    messages = [[{"role": "assistant", "content": text}] for text in completions]
    by_reward = {reward.__name__: reward(completions=messages, **columns) for reward in rewards}
    graded: list[Grade] = []
    for i in range(len(completions)):
        scores = {name: values[i] for name, values in by_reward.items()}
        known = [w * s for w, s in zip(weights, scores.values(), strict=True) if s is not None]
        graded.append({"scores": scores, "reward": sum(known) if known else None})
    return graded


def evaluate(
    sampler: Sampler,
    dataset: "Dataset",
    rewards: Sequence[Reward],
    weights: Sequence[float],
    *,
    stage: str,
    samples: int = 0,
    temperature: float = 0.0,
    max_tokens: int,
    seed: int,
    extra: "Callable[[Dataset], Sequence[Mapping[str, float | None]]] | None" = None,
) -> Records:
    """Complete every problem greedily once and `samples` times at `temperature`, and grade it all.

    Needs the columns `prompt`, `question` and `answer`. As in training, the rewards get `prompts`, the messages of
    column `prompt`, and every other column but `completion`, which is what supervised training imitates. Seed and
    order are the same at every stage, so that stages pair problem by problem. Returns the records of
    completions.jsonl.

    `extra` measures the model itself rather than what it wrote: one dict for each problem, in their order. Its
    figures join the scores of the problem's greedy record and no reward, but for "nll" and "nll_tokens", the
    negative log-likelihood in nats of the gold completion's tokens and their number, which join the record.
    """
    passes = [("greedy", 0, 0.0)] + [("sampled", i, temperature) for i in range(samples)]
    jobs = [(kind, sample, heat, row) for kind, sample, heat in passes for row in range(len(dataset))]
    # By temperature, since one call has one, then by length, since a batch pads to its longest prompt.
    lengths = [len(question) for question in dataset["question"]]
    jobs.sort(key=lambda job: (job[2], lengths[job[3]], job[1]))
    records: Records = []
    started, tokens = time.monotonic(), 0
    with getattr(sampler, "hold", nullcontext)():
        for batch in _batches(jobs, sampler.batch_size):
            rows = dataset.select([job[3] for job in batch])
            prompts, heat = rows["prompt"][:], batch[0][2]
            completions = sampler.sample(prompts, temperature=heat, max_tokens=max_tokens, seed=seed + len(records))
            columns = {name: rows[name][:] for name in rows.column_names if name not in ("prompt", "completion")}
            columns["prompts"] = prompts
            grades = score([completion.text for completion in completions], columns, rewards, weights)
            for (kind, sample, _, row), completion, grade in zip(batch, completions, grades, strict=True):
                records.append(
                    {
                        "stage": stage,
                        "kind": kind,
                        "index": row,
                        "sample": sample,
                        "question": dataset[row]["question"],
                        "gold": dataset[row]["answer"],
                        "completion": completion.text,
                        "tokens": completion.tokens,
                        "truncated": completion.truncated,
                        **grade,
                    }
                )
            tokens += sum(completion.tokens for completion in completions)
            _progress(stage, len(records), len(jobs), tokens / (time.monotonic() - started))
    records.sort(key=lambda record: (record["index"], record["kind"], record["sample"]))
    if extra:
        greedy = [record for record in records if record["kind"] == "greedy"]
        for record, figures in zip(greedy, extra(dataset), strict=True):
            if "nll" in figures:
                record |= {"nll": figures["nll"], "nll_tokens": figures["nll_tokens"]}
            record["scores"] |= {name: value for name, value in figures.items() if name not in LOSS}
    return records


def _batches(jobs: list[tuple], size: int) -> Iterator[list[tuple]]:
    for _, group in groupby(jobs, key=lambda job: job[2]):
        alike = list(group)
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


def _progress(stage: str, done: int, total: int, speed: float) -> None:
    live = sys.stdout.isatty()
    line = f"  {stage}: {done} of {total} completions, {speed:.0f} tokens/s"
    print(f"\r{line}" if live else line, end="" if live and done < total else "\n", flush=True)
