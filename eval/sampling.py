"""Held-out problems, sampled and graded: the same prompts, engine and rewards at every stage of a run.

A stage is a list of records, one for every completion, and is what `eval.metrics` summarises and compares.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol

from eval.results import Grade, Records
from rewards.contract import Messages, Reward

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
    optimises the whole distribution and a narrowed one would measure another policy than the one trained."""

    batch_size: int

    def sample(self, prompts: list[Messages], *, temperature: float, max_tokens: int, seed: int) -> list[Completion]:
        """One completion for each of at most `batch_size` prompts."""
        ...


class ModelSampler:
    """Completes through the model itself (`generate`): slower than vLLM, there wherever it trains."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int = 64) -> None:
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size

    def sample(self, prompts: list[Messages], *, temperature: float, max_tokens: int, seed: int) -> list[Completion]:
        import torch
        from unsloth import FastLanguageModel

        FastLanguageModel.for_inference(self.model)
        self.tokenizer.padding_side = "left"  # the argument of this name does not reach the tokenizer
        tensors = {"padding": True, "return_dict": True, "return_tensors": "pt"}
        encoded = self.tokenizer.apply_chat_template(prompts, add_generation_prompt=True, **tensors)
        encoded = encoded.to(self.model.device)
        # A forked generator: how often a run evaluates must not change what it trains on.
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(seed)
            output = self.model.generate(
                **encoded,
                max_new_tokens=max_tokens,
                do_sample=temperature > 0,
                temperature=temperature or None,
                top_p=1.0 if temperature else None,
                top_k=0 if temperature else None,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        FastLanguageModel.for_training(self.model)
        completions = output[:, encoded["input_ids"].shape[1] :].tolist()
        return [self._completion(ids) for ids in completions]

    def _completion(self, ids: list[int]) -> Completion:
        stop = self.model.generation_config.eos_token_id
        stops = set(stop) if isinstance(stop, list) else {stop}
        end = next((i for i, token in enumerate(ids) if token in stops), None)
        kept = ids if end is None else ids[: end + 1]
        return Completion(self.tokenizer.decode(kept, skip_special_tokens=True), tuple(kept), end is None)


class VllmSampler:
    """Completes through the vLLM engine in this process that the rollouts use.

    `prepare` brings the engine up to date with the trained weights and returns the LoRA request to generate
    with, or None where the weights were merged into the engine.
    """

    def __init__(self, llm: Any, tokenizer: Any, prepare: Callable[[], Any], batch_size: int = 64) -> None:
        self.llm, self.tokenizer, self.prepare, self.batch_size = llm, tokenizer, prepare, batch_size

    def sample(self, prompts: list[Messages], *, temperature: float, max_tokens: int, seed: int) -> list[Completion]:
        import torch
        from vllm import SamplingParams

        lora = self.prepare()
        ids = self.tokenizer.apply_chat_template(prompts, add_generation_prompt=True, return_dict=False)
        # The engine lives in this process and draws from its generator. Seeds of single requests crash on a CPU
        # (vLLM 0.27.1: "CPU Generator does not use offset").
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            outputs = self.llm.generate(
                [{"prompt_token_ids": prompt} for prompt in ids],
                SamplingParams(temperature=temperature, max_tokens=max_tokens),
                use_tqdm=False,
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
    for batch in _batches(jobs, sampler.batch_size):
        rows = dataset.select([job[3] for job in batch])
        prompts = rows["prompt"][:]
        completions = sampler.sample(prompts, temperature=batch[0][2], max_tokens=max_tokens, seed=seed + len(records))
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
