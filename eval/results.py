"""What a run writes, as types: completions.jsonl, metrics.jsonl and results.json; and how they are read back.

None stands for what was not measured or could not be graded.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from eval.files import MEND, read_json, what_is_wrong

Interval = list[float]
"""Both ends of a 95 % interval"""

# What may decide whether a model learned.
Measure = Literal["accuracy", "loss", "sampled_reward"]


class Grade(TypedDict):
    """What the rewards gave one completion."""

    scores: dict[str, float | None]
    reward: float | None
    """The weighted total of the scores that are not None"""


class Record(Grade):
    """One graded completion: a line of completions.jsonl."""

    stage: str
    kind: Literal["greedy", "sampled"]
    index: int
    """Of the problem"""
    sample: int
    """Of the problem's completions of this kind"""
    question: str
    gold: str
    completion: str
    tokens: int
    """The end token included; 0 of a model that writes nothing"""
    truncated: bool
    nll: NotRequired[float | None]
    """Of a greedy record: the negative log-likelihood of the gold completion, in nats, summed over its tokens"""
    nll_tokens: NotRequired[float | None]
    """How many these are"""


Records = list[Record]


class Stage(TypedDict):
    """One stage in numbers: what `eval.metrics.summarise` returns, and where each is explained."""

    name: str
    n: int
    ungraded: int
    accuracy: float | None
    ci95: Interval | None
    scores: dict[str, float | None]
    scores_ci95: dict[str, Interval | None]
    loss: float | None
    loss_ci95: Interval | None
    perplexity: float | None
    sampled_accuracy: float | None
    sampled_reward: float | None
    sampled_reward_ci95: Interval | None
    greedy_reward: float | None
    format_rate: float | None
    format_ci95: Interval | None
    sampled_format_rate: float | None
    truncation_rate: float | None
    mean_length: float | None
    sampled_mean_length: float | None
    rewards: dict[str, float | None]
    guard_n: NotRequired[int]
    guard_rate: NotRequired[float | None]
    guard_ci95: NotRequired[Interval | None]


class Change(TypedDict):
    """A mean difference between two stages over the problems of both."""

    delta: float | None
    ci95: Interval | None


class Paired(Change):
    """Of a score that a problem has or has not: how many gained it and lost it, and the exact p of that split."""

    p: float | None
    gained: int | None
    lost: int | None


class Guard(Paired):
    """Of the score that must not get worse, over `n` problems."""

    name: str
    n: int


Sides = TypedDict("Sides", {"from": str, "to": str, "measure": Measure, "n": int})
"""The names of two stages, what decides between them, and over how many problems"""


class Comparison(Sides):
    """Two stages, problem by problem: what `eval.metrics.compare` returns, and where each is explained."""

    accuracy: Paired
    sampled_reward: Change
    sampled_accuracy: Change
    format_rate: Change
    scores: dict[str, Change]
    loss: Change
    guard: NotRequired[Guard]


class Headline(Sides, Change):
    """The first stage against the last, by what decides; `p` of accuracy alone."""

    p: float | None


class WinRate(TypedDict):
    """Tuned against base responses: what `eval.winrate.win_rate` returns, and where each is explained."""

    n: int
    unjudged: int
    wins: int
    ties: int
    losses: int
    rate: float
    ci95: Interval | None
    length_controlled_rate: float | None
    length_controlled_ci95: Interval | None
    order_disagreement: float | None
    before_mean_length: float
    after_mean_length: float
    length_unit: Literal["words", "tokens"]


class MetricsLine(TypedDict):
    """One step: a line of metrics.jsonl. It also has the trainer's own figures, under the names that those have there;
    `eval.methods` knows which they are."""

    phase: str
    step: int
    seconds: NotRequired[float]
    num_tokens: NotRequired[float]
    """Trained on since the session began, without padding"""
    warning: NotRequired[str]


class Steps(TypedDict):
    """Of the last phase."""

    made: int
    planned: int


class Training(TypedDict):
    """What was trained and how fast."""

    trainable_parameters: int | None
    parameters: int | None
    adapter_bytes: int | None
    tokens_per_second: float | None


class Results(TypedDict):
    """A run: results.json."""

    recipe: str
    """`<dataset>_<method>`"""
    model: str
    base_model: str
    licence: str | None
    n: int
    complete: bool
    steps: Steps | None
    """None where the recipe trains nothing"""
    date: str
    machine: str
    command: str
    correct: str | None
    """The score that says that a problem is solved"""
    format: str | None
    """The score that says that a completion is well formed"""
    guard: NotRequired[str | None]
    """The score that must not get worse"""
    reference: str | None
    """Which weights the policy is compared with, in words"""
    beside: list[str]
    """Scores to tell beside what decides"""
    win_rate: WinRate | None
    judge: str | None
    """What the judge was asked in the last session, in words"""
    stages: list[Stage]
    paired: Headline | None
    comparisons: list[Comparison]
    """Each stage with the one before, and last the first with the last"""
    training: Training
    seconds: dict[str, float]
    """By phase, over all sessions"""
    peak_memory_gib: dict[str, float]
    versions: dict[str, str]
    git_commit: str | None
    args: dict[str, Any]


def read_lines(path: Path) -> Iterator[Any]:
    """The objects of a file of JSON lines; a last line that a kill cut off is left out.

    Raises ValueError, in one sentence, for any other line that is no object, and OSError.
    """
    for number, _, found in scan_lines(path):
        if isinstance(found, str):
            raise ValueError(f"{path}, line {number} is damaged ({found}): {MEND}")
        if found is not None:
            yield found


def scan_lines(path: Path) -> Iterator[tuple[int, bytes, dict[str, Any] | str | None]]:
    """Each line of a file of JSON lines: its number, its bytes, and its object, what is wrong with it, or None for a
    last line that a kill cut off, which has no end. Raises OSError."""
    # Not splitlines, which also cuts at a U+2028 that a model wrote.
    *lines, last = path.read_bytes().split(b"\n")
    for number, line in enumerate([*lines, last] if last else lines, start=1):
        found: Any
        try:
            found = json.loads(line.decode("utf-8"))
            found = found if isinstance(found, dict) else "it is not an object"
        except (ValueError, RecursionError) as error:
            wrong = error.msg if isinstance(error, json.JSONDecodeError) else what_is_wrong(error)
            found = None if number > len(lines) else wrong
        yield number, line, found


def read_results(path: Path) -> Results:
    """The content of a results.json; raises ValueError, in one sentence, where it is not that, and OSError."""
    results = read_json(path)
    if not isinstance(results, dict) or not isinstance(results.get("complete"), bool):
        raise ValueError(f"{path} is damaged (it does not say whether its run is complete): {MEND}")
    return results  # type: ignore[return-value]


def complete_results(path: Path) -> Results | None:
    """The content of the results.json of a complete run; None where it is another's, not there or damaged."""
    try:
        results = read_results(path)
    except (OSError, ValueError):
        return None
    return results if results["complete"] else None
