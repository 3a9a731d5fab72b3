"""TriviaQA without its evidence: quiz questions answered from memory (Joshi et al. 2017, arXiv:1705.03551).

Hub id `mandarjoshi/trivia_qa`, config `rc.nocontext`, revision 0f7faf33a3908546c6fd5b73a660e0f8ff173c2f, licence
unknown; 138,384 train, 17,944 validation and 17,210 test rows. A raw row, less the fields that are empty or unused:

    {"question": "Which river flows through Cairo?", "question_id": "...",
     "answer": {"value": "The Nile", "aliases": ["Nile", "River Nile"], "type": "WikipediaEntity", ...}}

Quirks: the answers of the hub's test split are placeholders, so that our test split is the hub's validation. A row
is a question with the source of its evidence, web or Wikipedia; with the evidence gone, a question found in both
stands there twice.

`load` emits `prompt`, `completion`, `question`, `answer` (`value`) and `aliases` (every accepted answer).
"""

from typing import TYPE_CHECKING

from data.prompts import answer_messages, short_answer_messages
from data.source import BadRow, Row, Spec, Split, read, text, texts

if TYPE_CHECKING:
    from datasets import Dataset

TRIVIAQA = Spec(
    name="TriviaQA",
    hub_id="mandarjoshi/trivia_qa",
    hub_config="rc.nocontext",
    hub_revision="0f7faf33a3908546c6fd5b73a660e0f8ff173c2f",
    hub_test="validation",
    raw_row='{"question": "...", "answer": {"value": "...", "aliases": ["...", "..."]}}',
)
PLACEHOLDER = "<unk>"


def load(split: Split, *, limit: int | None = None, source: str = "hub") -> "Dataset":
    """The questions of one split, in their original order.

    Args:
        split: "train" or "test", which is the hub's validation split.
        limit: how many, from the first; at least 1, None for all. If there are fewer, all: a line says so.
        source: "hub", "sample" (48 train and 24 test questions), a file or a folder; see `data.source.read`.

    Returns:
        Columns `prompt` (a user message), `completion` (an assistant message: the answer), `question`, `answer`
        and `aliases`: the answer, then the others, each once.

    Raises:
        ValueError: unusable row, file, source or limit, in one sentence that says where and what to do.
    """
    return read(TRIVIAQA, _parse_row, split, limit=limit, source=source)


def _parse_row(raw: Row) -> Row:
    question, answer = text(raw, "question"), text(raw, "answer.value")
    if answer == PLACEHOLDER:
        raise BadRow(f"has the placeholder {PLACEHOLDER!r} for an answer, as all of the hub's test split has")
    return {
        "prompt": short_answer_messages(question),
        "completion": answer_messages(answer),
        "question": question,
        "answer": answer,
        "aliases": list(dict.fromkeys([answer, *texts(raw, "answer.aliases")])),
    }
