"""PopQA: questions from Wikidata facts, about subjects from famous to obscure (Mallen et al. 2023, arXiv:2212.10511).

Hub id `akariasai/PopQA`, revision 098765c79ea10a2cb19c828324e33281b8336ec0, no licence on its card (MIT in the
authors' code repository); one split, called test, of 14,267 rows. A raw row, less the fields that are not used:

    {"subj": "Lisbon", "prop": "capital of", "obj": "Portugal", "s_pop": 81042,
     "question": "What is Lisbon the capital of?", "possible_answers": "[\\"Portugal\\", \\"Portuguese Republic\\"]"}

Quirks: `possible_answers` is a string that holds a JSON list. `s_pop` counts the monthly views of the subject's
Wikipedia page, the popularity by which results are reported. The one split is divided here by a hash of the
subject's name, so that no subject is trained on and tested; of two namesakes with the same question, the first stays.
A table reader may turn a name such as "NA" into nothing: a row whose subject or object is null is left out. In the
sample, `s_pop` is made up.

`load` emits `prompt` (a user message), `completion` (an assistant message: the answer), `question`, `answer` (`obj`),
`aliases` (the answer, then the others, each once), `subject` and `popularity` (`s_pop`, at least 0). The sample has 48
train and 24 test questions.
"""

import json
from typing import TYPE_CHECKING

from data.prompts import answer_messages, short_answer_messages
from data.source import BadRow, LeftOut, Row, Spec, Split, field, read, text, texts

if TYPE_CHECKING:
    from datasets import Dataset

POPQA = Spec(
    name="PopQA",
    hub_id="akariasai/PopQA",
    hub_revision="098765c79ea10a2cb19c828324e33281b8336ec0",
    hub_train="test",
    hub_test="test",
    raw_row='{"subj": "...", "obj": "...", "s_pop": 42, "question": "...", "possible_answers": "[\\"...\\"]"}',
    split_by="subject",
)


def load(split: Split, *, limit: int | None = None, source: str = "hub") -> "Dataset":
    """The questions of one split, in their original order; arguments and errors as in `data.source.read`."""
    return read(POPQA, _parse_row, split, limit=limit, source=source)


def _parse_row(raw: Row) -> Row:
    if any(key in raw and raw[key] is None for key in ("subj", "obj")):
        raise LeftOut("have no subject or no object")
    question, subject, answer = text(raw, "question"), text(raw, "subj"), text(raw, "obj")
    encoded = field(raw, "possible_answers", str)
    try:
        decoded = {"possible_answers": json.loads(encoded)}
    except (ValueError, RecursionError) as error:
        raise BadRow(f"has 'possible_answers' that are not JSON ({error})") from error
    popularity = field(raw, "s_pop", int)
    if popularity < 0:
        raise BadRow(f"has {popularity} as its 's_pop', which counts page views")
    return {
        "prompt": short_answer_messages(question),
        "completion": answer_messages(answer),
        "question": question,
        "answer": answer,
        "aliases": list(dict.fromkeys([answer, *texts(decoded, "possible_answers")])),
        "subject": subject,
        "popularity": popularity,
    }
