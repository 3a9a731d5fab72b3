"""Win rates: swapped sides mirror, lengths explain what they explain, and judges that cannot be trusted are refused."""

import json
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest

from eval.winrate import at_equal_length, describe, win_rate

# A division by zero inside scipy would be a NaN in somebody's results.json.
pytestmark = pytest.mark.filterwarnings("error")


def by_length(prompts: Sequence[Any], first: Sequence[str], second: Sequence[str]) -> list[float]:
    """A judge certain of the longer text, and undecided between texts of as many words."""
    differences = [len(a.split()) - len(b.split()) for a, b in zip(first, second, strict=True)]
    return [((d > 0) - (d < 0) + 1) / 2 for d in differences]


def sentences(rng: random.Random, n: int, longest: int = 40) -> list[str]:
    return [" ".join(rng.choices("abcdefgh", k=rng.randint(1, longest))) for _ in range(n)]


def test_win_rate_counted_by_hand() -> None:
    prompts = ["p0", "p1", "p2", "p3", "p4"]
    before = ["one", "one two", "same", "a b c", "x y"]
    after = ["one two three", "one", "same", "a b c d", "y x"]
    asked: list[tuple[Any, str, str]] = []

    def prefer(prompts: Sequence[Any], first: Sequence[str], second: Sequence[str]) -> list[float]:
        asked.extend(zip(prompts, first, second, strict=True))
        return by_length(prompts, first, second)

    found = win_rate(prompts, before, after, prefer)
    interval = found.pop("ci95")
    assert found == {
        "n": 5,
        "unjudged": 0,
        "wins": 2,
        "ties": 2,
        "losses": 1,
        "rate": 0.6,
        "length_controlled_rate": None,
        "length_controlled_ci95": None,
        "order_disagreement": 0.0,
        "before_mean_length": 1.8,
        "after_mean_length": 2.2,
        "length_unit": "words",
    }
    assert interval[0] < 0.6 < interval[1]
    kept = [(p, new, old) for p, old, new in zip(prompts, before, after, strict=True) if p != "p2"]
    assert asked == kept + [(p, old, new) for p, new, old in kept]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("seed", range(5))
def test_swapping_the_sides_mirrors_the_rate(seed: int) -> None:
    rng = random.Random(seed)
    before, after = sentences(rng, 60), sentences(rng, 60, longest=60)
    after[:5] = before[:5]

    def unsure(prompts: Sequence[Any], first: Sequence[str], second: Sequence[str]) -> list[float]:
        """Leans to the longer text and to the first, and rolls dice that depend on the pair alone."""
        lean = [0.05 * (len(a) - len(b)) + 0.3 for a, b in zip(first, second, strict=True)]
        dice = [random.Random(f"{a}|{b}").gauss(0, 2) for a, b in zip(first, second, strict=True)]
        return [1 / (1 + math.exp(-x - y)) for x, y in zip(lean, dice, strict=True)]

    there = win_rate(range(60), before, after, unsure)
    back = win_rate(range(60), after, before, unsure)
    assert (back["wins"], back["ties"], back["losses"]) == (there["losses"], there["ties"], there["wins"])
    assert back["order_disagreement"] == there["order_disagreement"] > 0
    for name in ("rate", "length_controlled_rate"):
        assert back[name] == pytest.approx(1 - there[name], abs=2e-4)
    low, high = there["length_controlled_ci95"]
    assert back["length_controlled_ci95"] == pytest.approx([1 - high, 1 - low], abs=2e-4)
    assert (back["before_mean_length"], back["after_mean_length"]) == (
        there["after_mean_length"],
        there["before_mean_length"],
    )


def test_a_judge_of_length_alone_finds_nothing_at_equal_length() -> None:
    rng = random.Random(0)
    before, after = sentences(rng, 200), sentences(rng, 200, longest=60)
    found = win_rate(range(200), before, after, by_length)
    assert found["rate"] > 0.6
    assert found["length_controlled_rate"] == pytest.approx(0.5, abs=0.1)
    low, high = found["length_controlled_ci95"]
    assert low < 0.5 < high


def test_length_control_recovers_an_even_match_from_judges_who_lean_to_length() -> None:
    """The tuned responses are the longer ones by a standard deviation, and nothing but length sways the outcome."""
    rng = random.Random(1)
    plain, controlled = [], []
    for _ in range(40):
        differences = [rng.gauss(30, 30) for _ in range(200)]
        points = [float(rng.random() < 1 / (1 + math.exp(-2 * math.tanh(d / 30)))) for d in differences]
        plain.append(sum(points) / 200)
        controlled.append(at_equal_length(points, differences)[0])
    assert sum(plain) / 40 > 0.7
    assert sum(controlled) / 40 == pytest.approx(0.5, abs=0.03)


def test_length_control_leaves_a_win_that_length_does_not_explain() -> None:
    rng = random.Random(2)
    differences = [rng.gauss(0, 30) for _ in range(400)]
    points = [float(rng.random() < 0.7) for _ in differences]
    rate, low, high = at_equal_length(points, differences)
    assert rate == pytest.approx(sum(points) / 400, abs=0.01)
    assert 0.5 < low < 0.7 < high < 0.8


@pytest.mark.parametrize(
    ("points", "differences", "rate"),
    [
        ([0.0, 1.0] * 10, [-5, 5] * 10, 0.5),  # separable: finite for the ridge alone
        ([1.0] * 20, [0] * 20, 0.98),
        ([0.5] * 20, list(range(-10, 10)), 0.5),
    ],
)
def test_length_control_stays_finite(points: list[float], differences: list[float], rate: float) -> None:
    found, low, high = at_equal_length(points, differences)
    assert found == pytest.approx(rate, abs=0.01)
    assert 0 < low < found < high < 1


@pytest.mark.parametrize("differences", [[1] * 19, [0] * 19, [3] * 20, [-1, -9] * 10])
def test_length_control_does_not_extrapolate(differences: list[float]) -> None:
    assert at_equal_length([1.0] * len(differences), differences) is None


def test_a_judge_of_positions_alone_finds_nothing_but_ties() -> None:
    found = win_rate("abcd", ["1"] * 4, ["2"] * 4, lambda prompts, first, second: [0.9] * 4)
    assert (found["ties"], found["rate"], found["order_disagreement"]) == (4, 0.5, 1.0)


def test_probabilities_of_both_orders_are_averaged() -> None:
    """Whoever is first wins; the tuned response wins more clearly when it is."""
    found = win_rate("a", ["base"], ["tuned"], lambda prompts, first, second: [0.9 if first == ["tuned"] else 0.6])
    assert (found["wins"], found["order_disagreement"], found["ci95"]) == (1, 1.0, None)


def test_the_same_responses_are_ties_that_nobody_is_asked_about() -> None:
    def never(*columns: Any) -> list[float]:
        raise AssertionError("asked about a pair of equal responses")

    found = win_rate(["p"] * 30, ["same words"] * 30, ["same words"] * 30, never)
    assert (found["ties"], found["rate"], found["ci95"], found["order_disagreement"]) == (30, 0.5, [0.5, 0.5], None)
    assert found["length_controlled_rate"] == 0.5


def test_pairs_without_a_verdict_in_either_order_are_left_out_and_counted() -> None:
    def prefer(prompts: Sequence[Any], first: Sequence[str], second: Sequence[str]) -> list[float | None]:
        failed = [row in {("p0", "b"), ("p1", "aaa")} for row in zip(prompts, first, strict=True)]
        return [None if no else x for no, x in zip(failed, by_length(prompts, first, second), strict=True)]

    found = win_rate(["p0", "p1", "p2", "p3"], ["a", "a", "a", "a"], ["b", "aaa", "b b b", "a"], prefer)
    assert (found["n"], found["unjudged"], found["wins"], found["ties"], found["rate"]) == (2, 2, 1, 1, 0.75)
    assert (found["after_mean_length"], found["order_disagreement"]) == (2.0, 0.0)
    assert "; 2 pairs without a verdict left out; " in describe(found)
    assert win_rate("ab", ["x", "y"], ["xx", "yy"], lambda *columns: [None, None]) is None


def test_lengths_are_tokens_where_they_are_known() -> None:
    found = win_rate("ab", ["x", "y"], ["xx", "yy"], by_length, tokens=([3, 5], [10, 20]))
    assert (found["before_mean_length"], found["after_mean_length"], found["length_unit"]) == (4.0, 15.0, "tokens")


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        (([], [], []), "got 0 prompts"),
        ((["p"], ["a"], ["b", "c"]), "got 1 prompts, 1 and 2 responses, 1 and 2 lengths"),
        ((["p", "q"], ["a"], ["b"]), "got 2 prompts, 1 and 1 responses"),
    ],
)
def test_sides_that_do_not_pair_are_refused(sides: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        win_rate(*sides, by_length)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([0.5], "1 answers on 2 pairs"),
        ([0.5, 1.2], "answer on pair 1 is 1.2, expected a probability"),
        ([math.nan, 0.5], "answer on pair 0 is nan"),
    ],
)
def test_a_judge_whose_answers_are_no_probabilities_is_refused(answers: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        win_rate("ab", ["x", "y"], ["xx", "yy"], lambda *columns: answers)


def test_the_rate_is_never_told_without_both_lengths() -> None:
    found = {
        "n": 64,
        "unjudged": 0,
        "wins": 38,
        "ties": 4,
        "losses": 22,
        "rate": 0.625,
        "ci95": [0.5078, 0.7344],
        "length_controlled_rate": 0.581,
        "length_controlled_ci95": [0.45, 0.7],
        "order_disagreement": 0.125,
        "before_mean_length": 61.0,
        "after_mean_length": 84.25,
        "length_unit": "words",
    }
    assert describe(found) == (
        "tuned over base responses: win rate 62.5 % (95 % CI 50.8 to 73.4; 38 wins, 4 ties, 22 losses; 84.2 words on "
        "average against the base's 61.0; 58.1 % at equal length, 95 % CI 45.0 to 70.0; the order changed the judge's "
        "mind in 12 % of pairs)"
    )
    assert describe(win_rate("p", ["a b"], ["a b"], by_length)) == (
        "tuned over base responses: win rate 50.0 % (0 wins, 1 ties, 0 losses; 2.0 words on average against the "
        "base's 2.0)"
    )
