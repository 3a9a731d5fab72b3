import random
from typing import Any

import pytest

from eval.displacement import STANDARD_ERRORS, describe_fall, find_fall


def lines(chosen: list[float | None], rejected: list[float | None]) -> list[dict[str, Any]]:
    pairs = zip(chosen, rejected, strict=True)
    return [{"step": i, "logps/chosen": a, "logps/rejected": b} for i, (a, b) in enumerate(pairs, 1)]


def slope(first: float, last: float, count: int = 50) -> list[float | None]:
    return [first + (last - first) * i / (count - 1) for i in range(count)]


def test_a_fall_of_both_is_found_with_its_means() -> None:
    fall = find_fall(lines(slope(-200, -300), slope(-100, -198)), threshold=0.2, planned=50)
    assert fall is not None
    assert fall.steps == 5
    assert fall.chosen == pytest.approx((-204.08, -295.92), abs=0.01)
    assert describe_fall(fall, remedy="a lower --learning-rate") == (
        "Both log-probabilities fell, means of the first and the latest 5 steps: chosen -204.1 to -295.9 (45 % lower) "
        "and rejected -104 to -194 (87 % lower). The model drifts away from the data, which a preference loss alone "
        "does not prevent (Pal et al. 2024, arXiv 2402.13228; Razin et al. 2024, arXiv 2410.08847): try a lower "
        "--learning-rate."
    )


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        (slope(-200, -190), slope(-200, -400)),  # what training is for
        (slope(-200, -400), slope(-200, -190)),
        (slope(-200, -230), slope(-200, -400)),  # 14 % is within the threshold
        (slope(-200, -400, 9), slope(-200, -400, 9)),  # fewer than two windows
        ([None] * 50, slope(-200, -400)),
        ([0.0] * 25 + [-1.0] * 25, slope(-200, -400)),  # no magnitude to fall by
        ([], []),
    ],
)
def test_anything_less_is_not(chosen: list[float | None], rejected: list[float | None]) -> None:
    rejected = rejected[: len(chosen)]
    assert find_fall(lines(chosen, rejected), threshold=0.2, planned=50) is None


def test_lines_that_lack_a_side_or_hold_no_number_are_passed_over() -> None:
    both = lines(slope(-200, -300), slope(-100, -200))
    for line in both[::3]:  # KTO: a batch without desirable rows
        del line["logps/chosen"]
    both[1]["logps/rejected"] = float("nan")
    assert find_fall([{"step": 0, "loss": 1.0}, *both], threshold=0.2, planned=50) is not None


def test_a_long_run_is_judged_by_a_tenth_of_its_steps() -> None:
    fallen = lines(slope(-200, -300, 400), slope(-200, -300, 400))
    fall = find_fall(fallen, threshold=0.2, planned=400)
    assert fall is not None and fall.steps == 40
    assert find_fall(fallen[:79], threshold=0.0, planned=400) is None


def test_batches_of_long_responses_are_no_fall() -> None:
    """Texts whose lengths vary as much as UltraFeedback's, under a model that does not move."""
    noise = random.Random(0)

    def batch() -> float:
        return -sum(noise.lognormvariate(5, 0.63) for _ in range(8)) / 8

    runs = [lines([batch() for _ in range(60)], [batch() for _ in range(60)]) for _ in range(40)]
    found = [any(find_fall(run[:end], threshold=0.05, planned=60) for end in range(61)) for run in runs]
    assert STANDARD_ERRORS == 3  # with none, 23 of these 40 would be warned about
    assert sum(found) <= 1
