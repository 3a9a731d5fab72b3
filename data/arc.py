"""ARC-Challenge: school science questions that word overlap does not answer (Clark et al. 2018, arXiv:1803.05457).

Hub id `allenai/ai2_arc`, config `ARC-Challenge`, revision 210d026faf9955653af8916fad021475a3f00453, licence
CC BY-SA 4.0; 1,119 train, 299 validation and 1,172 test rows. A raw row:

    {"id": "...", "question": "Which of these turns sunlight into sugar?",
     "choices": {"text": ["a root", "a leaf", "a mushroom", "a worm"], "label": ["A", "B", "C", "D"]},
     "answerKey": "B"}

Quirks: some rows label their options 1 to 4 instead of A to D, and some have three or five options. Of the train
rows, one question stands there twice, with the same options.

`load` emits `prompt` (a user message: question, lettered options, instruction), `completion` (an assistant message: the
letter), `question`, `answer` (that letter, "A" to "E") and `options`, in their order. The sample has 64 train and 32
test questions.
"""

from typing import TYPE_CHECKING

from data.prompts import LETTERS, answer_messages, choice_messages
from data.source import BadRow, Row, Spec, Split, read, text, texts

if TYPE_CHECKING:
    from datasets import Dataset

ARC = Spec(
    name="ARC",
    hub_id="allenai/ai2_arc",
    hub_config="ARC-Challenge",
    hub_revision="210d026faf9955653af8916fad021475a3f00453",
    raw_row='{"question": "...", "choices": {"text": ["...", "..."], "label": ["A", "B"]}, "answerKey": "A"}',
    unique_by=("question", "options"),  # "Which of these is a mineral?" may be asked twice with other options
)


def load(split: Split, *, limit: int | None = None, source: str = "hub") -> "Dataset":
    """The questions of one split, in their original order; arguments and errors as in `data.source.read`."""
    return read(ARC, _parse_row, split, limit=limit, source=source)


def _parse_row(raw: Row) -> Row:
    question = text(raw, "question")
    options, labels = texts(raw, "choices.text"), texts(raw, "choices.label")
    if not 2 <= len(options) <= len(LETTERS):
        raise BadRow(f"has {len(options)} options, not two to five")
    if "".join(labels) not in (LETTERS[: len(options)], "12345"[: len(options)]):
        raise BadRow(f"labels its {len(options)} options {', '.join(labels)}, not A, B, ... or 1, 2, ...")
    key = text(raw, "answerKey")
    if key not in labels:
        raise BadRow(f"has the 'answerKey' {key[:60]!r}, which is none of its labels {', '.join(labels)}")
    letter = LETTERS[labels.index(key)]
    return {
        "prompt": choice_messages(question, options),
        "completion": answer_messages(letter),
        "question": question,
        "answer": letter,
        "options": options,
    }
