"""What the sets of preference pairs share: which pairs are of use, and how KTO sees them, one response at a time."""

import math
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from data.source import BadRow, LeftOut, Row

if TYPE_CHECKING:
    from datasets import Dataset

# The weighted desirable rows are 1 to this many times the undesirable: KTO (arXiv:2402.01306), section 4; TRL's docs.
MAX_LABEL_RATIO = 4 / 3


def pair(prompt: list[dict[str, str]], chosen: str, rejected: str, score_chosen: float, score_rejected: float) -> Row:
    """The columns of one pair, as every preference set emits them: `question` is the last user message.

    Responses come stripped; scores are on whatever scale the set has, higher being better. Raises LeftOut where a
    response is empty, both are the same, or the chosen one does not have the higher score.
    """
    if not chosen or not rejected:
        raise LeftOut("have an empty response")
    if chosen == rejected:
        raise LeftOut("have the same response on both sides")
    if score_chosen == score_rejected:
        raise LeftOut("are ties")
    if score_chosen < score_rejected:
        raise LeftOut("score the rejected response above the chosen one")
    return {
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "question": prompt[-1]["content"],
        "answer": chosen,
        "score_chosen": score_chosen,
        "score_rejected": score_rejected,
    }


def score(row: Row, key: str) -> float:
    """The number at `key`, whole or not; BadRow if it is missing, another thing or not finite."""
    if key not in row:
        raise BadRow(f"has no {key!r}")
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRow(f"has a {key!r} of type {type(value).__name__}, not a number")
    try:
        number = float(value)
    except OverflowError:  # JSON's whole numbers have no bound
        number = math.inf
    if not math.isfinite(number):
        raise BadRow(f"has a {key!r} that is not a finite number")
    return number


def unpaired(dataset: "Dataset") -> "Dataset":
    """Every response of the pairs as a row of its own, in the order that TRL's KTO needs: two rows for each pair, with
    the columns `prompt`, `completion` (one assistant message) and `label` (True for chosen).

    KTO's reference point is a KL estimated on mismatched prompts and responses. TRL 1.15 gives each prompt the
    completion of the row before it, within as many consecutive rows as one device's batch holds, and never
    shuffles: a neighbour with the same prompt would be no mismatch. So a first pass takes chosen and rejected
    alternately, one of each pair, and a second pass takes the others. The responses of one pair stand as many rows
    apart as there are pairs, and any run of that many rows holds each pair once. Pairs that share a prompt are not
    moved apart.
    """
    pairs = dataset.select_columns(["prompt", "chosen", "rejected"]).to_list()
    rows = []
    for offset in (0, 1):
        for index, row in enumerate(pairs):
            label = (index + offset) % 2 == 0
            rows.append({"prompt": row["prompt"], "completion": row["chosen" if label else "rejected"], "label": label})

    from datasets import Dataset

    return Dataset.from_list(rows)


def label_weights(labels: Iterable[bool]) -> tuple[float, float]:
    """KTO's weights for an unequal number of desirable (True) and undesirable rows: (desirable, undesirable).

    The weighted counts end up in the ratio 1:1 to 4:3, desirable first. At most one weight leaves 1.0, that of the
    label there is too much of, and only as far as it must; it stays above 0. Raises ValueError where one of the two
    labels does not occur, so that no weight can balance them.
    """
    counts = Counter(map(bool, labels))
    if not counts[True] or not counts[False]:
        raise ValueError(
            f"of {counts.total():,} labels {counts[True]:,} are desirable and {counts[False]:,} undesirable: KTO "
            "learns from both kinds, so add rows of the missing one"
        )
    ratio = counts[True] / counts[False]
    return min(1.0, MAX_LABEL_RATIO / ratio), min(1.0, ratio)
