"""Weekdays: which day of the week it is some days after or before another. Our own, and all there are.

Not on the hub: `weekdays.jsonl` beside this module holds 7 days x 18 distances, 2 to 10 days in either direction, under
the licence of this repository. A raw row, negative where the wanted day lies before:

    {"day": "Monday", "days": -3}

Quirks: one row in nine goes round the whole week and ends on the day it began on.

`load` emits `prompt`, `question`, `answer` (the day), `aliases` (that day alone) and `days` (those counted through, in
their order); `worked_examples` emits `prompt` and `completion`.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from data.prompts import answer_messages, rag_messages
from data.source import BadRow, Row, Spec, Split, check_limit, field, first, read, text
from rewards import tags

if TYPE_CHECKING:
    from datasets import Dataset

ROWS = Path(__file__).with_suffix(".jsonl")
WEEK = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
WEEKDAYS = Spec(name="Weekdays", hub_id="", hub_config=None, hub_revision=None, raw_row='{"day": "Monday", "days": -3}')


def load(split: Split, *, limit: int | None = None, source: str = "sample") -> "Dataset":
    """The questions of one split, in their original order; one row in ten is held out, by a hash of the question.

    Args:
        split: "train" or "test".
        limit: how many, from the first; at least 1, None for all. If there are fewer, all: a line says so.
        source: "sample", the rows that ship with this module, a file or a folder; see `data.source.read`.

    Raises:
        ValueError: unusable row, file, source or limit, in one sentence that says where and what to do.
    """
    if source == "hub":
        raise ValueError("the weekdays are not on the hub: pass --source sample or a file of your own")
    return read(WEEKDAYS, _parse_row, split, limit=limit, source=str(ROWS) if source == "sample" else source)


def worked_examples(dataset: "Dataset", limit: int | None = None) -> "Dataset":
    """What a warm start imitates: the first `limit` questions of `load`, counted out in the tag format."""
    check_limit(limit)
    rows = first(dataset.to_list(), limit, "worked examples")

    from datasets import Dataset

    completions = [answer_messages(tags.render(_counted(row), row["answer"])) for row in rows]
    return Dataset.from_dict({"prompt": [row["prompt"] for row in rows], "completion": completions})


def _counted(row: Row) -> str:
    return f"I count {len(row['days'])} days, one at a time.\nThese {len(row['days'])} are {', '.join(row['days'])}."


def _parse_row(raw: Row) -> Row:
    day, days = text(raw, "day"), field(raw, "days", int)
    if day not in WEEK:
        raise BadRow(f"has the 'day' {day[:60]!r}, which is none of {', '.join(WEEK)}")
    if abs(days) < 2:
        raise BadRow(f"has {days} 'days', not two or more in either direction")
    sign = 1 if days > 0 else -1
    passed = [WEEK[(WEEK.index(day) + sign * n) % 7] for n in range(1, abs(days) + 1)]
    question = f"Which day of the week is {abs(days)} days {'after' if days > 0 else 'before'} {day}?"
    return {
        "prompt": rag_messages(question),
        "question": question,
        "answer": passed[-1],
        "aliases": [passed[-1]],
        "days": passed,
    }
