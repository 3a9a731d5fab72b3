"""UltraFeedback: instructions of many kinds, each answered by four models and rated by GPT-4 (arXiv:2310.01377).

Two hub sets hold it, both under the MIT licence. `HuggingFaceH4/ultrafeedback_binarized` (source "hub", revision not
pinned) is what Zephyr was trained on: pairs, 61,135 in `train_prefs` and 2,000 in `test_prefs`. A raw row:

    {"prompt": "Name a red fruit.", "prompt_id": "...", "messages": [...], "score_chosen": 8.0, "score_rejected": 4.5,
     "chosen": [{"role": "user", "content": "Name a red fruit."}, {"role": "assistant", "content": "A cherry."}],
     "rejected": [{"role": "user", "content": "Name a red fruit."}, {"role": "assistant", "content": "Fruit."}]}

`openbmb/UltraFeedback` (source "hub-raw", revision 40b436560ca83a8dba36114c22ab3c66e43f6d5e, in which 2,628 faulty
`overall_score`s are mended) has all ratings: 63,967 rows in one split, divided here by a hash of the instruction. A raw
row, less what is not used:

    {"instruction": "Name a red fruit.", "completions": [{"response": "A cherry.", "annotations": {
        "helpfulness": {"Rating": "5"}, "honesty": {"Rating": "N/A"}, "instruction_following": {"Rating": "5"},
        "truthfulness": {"Rating": "4"}}}, ...]}

A file may hold rows of either kind. Quirks: `chosen` and `rejected` repeat the user's turn, and about 1 % of the pairs
are ties. In the raw set a `Rating` is a string that may be "N/A", and some rows write `instruction-following`. There, a
response's score is the mean of its ratings that are numbers; chosen is the best response and rejected one of the lower
ones, as for Zephyr at random, but by a hash of the instruction, so that every run reads the same pairs.

`load` emits `prompt` (messages, the last from the user), `chosen` and `rejected` (each one assistant message),
`question` (the last user message), `answer` (the chosen text), `score_chosen` and `score_rejected`: up to 10 from the
binarized set, up to 5 from the raw one. The sample has 96 train and 48 test pairs.
"""

import hashlib
import re
from dataclasses import replace
from itertools import cycle
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from data.preferences import pair, score
from data.source import BadRow, LeftOut, Row, Spec, Split, field, items, read, text

if TYPE_CHECKING:
    from datasets import Dataset

_RATED_ROW = (
    '{"instruction": "...", "completions": [{"response": "...", "annotations": {"helpfulness": {"Rating": "5"}}}, ...]}'
)
ULTRAFEEDBACK = Spec(
    name="UltraFeedback",
    hub_id="HuggingFaceH4/ultrafeedback_binarized",
    hub_train="train_prefs",
    hub_test="test_prefs",
    raw_row='{"prompt": "...", "chosen": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
    f', "rejected": [...], "score_chosen": 8.0, "score_rejected": 4.5}} or {_RATED_ROW}',
    unique_by=("prompt",),
)
ULTRAFEEDBACK_RAW = replace(
    ULTRAFEEDBACK,
    hub_id="openbmb/UltraFeedback",
    hub_revision="40b436560ca83a8dba36114c22ab3c66e43f6d5e",
    hub_train="train",
    hub_test="train",
    raw_row=_RATED_ROW,
)
ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
_NUMBER = re.compile(r"\d+(\.\d+)?")


class _Rated(NamedTuple):
    response: str
    score: float


def load(split: Split, *, limit: int | None = None, source: str = "hub") -> "Dataset":
    """The pairs of one split, in their original order; arguments and errors as in `data.source.read`."""
    spec = ULTRAFEEDBACK
    if source == "hub-raw":
        spec, source = ULTRAFEEDBACK_RAW, "hub"
    return read(spec, _parse_row, split, limit=limit, source=source)


def _parse_row(raw: Row) -> Row:
    return _parse_rated(raw) if "completions" in raw else _parse_pair(raw)


def _parse_pair(raw: Row) -> Row:
    prompt = text(raw, "prompt")
    *turns, chosen = _messages(raw, "chosen")
    *same_turns, rejected = _messages(raw, "rejected")
    if turns != same_turns:
        raise BadRow("has a 'chosen' and a 'rejected' that do not begin with the same turns")
    if all(turn["content"] != prompt for turn in turns):
        raise LeftOut("have a 'prompt' that is not among their turns")
    scores = score(raw, "score_chosen"), score(raw, "score_rejected")
    return pair(turns, chosen["content"], rejected["content"], *scores)


def _messages(raw: Row, key: str) -> list[dict[str, str]]:
    """The conversation at `key`: a system message or none, then user and assistant in turn. Its end may be empty."""
    messages = []
    for place in items(raw, key):
        role, content = (field(raw, f"{place}.{part}", str).strip() for part in ("role", "content"))
        messages.append({"role": role, "content": content})
    roles = [message["role"] for message in messages]
    turns = roles[roles[:1] == ["system"] :]
    if not turns or len(turns) % 2 or any(role != due for role, due in zip(turns, cycle(("user", "assistant")))):
        found = f" ({', '.join(roles)[:60]})" if roles else ""
        raise BadRow(f"has roles out of order in {key!r}{found}, not user and assistant in turn")
    for index, message in enumerate(messages[:-1]):
        if not message["content"]:
            raise BadRow(f"has an empty {key}[{index}].content")
    return messages


def _parse_rated(raw: Row) -> Row:
    question = text(raw, "instruction")
    rated = []
    for place in items(raw, "completions"):
        response, ratings = field(raw, f"{place}.response", str).strip(), _ratings(raw, place)
        if response and ratings:
            rated.append(_Rated(response, fmean(ratings)))
    if len(rated) < 2:
        raise LeftOut("have fewer than two rated responses")
    best = max(rated, key=lambda one: one.score)
    lower = [one for one in rated if one.score < best.score and one.response != best.response]
    if not lower:
        raise LeftOut("are ties")
    # Not the hash that splits the set: one in ten has a multiple of ten there, and would get the first of two always.
    digest = hashlib.sha256(f"rejected for {question}".encode()).digest()
    rejected = lower[int.from_bytes(digest) % len(lower)]
    prompt = [{"role": "user", "content": question}]
    return pair(prompt, best.response, rejected.response, best.score, rejected.score)


def _ratings(row: Row, place: str) -> list[float]:
    """Those of the four aspects' ratings that are numbers."""
    ratings = []
    annotations = field(row, f"{place}.annotations", dict)
    for aspect in ASPECTS:
        key = aspect if annotations.get(aspect) is not None else aspect.replace("_", "-")
        if annotations.get(key) is None:
            continue
        rating = str(field(row, f"{place}.annotations.{key}", dict).get("Rating")).strip()
        if _NUMBER.fullmatch(rating):
            ratings.append(float(rating))
    return ratings
