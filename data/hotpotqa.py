"""HotpotQA: questions that need two Wikipedia paragraphs, among eight others (Yang et al. 2018, arXiv:1809.09600).

Hub id `hotpotqa/hotpot_qa`, config `distractor`, revision 1908d6afbbead072334abe2965f91bd2709910ab, licence
CC BY-SA 4.0; 90,447 train and 7,405 validation rows. It is streamed, and reading stops at the limit. A raw row:

    {"id": "...", "question": "In which province was the author of The Grey Lantern born?", "answer": "Norvale",
     "type": "bridge", "level": "hard",
     "supporting_facts": {"title": ["The Grey Lantern", "Orla Vale"], "sent_id": [0, 1]},
     "context": {"title": ["Orla Vale", "The Grey Lantern", ...],
                 "sentences": [["Orla Vale is a novelist.", " She was born in Norvale."], ["The Grey ..."], ...]}}

Quirks: the hub's test split has no answers, so that ours is the hub's validation. Supporting facts and context are
objects of lists, where the authors' own files have lists of pairs. Titles are escaped as in HTML ("X&amp;Y"), and a
sentence brings its own leading space. The sentence numbers are not read: credit is for the paragraph. A row's ten
paragraphs are 1,494 tokens on average in SmolLM2's vocabulary (60 rows). Of the supporting ones, 78 % fit into 512
tokens, 92 % into 1,024 and 99 % into 2,048; both do in 60, 85 and 98 % of the rows.

`load` emits `prompt` (a system and a user message, without passages: see `data.prompts.add_passages`), `question`,
`answer`, `aliases` (the answer alone), `passages` ("Title\\ntext", best first by BM25 on the question) and `supporting`
(for each passage, whether the answer rests on it). Rows that miss a supporting paragraph are left out. The sample has
256 train and 64 test questions about people and places that do not exist.
"""

import html
from typing import TYPE_CHECKING

from data.evidence import rag_row
from data.passages import titled
from data.source import BadRow, LeftOut, Row, Spec, Split, items, read, strings, text

if TYPE_CHECKING:
    from datasets import Dataset

HOTPOTQA = Spec(
    name="HotpotQA",
    hub_id="hotpotqa/hotpot_qa",
    hub_config="distractor",
    hub_revision="1908d6afbbead072334abe2965f91bd2709910ab",
    hub_test="validation",
    streamed=True,
    raw_row='{"question": "...", "answer": "...", "supporting_facts": {"title": ["...", "..."]}, '
    '"context": {"title": ["...", "..."], "sentences": [["...", "..."], ["..."]]}}',
)


def load(split: Split, *, limit: int | None = None, source: str = "hub") -> "Dataset":
    """The questions of one split, in their original order; arguments and errors as in `data.source.read`."""
    return read(HOTPOTQA, _parse_row, split, limit=limit, source=source)


def _parse_row(raw: Row) -> Row:
    question, answer = text(raw, "question"), text(raw, "answer")
    gold, titles = {*strings(raw, "supporting_facts.title")}, strings(raw, "context.title")
    paragraphs = ["".join(strings(raw, place)) for place in items(raw, "context.sentences")]
    if len(titles) != len(paragraphs):
        raise BadRow(f"has {len(titles)} titles and {len(paragraphs)} paragraphs in its context")
    kept = [(title, body) for title, body in zip(titles, paragraphs, strict=True) if body.strip()]
    if not gold or not gold <= {title for title, _ in kept}:
        raise LeftOut("miss a supporting paragraph")
    passages = [titled(html.unescape(title), body) for title, body in kept]
    return rag_row(question, [answer], passages, [title in gold for title, _ in kept])
