"""WebGPT comparisons: two answers to a question, written with a browser at hand, and which one people preferred.

Nakano et al. 2021, arXiv:2112.09332. Hub id `openai/webgpt_comparisons`, config `default`, revision
`refs/convert/parquet` (the main revision is a loading script, which `datasets` no longer runs), no licence on its
card; one split, called train, of 19,578 rows. A raw row, less what is not used:

    {"question": {"dataset": "eli5", "id": "...", "full_text": "Why do cats purr?"},
     "answer_0": "Cats purr to ask for care [1].", "score_0": 0.5,
     "answer_1": "Some cats are ginger [1][2].", "score_1": -0.5}

Quirks: `score_0` is the negative of `score_1`, and 0 is a tie, which is left out, as are empty answers. Several rows
ask the same question: the one split is divided here by a hash of the question's text, so that no question is on
both sides, not even under two ids. Answers cite the quotes they were written from as [1] or [1, 2]; the marks are
removed. The quotes (`quotes_0`, `quotes_1`) are not read: the reference recipe trains on question -> answer, so the
prompt is the question alone, and a model cannot learn to cite what it does not see. The `comparisons.jsonl` that the
authors released has other rows, lists of two records, which are not read.

`load` emits `prompt` (a user message: the question), `chosen` and `rejected` (each one assistant message), `question`,
`answer` (the chosen text), `score_chosen` (above 0, up to 1) and `score_rejected`. The sample has 96 train and 48 test
comparisons.
"""

import re
from typing import TYPE_CHECKING

from data.preferences import pair, score
from data.source import Row, Spec, Split, field, read, text

if TYPE_CHECKING:
    from datasets import Dataset

WEBGPT = Spec(
    name="WebGPT",
    hub_id="openai/webgpt_comparisons",
    hub_config="default",
    hub_revision="refs/convert/parquet",
    hub_test="train",
    raw_row='{"question": {"full_text": "..."}, "answer_0": "...", "score_0": 0.5, "answer_1": "...", "score_1": -0.5}',
    unique_by=("question", "chosen", "rejected"),
)
# Two digits at most: [1984] is a year. The lookbehind keeps a long run of spaces from being scanned once a space.
_CITATION = re.compile(r"(?<! ) *\[\d{1,2}(?:, ?\d{1,2})*\]")


def load(split: Split, *, limit: int | None = None, source: str = "hub") -> "Dataset":
    """The comparisons of one split, in their original order; arguments and errors as in `data.source.read`."""
    return read(WEBGPT, _parse_row, split, limit=limit, source=source)


def without_citations(answer: str) -> str:
    """The answer, stripped, without marks such as [1], [1, 2] or [1][2] and the spaces before them."""
    return _CITATION.sub("", answer).strip()


def _parse_row(raw: Row) -> Row:
    question = text(raw, "question.full_text")
    sides = [(score(raw, f"score_{side}"), without_citations(field(raw, f"answer_{side}", str))) for side in (0, 1)]
    (score_chosen, chosen), (score_rejected, rejected) = sorted(sides, reverse=True)
    return pair([{"role": "user", "content": question}], chosen, rejected, score_chosen, score_rejected)
