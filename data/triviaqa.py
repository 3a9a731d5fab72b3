"""TriviaQA: quiz questions, answered from memory or from web pages (Joshi et al. 2017, arXiv:1705.03551).

Hub id `mandarjoshi/trivia_qa`, revision 0f7faf33a3908546c6fd5b73a660e0f8ff173c2f, licence unknown; 138,384 train,
17,944 validation and 17,210 test rows. The config `rc.nocontext` is small and has no evidence. `rc` is about 9 GB: it
is streamed, and reading stops at the limit. A raw row of `rc`, less the fields that are not used:

    {"question": "Which river flows through Cairo?",
     "answer": {"value": "The Nile", "aliases": ["Nile", "River Nile"]},
     "entity_pages": {"title": ["Cairo", ...], "wiki_context": ["Cairo is the capital of ...", ...]},
     "search_results": {"title": ["Rivers of Africa", ...], "search_context": ["The longest river ...", ...]}}

Quirks: the answers of the hub's test split are placeholders, so that our test split is the hub's validation. A row
is a question with the source of its evidence, web or Wikipedia: a question found in both stands there twice, of which
the first is kept. The pages were found by searching for the question and do not always hold the answer; nothing says
which passage does.

`load` emits `prompt` (a user message), `completion` (an assistant message: the answer), `question`, `answer` (`value`)
and `aliases` (the answer, then the others, each once). `load_for_rag` emits `prompt` (a system and a user message,
without passages: see `data.prompts.add_passages`), `question`, `answer`, `aliases`, `passages` ("Title\\ntext", at most
`MAX_PASSAGES`, best first by BM25 on the question) and `supporting` (False for each: there are no labels). The sample
has 48 train and 24 test questions.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from data.evidence import rag_row
from data.passages import MAX_PASSAGES, PASSAGE_CHARACTERS, cut, titled
from data.prompts import answer_messages, short_answer_messages
from data.source import BadRow, Row, Spec, Split, read, strings, text, texts

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
TRIVIAQA_WITH_PASSAGES = replace(
    TRIVIAQA,
    hub_config="rc",
    streamed=True,
    raw_row='{"question": "...", "answer": {"value": "...", "aliases": ["..."]}, "entity_pages": {"title": ["..."], '
    '"wiki_context": ["..."]}, "search_results": {"title": ["..."], "search_context": ["..."]}}',
)
PLACEHOLDER = "<unk>"


def load(split: Split, *, limit: int | None = None, source: str = "hub") -> "Dataset":
    """The questions of one split without evidence, in their original order; the rest as in `data.source.read`."""
    return read(TRIVIAQA, _parse_row, split, limit=limit, source=source)


def load_for_rag(
    split: Split, *, limit: int | None = None, source: str = "hub", closed_book: bool = False
) -> "Dataset":
    """The questions of one split with the passages that fit them best; the rest as in `data.source.read`.

    `closed_book` reads no passages; from the hub, the small set without them.
    """
    if closed_book:
        return read(TRIVIAQA, lambda raw: rag_row(*_question(raw), [], []), split, limit=limit, source=source)
    if source == "hub" and limit is None:
        raise ValueError(
            f"all of {TRIVIAQA.hub_id} with its pages is about 9 GB and 138,384 rows: pass a limit, such as 2,000"
        )
    return read(TRIVIAQA_WITH_PASSAGES, _parse_row_with_passages, split, limit=limit, source=source)


def _parse_row(raw: Row) -> Row:
    question, aliases = _question(raw)
    return {
        "prompt": short_answer_messages(question),
        "completion": answer_messages(aliases[0]),
        "question": question,
        "answer": aliases[0],
        "aliases": aliases,
    }


def _parse_row_with_passages(raw: Row) -> Row:
    question, aliases = _question(raw)
    pages = [*_pages(raw, "entity_pages", "wiki_context"), *_pages(raw, "search_results", "search_context")]
    passages = [titled(title, passage) for title, page in pages for passage in cut(page, PASSAGE_CHARACTERS)]
    passages = list(dict.fromkeys(passages))
    row = rag_row(question, aliases, passages, [False] * len(passages))
    return row | {column: row[column][:MAX_PASSAGES] for column in ("passages", "supporting")}


def _question(raw: Row) -> tuple[str, list[str]]:
    """The question, and its accepted answers: the one its author gave, then the others, each once."""
    question, answer = text(raw, "question"), text(raw, "answer.value")
    if answer == PLACEHOLDER:
        raise BadRow(f"has the placeholder {PLACEHOLDER!r} for an answer, as all of the hub's test split has")
    return question, list(dict.fromkeys([answer, *texts(raw, "answer.aliases")]))


def _pages(raw: Row, source: str, body: str) -> list[tuple[str, str]]:
    """Title and text of the pages from one source."""
    titles, bodies = strings(raw, f"{source}.title"), strings(raw, f"{source}.{body}")
    if len(titles) != len(bodies):
        raise BadRow(f"has {len(titles)} titles and {len(bodies)} of {body} in its {source}")
    return list(zip(titles, bodies, strict=True))
