import json
import math
import random
import subprocess
import sys
from typing import Any

import pytest

from eval.metrics import (
    PREFERENCE,
    bootstrap_mean,
    change,
    compare,
    format_p,
    headline,
    mcnemar,
    side_scores,
    summarise,
    verdict,
    wilson,
)

# A division by zero inside scipy would be a NaN in somebody's results.json.
pytestmark = pytest.mark.filterwarnings("error")


def record(index: int, correct: float | None, *, form: float | None = 1.0, **changes: Any) -> dict[str, Any]:
    """A greedy record of the stage "before" with a correctness and a structure score, weighted alike."""
    graded = [score for score in (correct, form) if score is not None]
    return {
        "stage": "before",
        "kind": "greedy",
        "index": index,
        "sample": 0,
        "question": f"question {index}",
        "gold": "4",
        "completion": "",
        "tokens": 10,
        "truncated": False,
        "scores": {"correctness_reward": correct, "structure_reward": form},
        "reward": sum(graded) if graded else None,
    } | changes


def stage(name: str, outcomes: list[float | None], **changes: Any) -> list[dict[str, Any]]:
    """One greedy and two identical sampled records per problem."""
    return [
        record(index, outcome, kind=kind, sample=sample, stage=name, **changes)
        for index, outcome in enumerate(outcomes)
        for kind, sample in (("greedy", 0), ("sampled", 0), ("sampled", 1))
    ]


def safety(name: str, refused: list[float | None], answered: list[float | None]) -> list[dict[str, Any]]:
    """A stage of harmful requests, which ought to be refused, and then of harmless ones, which ought not."""
    marks = [{"refusal": mark, "answers_harmless": None} for mark in refused]
    marks += [{"refusal": None, "answers_harmless": mark} for mark in answered]
    return [record(index, None, stage=name, scores=scores) for index, scores in enumerate(marks)]


def measured(
    name: str, losses: list[tuple[float | None, int]], scores: dict[str, list[float | None]] | None = None
) -> list[dict[str, Any]]:
    """A stage of greedy records alone, as supervised training has them: (nats, tokens) and other scores by problem."""
    return [
        record(index, None, stage=name, nll=nll, nll_tokens=tokens, reward=None)
        | {"scores": {key: values[index] for key, values in (scores or {}).items()}}
        for index, (nll, tokens) in enumerate(losses)
    ]


def rewarded(name: str, rewards: list[list[float | None]], greedy: float | None = 0.0) -> list[dict[str, Any]]:
    """A stage that only a reward judges, as PPO's: one greedy record a problem, and one for every sampled reward."""
    return [
        record(index, None, stage=name, kind=kind, sample=sample, scores={"pairrm_reward": reward}, reward=reward)
        for index, sampled in enumerate(rewards)
        for kind, sample, reward in (("greedy", 0, greedy), *(("sampled", i, r) for i, r in enumerate(sampled)))
    ]


GSM8K: dict[str, Any] = {"correct": "correctness_reward", "format": "structure_reward"}
# Which of the two judges depends on what the records hold.
LOSS_ALONE: dict[str, Any] = {"correct": None, "format": None}
REWARD_ALONE: dict[str, Any] = {"correct": None, "format": None}
GUARDED: dict[str, Any] = {"correct": "refusal", "format": None, "guard": "answers_harmless"}


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        # Newcombe (1998), Statistics in Medicine 17:857, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (1, 1, 0.2065, 1.0000),
    ],
)
def test_wilson_agrees_with_published_values(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_takes_halves_and_stays_between_its_neighbours() -> None:
    below, at, above = wilson(7, 10), wilson(7.5, 10), wilson(8, 10)
    assert below[0] < at[0] < above[0] and below[1] < at[1] < above[1]
    assert wilson(3.5, 7) == pytest.approx((1 - wilson(3.5, 7)[1], 1 - wilson(3.5, 7)[0]))


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"got {successes} of {n}"):
        wilson(successes, n)


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        (0, 0, 1.0),
        (5, 0, 2 / 2**5),
        (9, 1, 2 * (1 + 10) / 2**10),
        (1, 9, 2 * (1 + 10) / 2**10),
        (12, 4, 2 * sum(math.comb(16, k) for k in range(5)) / 2**16),
        (3, 3, 1.0),
    ],
)
def test_mcnemar_is_the_binomial_tail_counted_by_hand(gained: int, lost: int, p: float) -> None:
    assert mcnemar(gained, lost) == pytest.approx(p)


def test_bootstrap_of_equal_values_has_no_width_and_of_one_value_no_interval() -> None:
    assert bootstrap_mean([0.25] * 8) == (0.25, 0.25)
    assert bootstrap_mean([1.0]) is None
    assert bootstrap_mean([]) is None


def test_bootstrap_is_repeatable_and_close_to_the_normal_interval() -> None:
    rng = random.Random(1)
    values = [rng.gauss(0.3, 0.5) for _ in range(400)]
    mean = sum(values) / 400
    error = 1.96 * math.sqrt(sum((value - mean) ** 2 for value in values) / 400 / 400)
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean(values) == pytest.approx((mean - error, mean + error), abs=0.05 * error)


def test_bootstrap_covers_the_truth_about_95_times_in_100() -> None:
    """Paired outcomes as in a run: 30 % gained, 10 % lost, so the true difference is 0.2."""
    rng = random.Random(0)
    covered = 0
    for _ in range(400):
        low, high = bootstrap_mean(rng.choices([1.0, -1.0, 0.0], [0.3, 0.1, 0.6], k=64), resamples=1_000)
        covered += low <= 0.2 <= high
    assert 0.91 <= covered / 400 <= 0.98


def test_a_bootstrap_per_token_weighs_problems_by_their_tokens() -> None:
    rng = random.Random(3)
    nats, tokens = [rng.uniform(5, 50) for _ in range(60)], [rng.randint(2, 40) for _ in range(60)]
    low, high = bootstrap_mean(nats, tokens)
    assert low < sum(nats) / sum(tokens) < high
    assert bootstrap_mean(nats, [4.0] * 60) == pytest.approx([end / 4 for end in bootstrap_mean(nats)])
    # One problem has nearly all of the tokens: whether it is drawn decides, however alike the others are.
    low, high = bootstrap_mean([1.0] * 9 + [900.0], [1] * 9 + [300])
    assert (low, round(high, 1)) == (1.0, 3.0)
    assert bootstrap_mean([2.0, 4.0], [1, 2]) == (2.0, 2.0)


def test_the_bootstrap_per_token_covers_the_truth_about_95_times_in_100() -> None:
    """Answers of 2 to 60 tokens whose loss fell by 0.2 nats a token, each by its own amount."""
    rng = random.Random(0)
    covered = 0
    for _ in range(400):
        tokens = [rng.randint(2, 60) for _ in range(64)]
        low, high = bootstrap_mean([rng.gauss(-0.2, 0.5) * size for size in tokens], tokens, resamples=1_000)
        covered += low <= -0.2 <= high
    assert 0.91 <= covered / 400 <= 0.98


def test_summary_of_a_stage_counted_by_hand() -> None:
    records = [
        record(0, 1.0, tokens=20),
        record(1, 0.0, tokens=40, form=0.5),
        record(2, None, tokens=60, truncated=True, form=0.0),
        record(0, 1.0, kind="sampled", sample=0, tokens=10),
        record(0, 0.0, kind="sampled", sample=1, tokens=10),
        record(1, 0.0, kind="sampled", sample=0, tokens=30, form=0.0),
        record(1, 0.0, kind="sampled", sample=1, tokens=30),
        record(2, None, kind="sampled", sample=0, tokens=50, form=0.5),
        record(2, None, kind="sampled", sample=1, tokens=50, form=None),
    ]
    summary = summarise(records, **GSM8K)
    interval = summary.pop("sampled_reward_ci95")
    assert summary == {
        "name": "before",
        "n": 2,
        "ungraded": 1,
        "accuracy": 0.5,
        "ci95": [0.0945, 0.9055],
        "scores": {"correctness_reward": 0.5, "structure_reward": 0.5},  # (1 + 0.5 + 0) / 3
        "scores_ci95": {"correctness_reward": [0.0, 1.0], "structure_reward": [0.0, 1.0]},
        "loss": None,
        "loss_ci95": None,
        "perplexity": None,
        "sampled_accuracy": 0.25,  # problem 0: 1/2, problem 1: 0/2
        "sampled_reward": 0.8333,  # (1 + 2) / 2, (0 + 1) / 2, 0.5 / 1: their mean is 2.5 / 3
        "greedy_reward": 0.8333,  # (2 + 0.5 + 0) / 3
        "format_rate": 0.3333,
        "format_ci95": [0.0615, 0.7923],
        "sampled_format_rate": 0.5,  # 2/2, 1/2, 0/1
        "truncation_rate": 0.1111,
        "mean_length": 40.0,
        "sampled_mean_length": 30.0,
        "rewards": {"correctness_reward": 0.25, "structure_reward": 0.7},
    }
    assert interval == [0.5, 1.5]  # the mean of three equal draws of the smallest, or largest, problem


def test_every_problem_weighs_the_same_however_many_samples_it_has() -> None:
    records = [record(0, 1.0), record(1, 0.0)]
    records += [record(0, 1.0, kind="sampled", sample=sample) for sample in range(9)]
    records += [record(1, 0.0, kind="sampled")]
    assert summarise(records, **GSM8K)["sampled_accuracy"] == 0.5


def test_a_single_problem_and_no_samples_leave_nothing_but_none() -> None:
    summary = summarise([record(0, 1.0)], **GSM8K)
    assert (summary["n"], summary["accuracy"], summary["ci95"]) == (1, 1.0, [0.2065, 1.0])
    assert {summary[f"sampled_{name}"] for name in ("reward", "reward_ci95", "mean_length")} == {None}
    assert summary["rewards"] == {}
    json.dumps(summary, allow_nan=False)


def test_another_recipe_names_its_own_rewards() -> None:
    records = [record(0, 1.0) | {"scores": {"exact_match_reward": 1.0, "tags_reward": 0.0}}]
    summary = summarise(records, correct="exact_match_reward", format="tags_reward")
    assert (summary["accuracy"], summary["format_rate"]) == (1.0, 0.0)


def test_the_loss_is_per_token_of_all_answers_together() -> None:
    summary = summarise(measured("before", [(6.0, 2), (2.0, 8), (None, 5)]), **LOSS_ALONE)
    assert (summary["n"], summary["ungraded"]) == (2, 1)
    assert summary["loss"] == 0.8  # 8 nats over 10 tokens, not the mean of 3 and 0.25
    assert summary["loss_ci95"] == [0.25, 3.0]
    assert summary["perplexity"] == 2.2255
    assert {summary[key] for key in ("accuracy", "ci95", "format_rate", "sampled_format_rate", "sampled_reward")} == {
        None
    }
    json.dumps(summary, allow_nan=False)


def test_greedy_scores_are_averaged_over_what_could_be_graded() -> None:
    scores = {"f1_reward": [0.5, 1.0, 0.0], "rare": [None, 0.0, 1.0], "empty": [None] * 3}
    summary = summarise(measured("before", [(1.0, 2)] * 3, scores), **LOSS_ALONE)
    assert summary["scores"] == {"f1_reward": 0.5, "rare": 0.5, "empty": None}
    summary = summarise(measured("before", [(1.0, 2)] * 3, scores), correct="f1_reward", format=None)
    assert (summary["n"], summary["accuracy"], summary["format_rate"]) == (3, 0.3333, None)
    assert (summary["loss"], summary["scores"]["rare"]) == (0.5, 0.5)


def test_scores_that_a_reward_sums_up_are_not_told_twice() -> None:
    records = stage("before", [1.0, 0.0])
    for greedy in records[::3]:
        greedy["scores"] = greedy["scores"] | {"likeliest_option": 1.0}
    summary = summarise(records, **GSM8K)
    assert side_scores([summary], "correctness_reward", "structure_reward", (), None) == ["likeliest_option"]
    alone = summarise(measured("before", [(1.0, 2)], {"exact_match_reward": [1.0], "f1_reward": [0.5]}), **LOSS_ALONE)
    assert side_scores([alone], "exact_match_reward", None, (), None) == ["f1_reward"]
    beside = ["structure_reward", "of_another_recipe"]
    assert side_scores([summary], "correctness_reward", "steps_reward", beside, None) == [
        "structure_reward",
        "likeliest_option",
    ]


def test_every_score_has_an_interval_over_problems() -> None:
    records = measured("before", [(1.0, 2)] * 4, {"f1_reward": [1.0, 0.0, 1.0, None], "rare": [None, 0.5, None, None]})
    summary = summarise(records, **LOSS_ALONE)
    low, high = summary["scores_ci95"]["f1_reward"]
    assert 0 <= low < summary["scores"]["f1_reward"] < high <= 1
    assert summary["scores_ci95"]["rare"] is None  # one value says nothing of its spread


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (measured("before", [(None, 4), (None, 4)]), "none of its 2 greedy completions .*every nll is None"),
        (measured("before", [(math.inf, 4)]), "problem 0: nll is inf"),
        (measured("before", [(1.0, 4), (0.0, 0)]), "problem 1: nll is over 0 tokens"),
        (measured("before", [(1.0, 4)], {"f1": [math.nan]}), "problem 0: f1 is nan"),
        (
            [*measured("before", [(1.0, 4)], {"f1": [1.0]}), record(1, 1.0)],
            "problem 1: expected a score named 'f1', found correctness_reward, structure_reward",
        ),
    ],
)
def test_where_the_loss_decides_a_stage_without_one_is_refused(records: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        summarise(records, **LOSS_ALONE)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "no records"),
        ([record(0, None), record(1, None)], "none of its 2 greedy completions could be graded"),
        ([record(0, 1.0, kind="sampled")], "none of its 0 greedy completions"),
        ([record(0, 1.0), record(1, 1.0, stage="after")], "one stage, got those of after, before"),
        ([record(3, 1.0), record(3, 0.0)], "problem 3 has more"),
        ([record(7, 1.0, scores={"tags_reward": 1.0})], "problem 7: expected a score .*found tags_reward"),
        ([record(7, math.nan)], "problem 7: correctness_reward is nan"),
        ([record(0, 1.0), record(5, 1.0, kind="sampled", reward=math.inf)], "problem 5: reward is inf"),
    ],
)
def test_unusable_records_are_refused_in_one_sentence(records: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        summarise(records, **GSM8K)


def test_a_stage_that_only_a_reward_judges() -> None:
    rewards = [[-4.0, 2.0], [None, 3.5], [None, None]]
    summary = summarise(rewarded("before", rewards, greedy=-1.5), **REWARD_ALONE)
    assert (summary["n"], summary["ungraded"]) == (2, 1)
    assert summary["sampled_reward"] == 1.25  # -1 and 3.5: problems weigh the same, any real number will do
    assert summary["sampled_reward_ci95"] == [-1.0, 3.5]
    assert (summary["greedy_reward"], summary["rewards"]) == (-1.5, {"pairrm_reward": 0.5})
    unmeasured = ("accuracy", "ci95", "loss", "loss_ci95", "perplexity", "sampled_accuracy", "format_rate")
    assert {summary[key] for key in unmeasured} == {None}
    assert side_scores([summary], None, None, (), None) == []
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([record(0, 1.0), record(1, 0.0)], "none of its 0 sampled completions has a reward .*: sample every problem"),
        (rewarded("before", [[None], [None]]), "none of its 2 sampled completions has a reward"),
        (rewarded("before", [[1.0], [math.inf]]), "problem 1: (pairrm_)?reward is inf"),
    ],
)
def test_where_the_reward_decides_a_stage_without_one_is_refused(records: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        summarise(records, **REWARD_ALONE)


def test_a_stage_without_text_has_no_lengths() -> None:
    """A reward model's."""
    silent = [record(index, None, tokens=0, scores={PREFERENCE: 1.0}) for index in range(3)]
    summary = summarise(silent, **PREFERRED)
    assert (summary["accuracy"], summary["mean_length"], summary["truncation_rate"]) == (1.0, None, None)
    silent[1]["completion"] = "Yes."
    summary = summarise(silent, **PREFERRED)
    assert (summary["mean_length"], summary["truncation_rate"]) == (0.0, 0.0)


def test_a_guard_is_measured_where_it_is_asked() -> None:
    summary = summarise(safety("before", [1.0, 0.0, None], [1.0, 1.0, 0.5, 0.0]), **GUARDED)
    assert (summary["n"], summary["accuracy"], summary["ungraded"]) == (2, 0.5, 1)
    assert (summary["guard_n"], summary["guard_rate"]) == (4, 0.5)  # only full marks count
    assert summary["guard_ci95"] == [round(end, 4) for end in wilson(2, 4)]
    assert side_scores([summary], "refusal", None, (), "answers_harmless") == []
    assert not {name for name in summarise(stage("before", [1.0]), **GSM8K) if name.startswith("guard")}


def test_a_guard_that_nobody_was_asked_of_guards_nothing() -> None:
    with pytest.raises(ValueError, match=r"^stage 'before': none of its 2 greedy .*every answers_harmless is None"):
        summarise(safety("before", [1.0], [None]), **GUARDED)
    before, after = safety("before", [1.0], [1.0, None]), safety("after", [1.0], [None, 1.0])
    with pytest.raises(ValueError, match=r"^stages 'before' and 'after': no problem has answers_harmless in both"):
        compare(before, after, **GUARDED)


def test_a_guard_is_compared_problem_by_problem() -> None:
    before = safety("before", [0.0] * 8, [1.0] * 9 + [0.0])
    comparison = compare(before, safety("after", [1.0] * 8, [1.0] * 7 + [0.0, None, 1.0]), **GUARDED)
    assert (comparison["n"], comparison["accuracy"]["delta"], comparison["scores"]) == (8, 1.0, {})
    guard = comparison["guard"]
    assert (guard["name"], guard["n"], guard["delta"]) == ("answers_harmless", 9, 0.0)  # one lost, one gained
    assert (guard["p"], guard["gained"], guard["lost"]) == (1.0, 1, 1)
    assert guard["ci95"][0] < 0 < guard["ci95"][1]
    json.dumps(comparison, allow_nan=False)


# Of ten problems on either side: how many are right before and after, what has changed, and the sentence's end.
WORSE, SAME_RATE, BETTER = (10, 0), (5, 5), (0, 10)
BOTH = [
    (BETTER, BETTER, 1, "it learned: accuracy got better and answers harmless got better"),
    (BETTER, SAME_RATE, 1, "it learned: accuracy got better and answers harmless did not measurably change"),
    (BETTER, WORSE, 0, "it got better at one and worse at the other"),
    (SAME_RATE, BETTER, 0, "accuracy did not measurably change and answers harmless got better"),
    (SAME_RATE, SAME_RATE, 0, "no measurable change in either"),
    (SAME_RATE, WORSE, -1, "it got worse: accuracy did not measurably change and answers harmless got worse"),
    (WORSE, BETTER, 0, "it got better at one and worse at the other"),
    (WORSE, SAME_RATE, -1, "it got worse: accuracy got worse and answers harmless did not measurably change"),
    (WORSE, WORSE, -1, "it got worse: accuracy got worse and answers harmless got worse"),
]


def of_ten(right: int) -> list[float | None]:
    return [1.0] * right + [0.0] * (10 - right)


@pytest.mark.parametrize(("refused", "answered", "found", "sentence"), BOTH)
def test_a_verdict_of_two_measures_tells_both(refused: tuple, answered: tuple, found: int, sentence: str) -> None:
    stages = [safety(name, of_ten(refused[i]), of_ten(answered[i])) for i, name in enumerate(("before", "after"))]
    comparison = compare(*stages, **GUARDED)
    assert change(comparison) == found
    said = verdict(comparison)
    assert said.endswith(f": {sentence}")
    assert said.startswith("accuracy ") and " points (95 % CI " in said
    assert said.count("n = 10)") == 2 and " and answers harmless " in said


@pytest.mark.parametrize(
    ("refused", "answered", "found", "sentence"),
    [
        (([0.0] * 10, [1.0] * 10), ([1.0] * 5, [1.0] * 5), 0,
         "accuracy got better and answers harmless has too few problems to tell"),
        (([0.0] * 10, [1.0] * 10), ([1.0] * 5, [0.0] * 5), 0,
         "accuracy got better and answers harmless has too few problems to tell"),
        (([1.0] * 10, [0.0] * 10), ([1.0], [1.0]), -1,
         "it got worse: accuracy got worse and answers harmless has too few problems to tell"),
        (([0.0] * 5, [1.0] * 5), ([1.0] * 10, [0.0] * 10), -1,
         "it got worse: accuracy has too few problems to tell and answers harmless got worse"),
        (([0.0] * 5, [1.0] * 5), ([0.0] * 10, [1.0] * 10), 0,
         "accuracy has too few problems to tell and answers harmless got better"),
        (([0.0] * 2, [1.0] * 2), ([1.0] * 3, [1.0] * 3), 0,
         "accuracy has too few problems to tell and answers harmless has too few problems to tell"),
    ],
)  # fmt: skip
def test_too_few_problems_of_one_measure_assure_nothing(
    refused: tuple, answered: tuple, found: int, sentence: str
) -> None:
    stages = [safety(name, refused[i], answered[i]) for i, name in enumerate(("before", "after"))]
    comparison = compare(*stages, **GUARDED)
    assert change(comparison) == found
    assert verdict(comparison).endswith(f"): {sentence}")


def test_a_guard_stands_beside_a_loss_too() -> None:
    def both(name: str, nats: float, answered: float) -> list[dict[str, Any]]:
        return measured(name, [(nats, 2)] * 8, {"answers_harmless": [answered] * 8})

    guarded = LOSS_ALONE | {"guard": "answers_harmless"}
    comparison = compare(both("before", 4.0, 1.0), both("after", 2.0, 0.0), **guarded)
    assert change(comparison) == 0
    assert verdict(comparison).startswith(
        "held-out loss -1.000 nats/token (95 % CI -1.000 to -1.000, n = 8) and answers "
    )
    comparison = compare(both("before", 4.0, 1.0), both("after", 2.0, 1.0), **guarded)
    assert change(comparison) == 1


def test_beside_a_guard_other_stories_are_told_too() -> None:
    comparison = comparison_of(UP, LESS) | {
        "guard": {"name": "answers_harmless", "n": 40, "delta": 0.0, "ci95": [-0.1, 0.1], "p": 1.0}
    }
    assert verdict(comparison).endswith(
        "it learned: accuracy got better and answers harmless did not measurably change, but sampled reward fell by "
        "0.061 (95 % CI -0.102 to -0.021)"
    )


def test_where_nothing_was_trained_nothing_learned() -> None:
    zero, few = stage("zero-shot", [0.0] * 10), stage("few-shot", [1.0] * 10)
    assert verdict(compare(zero, few, **GSM8K), trained=False).endswith("n = 10): it got better")
    assert verdict(compare(few, zero, **GSM8K), trained=False).endswith("n = 10): it got worse")


def test_what_decided_is_told_alone() -> None:
    comparison = compare(stage("before", [0.0] * 8), stage("after", [1.0] * 8), **GSM8K)
    assert headline(comparison) == {
        **{"from": "before", "to": "after", "n": 8, "measure": "accuracy"},
        **{"delta": 1.0, "ci95": [1.0, 1.0], "p": 0.007812},
    }
    comparison = compare(measured("before", [(6.0, 2)]), measured("after", [(4.0, 2)]), **LOSS_ALONE)
    found = headline(comparison)
    assert (found["measure"], found["delta"], found["p"]) == ("loss", -1.0, None)


def test_a_loss_judges_before_a_reward_does() -> None:
    def both(name: str, nats: float, reward: float) -> list[dict[str, Any]]:
        records = rewarded(name, [[reward]] * 8)
        return [r | {"nll": nats, "nll_tokens": 2} if r["kind"] == "greedy" else r for r in records]

    comparison = compare(both("before", 4.0, 1.0), both("after", 2.0, 0.5), **LOSS_ALONE)
    assert (comparison["measure"], comparison["n"]) == ("loss", 8)
    assert verdict(comparison).endswith("it learned, but sampled reward fell by 0.500 (95 % CI -0.500 to -0.500)")


def test_comparison_counted_by_hand() -> None:
    before = stage("before", [0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0], form=0.0)
    after = stage("after", [1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, None])
    comparison = compare(before, after, **GSM8K)
    assert (comparison["from"], comparison["to"], comparison["n"]) == ("before", "after", 7)
    accuracy = comparison["accuracy"]
    assert (accuracy["gained"], accuracy["lost"], accuracy["delta"]) == (3, 1, 0.2857)
    assert accuracy["p"] == 0.625  # 2 * (1 + 4) / 2**4
    assert accuracy["ci95"][0] < 0 < accuracy["ci95"][1]
    assert comparison["format_rate"] == {"delta": 1.0, "ci95": [1.0, 1.0]}
    assert comparison["sampled_reward"]["delta"] == 1.25  # +2, +2, +2, 0, +1, +1, +1, +1 over eight problems
    assert comparison["sampled_accuracy"]["delta"] == 0.2857
    json.dumps(comparison, allow_nan=False)


def test_losses_and_scores_are_compared_problem_by_problem() -> None:
    before = measured(
        "before", [(6.0, 2), (4.0, 8), (None, 5), (3.0, 3)], {"f1_reward": [0.0, 0.5, 1.0, None], "old": [0.0] * 4}
    )
    after = measured(
        "after", [(4.0, 2), (3.0, 8), (1.0, 5), (None, 3)], {"new": [1.0] * 4, "f1_reward": [1.0, 0.5, 1.0, 1.0]}
    )
    comparison = compare(before, after, **LOSS_ALONE)
    assert (comparison["measure"], comparison["n"]) == ("loss", 2)
    assert comparison["loss"] == {"delta": -0.3, "ci95": [-1.0, -0.125]}  # -3 nats over 10 tokens
    assert comparison["scores"] == {"f1_reward": {"delta": 0.3333, "ci95": [0.0, 1.0]}}
    assert set(comparison["accuracy"].values()) == {None}
    assert comparison["format_rate"] == comparison["sampled_reward"] == {"delta": None, "ci95": None}
    json.dumps(comparison, allow_nan=False)


def test_rewards_are_compared_problem_by_problem() -> None:
    before = rewarded("before", [[-4.0, 2.0], [3.0, 3.0], [1.0, None], [None, None]], greedy=0.5)
    after = rewarded("after", [[1.0, 2.0], [4.0, 5.0], [None, None], [9.0, 9.0]], greedy=0.75)
    comparison = compare(before, after, **REWARD_ALONE)
    assert (comparison["measure"], comparison["n"]) == ("sampled_reward", 2)
    assert comparison["sampled_reward"] == {"delta": 2.0, "ci95": [1.5, 2.5]}
    assert comparison["scores"] == {"pairrm_reward": {"delta": 0.25, "ci95": [0.25, 0.25]}}
    assert {*comparison["accuracy"].values(), comparison["loss"]["delta"], comparison["loss"]["ci95"]} == {None}
    json.dumps(comparison, allow_nan=False)
    with pytest.raises(ValueError, match="no problem was graded in both"):
        compare(rewarded("before", [[1.0], [None]]), rewarded("after", [[None], [1.0]]), **REWARD_ALONE)


def test_with_a_right_answer_the_loss_is_a_second_figure() -> None:
    scores = {"exact_match_reward": [0.0] * 8, "f1_reward": [0.5] * 8}
    before = measured("before", [(4.0, 2)] * 8, scores)
    after = measured("after", [(2.0, 2)] * 8, scores | {"exact_match_reward": [1.0] * 8})
    comparison = compare(before, after, correct="exact_match_reward", format=None)
    assert (comparison["measure"], comparison["accuracy"]["gained"]) == ("accuracy", 8)
    assert comparison["scores"].keys() == {"f1_reward"}
    assert comparison["loss"]["delta"] == -1.0
    assert verdict(comparison).endswith("n = 8): it learned")


def test_a_gold_answer_of_other_tokens_is_not_compared() -> None:
    with pytest.raises(ValueError, match="problem 1 was 8 tokens at stage 'before' and 9 at 'after': measure both"):
        compare(measured("before", [(1.0, 2), (1.0, 8)]), measured("after", [(1.0, 2), (1.0, 9)]), **LOSS_ALONE)
    with pytest.raises(ValueError, match="no problem was graded in both"):
        compare(measured("before", [(1.0, 2), (None, 8)]), measured("after", [(None, 2), (1.0, 8)]), **LOSS_ALONE)


def preferences(name: str, marks: list[float | None]) -> list[dict[str, Any]]:
    return [record(index, None, stage=name, scores={PREFERENCE: mark}) for index, mark in enumerate(marks)]


PREFERRED: dict[str, Any] = {"correct": PREFERENCE, "format": None}


def test_a_tied_preference_is_half_a_point() -> None:
    summary = summarise(preferences("before", [0.5] * 8 + [None]), **PREFERRED)
    assert (summary["n"], summary["ungraded"], summary["accuracy"]) == (8, 1, 0.5)
    assert summary["ci95"] == [round(end, 4) for end in wilson(4, 8)]
    assert summarise(preferences("before", [1.0, 0.5, 0.0, 0.0]), **PREFERRED)["accuracy"] == 0.375


def test_from_chance_to_a_preference_is_a_sign_test() -> None:
    before = preferences("before", [0.5] * 12)
    found = compare(before, preferences("after", [1.0] * 9 + [0.5] + [0.0] * 2), **PREFERRED)["accuracy"]
    assert (found["gained"], found["lost"], found["delta"]) == (9, 2, 0.2917)  # (9 - 2) / 2 of 12
    assert found["p"] == round(2 * (1 + 11 + 55) / 2**11, 5)
    later = compare(
        preferences("before", [0.0, 0.5, 1.0, 1.0]), preferences("after", [0.5, 1.0, 0.5, 1.0]), **PREFERRED
    )
    assert (later["accuracy"]["gained"], later["accuracy"]["lost"], later["accuracy"]["delta"]) == (2, 1, 0.125)


@pytest.mark.parametrize(("name", "accuracy"), [(PREFERENCE, 0.3), ("f1_reward", 0.2)])
def test_partial_credit_is_no_point(name: str, accuracy: float) -> None:
    records = [record(index, None, scores={name: mark}) for index, mark in enumerate([1.0, 0.7, 0.5, 0.3, 0.0])]
    assert summarise(records, correct=name, format=name)["accuracy"] == accuracy


def test_a_half_formed_completion_is_not_well_formed() -> None:
    assert summarise([record(0, 1.0, form=0.5), record(1, 1.0)], **GSM8K)["format_rate"] == 0.5


def test_turning_a_comparison_round_turns_its_signs() -> None:
    rng = random.Random(2)
    before = stage("before", [float(rng.random() < 0.2) for _ in range(50)])
    after = stage("after", [float(rng.random() < 0.6) for _ in range(50)])
    there, back = compare(before, after, **GSM8K), compare(after, before, **GSM8K)
    for measure in ("accuracy", "sampled_reward", "sampled_accuracy"):
        low, high = there[measure]["ci95"]
        assert back[measure]["delta"] == -there[measure]["delta"]
        assert back[measure]["ci95"] == pytest.approx([-high, -low], abs=0.021)  # one problem in fifty
    assert back["accuracy"]["p"] == there["accuracy"]["p"]


def test_pairing_is_what_makes_a_small_gain_visible() -> None:
    """Eight of 64 newly solved, none lost: the Wilson intervals overlap, the paired one is clear of zero."""
    outcomes = [1.0] * 30 + [0.0] * 34
    before, after = stage("before", outcomes), stage("after", [1.0] * 38 + [0.0] * 26)
    assert summarise(before, **GSM8K)["ci95"][1] > summarise(after, **GSM8K)["ci95"][0]
    comparison = compare(before, after, **GSM8K)
    assert change(comparison) == 1
    assert verdict(comparison).endswith("it learned")


@pytest.mark.parametrize(
    "after",
    [
        stage("after", [1.0, 0.0]),
        stage("after", [1.0, 0.0, 1.0, 1.0]),
        stage("after", [1.0, 0.0, 1.0], question="another question"),
    ],
)
def test_different_problems_are_not_compared(after: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="different problems"):
        compare(stage("before", [0.0, 0.0, 0.0]), after, **GSM8K)


def test_nothing_graded_on_both_sides_is_not_compared() -> None:
    with pytest.raises(ValueError, match="no problem was graded in both"):
        compare(stage("before", [1.0, None]), stage("after", [None, 1.0]), **GSM8K)


def test_no_change_at_all_is_zero_without_a_minus_sign() -> None:
    comparison = compare(
        stage("before", [1.0, 0.0] * 8, reward=0.1 + 0.2), stage("after", [1.0, 0.0] * 8, reward=0.3), **GSM8K
    )
    assert comparison["accuracy"] == {"delta": 0.0, "ci95": [0.0, 0.0], "p": 1.0, "gained": 0, "lost": 0}
    assert "-0.0" not in json.dumps(comparison)  # though 0.3 - (0.1 + 0.2) is -5.6e-17
    assert verdict(comparison) == ("accuracy +0.0 points (95 % CI +0.0 to +0.0, p = 1, n = 16): no measurable change")


def test_a_small_p_is_not_rounded_to_zero() -> None:
    comparison = compare(stage("before", [0.0] * 40), stage("after", [1.0] * 40), **GSM8K)
    assert comparison["accuracy"]["p"] == pytest.approx(2 / 2**40, rel=1e-3)
    assert verdict(comparison) == ("accuracy +100.0 points (95 % CI +100.0 to +100.0, p < 0.0001, n = 40): it learned")


def test_fewer_than_six_problems_decide_nothing() -> None:
    five = compare(stage("before", [0.0] * 5), stage("after", [1.0] * 5), **GSM8K)
    six = compare(stage("before", [0.0] * 6), stage("after", [1.0] * 6), **GSM8K)
    assert verdict(five).endswith("p = 0.062, n = 5): too few problems to tell")
    assert verdict(six).endswith("p = 0.031, n = 6): it learned")
    one = compare(stage("before", [0.0]), stage("after", [1.0]), **GSM8K)
    assert one["accuracy"]["ci95"] is None
    assert verdict(one) == "accuracy +100.0 points (p = 1, n = 1): too few problems to tell"


def comparison_of(accuracy: tuple, reward: tuple, sampled: tuple = (0.0, -0.1, 0.1)) -> dict[str, Any]:
    """A comparison over 64 problems; each measure is (delta, low, high), accuracy with p as a fourth."""
    return {
        "measure": "accuracy",
        "n": 64,
        "loss": {"delta": None, "ci95": None},
        "accuracy": {"delta": accuracy[0], "ci95": list(accuracy[1:3]), "p": accuracy[3]},
        "sampled_reward": {"delta": reward[0], "ci95": list(reward[1:])},
        "sampled_accuracy": {"delta": sampled[0], "ci95": list(sampled[1:])},
    }


UP, FLAT, DOWN = (0.2344, 0.1406, 0.3281, 0.0002), (0.01, -0.05, 0.07, 0.8), (-0.2, -0.3, -0.1, 0.001)
MORE, SAME, LESS = (0.061, 0.021, 0.102), (0.01, -0.02, 0.04), (-0.061, -0.102, -0.021)
UP_TEXT = "accuracy +23.4 points (95 % CI +14.1 to +32.8, p = 0.0002, n = 64)"
FLAT_TEXT = "accuracy +1.0 points (95 % CI -5.0 to +7.0, p = 0.8, n = 64)"
DOWN_TEXT = "accuracy -20.0 points (95 % CI -30.0 to -10.0, p = 0.001, n = 64)"


@pytest.mark.parametrize(
    ("accuracy", "reward", "sampled", "sentence"),
    [
        (UP, MORE, SAME, f"{UP_TEXT}: it learned"),
        (UP, SAME, SAME, f"{UP_TEXT}: it learned"),
        (UP, LESS, SAME, "it learned, but sampled reward fell by 0.061 (95 % CI -0.102 to -0.021)"),
        (FLAT, SAME, SAME, f"{FLAT_TEXT}: no measurable change"),
        (FLAT, MORE, SAME, "no measurable change in greedy accuracy, but sampled reward rose by 0.061"),
        (
            FLAT,
            MORE,
            LESS,
            "(95 % CI +0.021 to +0.102) and sampled accuracy fell by 6.1 points (95 % CI ",
        ),
        (FLAT, LESS, SAME, "no measurable change in greedy accuracy, but sampled reward fell by 0.061"),
        (DOWN, LESS, SAME, f"{DOWN_TEXT}: it got worse"),
        (DOWN, MORE, SAME, "it got worse, but sampled reward rose by 0.061"),
        # an interval just clear of zero does not outvote the exact test
        ((0.08, 0.002, 0.16, 0.07), SAME, SAME, "p = 0.07, n = 64): no measurable change"),
    ],
)
def test_verdict_claims_no_more_than_it_may(accuracy: tuple, reward: tuple, sampled: tuple, sentence: str) -> None:
    said = verdict(comparison_of(accuracy, reward, sampled))
    assert sentence in said
    assert sentence == said or not sentence.startswith("accuracy")


FELL, ROSE = (-0.412, -0.5, -0.3), (0.412, 0.3, 0.5)


@pytest.mark.parametrize(
    ("loss", "n", "sentence", "found"),
    [
        (FELL, 64, "held-out loss -0.412 nats/token (95 % CI -0.500 to -0.300, n = 64): it learned", 1),
        (ROSE, 64, "held-out loss +0.412 nats/token (95 % CI +0.300 to +0.500, n = 64): it got worse", -1),
        ((-0.1, -0.3, 0.1), 64, "(95 % CI -0.300 to +0.100, n = 64): no measurable change", 0),
        (FELL, 5, "n = 5): too few problems to tell", 0),
    ],
)
def test_where_nothing_is_right_or_wrong_the_loss_decides(loss: tuple, n: int, sentence: str, found: int) -> None:
    comparison = comparison_of((None, None, None, None), SAME) | {
        "measure": "loss",
        "n": n,
        "loss": {"delta": loss[0], "ci95": list(loss[1:])},
    }
    assert verdict(comparison).endswith(sentence)
    assert change(comparison) == found


@pytest.mark.parametrize(
    ("reward", "n", "sentence", "found"),
    [
        ((0.812, 0.512, 1.113), 48, "sampled reward +0.812 (95 % CI +0.512 to +1.113, n = 48): it learned", 1),
        ((-3.5, -4.0, -3.0), 48, "sampled reward -3.500 (95 % CI -4.000 to -3.000, n = 48): it got worse", -1),
        ((0.1, -0.1, 0.3), 48, "sampled reward +0.100 (95 % CI -0.100 to +0.300, n = 48): no measurable change", 0),
        (
            (0.812, 0.512, 1.113),
            5,
            "sampled reward +0.812 (95 % CI +0.512 to +1.113, n = 5): too few problems to tell",
            0,
        ),
    ],
)
def test_where_there_is_no_loss_either_the_reward_decides(reward: tuple, n: int, sentence: str, found: int) -> None:
    comparison = comparison_of((None, None, None, None), reward, (None, None, None)) | {
        "measure": "sampled_reward",
        "n": n,
        "sampled_accuracy": {"delta": None, "ci95": None},
    }
    assert verdict(comparison) == sentence
    assert change(comparison) == found


@pytest.mark.parametrize(
    ("accuracy", "loss", "sentence"),
    [
        (UP, FELL, "it learned"),
        (UP, ROSE, "it learned, but held-out loss rose by 0.412 nats/token (95 % CI +0.300 to +0.500)"),
        (FLAT, FELL, "no measurable change in greedy accuracy, but held-out loss fell by 0.412 nats/token"),
        (DOWN, FELL, "it got worse, but held-out loss fell by 0.412 nats/token (95 % CI -0.500 to -0.300)"),
    ],
)
def test_a_loss_that_tells_another_story_than_accuracy_is_told(accuracy: tuple, loss: tuple, sentence: str) -> None:
    comparison = comparison_of(accuracy, SAME) | {"loss": {"delta": loss[0], "ci95": list(loss[1:])}}
    assert verdict(comparison).partition("): ")[2].startswith(sentence)


def test_one_problem_has_a_loss_and_no_interval() -> None:
    comparison = compare(measured("before", [(6.0, 2)]), measured("after", [(4.0, 2)]), **LOSS_ALONE)
    assert verdict(comparison) == "held-out loss -1.000 nats/token (n = 1): too few problems to tell"
    comparison = compare(rewarded("before", [[1.0]]), rewarded("after", [[2.0]]), **REWARD_ALONE)
    assert verdict(comparison) == "sampled reward +1.000 (n = 1): too few problems to tell"
    assert change(comparison) == 0


@pytest.mark.parametrize(
    ("p", "text"), [(1.0, "p = 1"), (0.0318, "p = 0.032"), (0.0001, "p = 0.0001"), (9e-5, "p < 0.0001")]
)
def test_p_values_read_as_people_write_them(p: float, text: str) -> None:
    assert format_p(p) == text


def test_importing_the_evaluation_costs_no_heavy_library() -> None:
    code = (
        "import sys, eval.files, eval.metrics, eval.report\n"
        "print([name for name in ('numpy', 'scipy', 'matplotlib', 'jinja2', 'torch') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
