"""How far a judge agrees with the rules, and what sways it.

    python -m recipes.tools.judge_agreement --from completions.jsonl --judge local    # or a server's http address

A judge is asked about answers that a rule has graded: one of every problem of a stage, so that the answers are
independent of each other. The rule is a score of the records, exact match by default; records hold no passages and no
aliases, so the judge reads question, answer and gold answer alone, and reads them as a reward does.

- agreement: how often the judge and the rule call the same answers right
- length: the score of the same answer said in more words; an honest judge gives both the same
- position: whether a plain question, do these two answers say the same, is answered alike with either standing first
- cost: requests, seconds and tokens

Printed, and written to judge.json beside the completions.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.files import write_json_atomic
from eval.metrics import bootstrap_mean, interval_text, rounded, short_name, wilson
from eval.results import read_lines
from rewards import deepeval, evidently
from rewards.contract import Reward
from rewards.judge import MAX_ANSWER_CHARACTERS, Ask, Case, Counts, Judge, Rubric, connect, fence
from rewards.tags import parse, render

# Not summarization: it judges by passages.
REWARDS: dict[str, Callable[[Judge], Reward]] = {
    "rag_correctness": deepeval.rag_correctness_reward,
    "answer_relevancy": deepeval.answer_relevancy_reward,
    "evidently_correctness": evidently.evidently_correctness_reward,
}
FIELDS = ("stage", "kind", "sample", "question", "gold", "completion", "scores")  # of a record, all that is read here
# 142 characters that claim nothing: no certainty, no care, no source.
LONGER = (
    "To say it in a whole sentence and not in a few words only, the answer that is given here to the question that was "
    "asked is the following one: {}"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that parses, with what the rule said of it."""

    question: str
    gold: str
    reasoning: str
    text: str
    right: bool


def read_answers(
    path: Path, *, stage: str | None, kind: str, rule: str, limit: int | None
) -> tuple[str, list[Answer], int]:
    """One answer of every problem of a stage in a run's completions.jsonl, right where its score named `rule` is 1.0.

    The stage is the last of the file where None is named, `kind` "sampled" takes each problem's first sample, and no
    more problems than `limit` are read. Answers that the rule could not grade are left out. Returns the stage's name,
    its answers, and how many do not parse or are too long for a judge to be asked.

    Raises ValueError for no such file or stage, a line that is no record, no such score, or no answer to ask about.
    """
    if not path.is_file():
        raise ValueError(f"--from {path}: no such file, expected a run's completions.jsonl")
    records = list(read_lines(path))
    for number, record in enumerate(records, 1):
        missing = [name for name in FIELDS if name not in record]
        if missing:
            where = f"{path}, line {number}"
            raise ValueError(f"{where}: expected a record as a run writes it, this one lacks {', '.join(missing)}")
    stages = list(dict.fromkeys(record["stage"] for record in records))
    chosen = stage or (stages[-1] if stages else "after")
    if chosen not in stages:
        raise ValueError(f"{path}: expected records of stage {chosen!r}, found {', '.join(stages) or 'none'}")
    wanted = (chosen, kind, 0)
    records = [one for one in records if (one["stage"], one["kind"], one["sample"]) == wanted][:limit]
    if not records:
        raise ValueError(f"{path}: stage {chosen!r} holds no {kind} records: choose another --stage or --kind")
    answers, left_out = [], 0
    for record in records:
        if rule not in record["scores"]:
            found = ", ".join(record["scores"])
            raise ValueError(f"{path}: no score is named {rule!r}, these are: {found} (--rule)")
        parsed, graded = parse(record["completion"]), record["scores"][rule]
        if parsed is None or len(parsed.answer) > MAX_ANSWER_CHARACTERS:
            left_out += 1
        elif graded is not None:
            answers.append(Answer(record["question"], record["gold"], parsed.reasoning, parsed.answer, graded == 1.0))
    if not answers:
        raise ValueError(
            f"{path}: of {len(records)} {kind} completions of stage {chosen!r}, {left_out} do not parse and none of "
            f"the others has a {rule}: nothing to ask a judge about"
        )
    return chosen, answers, left_out


def agreement(scores: Sequence[float], right: Sequence[bool], threshold: float) -> dict[str, Any]:
    """How far scores agree with a rule about the same answers, ready for JSON; None where nothing can be said.

    - "n", "right", "wrong": answers, and how many the rule calls so
    - "accuracy": share in which the judge, score >= `threshold`, and the rule say the same; "ci95", Wilson
    - "kappa": Cohen's, None where both call all answers the same
    - "auc": chance that a right answer scores above a wrong one, ties half; None without either
    - "right_mean", "wrong_mean": mean scores
    """
    from sklearn.metrics import cohen_kappa_score, roc_auc_score

    said = [score >= threshold for score in scores]
    same = sum(a == b for a, b in zip(said, right, strict=True))
    both = 0 < sum(right) < len(right)
    of = {
        side: [score for score, is_right in zip(scores, right, strict=True) if is_right == side]
        for side in (True, False)
    }
    return {
        "n": len(right),
        "right": len(of[True]),
        "wrong": len(of[False]),
        **_share("accuracy", same, len(right)),
        "kappa": round(float(cohen_kappa_score(right, said)), 4) if len({*right, *said}) == 2 else None,
        "auc": round(float(roc_auc_score(right, scores)), 4) if both else None,
        "right_mean": _mean(of[True]),
        "wrong_mean": _mean(of[False]),
    }


def change_with_length(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """The mean change from an answer's short score to its long one: "n", "delta", "ci95" (bootstrap over answers)."""
    changes = [long - short for short, long in pairs]
    return {"n": len(changes), "delta": _mean(changes), "ci95": rounded(bootstrap_mean(changes))}


def measure_reward(name: str, judge: Judge, answers: Sequence[Answer], threshold: float) -> dict[str, Any]:
    """Agreement, length bias and cost of one of `REWARDS`, ready for JSON."""
    from scipy.stats import spearmanr

    reward = REWARDS[name](judge)
    judge.counts, began = Counts(), time.monotonic()
    scores = _ask(reward, [(answer, answer.text) for answer in answers])
    cost = {"answers": len(answers), "seconds": round(time.monotonic() - began, 2), **_cost(judge.counts)}
    restated = [(answer, LONGER.format(answer.text)) for answer in answers]
    fitting = [i for i, (_, text) in enumerate(restated) if len(text) <= MAX_ANSWER_CHARACTERS]
    longer = dict(zip(fitting, _ask(reward, [restated[i] for i in fitting]), strict=True))
    judged = [(answer, score) for answer, score in zip(answers, scores, strict=True) if score is not None]
    wrong = [(score, len(answer.text)) for answer, score in judged if not answer.right]
    length: dict[str, Any] = {"added_characters": len(LONGER.format(""))}
    for side, is_right in (("right", True), ("wrong", False)):
        pairs = [
            (short, long)
            for i, short in enumerate(scores)
            if answers[i].right == is_right and short is not None and (long := longer.get(i)) is not None
        ]
        length[side] = change_with_length(pairs)
    vary = wrong and all(len(set(column)) > 1 for column in zip(*wrong, strict=True))
    length["spearman_among_wrong"] = round(float(spearmanr(wrong).statistic), 4) if vary else None
    return {
        **agreement([score for _, score in judged], [answer.right for answer, _ in judged], threshold),
        "failed": len(answers) - len(judged),
        "length": length,
        "cost": cost,
    }


def measure_position(judge: Judge, answers: Sequence[Answer]) -> dict[str, Any]:
    """Ask of every answer that is not the gold one to the letter whether both say the same, either standing first.

    Returns "n", the answers with both verdicts; "flipped", the share in which they differ, with "ci95" (Wilson);
    "same_gold_first" and "same_answer_first", the shares called the same; "failed", answers without both verdicts.
    """
    asked = [answer for answer in answers if answer.text != answer.gold]
    rubric = Rubric("same", "1", ("question", "answer", "other"), _same)
    gold_first = judge.scores(rubric, [Case(answer.question, answer.gold, other=answer.text) for answer in asked])
    answer_first = judge.scores(rubric, [Case(answer.question, answer.text, other=answer.gold) for answer in asked])
    pairs = [(a, b) for a, b in zip(gold_first, answer_first, strict=True) if a is not None and b is not None]
    return {
        "n": len(pairs),
        **_share("flipped", sum(a != b for a, b in pairs), len(pairs)),
        "same_gold_first": _mean([a for a, _ in pairs]),
        "same_answer_first": _mean([b for _, b in pairs]),
        "failed": len(asked) - len(pairs),
    }


def _same(ask: Ask, case: Case) -> float:
    """1.0 where the judge says that both answers say the same, else 0.0. Nothing tells which one is the gold answer."""
    from pydantic import BaseModel

    class Same(BaseModel):
        same: bool

    found = ask(
        "Do these two answers to the question say the same?\n\n"
        f"Question: {fence(case.question)}\nFirst answer: {fence(case.answer)}\nSecond answer: {fence(case.other)}\n\n"
        'Reply with JSON only: {"same": true} or {"same": false}',
        Same,
    )
    return float(found.same)


def _ask(reward: Reward, said: Sequence[tuple[Answer, str]]) -> list[float | None]:
    """Scores of texts in the place of the answers' own."""
    completions = [render(answer.reasoning, text) for answer, text in said]
    return reward(
        completions=[[{"role": "assistant", "content": completion}] for completion in completions],
        question=[answer.question for answer, _ in said],
        answer=[answer.gold for answer, _ in said],
        aliases=[[answer.gold] for answer, _ in said],
        passages=[[] for _ in said],
    )


def _cost(counts: Counts) -> dict[str, Any]:
    """The requests, and what one took, waiting for its turn included, where there was any."""
    cost: dict[str, Any] = {"requests": counts.requests, "cached": counts.cached}
    for name in ("seconds", "prompt_tokens", "reply_tokens"):
        cost[f"{name}_per_request"] = round(getattr(counts, name) / counts.requests, 4) if counts.requests else None
    return cost


def describe(name: str, found: Mapping[str, Any]) -> str:
    """Some lines on what `measure_reward` returned."""
    length, cost = found["length"], found["cost"]
    lines = [f"{short_name(name)}: no verdict on any of {found['failed']} answers"]
    if found["n"]:
        details = [interval_text(found["ci95"], ".1f", 100), f"n = {found['n']}"]
        details += [f"{key} {found[key]:.2f}" for key in ("kappa", "auc") if found[key] is not None]
        means = [f"{found[f'{side}_mean']:.2f} on {found[side]} {side}" for side in ("right", "wrong") if found[side]]
        lines = [
            f"{short_name(name)}: agrees with the rule on {100 * found['accuracy']:.1f} % ({', '.join(details)})",
            f"  mean score {' and '.join(means)} answers; {found['failed']} without a verdict",
        ]
        moved = [
            f"{side} answers {change['delta']:+.3f} ({interval_text(change['ci95'], '+.3f') or 'one answer'})"
            for side in ("right", "wrong")
            if (change := length[side])["n"]
        ]
        told = " and ".join(moved) or "no verdict"
        if length["spearman_among_wrong"] is not None:
            told += f"; Spearman of score and length among wrong answers {length['spearman_among_wrong']:+.2f}"
        lines.append(f"  length: in {length['added_characters']} more characters, {told}")
    lines.append(f"  cost: {cost['requests']} requests for {cost['answers']} answers, {cost['cached']} of them cached")
    if cost["requests"]:
        lines[-1] += f", in {cost['seconds']:.1f} s; a request: {cost['seconds_per_request']:.2f} s with its wait"
        if cost["prompt_tokens_per_request"]:
            lines[-1] += f", {cost['prompt_tokens_per_request']:.0f} + {cost['reply_tokens_per_request']:.0f} tokens"
    return "\n".join(lines)


def describe_position(found: Mapping[str, Any]) -> str:
    """One line on what `measure_position` returned."""
    if not found["n"]:
        return "position: no answer that differs from the gold one has verdicts in both orders"
    return (
        f"position: the order of two answers turned {100 * found['flipped']:.1f} % of the verdicts "
        f"({interval_text(found['ci95'], '.1f', 100)}, n = {found['n']}; called the same: "
        f"{100 * found['same_gold_first']:.1f} % with the gold answer first, "
        f"{100 * found['same_answer_first']:.1f} % with the other; {found['failed']} without both)"
    )


def _interval(ci95: Sequence[float] | None, number: str, scale: float = 1) -> str:
    return f"95 % CI {scale * ci95[0]:{number}} to {scale * ci95[1]:{number}}" if ci95 else ""


def _share(name: str, count: int, n: int) -> dict[str, Any]:
    """`count` of `n` under `name` with its "ci95", Wilson; None of none."""
    return {name: round(count / n, 4) if n else None, "ci95": rounded(wilson(count, n) if n else None)}


def _mean(values: Sequence[float]) -> float | None:
    return round(statistics.fmean(values), 4) if values else None


def main() -> int:
    """Print what was found and write judge.json; 2, after one sentence, where nothing can be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, required=True, help="a run's completions.jsonl")
    parser.add_argument("--judge", required=True, help="local, or the http address of an OpenAI-compatible server")
    parser.add_argument("--judge-model", help="a folder or hub id for local; a server's first model if not given")
    parser.add_argument("--rewards", nargs="+", choices=REWARDS, default=["rag_correctness"])
    parser.add_argument("--rule", default="exact_match_reward", help="the score that says what is right")
    parser.add_argument("--stage", help="the last of the file if not given")
    parser.add_argument("--kind", choices=["greedy", "sampled"], default="greedy", help="sampled: the first samples")
    parser.add_argument("--threshold", type=float, default=0.5, help="the score from which the judge says right")
    parser.add_argument("--limit", type=int, help="problems to ask about, all if not given")
    parser.add_argument("--cache", type=Path, help="where verdicts are kept; judge_cache beside the completions")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for a request")
    args = parser.parse_args()
    try:
        found = measure(args)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    path = args.source.with_name("judge.json")
    write_json_atomic(path, found)
    print(f"Written to {path}")
    return 0


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Ask the judge all that `args` of the command line want, printing as it goes; what judge.json holds.

    Raises ValueError as `read_answers`, for a judge that is not there, and where too many of its calls fail.
    """
    stage, answers, left_out = read_answers(
        args.source, stage=args.stage, kind=args.kind, rule=args.rule, limit=args.limit
    )
    cache = args.cache or args.source.with_name("judge_cache")
    judge = connect(args.judge, model=args.judge_model, cache=cache, concurrency=args.concurrency, timeout=args.timeout)
    if judge is None:
        raise ValueError(f"--judge {args.judge} is nobody: give local or an http address")
    print(
        f"{judge.name} on {len(answers)} {args.kind} answers of stage {stage!r}, right by {short_name(args.rule)} "
        f"({left_out} more do not parse or are over {MAX_ANSWER_CHARACTERS} characters)"
    )
    rewards = {}
    for name in args.rewards:
        rewards[name] = measure_reward(name, judge, answers, args.threshold)
        print(describe(name, rewards[name]), flush=True)
    position = measure_position(judge, answers)
    print(describe_position(position))
    asked = {"judge": judge.name, "stage": stage, "kind": args.kind, "rule": args.rule, "threshold": args.threshold}
    return {**asked, "answers": len(answers), "left_out": left_out, "rewards": rewards, "position": position}


if __name__ == "__main__":
    raise SystemExit(main())
