"""Where rows come from, the same for every dataset: the hub, a file, a folder, or the sample that ships here.

A dataset module describes its set with a `Spec`, writes one function that turns a raw row into the columns it
emits, and hands both to `read`. That function asks `text`, `texts` and `field` for its values, so that a bad row
is refused in one sentence with place, fault and cure; a row that is sound but of no use it leaves out.
"""

import csv
import difflib
import hashlib
import io
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

if TYPE_CHECKING:
    from datasets import Dataset

SAMPLES = Path(__file__).parent / "samples"
FILE_TYPES = (".jsonl", ".parquet")

Split = Literal["train", "test"]
Row = dict[str, Any]
T = TypeVar("T")

_KINDS = {str: "a string", int: "a whole number", list: "a list", dict: "an object"}
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Spec:
    """What `read` has to know of a dataset."""

    name: str
    """As people write it, "GSM8K"; in lower case and with underscores it names the files in `data/samples`."""
    hub_id: str
    raw_row: str
    """A short raw row in JSON, for messages."""
    hub_config: str | None = None
    hub_revision: str | None = None
    """None, the newest, where no hub could be reached to pin one."""
    hub_train: str = "train"
    """The split of the hub set that is our train split."""
    hub_test: str = "test"
    """The split of the hub set that is our test split. The same as `hub_train` where the set has only one:
    then one tenth is kept for test, as from a single file."""
    streamed: bool = False
    """Reading stops at the limit, and what lies behind it is neither downloaded nor checked. For large sets."""
    unique_by: tuple[str, ...] = ("question",)
    """Columns that make two rows the same row."""
    split_by: str = "question"
    """Column, of strings, by whose hash an undivided set is split: rows that share a value, but for case and spacing,
    stay on one side."""
    split_names: dict[Split, str] | None = None
    """What the raw column `split` calls our splits, None where there is none. A single file in which both occur is
    divided by it."""
    csv_columns: tuple[str, ...] = ()
    """Columns that tell the header of a `.csv` file from the lines above it. () where raw rows fit no such file;
    elsewhere the sample is one."""
    without_hub: str = "pass --source FILE or --source sample"
    """What a user can do who cannot connect to the hub, for messages."""

    @property
    def file_types(self) -> tuple[str, ...]:
        """The endings of the files that are read, the sample's first."""
        return (".csv", *FILE_TYPES) if self.csv_columns else FILE_TYPES


class BadRow(ValueError):
    """The fault of a raw row, as the rest of a sentence that begins with its place: "has no 'answer'"."""


class LeftOut(Exception):
    """A sound row that is of no use; `read` counts these by reason: "have no answer"."""


def read(
    spec: Spec, parse: Callable[[Row], Row], split: Split, *, limit: int | None = None, source: str = "hub"
) -> "Dataset":
    """The rows of one split as `parse` turns them out, in their original order.

    Args:
        spec: the dataset.
        parse: turns a raw row, a dict, into the columns to emit; raises `BadRow` or `LeftOut`.
        split: "train" or "test".
        limit: how many, from the first; at least 1, None for all. If there are fewer, all: a line says so.
        source: "hub"; "sample", the rows of our own writing that ship with this repository; a `.jsonl` or
            `.parquet` file in the raw schema (for some sets, `.csv` too), of which `is_held_out` keeps one tenth
            for test unless its rows name their split; or a folder with one such file for each split, `train.*` and
            `test.*`.

    Returns:
        One row for each that `parse` accepts. Rows that repeat an earlier one are left out like those that
        `parse` leaves out, and a line prints their number. So are rows for training whose `prompt` stands, but for case
        and spacing, among those for test: in the other file of a folder, or under the other name of a file's column.

    Raises:
        ValueError: unusable row, file, source, split or limit, in one sentence that says where and what to do; more
            than half of the rows for training are for test as well.
    """
    if split not in get_args(Split):
        raise ValueError(f"split is {split!r}, and {spec.name} has 'train' and 'test': pass one of them")
    check_limit(limit)
    raw_rows: Iterable[Any]
    if source == "hub":
        where, raw_rows, carve = spec.hub_id, _hub_rows(spec, split), spec.hub_train == spec.hub_test
    else:
        path, carve = _locate(spec, split, source)
        where, raw_rows = str(path), _file_rows(path, spec)
    own_name = None  # of the wanted split, where the rows of a single file say to which they belong
    if carve and spec.split_names:
        raw_rows = list(raw_rows)
        present = [raw.get("split") for raw in raw_rows if isinstance(raw, dict)]
        if all(name in present for name in spec.split_names.values()):
            own_name = spec.split_names[split]

    rows: list[Row] = []
    kept_for_test, tested = set[str](), ""
    if split == "train" and own_name is not None and spec.split_names:
        other = [raw for raw in raw_rows if isinstance(raw, dict) and raw.get("split") == spec.split_names["test"]]
        kept_for_test, tested = _asked(other, parse), "the test part"
    elif split == "train" and source not in ("hub", "sample") and not carve:
        try:
            test_file, _ = _locate(spec, "test", source)
            kept_for_test, tested = _asked(_file_rows(test_file, spec), parse), test_file.name
        except ValueError:  # where test is wanted too, it says so itself
            pass
    seen: set[str] = set()
    left_out: Counter[str] = Counter()
    number = twins = 0
    for number, raw in enumerate(raw_rows, start=1):
        try:
            if not isinstance(raw, dict):
                raise BadRow(f"is of type {type(raw).__name__}, not an object")
            row = parse(raw)
        except BadRow as bad:
            raise ValueError(
                f"{where}, row {number} {bad}: expected {spec.raw_row}; mend the row or remove it"
            ) from None
        except LeftOut as useless:
            left_out[str(useless)] += 1
            continue
        identity = repr([row[column] for column in spec.unique_by])
        if identity in seen:  # kept, it would let one problem count twice
            left_out[f"repeat an earlier {' and '.join(spec.unique_by)}"] += 1
            continue
        seen.add(identity)
        if own_name is not None:
            belongs = raw["split"] == own_name
        else:
            belongs = not carve or is_held_out(row[spec.split_by]) == (split == "test")
        if belongs and kept_for_test and _same(row["prompt"]) in kept_for_test:
            twins += 1
        elif belongs:
            rows.append(row)
            if spec.streamed and len(rows) == limit:
                break

    for reason, count in left_out.items():
        print(f"{where}: {count:,} of {number:,} rows {reason} and are left out")
    if twins:
        print(f"{where}: {twins:,} of {number:,} rows stand in {tested} too (case and spacing aside) and are left out")
    if twins > len(rows) and not (spec.streamed and len(rows) == limit):
        raise ValueError(
            f"{where} shares {twins:,} of {twins + len(rows):,} rows with {tested}, which leaves little to train on: "
            "take out of one what stands in the other"
        )
    if not seen:
        fault = "has no row that can be used" if number else "is empty"
        raise ValueError(f"{where} {fault}: expected rows such as {spec.raw_row}")
    if carve:
        where = f"the {split} part of {where}"
    if not rows:
        why = f"since a hash of the {spec.split_by} keeps one row in ten for test"
        if own_name is not None:
            why = f"since no row of the split {own_name} can be used"
        files = " and ".join(f"{part}{spec.file_types[0]}" for part in get_args(Split))
        raise ValueError(f"{where} is empty, {why}: add rows, or pass a folder with {files}")

    from datasets import Dataset

    rows = first(rows, limit, where)
    note(f"{spec.name} {split}", rows)
    return Dataset.from_list(rows)


_READ: dict[str, str] = {}


def note(name: str, rows: list[Row]) -> None:
    """Keep a fingerprint of these rows for `rows_read`; of a split that is read twice, one of both."""
    digest = hashlib.sha256(_READ.get(name, "").encode())
    for row in rows:
        digest.update(json.dumps(row, default=repr).encode())
    _READ[name] = f"{len(rows):,} rows, {digest.hexdigest()[:16]}"


def rows_read() -> dict[str, str]:
    """What `read` gave this process since the last call, by data set and split: how many rows, and a hash of them. A
    run that is resumed must read the same."""
    found = dict(_READ)
    _READ.clear()
    return found


def is_held_out(key: str) -> bool:
    """Whether a row of a set that is not split yet belongs to test: one in ten, by a hash of its key.

    A row keeps its side when rows are added, removed or shuffled, which no seeded split can promise, and its copies in
    other case, with other spaces or line breaks are on that side too.
    """
    return int.from_bytes(hashlib.sha256(_same(key).encode()).digest()) % 10 == 0


def _same(asked: Any) -> str:
    """What two texts, or two lists of messages, have in common that differ by case, spacing or line breaks."""
    if not isinstance(asked, str):
        asked = "\n".join(message["content"] for message in asked)
    return " ".join(unicodedata.normalize("NFKC", asked).casefold().split())


def _asked(raw_rows: Iterable[Any], parse: Callable[[Row], Row]) -> set[str]:
    """The prompts of those rows that can be used."""
    found = set()
    for raw in raw_rows:
        try:
            row = parse(raw) if isinstance(raw, dict) else {}
        except (BadRow, LeftOut):
            continue
        if "prompt" in row:
            found.add(_same(row["prompt"]))
    return found


def check_limit(limit: int | None) -> None:
    """Raises ValueError for a limit that leaves nothing."""
    if limit is not None and limit < 1:
        raise ValueError(f"a limit of {limit} rows leaves nothing: pass at least 1")


def first(rows: list[Row], limit: int | None, where: str) -> list[Row]:
    """The first `limit` rows; where there are fewer, all of them, and a printed line that begins with `where`."""
    if limit is not None and limit > len(rows):
        print(f"{where}: {limit:,} rows asked for, all {len(rows):,} there are used")
    return rows[:limit]


def write_samples(files: dict[str, list[Row]]) -> None:
    """Rewrites `data/samples/<name>.jsonl` for every name; a reader sees the old file or the new one, never half."""
    SAMPLES.mkdir(exist_ok=True)
    for name, rows in files.items():
        path = SAMPLES / f"{name}.jsonl"
        unfinished = path.with_suffix(".unfinished")
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        unfinished.write_text("".join(lines), encoding="utf-8", newline="\n")
        os.replace(unfinished, path)
        print(f"{path.name}: {len(rows)} rows")


def field(row: Row, path: str, kind: type[T]) -> T:
    """The value of `row` at `path`, such as "answer.value", of type str, int, list or dict.

    Items of a list go by their number, "turns[0].value", for a list that is there: see `items`. Raises BadRow if the
    value is missing or of another type, or a string that UTF-8 cannot hold.
    """
    value: Any = row
    place = ""
    for key in path.split("."):
        if place:
            value = _checked(value, place, dict)
        place = f"{place}.{key}".removeprefix(".")
        name, *indices = key.replace("]", "").split("[")
        if name not in value:
            raise BadRow(f"has no {place!r}")
        value = value[name]
        for index in indices:
            value = value[int(index)]
    return _checked(value, path, kind)


def items(row: Row, path: str) -> dict[str, Any]:
    """The list at `path`, each item under a path of its own, "turns[0]"; BadRow as in `field`."""
    return {f"{path}[{index}]": item for index, item in enumerate(field(row, path, list))}


def strings(row: Row, path: str) -> list[str]:
    """The list of strings at `path`, as they stand; BadRow as in `field`."""
    return [field(row, place, str) for place in items(row, path)]


def text(row: Row, path: str) -> str:
    """The string at `path`, stripped; BadRow as in `field`, or if nothing is left of it."""
    stripped = field(row, path, str).strip()
    if not stripped:
        raise BadRow(f"has an empty {path}")
    return stripped


def texts(row: Row, path: str) -> list[str]:
    """The list of strings at `path`, each stripped and not empty; the list may be. BadRow as in `text`."""
    return [text(row, place) for place in items(row, path)]


def _checked(value: Any, path: str, kind: type[T]) -> T:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BadRow(f"has a {path!r} of type {type(value).__name__}, not {_KINDS[kind]}")
    if isinstance(value, str) and _LONE_SURROGATE.search(value):  # valid in JSON, impossible in UTF-8
        raise BadRow(f"has a {path!r} with half a character in it (a lone surrogate)")
    return value


def _locate(spec: Spec, split: Split, source: str) -> tuple[Path, bool]:
    """The file to read, and whether the wanted split has still to be carved out of it."""
    if source == "sample":
        return SAMPLES / f"{spec.name.lower().replace(' ', '_')}_{split}{spec.file_types[0]}", False
    path = Path(os.path.expanduser(source))
    if source and os.path.isdir(path):
        files = [path / f"{split}{suffix}" for suffix in spec.file_types]
        found = [file for file in files if file.is_file()]
        if len(found) != 1:
            quantity, names = "both" if found else "neither", " and ".join(file.name for file in found or files)
            raise ValueError(f"the folder {source} holds {quantity} of {names}: it needs exactly one of them")
        return found[0], False
    types = " or ".join(spec.file_types)
    if not os.path.isfile(path):
        raise ValueError(
            f"there is no source {source!r}: pass hub, sample, a {types} file or a folder" + _suggestion(spec, source)
        )
    if path.suffix.lower() not in spec.file_types:
        raise ValueError(f"{source} is not a {types} file: convert it to one of them")
    return path, True


def _suggestion(spec: Spec, source: str) -> str:
    """`; did you mean ...?` with the closest of hub, sample and the neighbours of a missing file, or ""."""
    folder, name = os.path.split(source)
    candidates = {"hub": "hub", "sample": "sample"}
    try:
        neighbours = os.listdir(os.path.expanduser(folder) or ".")
    except (OSError, ValueError):  # no such folder, or a NUL in its name: nothing to suggest from there
        neighbours = []
    for neighbour in neighbours:
        if neighbour.endswith(spec.file_types):
            candidates[neighbour.lower()] = os.path.join(folder, neighbour)
    closest = difflib.get_close_matches(name.lower(), candidates, n=1)
    return f"; did you mean {candidates[closest[0]]}?" if closest else ""


def _hub_rows(spec: Spec, split: Split) -> Iterator[Any]:
    from datasets import load_dataset

    hub_split = spec.hub_train if split == "train" else spec.hub_test
    try:
        yield from load_dataset(
            spec.hub_id, spec.hub_config, split=hub_split, revision=spec.hub_revision, streaming=spec.streamed
        )
    except Exception as error:  # fixed arguments: it is the network or the disk, under any of a dozen types
        reason = f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".")
        raise ValueError(
            f"{spec.hub_id} could not be loaded from the hub ({reason}): the first load needs the network, so "
            f"connect, or {spec.without_hub}"
        ) from error


def _file_rows(path: Path, spec: Spec) -> Iterator[Any]:
    """The rows of a file as Python objects, whatever they are."""
    try:
        match path.suffix.lower():
            case ".parquet":
                yield from _parquet_rows(path)
            case ".csv":
                yield from _csv_rows(path, spec)
            case _:
                yield from _jsonl_rows(path, spec)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}): check the file") from error


def _jsonl_rows(path: Path, spec: Spec) -> Iterator[Any]:
    blank = 0  # the first of the blank lines just read, which are a fault only if another row follows them
    with path.open("rb") as file:  # in text mode, and in str.splitlines, a lone carriage return ends a line too
        for number, line in enumerate(file, start=1):
            if not line.strip():
                blank = blank or number
                continue
            if blank:
                raise _not_json(path, blank, "it is blank", spec)
            try:
                decoded = line.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, row {number} is not UTF-8 text: expected {spec.raw_row} on each line"
                ) from error
            try:
                row = json.loads(decoded)
            except (ValueError, RecursionError) as error:
                raise _not_json(path, number, str(error), spec) from error
            yield row


def _csv_rows(path: Path, spec: Spec) -> Iterator[Row]:
    """The rows below the header, every value a string, without those that are blank; also what a spreadsheet exports.

    Lines above the header are skipped. A row that ends early lacks its last columns.
    """
    content = path.read_bytes()
    try:
        decoded = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line} is not UTF-8 text: export the sheet again, as CSV in UTF-8") from error
    header: list[str] = []
    lines = csv.reader(io.StringIO(decoded, newline=""), strict=True)
    try:
        for cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                names = [cell.strip() for cell in cells]
                header = names if {*spec.csv_columns} <= {*names} else []
                continue
            if any(cell.strip() for cell in cells[len(header) :]):
                raise ValueError(
                    f"{path}, line {lines.line_num} has {len(cells)} cells, and the header {len(header)}: put cells "
                    "with a comma in double quotes"
                )
            yield dict(zip(header, cells, strict=False))
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {lines.line_num} is not CSV ({error}): close its quotes, or export the sheet again"
        ) from error
    if not header:
        columns = " and ".join(map(repr, spec.csv_columns))
        raise ValueError(f"{path} has no header with the columns {columns} between commas: export all of the sheet")


def _not_json(path: Path, number: int, reason: str, spec: Spec) -> ValueError:
    return ValueError(
        f"{path}, row {number} is not JSON ({reason}): expected {spec.raw_row}; mend the row or remove it"
    )


def _parquet_rows(path: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is not a Parquet file ({reason}): write it again, or as .jsonl") from error
