"""GSM8K: grade-school math word problems of two to eight steps (Cobbe et al. 2021, arXiv:2110.14168).

Hub id `openai/gsm8k`, config `main`, revision 740312add88f781978c0658806c59bc2815b9866, licence MIT;
7,473 train and 1,319 test rows. A raw row:

    {"question": "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in
                  May. How many clips did Natalia sell altogether in April and May?",
     "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\\nNatalia sold 48+24 = <<48+24=72>>72 clips
                altogether in April and May.\\n#### 72"}

Quirks: 79 train and 14 test golds have a thousands comma ("1,080") and 3 and 2 are negative, so `str.isdigit`
and string equality both misjudge them. `<<48/2=24>>` calls a calculator that no model has here; 95 train and
18 test rows hold none.

`load` emits `prompt`, `question`, `answer` (the gold as written after "####") and `solution` (the steps
before it, without calculator calls); `worked_examples` emits `prompt` and `completion`.
"""

import difflib
import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from data.prompts import math_messages
from rewards import tags
from rewards.numeric import grade_number

if TYPE_CHECKING:
    from datasets import Dataset

HUB_ID = "openai/gsm8k"
HUB_CONFIG = "main"
HUB_REVISION = "740312add88f781978c0658806c59bc2815b9866"
SAMPLES = Path(__file__).parent / "samples"
FILE_TYPES = (".jsonl", ".parquet")
RAW_ROW = '{"question": "...", "answer": "...\\n#### 72"}'

Split = Literal["train", "test"]
Row = dict[str, str]

_CALCULATOR_CALL = re.compile(r"<<[^<>\n]*>>")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def load(split: Split, *, limit: int | None = None, source: str = "hub") -> "Dataset":
    """The problems of one split, in their original order.

    Args:
        split: "train" or "test".
        limit: how many, from the first; at least 1, None for all. If there are fewer, all: a line says so.
        source: "hub"; "sample", the 800 train and 200 test problems that ship with this repository; a
            `.jsonl` or `.parquet` file in the raw schema, of which `is_held_out` keeps one tenth for test; or
            a folder with one such file for each split, `train.*` and `test.*`.

    Returns:
        Columns `prompt` (a system and a user message), `question`, `answer` and `solution`, "" where a row
        has no steps. Rows that repeat an earlier question are left out, and their number is printed.

    Raises:
        ValueError: unusable row, file, source or limit, in one sentence that says where and what to do.
    """
    if split not in get_args(Split):
        raise ValueError(f"split is {split!r}, and GSM8K has 'train' and 'test': pass one of them")
    _check_limit(limit)
    if source == "hub":
        where, raw_rows, holds_one_split = HUB_ID, _read_hub(split), True
    else:
        path, holds_one_split = _locate(split, source)
        where, raw_rows = str(path), _read_file(path)
    if not raw_rows:
        raise ValueError(f"{where} is empty: expected rows such as {RAW_ROW}")

    rows = [_parse_row(raw, f"{where}, row {number}") for number, raw in enumerate(raw_rows, start=1)]
    rows = _without_repeats(rows, where)
    if not holds_one_split:
        rows = [row for row in rows if is_held_out(row["question"]) == (split == "test")]
        where = f"the {split} part of {where}"
    if not rows:
        raise ValueError(
            f"{where} is empty, since a hash of the question keeps one row in ten for test: add rows, or "
            "pass a folder with train.jsonl and test.jsonl"
        )
    rows = _first(rows, limit, where)

    from datasets import Dataset

    columns: dict[str, list[Any]] = {"prompt": [math_messages(row["question"]) for row in rows]}
    columns |= {name: [row[name] for row in rows] for name in ("question", "answer", "solution")}
    return Dataset.from_dict(columns)


def worked_examples(dataset: "Dataset", limit: int | None = None) -> "Dataset":
    """What a warm start imitates: the first `limit` problems of `load` with steps, solved in the tag format.

    Returns columns `prompt` and `completion` (one assistant message); given these two, TRL's SFTTrainer takes
    its loss over the completion only. Prints how many problems have no steps. Raises ValueError if none has
    any, or if a solution cannot stand inside the tags.
    """
    _check_limit(limit)
    rows = [row for row in dataset.to_list() if row["solution"]]
    if not rows:
        raise ValueError("no row has worked steps before its '####': add some, or do without a warm start")
    if len(rows) < len(dataset):
        missing = len(dataset) - len(rows)
        print(f"worked examples: {missing:,} of {len(dataset):,} rows have no steps and are left out")

    completions = []
    rows = _first(rows, limit, "worked examples")
    for row in rows:
        text = tags.render(row["solution"], row["answer"])
        if tags.parse(text) is None:
            raise ValueError(
                f"the solution to {row['question'][:60]!r} has no words or contains a tag "
                f"({' '.join(tags.TAGS)}), so no example can be made of it: mend the row or remove it"
            )
        completions.append([{"role": "assistant", "content": text}])

    from datasets import Dataset

    return Dataset.from_dict({"prompt": [row["prompt"] for row in rows], "completion": completions})


def is_held_out(question: str) -> bool:
    """Whether a question of a file that is not split yet belongs to test: one in ten, by a hash of its text.

    A question keeps its side when rows are added, removed or shuffled, which no seeded split can promise.
    """
    return int.from_bytes(hashlib.sha256(question.encode()).digest()) % 10 == 0


def _locate(split: Split, source: str) -> tuple[Path, bool]:
    """The file to read, and whether all of it is the wanted split."""
    if source == "sample":
        return SAMPLES / f"gsm8k_{split}.jsonl", True
    path = Path(os.path.expanduser(source))
    if source and os.path.isdir(path):
        files = [path / f"{split}{suffix}" for suffix in FILE_TYPES]
        found = [file for file in files if file.is_file()]
        if len(found) != 1:
            quantity, names = "both" if found else "neither", " and ".join(file.name for file in files)
            raise ValueError(f"the folder {source} holds {quantity} of {names}: it needs exactly one of them")
        return found[0], True
    types = " or ".join(FILE_TYPES)
    if not os.path.isfile(path):
        raise ValueError(
            f"there is no source {source!r}: pass hub, sample, a {types} file or a folder" + _suggestion(source)
        )
    if path.suffix.lower() not in FILE_TYPES:
        raise ValueError(f"{source} is not a {types} file: convert it to one of them")
    return path, False


def _suggestion(source: str) -> str:
    """`; did you mean ...?` with the closest of hub, sample and the neighbours of a missing file, or ""."""
    folder, name = os.path.split(source)
    candidates = {"hub": "hub", "sample": "sample"}
    try:
        neighbours = os.listdir(os.path.expanduser(folder) or ".")
    except (OSError, ValueError):  # no such folder, or a NUL in its name: nothing to suggest from there
        neighbours = []
    for neighbour in neighbours:
        if neighbour.endswith(FILE_TYPES):
            candidates[neighbour.lower()] = os.path.join(folder, neighbour)
    closest = difflib.get_close_matches(name.lower(), candidates, n=1)
    return f"; did you mean {candidates[closest[0]]}?" if closest else ""


def _read_hub(split: Split) -> list[Any]:
    from datasets import load_dataset

    try:
        return load_dataset(HUB_ID, HUB_CONFIG, split=split, revision=HUB_REVISION).to_list()
    except Exception as error:  # fixed arguments: it is the network or the disk, under any of a dozen types
        reason = f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".")
        raise ValueError(
            f"{HUB_ID} could not be loaded from the hub ({reason}): the first load needs the network, so "
            "connect, or pass --source FILE or --source sample"
        ) from error


def _read_file(path: Path) -> list[Any]:
    """The rows of a file as Python objects, whatever they are."""
    try:
        return _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_jsonl(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}): check the file") from error


def _read_jsonl(path: Path) -> list[Any]:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig").rstrip()
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, row {row} is not UTF-8 text: expected {RAW_ROW} on each line") from error
    rows = []
    lines = text.split("\n") if text else []  # str.splitlines would also cut at a U+2028 inside a question
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}, row {number} is not JSON ({error}): expected {RAW_ROW}; mend the row or remove it"
            ) from error
    return rows


def _read_parquet(path: Path) -> list[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is not a Parquet file ({reason}): write it again, or as .jsonl") from error


def _parse_row(raw: Any, where: str) -> Row:
    """A raw row as `question`, `answer` and `solution`; ValueError with place and fault if it is unusable."""

    def fault(what: str) -> ValueError:
        return ValueError(f"{where} {what}: expected {RAW_ROW}; mend the row or remove it")

    if not isinstance(raw, dict):
        raise fault(f"is of type {type(raw).__name__}, not an object")
    for key in ("question", "answer"):
        if key not in raw:
            raise fault(f"has no {key!r}")
        if not isinstance(raw[key], str):
            raise fault(f"has a {key!r} of type {type(raw[key]).__name__}, not a string")
        if _LONE_SURROGATE.search(raw[key]):  # valid in JSON, impossible in UTF-8
            raise fault(f"has a {key!r} with half a character in it (a lone surrogate)")
    question = raw["question"].strip()
    if not question:
        raise fault("has an empty question")
    steps, mark, gold = (part.strip() for part in raw["answer"].partition("####"))
    if not mark:
        raise fault("has no '####' in its answer")
    if not gold:
        raise fault("has nothing after the '####' of its answer")
    if grade_number(gold, gold) != 1.0:
        raise fault(f"has {gold[:60]!r} after its '####', which is not one number")
    return {"question": question, "answer": gold, "solution": _CALCULATOR_CALL.sub("", steps)}


def _without_repeats(rows: list[Row], where: str) -> list[Row]:
    """The first row of every question: a second would let one problem count twice."""
    kept: dict[str, Row] = {}
    for row in rows:
        kept.setdefault(row["question"], row)
    repeats = len(rows) - len(kept)
    if repeats:
        print(f"{where}: {repeats:,} of {len(rows):,} rows repeat an earlier question and are left out")
    return list(kept.values())


def _check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise ValueError(f"a limit of {limit} rows leaves nothing: pass at least 1")


def _first(rows: list[Any], limit: int | None, where: str) -> list[Any]:
    if limit is not None and limit > len(rows):
        print(f"{where}: {limit:,} rows asked for, all {len(rows):,} there are used")
    return rows[:limit]
