"""GSM8K: grade-school math word problems of two to eight steps (Cobbe et al. 2021, arXiv:2110.14168).

Hub id `openai/gsm8k`, config `main`, revision 740312add88f781978c0658806c59bc2815b9866, licence MIT;
7,473 train and 1,319 test rows. A raw row:

    {"question": "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in
                  May. How many clips did Natalia sell altogether in April and May?",
     "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\\nNatalia sold 48+24 = <<48+24=72>>72 clips
                altogether in April and May.\\n#### 72"}

Quirks: 79 train and 14 test golds have a thousands comma ("1,080") and 3 and 2 are negative, so `str.isdigit`
and string equality both misjudge them. `<<48/2=24>>` calls a calculator that no model has here; 95 train and
18 test rows hold none.

`load` emits `prompt` (a system and a user message), `question`, `answer` (the gold as written after "####") and
`solution` (the steps before it, without calculator calls; "" where there are none); `worked_examples` emits `prompt`
and `completion`. The sample has 800 train and 200 test problems, which `data.gsm8k_sample` wrote.
"""

import re
from typing import TYPE_CHECKING

from data.prompts import math_messages
from data.source import BadRow, Row, Spec, Split, check_limit, field, first, read, text
from rewards import tags
from rewards.numeric import grade_number

if TYPE_CHECKING:
    from datasets import Dataset

GSM8K = Spec(
    name="GSM8K",
    hub_id="openai/gsm8k",
    hub_config="main",
    hub_revision="740312add88f781978c0658806c59bc2815b9866",
    raw_row='{"question": "...", "answer": "...\\n#### 72"}',
)

_CALCULATOR_CALL = re.compile(r"<<[^<>\n]*>>")


def load(split: Split, *, limit: int | None = None, source: str = "hub") -> "Dataset":
    """The problems of one split, in their original order; arguments and errors as in `data.source.read`."""
    return read(GSM8K, _parse_row, split, limit=limit, source=source)


def worked_examples(dataset: "Dataset", limit: int | None = None) -> "Dataset":
    """What a warm start imitates: the first `limit` problems of `load` with steps, solved in the tag format.

    Returns columns `prompt` and `completion` (one assistant message); given these two, TRL's SFTTrainer takes
    its loss over the completion only. Prints how many problems have no steps. Raises ValueError if none has
    any, or if a solution cannot stand inside the tags.
    """
    check_limit(limit)
    rows = [row for row in dataset.to_list() if row["solution"]]
    if not rows:
        raise ValueError("no row has worked steps before its '####': add some, or do without a warm start")
    if len(rows) < len(dataset):
        missing = len(dataset) - len(rows)
        print(f"worked examples: {missing:,} of {len(dataset):,} rows have no steps and are left out")

    completions = []
    rows = first(rows, limit, "worked examples")
    for row in rows:
        text = tags.render(row["solution"], row["answer"])
        if tags.parse(text) is None:
            raise ValueError(
                f"the solution to {row['question'][:60]!r} has no words or contains a tag "
                f"({' '.join(tags.TAGS)}), so no example can be made of it: mend the row or remove it"
            )
        completions.append([{"role": "assistant", "content": text}])

    from datasets import Dataset

    return Dataset.from_dict({"prompt": [row["prompt"] for row in rows], "completion": completions})


def _parse_row(raw: Row) -> Row:
    question = text(raw, "question")
    steps, mark, gold = (part.strip() for part in field(raw, "answer", str).partition("####"))
    if not mark:
        raise BadRow("has no '####' in its answer")
    if not gold:
        raise BadRow("has nothing after the '####' of its answer")
    if grade_number(gold, gold) != 1.0:
        raise BadRow(f"has {gold[:60]!r} after its '####', which is not one number")
    solution = _CALCULATOR_CALL.sub("", steps)
    return {"prompt": math_messages(question), "question": question, "answer": gold, "solution": solution}
