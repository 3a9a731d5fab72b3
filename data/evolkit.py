"""EvolKit-75K: conversations of one or more turns, grown from simple instructions by a language model.

Hub id `arcee-ai/EvolKit-75K`, revision not pinned, licence not stated; one split, called train, of 74,180 rows.
A raw row:

    {"conversations": [{"from": "human", "value": "Is 91 a prime number?"},
                       {"from": "gpt", "value": "No. It is 7 times 13."}]}

Quirks: rows with an empty turn have been reported, and any that are left are left out here, as are rows whose
human and gpt turns do not alternate, which chat templates refuse. The answers come from a language model, are long
and were not checked by anyone. The one split is divided here by a hash of the first human turn.

`load` emits `prompt` (every turn before the last from gpt, in some rows a system message first), `completion` (that
turn), `question` (the human turn before it), `answer` (its text) and `opening` (the first human turn). The sample has
32 train and 16 test conversations.
"""

from itertools import cycle
from typing import TYPE_CHECKING

from data.prompts import answer_messages
from data.source import BadRow, LeftOut, Row, Spec, Split, field, items, read

if TYPE_CHECKING:
    from datasets import Dataset

EVOLKIT = Spec(
    name="EvolKit",
    hub_id="arcee-ai/EvolKit-75K",
    hub_test="train",
    raw_row='{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}',
    unique_by=("opening", "question"),
    split_by="opening",
)
ROLES = {"system": "system", "human": "user", "gpt": "assistant"}


def load(split: Split, *, limit: int | None = None, source: str = "hub") -> "Dataset":
    """The conversations of one split, in their original order; arguments and errors as in `data.source.read`."""
    return read(EVOLKIT, _parse_row, split, limit=limit, source=source)


def _parse_row(raw: Row) -> Row:
    messages = []
    for place in items(raw, "conversations"):
        speaker, content = (field(raw, f"{place}.{key}", str).strip() for key in ("from", "value"))
        if speaker not in ROLES:
            raise BadRow(f"has {speaker[:60]!r} as its '{place}.from', which is none of {', '.join(ROLES)}")
        messages.append({"role": ROLES[speaker], "content": content})

    while messages and messages[-1]["role"] != "assistant":
        messages.pop()  # nothing answers it
    if not messages:
        raise LeftOut("have no turn from gpt")
    if not all(message["content"] for message in messages):
        raise LeftOut("have an empty turn")
    turns = messages[messages[0]["role"] == "system" :]
    if len(turns) % 2 or any(turn["role"] != role for turn, role in zip(turns, cycle(("user", "assistant")))):
        raise LeftOut("do not alternate between human and gpt")
    answer = messages[-1]["content"]
    return {
        "prompt": messages[:-1],
        "completion": answer_messages(answer),
        "question": messages[-2]["content"],
        "answer": answer,
        "opening": turns[0]["content"],
    }
