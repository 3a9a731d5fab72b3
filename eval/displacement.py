"""Whether training drives a model away from both of the responses that it learns to tell apart.

A preference loss looks at the margin between two log-probabilities, and the margin also grows while both fall:
*likelihood displacement* (Razin et al. 2024, arXiv 2410.08847; Pal et al. 2024, arXiv 2402.13228, show that DPO's loss
allows it). What they lose goes to texts that nobody preferred.
"""

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

# A batch of longer responses has lower log-probabilities though the model has not moved. Of 1,000 simulated runs of 60
# steps of 8 pairs in which nothing moved (lengths of one size as spread: 0.7 of the mean), the means alone fell by a
# tenth at some step in 60 %; by three standard errors as well, in 0.6 %.
STANDARD_ERRORS = 3


class Fall(NamedTuple):
    """Mean log-probabilities in nats, (at first, now), over `steps` logged values each."""

    chosen: tuple[float, float]
    rejected: tuple[float, float]
    steps: int


def find_fall(lines: Iterable[Mapping[str, Any]], *, threshold: float, planned: int) -> Fall | None:
    """The fall of both log-probabilities at the end of `lines`, or None where they did not both fall.

    Both must have fallen by more than the share `threshold` of their first magnitude, and by more than the spread of
    batches explains. Means are over the first and the last five logged values, or a tenth of the `planned` steps where
    that is more; before there are twice as many, nothing is found.

    `lines` are one phase of metrics.jsonl, or a trainer's `log_history`, as far as it has come: "logps/chosen" and
    "logps/rejected" in nats. A line may lack either.
    """
    lines, steps = list(lines), max(5, planned // 10)
    means = []
    for key in ("logps/chosen", "logps/rejected"):
        values = [value for line in lines if (value := line.get(key)) is not None and math.isfinite(value)]
        if len(values) < 2 * steps:
            return None
        first, last = values[:steps], values[-steps:]
        before, now = statistics.fmean(first), statistics.fmean(last)
        error = math.sqrt((statistics.variance(first) + statistics.variance(last)) / steps)
        if not before or before - now <= max(threshold * abs(before), STANDARD_ERRORS * error):
            return None
        means.append((before, now))
    chosen, rejected = means
    return Fall(chosen, rejected, steps)


def describe_fall(fall: Fall, *, remedy: str) -> str:
    """One sentence: what fell and by how much, why, and the `remedy`, such as "--sft-weight 0.1"."""
    parts = [
        f"{name} {before:.4g} to {now:.4g} ({100 * (before - now) / abs(before):.0f} % lower)"
        for name, (before, now) in (("chosen", fall.chosen), ("rejected", fall.rejected))
    ]
    return (
        f"Both log-probabilities fell, means of the first and the latest {fall.steps} steps: {' and '.join(parts)}. "
        "The model drifts away from the data, which a preference loss alone does not prevent (Pal et al. 2024, arXiv "
        f"2402.13228; Razin et al. 2024, arXiv 2410.08847): try {remedy}."
    )
