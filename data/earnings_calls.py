"""Earnings calls: questions about figures that a company named when it presented its quarter.

Hub id `lamini/earnings-calls-qa`, revision not pinned, licence CC BY 4.0 on its card (the transcripts are The Motley
Fool's text); one split, called train, in one file of 3.9 GB with about 860,000 rows. It is streamed, and reading stops
at the limit. A raw row:

    {"ticker": "TALLO", "q": "2021-Q2", "date": "Aug 4, 2021, 8:30 a.m. ET", "transcript": "Operator\\n...",
     "question": "What was the revenue in the second quarter", "answer": " The revenue was $48 million."}

Quirks: questions and answers were written by Mistral-7B-Instruct and checked by nobody. The copies differ in their
columns: `context` may stand for `transcript`, and the copy in the authors' code repository adds `has_value`, `value`
and `units`, which the same model extracted, often wrongly ("less than 3%" became 0.01). Those are not read here: our
`value` is the one figure in the answer's own words. Of the 8,595 rows of that copy, 2,205 repeat an earlier question
about the same call; of the others, 3,185 answer that the transcript does not tell and 2,053 state just one figure, 96 %
of the time the one extracted. As a whole, such an answer is a sentence that names its quarter too, which
`rewards.qa.figure_reward` refuses in seven of eight rows, so that the completion is the figure alone. The set is
divided here by a hash of the ticker: no company is trained on and tested.

`load` emits `prompt` (a user message, without passages: see `data.prompts.add_passages`), `completion` (an assistant
message: the value, or the answer where there is no value), `question`, `answer` (the whole answer), `value` (text that
`rewards.qa.figure_reward` reads, "$48 million"; "" where the answer states no figure or several), `ticker`, `quarter`
("2021-Q2", "" where the row has none) and `passages` of the transcript, those that share most with the question first.
The sample has 33 train and 15 test questions about companies that do not exist.
"""

import re
from typing import TYPE_CHECKING

from data.passages import PASSAGE_CHARACTERS, best_first, cut
from data.prompts import answer_messages, earnings_messages
from data.source import LeftOut, Row, Spec, Split, read, text
from rewards.qa import extract_figure

if TYPE_CHECKING:
    from datasets import Dataset

EARNINGS_CALLS = Spec(
    name="Earnings calls",
    hub_id="lamini/earnings-calls-qa",
    hub_test="train",
    streamed=True,
    raw_row='{"ticker": "...", "q": "2021-Q2", "transcript": "...", "question": "...", "answer": "..."}',
    unique_by=("ticker", "quarter", "question"),
    split_by="ticker",
)

# The number with what belongs to it, as `rewards.qa.extract_figure` reads it. Not "Q3", "2020-Q4", "5G", "fiscal '21".
_FIGURE = re.compile(
    r"""
    (?<![\w.,'\u2019/-]) (?:US|USD|CAD|EUR|GBP|AUD|CHF|CNY|RMB|INR|ZAR)?
    ( -?[$€£¥₹]?-? (?:[0-9]{1,3}(?:,[0-9]{3})+ | [0-9]+) (?:\.[0-9]+)?
      (?: \ ?(?:thousand|million|billion|trillion|cents?|percent|basis\ points?|percentage\ points?)\b
        | (?:k|K|mn|mm|m|M|bn|b|B|tn|t|T)\b | \ ?% )? )
    (?! [\w'\u2019] | [/-]\w | [.,][0-9] )
    """,
    re.VERBOSE,
)
_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_DATE = re.compile(rf"\b(?:{_MONTHS}) [0-9]{{1,2}}\b(?:, [0-9]{{4}})?")
_NOT_TOLD = re.compile(
    r"\b(?:(?:do|does|did|can)(?: not|n't)|cannot) (?:\w+ )?"
    r"(?:know|tell|say|state|mention|provide|specify|give|contain|determine|answer)\b"
    r"|\bnot (?:\w+ )?(?:stated|mentioned|provided|specified|given|disclosed|discussed|available|clear|known|found)\b"
)


def load(split: Split, *, limit: int | None = None, source: str = "hub") -> "Dataset":
    """The questions of one split, in their original order; arguments and errors as in `data.source.read`."""
    if source == "hub" and limit is None:
        raise ValueError(
            f"all of {EARNINGS_CALLS.hub_id} is 3.9 GB and about 860,000 rows: pass a limit, such as 2,000"
        )
    return read(EARNINGS_CALLS, _parse_row, split, limit=limit, source=source)


def stated_figure(answer: str, question: str = "") -> str:
    """The one figure that `answer` states, in its own words; "" if it states none, several, or that it is not told.

    Years, quarters and dates are no figures, and those that the question has already are not the answer.

    >>> stated_figure("The adjusted EBITDA in Q3 2020 was $34 million.")
    '$34 million'
    """
    if _NOT_TOLD.search(answer):
        return ""
    found = _figures(answer)
    for asked in _figures(question):
        found.pop(asked, None)
    return found.popitem()[1] if len(found) == 1 else ""


def _figures(text: str) -> dict[object, str]:
    """The figures in a text, each with the words in which it first stands."""
    found: dict[object, str] = {}
    for words in _FIGURE.findall(_DATE.sub(" ", text.replace("\u2212", "-"))):
        figure = extract_figure(words)
        if figure is not None and not figure.year:
            found.setdefault(figure, words)
    return found


def _parse_row(raw: Row) -> Row:
    question, answer, ticker = text(raw, "question"), text(raw, "answer"), text(raw, "ticker")
    quarter = "" if raw.get("q") is None else text(raw, "q")
    transcript = "transcript" if raw.get("context") is None else "context"
    if raw.get(transcript) is None:
        raise LeftOut("have no transcript")
    passages = cut(text(raw, transcript), PASSAGE_CHARACTERS)
    value = stated_figure(answer, question)
    return {
        "prompt": earnings_messages(question, ticker, quarter),
        "completion": answer_messages(value or answer),
        "question": question,
        "answer": answer,
        "value": value,
        "ticker": ticker,
        "quarter": quarter,
        "passages": best_first(passages, question),
    }
