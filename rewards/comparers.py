"""Who compares the answers of two models, and who rewards one: what a recipe's `--compare-with` and `--reward` name."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from rewards import pairrm, reward_model
from rewards.contract import Messages, Prefer, Reward
from rewards.judge import Ask, Case, Judge, Rubric, fence

BETTER = {"first": 1.0, "tie": 0.5, "second": 0.0}


def by_name(name: str) -> Prefer | None:
    """The comparer of this name for `eval.winrate`; None for "none". An LLM judge is none of these: `judged`.

    PairRM has seen UltraFeedback and WebGPT in its own training (rewards/pairrm.py): of models trained on these, let a
    reward model judge too.

    `name` is "none"; "pairrm", fetched from the hub where it is not yet; a folder with PairRM; or the adapter folder of
    a reward model.
    Raises ValueError where PairRM cannot be fetched, or the folder holds neither.
    """
    if name == "none":
        return None
    source = _pairrm(name)
    return pairrm.prefer(source) if source else reward_model.prefer(name)


def reward_by_name(name: str) -> Callable[[Any], Reward]:
    """A function that makes the reward of this name for a policy, a PeftModel over a causal language model.

    What `name` stands for is fetched or checked now, before a recipe loads its policy, and loaded by the function. A
    reward model on the policy's own base model then shares its weights (`reward_model.reward`).

    `name` is as of `by_name`, but for "none". Raises ValueError as that; the function too, where weights are not what
    they should be.
    """
    if source := _pairrm(name):
        folder = str(pairrm.fetch(source))
        return lambda policy: pairrm.reward(pairrm.load(folder))
    reward_model.adapter_config(name)
    return lambda policy: reward_model.reward(name, policy)


def judged(connect: Callable[[], Judge]) -> Prefer:
    """An LLM judge between two responses to a prompt, a text or messages: 1.0, 0.5 for a tie, or 0.0.

    Both orders of a pair are asked for at once, and the verdict of the order given is returned, so that `win_rate`,
    which wants either, sees where the judge likes a position. A pair that has no verdict in one of them has none in
    both: half a verdict would be a win or a loss by position. How many these are is printed, with what was asked.
    `connect` makes the judge at the first call, so that none is in memory while a model trains.
    """
    connect_once = cache(connect)
    verdicts: dict[Case, float | None] = {}  # what failed in the one order is not asked again for the other

    def compare(prompts: Sequence[str | Messages], first: Sequence[str], second: Sequence[str]) -> list[float | None]:
        judge = connect_once()
        rows = [*zip(map(_as_text, prompts), first, second, strict=True)]
        pairs = [(Case(asked, a, other=b), Case(asked, b, other=a)) for asked, a, b in rows]
        new = list(dict.fromkeys(case for pair in pairs for case in pair if case not in verdicts))
        verdicts.update(zip(new, judge.scores(COMPARISON, new), strict=True))
        found = [(verdicts[there], verdicts[back]) for there, back in pairs]
        if new:
            lost = sum(None in pair for pair in found)
            without = f"; {lost} of {len(pairs)} pairs lack a verdict and are left out" if lost else ""
            print(f"Compared in both orders by {judge.summary()}{without}", flush=True)
        return [None if back is None else there for there, back in found]

    return compare


def _better(ask: Ask, case: Case) -> float:
    """By how much the first of two answers is the better one, of `BETTER`."""
    from pydantic import BaseModel

    class Better(BaseModel):
        better: Literal["first", "second", "tie"]

    found = ask(
        "Two assistants answered the same prompt. Which answer is better? The better one does more of what the prompt "
        "asks for, and what it says is true. Neither its length nor which one stands first makes an answer better. "
        "Where neither is better, it is a tie.\n\n"
        f"Prompt: {fence(case.question)}\n\n"
        f"First answer: {fence(case.answer)}\n\nSecond answer: {fence(case.other)}\n\n"
        'Reply with JSON only: {"better": "first"}, {"better": "second"} or {"better": "tie"}',
        Better,
    )
    return BETTER[found.better]


COMPARISON = Rubric("comparison", "1", ("question", "answer", "other"), _better)  # "2" with other words


def _as_text(prompt: str | Messages) -> str:
    """A prompt as the judge reads it: one message stands for itself, several with who wrote them."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _pairrm(name: str) -> str | None:
    """The hub id or folder of the PairRM that `name` stands for, if it does."""
    if name == "pairrm":
        return pairrm.SOURCE
    file = Path(name).expanduser() / "config.json"
    return name if file.is_file() and "source_prefix_id" in json.loads(file.read_text(encoding="utf-8")) else None
