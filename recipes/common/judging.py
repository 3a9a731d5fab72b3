"""The judges of a run: who grades (`--judge`) and who compares before and after (`--compare-with`)."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from eval.results import complete_results
from recipes.common import machine, resuming
from recipes.common.model_table import default_alias
from recipes.common.models import open_source, resolve
from recipes.common.stand_ins.smollm2 import cache_root
from recipes.common.stand_ins.tiny import tiny_pairrm_folder
from rewards import comparers
from rewards import judge as llm_judge
from rewards.contract import Prefer, Reward
from rewards.deepeval import rag_correctness_reward
from rewards.judge import Case, Judge
from rewards.tags import render

Make = TypeVar("Make", bound=Callable[[Judge], Reward])
# A judge that cannot tell these apart will not teach anything, and a user should know before hours of training.
QUESTION, RIGHT, WRONG = "Which river flows through Cairo?", "The Nile", "The Danube"


def connect(args: Any) -> Judge | None:
    """The judge that `args.judge` names, asked to grade two answers to an easy question; None for "none".

    Verdicts go to `judge/` in the cache folder, where later runs find them. A judge in this process is, unless named,
    the embedded model without a GPU and Qwen2.5-1.5B with one; with `--smoke`, the tiny random one. A line says what
    the judge gave for a right answer to the question and for a wrong one.

    Raises:
        ValueError: no server there, no such model, or no reply to either answer, in one sentence.
    """
    if args.judge == "none":
        return None
    judge = _connect(args, "--judge", args.judge)
    columns: dict[str, Any] = {"question": [QUESTION] * 2, "answer": [RIGHT] * 2, "aliases": [[RIGHT]] * 2}
    texts = [render("I recall the map.", answer) for answer in (RIGHT, WRONG)]
    scores = rag_correctness_reward(judge)(completions=texts, passages=[[]] * 2, **columns)
    _tell(judge, "--judge", scores, "what it rewards will teach nothing")
    return judge


def comparer(args: Any) -> Prefer | None:
    """Who `args.compare_with` names to compare the answers of before and after; None for "none".

    "local" and http addresses are LLM judges, found by `--judge-model` as those of `connect`. One is asked now which of
    two answers to an easy question is better, either standing first, and let go of until it compares; its requests of
    that time are what `--judge-max-calls` limits. All else is `comparers.by_name`'s.

    Raises:
        ValueError: as `connect` and `comparers.by_name`.
    """
    name = args.compare_with
    if name != "local" and not name.startswith(("http://", "https://")):
        return comparers.by_name(name)
    judge = _connect(args, "--compare-with", name)
    cases = [Case(QUESTION, a, other=b) for a, b in ((RIGHT, WRONG), (WRONG, RIGHT))]
    _tell(judge, "--compare-with", judge.scores(comparers.COMPARISON, cases), "its win rate will mean nothing")
    return comparers.judged(lambda: _connect(args, "--compare-with", name))


def rewards(judge: Judge | None, made_by: Mapping[Make, float], chosen: Iterable[str]) -> dict[Reward, float]:
    """The judged rewards with their weights: of `made_by`, functions that make one for a judge, those whose names
    without "_reward" are `chosen`. None without a judge."""
    asked = {f"{name}_reward" for name in chosen}
    return {make(judge): weight for make, weight in made_by.items() if judge and make.__name__ in asked}


def _connect(args: Any, flag: str, name: str) -> Judge:
    model = args.judge_model
    if name == "local":
        if args.smoke:
            model = args.model  # which `cli.start` has set to the tiny one
        spec = resolve(model or ("qwen2.5-1.5b" if machine.has_gpu() else default_alias(gpu=False)))
        import unsloth  # noqa: F401 - before transformers, which the judge brings and this patches

        model, _ = open_source(spec, load_in_4bit=False)
    judge = llm_judge.connect(
        name,
        model=model,
        cache=cache_root() / "judge",
        max_calls=args.judge_max_calls,
        remedy=f"mend the judge and go on with --resume, or pass {flag} none",
    )
    assert judge is not None
    return judge


def _tell(judge: Judge, flag: str, scores: list[float | None], otherwise: str) -> None:
    """Print what a right answer got and what a wrong one; ValueError where the judge failed on either."""
    if judge.counts.failed:
        raise ValueError(
            f"the judge {judge.name} gave no verdict on an easy question ({judge.counts.last_failure}): mend it, name "
            f"another {flag} or --judge-model, or pass {flag} none"
        )
    right, wrong = scores
    if right is None or wrong is None:
        return  # the budget is spent, and the judge has said so
    line = f"Judge {judge.name}: of an easy question, the right answer scores {right:.1f} and a wrong one {wrong:.1f}"
    if right <= wrong:
        line += f"; it cannot tell them apart, and {otherwise}: name a better --judge-model"
    print(line)


def rewarder(args: Any) -> Callable[[Any], Reward]:
    """What `--reward` names: a function that makes the reward for a policy. With `--smoke`, a tiny random PairRM.

    Raises:
        ValueError: "trained", and no reward model was trained on this model yet; or as `comparers.reward_by_name`.
    """
    if args.smoke:
        return comparers.reward_by_name(str(tiny_pairrm_folder()))
    if args.reward != "trained":
        return comparers.reward_by_name(args.reward)
    runs = Path(args.output_dir) / "ultrafeedback_reward" / resolve(args.model).alias.replace("/", "--")
    done = [path.parent for path in runs.glob("*/results.json") if complete_results(path)]
    if not done:
        raise ValueError(
            f"--reward trained found no reward model of {args.model} in {runs}: first run `python "
            f"recipes/ultrafeedback_reward.py --model {args.model} --output-dir {args.output_dir}`, or give a "
            "folder or pairrm as --reward"
        )
    newest = max(done, key=lambda folder: folder.name) / "adapter"
    resuming.means("reward", newest)  # a resumed run must not take a newer one
    return comparers.reward_by_name(str(newest))
