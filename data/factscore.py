"""FActScore's people: short biographies, told from retrieved evidence (Min et al. 2023, arXiv:2305.14251).

Hub id `awinml/factscore_unlabelled_alpaca_13b_retrieval`, revision not pinned, licence MIT; one split, called
train, of 500 rows. A raw row, less what is not used:

    {"topic": "Ilse Marwood", "input": "Question: Tell me a bio of Ilse Marwood.", "output": "...",
     "ctxs": [{"title": "Ilse Marwood", "text": "Ilse Marwood (1871-1949) was a botanist who ..."}, ...]}

Quirks: `output` was written by Alpaca-13B, a weak model that invents dates, places and professions, and whoever
trains on it teaches just that. It is not read here. The completion is instead the first sentences, at most three, of
the best of the 25 retrieved passages: the one whose title is the topic and which begins with its name, else the
first that has the title, else the first that mentions the topic. Where no passage does, the row is left out. The
fields of `ctxs` were never confirmed: objects with `title` and `text` are read, and plain strings. The one split is
divided here by a hash of the topic.

`load` emits `prompt` (a user message, without passages: see `data.prompts.add_passages`), `completion`, `question` (the
text of the prompt), `answer` (the sentences), `aliases` (the answer alone), `topic` and `passages`, "title: text", the
one that holds the answer first. The sample has 32 train and 16 test people, none of whom exists.
"""

from typing import TYPE_CHECKING, NamedTuple

from data.passages import is_whole, sentences
from data.prompts import answer_messages, biography_messages
from data.source import LeftOut, Row, Spec, Split, field, items, read, text

if TYPE_CHECKING:
    from datasets import Dataset

FACTSCORE = Spec(
    name="FactScore",
    hub_id="awinml/factscore_unlabelled_alpaca_13b_retrieval",
    hub_test="train",
    raw_row='{"topic": "...", "ctxs": [{"title": "...", "text": "..."}]}',
    unique_by=("topic",),
    split_by="topic",
)
MAX_SENTENCES, MAX_WORDS = 3, 60  # of an answer; a first sentence that is longer stands alone


class Passage(NamedTuple):
    title: str  # "" where it has none
    text: str


def load(split: Split, *, limit: int | None = None, source: str = "hub") -> "Dataset":
    """The people of one split, in their original order; arguments and errors as in `data.source.read`."""
    return read(FACTSCORE, _parse_row, split, limit=limit, source=source)


def lead(passage: str) -> str:
    """The first whole sentences of a passage, at most `MAX_SENTENCES` and `MAX_WORDS`; "" if it has none.

    Passages are cut out of articles by a count of words, so that they may begin and end in the middle of a sentence.
    """
    answer = ""
    for sentence in filter(is_whole, sentences(passage)[:MAX_SENTENCES]):
        longer = f"{answer} {sentence}".strip()
        if answer and len(longer.split()) > MAX_WORDS:
            break
        answer = longer
    return answer


def _parse_row(raw: Row) -> Row:
    topic = text(raw, "topic")
    retrieved = [passage for passage in _passages(raw) if passage.text]
    titled = [passage for passage in retrieved if passage.title.casefold() == topic.casefold()]
    opening = [passage for passage in titled if passage.text.startswith(topic.split()[0])]
    naming = [passage for passage in retrieved if topic.casefold() in passage.text.casefold()]
    ranked = list(dict.fromkeys([*opening, *titled, *naming, *retrieved]))
    if not titled and not naming:
        raise LeftOut("have no passage about their topic")
    answer = lead(ranked[0].text)
    if not answer:
        raise LeftOut("have no whole sentence in their best passage")
    prompt = biography_messages(topic)
    return {
        "prompt": prompt,
        "completion": answer_messages(answer),
        "question": prompt[-1]["content"],
        "answer": answer,
        "aliases": [answer],
        "topic": topic,
        "passages": [f"{passage.title}: {passage.text}".removeprefix(": ") for passage in ranked],
    }


def _passages(raw: Row) -> list[Passage]:
    passages = []
    for place, item in items(raw, "ctxs").items():
        if isinstance(item, str):
            passages.append(Passage("", field(raw, place, str).strip()))
        else:
            passages.append(Passage(*(field(raw, f"{place}.{key}", str).strip() for key in ("title", "text"))))
    return passages
