"""How much a model learned: rates with intervals for one stage, and paired differences between two.

A stage is a list of records (see `eval.results`). One score may say what is solved; without it, what the gold
completions cost the model is the measure of a stage, and where that was not measured either, the reward of the sampled
completions is, which may be any number. A second score, the guard, may say what must not get worse meanwhile: a model
that learns to refuse harmful requests may come to refuse all. None means that something could not be graded, which is
not the model's fault: it is left out and counted. Every stage sees the same problems, so two stages are compared
problem by problem, which removes the largest source of noise, how hard the problems happen to be. The unit of every
interval is the problem: four samples of one problem are not four independent observations, nor are the tokens of one
answer.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from statistics import NormalDist

from eval.results import Change, Comparison, Headline, Interval, Measure, Paired, Record, Stage

# The one score in which 0.5 is a tie, half a point. In any other it is partial credit, and only full marks count.
PREFERENCE = "preference_accuracy"
CALLED: dict[Measure, str] = {"accuracy": "accuracy", "loss": "held-out loss", "sampled_reward": "sampled reward"}
# With five pairs even a unanimous change has p = 2 / 2**5 = 0.06: below six no paired test can reach 0.05.
MIN_PROBLEMS = 6


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson score interval (95 %) of `successes` out of `n`, both ends in [0, 1].

    Unlike p ± 1.96 standard errors it keeps a sensible width at 0 and 1, where format rates live. A tie is half a
    success, and makes the interval wider than need be: ties vary less than a coin of the same mean. Raises
    ValueError unless 0 <= successes <= n and n >= 1. Source: Wilson (1927), J. Am. Stat. Assoc. 22:209.

    >>> low, high = wilson(8, 10)
    >>> round(low, 3), round(high, 3)
    (0.49, 0.943)
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"wilson: expected n >= 1 and 0 <= successes <= n, got {successes} of {n}")
    z = NormalDist().inv_cdf(0.975)
    centre = successes + z * z / 2
    reach = z * math.sqrt(successes * (n - successes) / n + z * z / 4)
    return max(0.0, (centre - reach) / (n + z * z)), min(1.0, (centre + reach) / (n + z * z))


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided McNemar p: the chance of a split as uneven from a fair coin; 1.0 where nothing changed."""
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def bootstrap_mean(
    values: Sequence[float], sizes: Sequence[float] | None = None, *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float] | None:
    """Percentile bootstrap interval (95 %) of the mean of `values`, one value per problem.

    With `sizes`, each value is a sum over so many tokens, and the mean is that per token: sum(values) / sum(sizes).

    Slightly narrow where problems are few: of 2,000 simulated comparisons in which 30 % were gained and 10 %
    lost, it held the true difference in 93.5 % with 64 problems and 91.5 % with 16. The same values give the same
    interval, of no width where all are equal; None for fewer than two, which say nothing about their spread.
    """
    import numpy as np
    from scipy.stats import bootstrap

    if len(values) < 2:
        return None
    interval = bootstrap(
        (np.asarray(values, dtype=float), np.ones(len(values)) if sizes is None else np.asarray(sizes, dtype=float)),
        lambda sums, sizes, axis: sums.sum(axis=axis) / sizes.sum(axis=axis),
        paired=True,
        n_resamples=resamples,
        batch=1_000,  # GSM8K's 1,319 test problems x 10,000 resamples at once would take 200 MB
        vectorized=True,
        method="percentile",  # scipy's default, BCa, divides by the spread: NaN where all values are equal
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def summarise(records: Sequence[Record], *, correct: str | None, format: str | None, guard: str | None = None) -> Stage:
    """Summarise the records of one stage in numbers ready for JSON; None where nothing was measured.

    A problem is solved where its score named `correct` is 1.0, and a completion well formed where `format` is; of
    `PREFERENCE`, 0.5 is half solved. Without `correct` no answer is right or wrong, and the stage is judged by the
    held-out loss, or by the sampled reward where no record has "nll". Keys:

    - "name"; "n", the problems that could be judged: by their greedy record, or by the reward of one sampled record
      at least; "ungraded", those that could not, nor had a `guard`
    - "accuracy" with "ci95", "format_rate" with "format_ci95": shares of the greedy completions, Wilson
    - "scores": the mean of every score over the greedy records, with "scores_ci95", bootstraps over problems
    - "loss", nats per token over all gold completions together, with "loss_ci95", a bootstrap over problems;
      "perplexity", its exponential
    - "sampled_accuracy", "sampled_format_rate", "sampled_reward" (weighted total) with "sampled_reward_ci95":
      means over problems of the mean over samples, bootstrap interval over problems
    - "greedy_reward": the mean weighted total of the greedy completions
    - "truncation_rate" of all records; "mean_length" (greedy) and "sampled_mean_length", in tokens; None of a model
      that writes nothing
    - "rewards": the mean of every score over the sampled records
    - with `guard`, the score that must not get worse: "guard_rate" with "guard_ci95", as "accuracy", of the "guard_n"
      problems that have it

    Raises ValueError for no records, records of two stages, two greedy records of one problem, a score that
    is missing or not finite, a loss over no tokens, and a stage in which no problem could be judged, or has a `guard`.
    """
    name = _stage_name(records)
    rates = problem_rates(records, correct, format, guard)
    greedy, sampled = ([record for record in records if record["kind"] == kind] for kind in ("greedy", "sampled"))
    solved, formatted, losses = rates["accuracy"].values(), rates["format_rate"].values(), problem_losses(records)
    measure = _measure(records, correct)
    decided = (losses if measure == "loss" else rates[measure]).keys()
    if not decided and measure == "sampled_reward":
        raise ValueError(
            f"stage {name!r}: none of its {len(sampled)} sampled completions has a reward (and no record has an nll): "
            "sample every problem at least once, and check what the reward function needs"
        )
    if not decided:
        raise ValueError(
            f"stage {name!r}: none of its {len(greedy)} greedy completions could be graded "
            f"(every {correct or 'nll'} is None): check the gold answers"
        )
    guarded = rates["guard_rate"]
    if guard and not guarded:
        raise ValueError(
            f"stage {name!r}: none of its {len(greedy)} greedy completions has the score that must not get worse "
            f"(every {guard} is None): add problems that it can grade"
        )
    loss, loss_ci95 = _per_token(losses.values())
    scores = {name: list(_greedy(greedy, name).values()) for name in _score_names(greedy)}
    writes = any(record["tokens"] or record["completion"] for record in records)
    stage: Stage = {
        "name": name,
        "n": len(decided),
        "ungraded": len({record["index"] for record in records} - decided - guarded.keys()),
        "accuracy": _mean(solved),
        "ci95": _share_interval(solved),
        "scores": {name: _mean(values) for name, values in scores.items()},
        "scores_ci95": {name: rounded(bootstrap_mean(values)) for name, values in scores.items()},
        "loss": None if loss is None else _round(loss),
        "loss_ci95": loss_ci95,
        "perplexity": None if loss is None else _round(math.exp(loss)),
        "sampled_accuracy": _mean(rates["sampled_accuracy"].values()),
        "sampled_reward": _mean(rates["sampled_reward"].values()),
        "sampled_reward_ci95": rounded(bootstrap_mean(list(rates["sampled_reward"].values()))),
        "greedy_reward": _mean(_finite(record, "reward", record["reward"]) for record in greedy),
        "format_rate": _mean(formatted),
        "format_ci95": _share_interval(formatted),
        "sampled_format_rate": _mean(rates["sampled_format_rate"].values()),
        "truncation_rate": _mean(record["truncated"] for record in records) if writes else None,
        "mean_length": _mean(record["tokens"] for record in greedy) if writes else None,
        "sampled_mean_length": _mean(record["tokens"] for record in sampled) if writes else None,
        "rewards": {name: _mean(_score(record, name) for record in sampled) for name in _score_names(sampled)},
    }
    if guard:
        marks = guarded.values()
        stage |= {"guard_n": len(marks), "guard_rate": _mean(marks), "guard_ci95": _share_interval(marks)}
    return stage


def compare(
    before: Sequence[Record],
    after: Sequence[Record],
    *,
    correct: str | None,
    format: str | None,
    guard: str | None = None,
) -> Comparison:
    """Compare two stages problem by problem. Every difference is `after` minus `before`.

    Returns "from", "to"; "measure", what decides: "accuracy", or without `correct` "loss", or "sampled_reward" where
    no record of either side has "nll"; "n", the problems with it on both sides; "accuracy": {"delta", "ci95", "p",
    "gained", "lost"} with the exact McNemar p of `gained` (wrong, then right) against `lost`: the sign test, where a
    preference may also move to a tie or away from one; "sampled_reward", "sampled_accuracy", "format_rate" and "loss"
    (nats per token): {"delta", "ci95"}; "scores": the same for every score of both sides but `correct` and `guard`, by
    name; with `guard`, the score that must not get worse, "guard": {"name", "n"} and what "accuracy" has.
    Intervals are bootstraps over problems: None over a single problem, as is every number for which nothing was
    measured.

    Raises ValueError where the sides hold different problems or no problem was judged on both, or none by `guard`, and
    as `summarise`.
    """
    names = _stage_name(before), _stage_name(after)
    require_same_problems(before, after, names)
    old, new = problem_rates(before, correct, format, guard), problem_rates(after, correct, format, guard)
    old_losses, new_losses = problem_losses(before), problem_losses(after)
    losses = []
    for index in sorted(old_losses.keys() & new_losses.keys()):
        (old_nats, tokens), (new_nats, new_tokens) = old_losses[index], new_losses[index]
        if tokens != new_tokens:
            raise ValueError(
                f"problem {index} was {tokens} tokens at stage {names[0]!r} and {new_tokens} at {names[1]!r}: "
                "measure both losses with the same tokenizer and chat template"
            )
        losses.append((new_nats - old_nats, tokens))
    differences = {name: _differences(old[name], new[name]) for name in old}
    measure = _measure([*before, *after], correct)
    judged = len(losses if measure == "loss" else differences[measure])
    if not judged:
        raise ValueError(f"stages {names[0]!r} and {names[1]!r}: no problem was graded in both")
    loss, loss_ci95 = _per_token(losses)
    earlier, later = (_score_names(row for row in side if row["kind"] == "greedy") for side in (before, after))
    shared = [name for name in earlier if name in later and name not in (correct, guard)]
    unpaired: Paired = {"delta": None, "ci95": None, "p": None, "gained": None, "lost": None}
    comparison: Comparison = {
        "from": names[0],
        "to": names[1],
        "measure": measure,
        "n": judged,
        "accuracy": _paired(differences["accuracy"]) if correct else unpaired,
        "sampled_reward": _change(differences["sampled_reward"]),
        "sampled_accuracy": _change(differences["sampled_accuracy"]),
        "format_rate": _change(differences["format_rate"]),
        "scores": {name: _change(_differences(_greedy(before, name), _greedy(after, name))) for name in shared},
        "loss": {"delta": None if loss is None else _round(loss), "ci95": loss_ci95},
    }
    if guard:
        guarded = differences["guard_rate"]
        if not guarded:
            raise ValueError(f"stages {names[0]!r} and {names[1]!r}: no problem has {guard} in both")
        comparison["guard"] = {"name": guard, "n": len(guarded), **_paired(guarded)}
    return comparison


def headline(comparison: Comparison) -> Headline:
    """What decided of a comparison, and nothing else."""
    found = comparison[comparison["measure"]]
    return {
        "from": comparison["from"],
        "to": comparison["to"],
        "n": comparison["n"],
        "measure": comparison["measure"],
        "delta": found["delta"],
        "ci95": found["ci95"],
        "p": comparison["accuracy"]["p"],
    }


def change(comparison: Comparison) -> int:
    """1 where the later stage is better, -1 where it is worse, 0 where the numbers cannot tell.

    The measure decides (see `measure_change`), and a guard with it: the stage is better where the measure is and the
    guard did not get worse, which fewer than six problems cannot say, and worse where either is and the other is not
    better.
    """
    found, guard = measure_change(comparison), comparison.get("guard")
    if guard is None:
        return found
    guarded = _paired_change(guard)
    if found == -guarded:  # neither changed, or one for the better and one for the worse
        return 0
    if -1 in (found, guarded):
        return -1
    return found if guard["n"] >= MIN_PROBLEMS else 0


def measure_change(comparison: Comparison) -> int:
    """1, 0 or -1 as `change`, by what decides alone.

    The cautious rule. Accuracy: the interval must be clear of zero *and* McNemar's p below 0.05. Loss and sampled
    reward, where they are the measure: the interval must be clear of zero, over as many problems as a test of
    accuracy would need.
    """
    measure = comparison["measure"]
    if measure == "accuracy":
        return _paired_change(comparison["accuracy"])
    direction = _direction(comparison[measure]["ci95"])
    better = -direction if measure == "loss" else direction
    return better if comparison["n"] >= MIN_PROBLEMS else 0


def verdict(comparison: Comparison, *, trained: bool = True) -> str:
    """Say in one sentence, without a full stop, what `compare` found and no more than the numbers carry.

    What decides is told (see `change`). What training optimises moves first: where the interval of the held-out loss or
    of a sampled measure is clear of zero and it tells another story, it is added. Fewer than six problems decide
    nothing. Where nothing was `trained` between the stages, nothing learned.
    """
    measure, n, guard = comparison["measure"], comparison["n"], comparison.get("guard")
    if measure == "accuracy":
        measured = _points("accuracy", comparison["accuracy"], n)
    else:
        delta, ci95 = comparison[measure]["delta"], comparison[measure]["ci95"]
        details = [interval_text(ci95, "+.3f"), f"n = {n}"]
        unit = " nats/token" if measure == "loss" else ""
        measured = f"{CALLED[measure]} {delta:+.3f}{unit} ({', '.join(filter(None, details))})"
    if guard:
        measured += f" and {_points(short_name(guard['name']), guard, guard['n'])}"
    elif n < MIN_PROBLEMS:
        return f"{measured}: too few problems to tell"

    found = measure_change(comparison)
    otherwise = []
    for other, name, number, scale, unit, better in (
        (comparison["loss"], "held-out loss", ".3f", 1, " nats/token", -1),
        (comparison["sampled_reward"], "sampled reward", ".3f", 1, "", 1),
        (comparison["sampled_accuracy"], "sampled accuracy", ".1f", 100, " points", 1),
    ):
        delta, ci95 = other["delta"], other["ci95"]
        if delta is not None and n >= MIN_PROBLEMS and better * _direction(ci95) not in (0, found):
            moved = f"{'rose' if delta > 0 else 'fell'} by {scale * abs(delta):{number}}{unit}"
            otherwise.append(f"{name} {moved} ({interval_text(ci95, f'+{number}', scale)})")
    finding = _finding(comparison, "it learned" if trained else "it got better")
    if not otherwise:
        return f"{measured}: {finding}"
    where = "" if found or guard else f" in {'greedy accuracy' if measure == 'accuracy' else 'held-out loss'}"
    return f"{measured}: {finding}{where}, but {' and '.join(otherwise)}"


def _finding(comparison: Comparison, better: str) -> str:
    """What the numbers say, in words; of a measure and its guard, whether both say so."""
    found, guard = measure_change(comparison), comparison.get("guard")
    words = {1: better, 0: "no measurable change", -1: "it got worse"}
    if not guard:
        return words[found]
    guarded = _paired_change(guard)
    if {found, guarded} == {1, -1}:
        return "it got better at one and worse at the other"
    sizes = comparison["n"], guard["n"]
    if {found, guarded} == {0} and min(sizes) >= MIN_PROBLEMS:
        return "no measurable change in either"
    moved = {1: "got better", 0: "did not measurably change", -1: "got worse"}
    names = CALLED[comparison["measure"]], short_name(guard["name"])
    told = " and ".join(
        f"{name} {moved[side] if n >= MIN_PROBLEMS else 'has too few problems to tell'}"
        for name, n, side in zip(names, sizes, (found, guarded), strict=True)
    )
    overall = change(comparison)
    return f"{words[overall]}: {told}" if overall else told


def _points(name: str, paired: Paired, n: int) -> str:
    """A difference of rates with what tells how sure it is."""
    assert paired["delta"] is not None and paired["p"] is not None
    details = [interval_text(paired["ci95"], "+.1f", 100), format_p(paired["p"]), f"n = {n}"]
    return f"{name} {100 * paired['delta']:+.1f} points ({', '.join(filter(None, details))})"


def side_scores(
    summaries: Sequence[Stage], correct: str | None, format: str | None, beside: Collection[str], guard: str | None
) -> list[str]:
    """The scores to tell beside what decides: those of `beside`, and those that no other figure of these stages holds,
    which are neither accuracy nor format rate nor guard nor part of a reward."""
    told = {correct, format, guard} | {name for summary in summaries for name in summary["rewards"]}
    names = dict.fromkeys(name for summary in summaries for name in summary["scores"])
    return [name for name in names if name in beside or name not in told]


def short_name(score: str) -> str:
    """A score's name as people read it.

    >>> short_name("token_f1_reward")
    'token f1'
    """
    return score.removesuffix("_reward").replace("_", " ")


def format_p(p: float) -> str:
    """Write a p value as people read it: two digits, and nothing finer than 0.0001."""
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"


def problem_rates(
    records: Sequence[Record], correct: str | None, format: str | None, guard: str | None = None
) -> dict[str, dict[int, float]]:
    """Every measure as {problem index: mean over its records}; problems without a graded one are absent."""

    def per_problem(kind: str, measure: Callable[[Record], float | None]) -> dict[int, float]:
        values: dict[int, list[float]] = {}
        for record in records:
            if record["kind"] == kind and (value := measure(record)) is not None:
                values.setdefault(record["index"], []).append(value)
        return {index: sum(found) / len(found) for index, found in values.items()}

    def full_marks(name: str | None, record: Record) -> float | None:
        points = {1.0: 1.0, 0.5: 0.5} if name == PREFERENCE else {1.0: 1.0}
        score = _score(record, name) if name else None
        return None if score is None else points.get(score, 0.0)

    return {
        "accuracy": per_problem("greedy", partial(full_marks, correct)),
        "sampled_accuracy": per_problem("sampled", partial(full_marks, correct)),
        "sampled_reward": per_problem("sampled", lambda record: _finite(record, "reward", record["reward"])),
        "format_rate": per_problem("greedy", partial(full_marks, format)),
        "sampled_format_rate": per_problem("sampled", partial(full_marks, format)),
        "guard_rate": per_problem("greedy", partial(full_marks, guard)),
    }


def problem_losses(records: Sequence[Record]) -> dict[int, tuple[float, float]]:
    """{problem index: (nats, tokens)} of the gold completions that were measured."""
    losses = {}
    for record in records:
        if record["kind"] == "greedy" and (nll := _finite(record, "nll", record.get("nll"))) is not None:
            tokens = record["nll_tokens"]
            if not tokens or tokens < 1:
                where = f"stage {record['stage']!r}, problem {record['index']}"
                raise ValueError(f"{where}: nll is over {tokens} tokens, expected at least one")
            losses[record["index"]] = (nll, tokens)
    return losses


def _measure(records: Iterable[Record], correct: str | None) -> Measure:
    """What decides about these records."""
    if correct:
        return "accuracy"
    return "loss" if any("nll" in record for record in records) else "sampled_reward"


def _per_token(losses: Collection[tuple[float, float]]) -> tuple[float | None, Interval | None]:
    """The mean over all tokens, not rounded yet, and its interval."""
    if not losses:
        return None, None
    nats, tokens = zip(*losses, strict=True)
    return math.fsum(nats) / math.fsum(tokens), rounded(bootstrap_mean(nats, tokens))


def _score_names(records: Iterable[Record]) -> dict[str, None]:
    """The names of all scores of the records, in their order."""
    return dict.fromkeys(name for record in records for name in record["scores"])


def _greedy(records: Sequence[Record], name: str) -> dict[int, float]:
    scores = {record["index"]: _score(record, name) for record in records if record["kind"] == "greedy"}
    return {index: score for index, score in scores.items() if score is not None}


def _differences(before: Mapping[int, float], after: Mapping[int, float]) -> list[float]:
    return [after[index] - before[index] for index in before if index in after]


def _change(differences: Sequence[float]) -> Change:
    return {"delta": _mean(differences), "ci95": rounded(bootstrap_mean(differences))}


def _paired(differences: Sequence[float]) -> Paired:
    gained, lost = sum(difference > 0 for difference in differences), sum(difference < 0 for difference in differences)
    # Four significant digits rather than decimals: 2e-7 is not 0.
    p = float(f"{mcnemar(gained, lost):.4g}")
    return {**_change(differences), "p": p, "gained": gained, "lost": lost}


def _paired_change(paired: Paired) -> int:
    return _direction(paired["ci95"]) if paired["p"] is not None and paired["p"] < 0.05 else 0


def _share_interval(marks: Collection[float]) -> Interval | None:
    return rounded(wilson(sum(marks), len(marks)) if marks else None)


def _stage_name(records: Sequence[Record]) -> str:
    if not records:
        raise ValueError("no records: a stage needs at least one problem")
    names = {record["stage"] for record in records}
    if len(names) != 1:
        raise ValueError(f"expected the records of one stage, got those of {', '.join(sorted(names))}")
    (name,) = names
    problems = Counter(record["index"] for record in records if record["kind"] == "greedy")
    if problems and max(problems.values()) > 1:
        twice = problems.most_common(1)[0][0]
        raise ValueError(f"stage {name!r}: expected one greedy record per problem, problem {twice} has more")
    return name


def require_same_problems(before: Sequence[Record], after: Sequence[Record], names: tuple[str, str]) -> None:
    old, new = ({record["index"]: (record["question"], record["gold"]) for record in side} for side in (before, after))
    differing = sorted(index for index in old.keys() | new.keys() if old.get(index) != new.get(index))
    if differing:
        raise ValueError(
            f"stages {names[0]!r} and {names[1]!r} were measured on different problems ({len(differing)} "
            f"differ, first problem {differing[0]}): evaluate both on the same data"
        )


def _score(record: Record, name: str) -> float | None:
    if name not in record["scores"]:
        raise ValueError(
            f"stage {record['stage']!r}, problem {record['index']}: expected a score named {name!r}, "
            f"found {', '.join(record['scores']) or 'none'}"
        )
    return _finite(record, name, record["scores"][name])


def _finite(record: Record, name: str, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        where = f"stage {record['stage']!r}, problem {record['index']}"
        raise ValueError(f"{where}: {name} is {value}, expected a finite number or None")
    return value


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return _round(math.fsum(found) / len(found)) if found else None


def rounded(interval: Sequence[float] | None) -> Interval | None:
    """Both ends as results keep them, to four decimals."""
    return [_round(end) for end in interval] if interval else None


def _round(value: float) -> float:
    return round(value, 4) + 0.0  # + 0.0 makes 0.0 of the -0.0 that -1e-17 rounds to


def _direction(ci95: Sequence[float] | None) -> int:
    """1 where the interval lies above zero, -1 below, 0 where it holds zero or was not measured."""
    return 0 if ci95 is None else (ci95[0] > 0) - (ci95[1] < 0)


def interval_text(ci95: Sequence[float] | None, number: str, scale: float = 1) -> str:
    """An interval as sentences have it, each end times `scale` in the format `number`; empty where there is none."""
    return f"95 % CI {scale * ci95[0]:{number}} to {scale * ci95[1]:{number}}" if ci95 else ""
