"""MuSiQue-Ans: questions composed of two to four hops, over 20 paragraphs (Trivedi et al. 2022, arXiv:2108.00573).

Hub id `dgslibisey/MuSiQue`, files musique_ans_v1.0, revision not pinned: the copy has no card, so that its licence is
that of the original, CC BY 4.0; 19,938 train and 2,417 validation rows. It is streamed, and reading stops at the
limit. A raw row:

    {"id": "2hop__1_2", "question": "On which river does the birthplace of Orla Vale lie?", "answer": "Arvel",
     "answer_aliases": ["River Arvel"], "answerable": true,
     "paragraphs": [{"idx": 0, "title": "Orla Vale", "paragraph_text": "Orla Vale was born ...",
                     "is_supporting": true}, ...],
     "question_decomposition": [{"id": 1, "question": "Where was Orla Vale born?", "answer": "Tarby",
                                 "paragraph_support_idx": 0},
                                {"id": 2, "question": "#1 >> river", "answer": "Arvel", ...}]}

Quirks: our test split is the hub's validation, since test golds are secret. Several paragraphs of a row may have the
same title. MuSiQue-Full asks every question a second time over paragraphs that do not answer it (`answerable` is
false): those rows are left out. The decomposition is not read.

`load` emits `prompt` (a system and a user message, without passages: see `data.prompts.add_passages`), `question`,
`answer`, `aliases` (the answer, then the others, each once), `passages` ("Title\\ntext", best first by BM25 on the
question) and `supporting` (for each passage, whether the answer rests on it). The sample has 256 train and 64 test
questions about people and places that do not exist.
"""

from typing import TYPE_CHECKING

from data.evidence import rag_row
from data.passages import titled
from data.source import BadRow, LeftOut, Row, Spec, Split, field, items, read, text, texts

if TYPE_CHECKING:
    from datasets import Dataset

MUSIQUE = Spec(
    name="MuSiQue",
    hub_id="dgslibisey/MuSiQue",
    hub_test="validation",
    streamed=True,
    raw_row='{"question": "...", "answer": "...", "answer_aliases": ["..."], '
    '"paragraphs": [{"title": "...", "paragraph_text": "...", "is_supporting": true}]}',
)


def load(split: Split, *, limit: int | None = None, source: str = "hub") -> "Dataset":
    """The questions of one split, in their original order; arguments and errors as in `data.source.read`."""
    return read(MUSIQUE, _parse_row, split, limit=limit, source=source)


def _parse_row(raw: Row) -> Row:
    if raw.get("answerable") is False:
        raise LeftOut("cannot be answered from their paragraphs")
    question = text(raw, "question")
    aliases = [text(raw, "answer"), *texts(raw, "answer_aliases")]
    passages, supporting = [], []
    for place, paragraph in items(raw, "paragraphs").items():
        passage = titled(field(raw, f"{place}.title", str), field(raw, f"{place}.paragraph_text", str))
        label = paragraph.get("is_supporting")
        if not isinstance(label, bool):
            raise BadRow(f"has no true or false as '{place}.is_supporting'")
        if passage:
            passages.append(passage)
            supporting.append(label)
    if not any(supporting):
        raise LeftOut("have no supporting paragraph")
    return rag_row(question, aliases, passages, supporting)
