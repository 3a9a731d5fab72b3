"""Reading rows for any dataset: what GSM8K, whose tests cover files, folders, typos and limits, does not need."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.source import BadRow, LeftOut, Row, Spec, field, first, is_held_out, items, read, strings, text, texts

CLUES = Spec(
    name="Crossword clues",
    hub_id="nobody/clues",
    raw_row='{"clue": "...", "town": "...", "n": 1}',
    unique_by=("clue", "notes"),
    split_by="town",
)


def parse(raw: Row) -> Row:
    if raw.get("n") == 0:
        raise LeftOut("have no letters")
    if raw.get("n") == -1:
        raise BadRow("has fewer than no letters")
    return {"clue": text(raw, "clue"), "notes": raw.get("notes", []), "town": raw.get("town", "Rome")}


def raw_row(number: int, **more: Any) -> Row:
    return {"clue": f"Clue {number}", "town": f"Town {number // 3}", "n": 5, "notes": ["a"]} | more


def write(path: Path, rows: list) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A function that puts rows into the named split of a local stand-in for the hub, and gives the spec of it."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def make(split: str, rows: list, **changes: Any) -> Spec:
        write(tmp_path / "hub" / f"{split}.jsonl", rows)
        return replace(CLUES, hub_id=str(tmp_path / "hub"), **changes)

    return make


# The hub


def test_a_hub_set_with_one_split_is_carved_by_key(hub):
    spec = hub("test", [raw_row(number) for number in range(300)], hub_train="test", hub_test="test")
    train, test = (read(spec, parse, split) for split in ("train", "test"))
    assert len(train) + len(test) == 300
    assert not set(train["town"]) & set(test["town"])
    assert all(is_held_out(town) for town in test["town"])
    assert 1 < len(set(test["town"])) < 25


def test_a_limit_counts_the_rows_of_the_wanted_part(hub):
    spec = hub("test", [raw_row(number) for number in range(300)], hub_train="test", hub_test="test")
    everything = read(spec, parse, "test")
    assert read(spec, parse, "test", limit=4).to_list() == everything.to_list()[:4]


def test_a_hub_split_may_have_another_name(hub):
    hub("train", [raw_row(1)])
    spec = hub("validation", [raw_row(2), raw_row(3)], hub_test="validation")
    assert read(spec, parse, "train")["clue"] == ["Clue 1"]
    assert read(spec, parse, "test")["clue"] == ["Clue 2", "Clue 3"]


@pytest.mark.parametrize(("one_split", "expected"), [(False, [0, 1, 2]), (True, [15, 16, 17])])
def test_a_streamed_hub_set_is_read_no_further_than_the_limit(hub, one_split, expected):
    rows = [raw_row(number) for number in range(120)]
    towns = {"hub_train": "train", "hub_test": "train"} if one_split else {}
    spec = hub("train", [*rows, raw_row(999, n=-1)], streamed=True, **towns)
    seen = []

    def spy(raw: Row) -> Row:
        seen.append(raw["clue"])
        return parse(raw)

    dataset = read(spec, spy, "test" if one_split else "train", limit=3)
    assert dataset["clue"] == [f"Clue {number}" for number in expected]
    assert seen == [f"Clue {number}" for number in range(expected[-1] + 1)]
    with pytest.raises(ValueError, match=r"row 121 has fewer than no letters"):
        read(spec, parse, "train")


def test_a_streamed_set_that_is_shorter_than_the_limit_says_so(hub, capsys):
    assert len(read(hub("train", [raw_row(1)], streamed=True), parse, "train", limit=9)) == 1
    assert "9 rows asked for, all 1 there are used" in capsys.readouterr().out


@pytest.mark.parametrize("streamed", [False, True])
def test_without_the_hub_the_way_out_is_named(tmp_path, streamed):
    # in a process of its own: the library reads these variables once, when it is imported
    code = (
        "from data.source import Spec, read\n"
        f"spec = Spec('A', 'nobody/clues', '...', streamed={streamed})\n"
        "try: read(spec, dict, 'train')\n"
        "except ValueError as error: print(error)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    (message,) = finished.stdout.splitlines()
    assert message.startswith("nobody/clues could not be loaded from the hub (")
    assert message.endswith("connect, or pass --source FILE or --source sample")


# Files


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_streamed_set_is_read_from_a_file_no_further_than_the_limit(tmp_path, suffix):
    rows = [raw_row(1), raw_row(2), raw_row(3, n=-1)]
    path = tmp_path / f"train.{suffix}"
    if suffix == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        write(path, rows)
    spec = replace(CLUES, streamed=True)
    assert len(read(spec, parse, "train", limit=2, source=str(tmp_path))) == 2
    with pytest.raises(ValueError, match="row 3 has fewer"):
        read(CLUES, parse, "train", limit=2, source=str(tmp_path))


def test_the_name_of_the_sample_follows_from_the_name_of_the_set(tmp_path, monkeypatch):
    monkeypatch.setattr("data.source.SAMPLES", tmp_path)
    write(tmp_path / "crossword_clues_test.jsonl", [raw_row(7)])
    assert read(CLUES, parse, "test", source="sample")["clue"] == ["Clue 7"]


# CSV


SHEET = replace(CLUES, csv_columns=("clue", "town"), split_names={"train": "DEV", "test": "TEST"})


def sheet_row(raw: Row) -> Row:
    return {"clue": text(raw, "clue"), "notes": [], "town": raw.get("town", "")}


@pytest.fixture
def sheet(tmp_path):
    """A function that reads a `.csv` file of the given content as the train split."""

    def sheet(content: str | bytes) -> list[Row]:
        (tmp_path / "train.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
        return read(SHEET, sheet_row, "train", source=str(tmp_path)).to_list()

    return sheet


def test_a_sheet_is_read_cell_by_cell(sheet):
    rows = sheet('\ufeffclue,town\r\n"A ""b"", c",Rome\r\n"two\nlines",Köln\r\nlate, \r\nshort\r\n')
    assert [(row["clue"], row["town"]) for row in rows] == [
        ('A "b", c', "Rome"),
        ("two\nlines", "Köln"),
        ("late", " "),
        ("short", ""),
    ]


def test_what_stands_above_the_header_and_blank_rows_are_skipped(sheet):
    content = 'Warning: do not "copy", please,,\n,,\n\nid, clue ,town\n1,A,Rome\n,,\n\n2,B,Bonn,,\n,,\n'
    assert [row["clue"] for row in sheet(content)] == ["A", "B"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("clue;town\nA;Rome\n", r"train\.csv has no header with the columns 'clue' and 'town' between commas: export"),
        ("", r"train\.csv has no header"),
        ("clue,town\n", r"train\.csv is empty: expected rows such as"),
        ("clue,town\nA,Rome\n,Bonn\n", r"train\.csv, row 2 has an empty clue: expected"),
        ("clue,town\nA,Rome, Italy\n", r"train\.csv, line 2 has 3 cells, and the header 2: put cells with a comma in"),
        ('clue,town\nA,Rome\n"B,Bonn\n', r"train\.csv, line 3 is not CSV \(unexpected end of data\): close its quotes"),
        ("clue,town\n" + "A" * 200_000 + ",Rome\n", r"train\.csv, line 2 is not CSV \(field larger than"),
        ("clue,town\nA,Rome\nB,Köln\n".encode("latin-1"), r"train\.csv, line 3 is not UTF-8 text: export the sheet"),
    ],
    ids=["semicolons", "empty", "header only", "bad row", "too many cells", "open quote", "huge cell", "latin-1"],
)
def test_a_broken_sheet_is_refused(sheet, content, expected):
    with pytest.raises(ValueError, match=expected) as caught:
        sheet(content)
    assert "\n" not in str(caught.value)


def test_a_set_that_fits_no_sheet_refuses_one(tmp_path):
    (tmp_path / "rows.csv").write_text("clue,town\nA,Rome\n")
    with pytest.raises(ValueError, match=r"rows\.csv is not a \.jsonl or \.parquet file"):
        read(CLUES, sheet_row, "train", source=str(tmp_path / "rows.csv"))
    (tmp_path / "rows.txt").write_text("clue,town\nA,Rome\n")
    with pytest.raises(ValueError, match=r"rows\.txt is not a \.csv or \.jsonl or \.parquet file"):
        read(SHEET, sheet_row, "train", source=str(tmp_path / "rows.txt"))
    with pytest.raises(ValueError, match=r"; did you mean .*rows\.csv\?"):
        read(SHEET, sheet_row, "train", source=str(tmp_path / "row.csv"))


def test_the_sample_of_a_sheet_is_a_sheet(tmp_path, monkeypatch):
    monkeypatch.setattr("data.source.SAMPLES", tmp_path)
    (tmp_path / "crossword_clues_test.csv").write_text("clue,town\nA,Rome\n")
    assert read(SHEET, sheet_row, "test", source="sample")["clue"] == ["A"]


# Files whose rows name their split


def named_rows(*names: str) -> str:
    return "clue,town,split\n" + "".join(
        f"{name} {number},T{number},{name}\n" for name in names for number in range(40)
    )


def test_a_file_with_both_splits_is_divided_by_name(tmp_path):
    (tmp_path / "all.csv").write_text(named_rows("TEST", "DEV"))
    train, test = (read(SHEET, sheet_row, split, source=str(tmp_path / "all.csv")) for split in ("train", "test"))
    assert train["clue"] == [f"DEV {number}" for number in range(40)]
    assert test["clue"] == [f"TEST {number}" for number in range(40)]


@pytest.mark.parametrize("name", ["DEV", "TEST"])
def test_a_file_with_one_split_is_divided_by_the_hash(tmp_path, name):
    (tmp_path / "one.csv").write_text(named_rows(name))
    train, test = (read(SHEET, sheet_row, split, source=str(tmp_path / "one.csv")) for split in ("train", "test"))
    assert len(train) + len(test) == 40
    assert all(is_held_out(town) for town in test["town"])
    assert not any(is_held_out(town) for town in train["town"])


def test_the_files_of_a_folder_say_more_than_the_names(tmp_path):
    (tmp_path / "train.csv").write_text(named_rows("TEST", "DEV"))
    assert len(read(SHEET, sheet_row, "train", source=str(tmp_path))) == 80


def test_a_named_split_without_a_usable_row_is_refused(tmp_path):
    write(tmp_path / "rows.jsonl", [raw_row(1, split="DEV"), raw_row(2, n=0, split="TEST"), raw_row(3, split=["?"])])
    expected = r"since no row of the split TEST can be used: add rows, or pass a folder with train\.csv and test\.csv"
    with pytest.raises(ValueError, match=expected):
        read(SHEET, parse, "test", source=str(tmp_path / "rows.jsonl"))


# Twins: rows that differ by case, spacing or line breaks alone


def asking(clue: str, **more: Any) -> Row:
    return raw_row(1, clue=clue, **more)


def ask(raw: Row) -> Row:
    row = parse(raw)
    return row | {"prompt": [{"role": "system", "content": "Solve it."}, {"role": "user", "content": row["clue"]}]}


def twins(text: str) -> list[str]:
    return [text.upper(), f" {text}\n", text.replace(" ", "  "), text.replace(" ", "\n"), text.replace(" ", "\u00a0")]


def test_twins_are_on_one_side_of_a_file(tmp_path):
    """Of 25 held-out rows, 25 had such a twin in training when the hash was of the text as it stands."""
    texts = [f"Which river of {number} letters flows through the town of Tarby?" for number in range(250)]
    rows = [asking(twin) for text in texts for twin in (text, *twins(text))]
    source = write(tmp_path / "all.jsonl", rows)
    spec = replace(CLUES, split_by="clue")
    train, test = (
        {" ".join(clue.lower().split()) for clue in read(spec, ask, split, source=source)["clue"]}
        for split in ("train", "test")
    )
    assert len(test) >= 20 and not train & test
    assert train | test == {text.lower() for text in texts}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_what_a_folder_tests_is_left_out_of_its_training(tmp_path, capsys, suffix):
    tested = [f"Clue {number}, two words" for number in range(5)]
    copies = [twin for text in tested for twin in (text, *twins(text))]
    write(tmp_path / "train.jsonl", [asking(clue) for clue in [*copies, *(f"Own {n}" for n in range(40))]])
    rows = [asking(clue) for clue in tested]
    if suffix == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "test.parquet")
    else:
        write(tmp_path / "test.jsonl", rows)
    assert read(CLUES, ask, "train", source=str(tmp_path))["clue"] == [f"Own {number}" for number in range(40)]
    said = f"25 of 70 rows stand in test.{suffix} too (case and spacing aside) and are left out"
    assert f"train.jsonl: {said}\n" in capsys.readouterr().out  # `parse` strips: 5 more repeat an earlier row
    assert read(CLUES, ask, "test", source=str(tmp_path))["clue"] == tested
    assert capsys.readouterr().out == ""
    assert read(replace(CLUES, streamed=True), ask, "train", limit=3, source=str(tmp_path))["clue"] == [
        "Own 0",
        "Own 1",
        "Own 2",
    ]


def test_a_folder_that_trains_on_what_it_tests_is_refused(tmp_path):
    write(tmp_path / "test.jsonl", [asking(f"Clue {number}") for number in range(25)])
    for own in (0, 24):
        rows = [asking(f"clue {number} ") for number in range(25)] + [asking(f"Own {number}") for number in range(own)]
        write(tmp_path / "train.jsonl", rows)
        expected = (
            rf"train\.jsonl shares 25 of {25 + own} rows with test\.jsonl, which leaves little to train on: take out"
        )
        with pytest.raises(ValueError, match=expected) as caught:
            read(CLUES, ask, "train", source=str(tmp_path))
        assert "\n" not in str(caught.value)
    assert len(read(CLUES, ask, "test", source=str(tmp_path))) == 25


def test_training_does_not_need_a_file_for_test_nor_one_that_is_sound(tmp_path):
    write(tmp_path / "train.jsonl", [asking("Clue 1"), asking("Clue 2"), asking("Clue 3")])
    assert len(read(CLUES, ask, "train", source=str(tmp_path))) == 3
    write(tmp_path / "test.jsonl", [asking("clue 1"), raw_row(2, n=-1), raw_row(3, n=0), "?", ["?"]])
    assert read(CLUES, ask, "train", source=str(tmp_path))["clue"] == ["Clue 2", "Clue 3"]
    (tmp_path / "test.jsonl").write_text("{")
    assert len(read(CLUES, ask, "train", source=str(tmp_path))) == 3
    with pytest.raises(ValueError, match=r"test\.jsonl, row 1 is not JSON"):
        read(CLUES, ask, "test", source=str(tmp_path))


def test_what_a_files_own_test_rows_ask_is_left_out_of_training(tmp_path, capsys):
    named = [asking(f"clue  {number}", split="DEV") for number in range(9)]
    source = write(tmp_path / "all.jsonl", [*named, *(asking(f"Clue {n}", split="TEST") for n in range(4))])
    assert read(SHEET, ask, "train", source=source)["clue"] == [f"clue  {number}" for number in range(4, 9)]
    assert "4 of 13 rows stand in the test part too (case and spacing aside) and are left" in capsys.readouterr().out
    assert len(read(SHEET, ask, "test", source=source)) == 4


def test_the_rows_are_told_apart_by_all_that_the_prompt_says(tmp_path):
    """A question about two companies is two; and so is one with other options."""
    from data import arc, earnings_calls

    def write_both(train: Row, test: Row) -> str:
        write(tmp_path / "train.jsonl", [train])
        write(tmp_path / "test.jsonl", [test])
        return str(tmp_path)

    call = {"q": "2021-Q2", "transcript": "It was $5.", "question": "What was it?", "answer": "It was $5."}
    source = write_both(call | {"ticker": "ABC"}, call | {"ticker": "XYZ"})
    assert len(earnings_calls.load("train", source=source)) == 1
    choice = {"question": "Which is dry?", "choices": {"text": ["sand", "sea"], "label": ["A", "B"]}, "answerKey": "A"}
    other = {"text": ["salt", "sea"], "label": ["A", "B"]}
    assert len(arc.load("train", source=write_both(choice, choice | {"choices": other}))) == 1
    with pytest.raises(ValueError, match=r"shares 1 of 1 rows with test\.jsonl"):
        arc.load("train", source=write_both(choice, choice))


# Rows that do not come out


def test_rows_without_use_are_counted_by_reason(tmp_path, capsys):
    rows = [raw_row(1, n=0), raw_row(2), raw_row(2), raw_row(3, n=0), raw_row(2, notes=["b"])]
    dataset = read(CLUES, parse, "train", source=os.path.dirname(write(tmp_path / "train.jsonl", rows)))
    assert dataset["clue"] == ["Clue 2", "Clue 2"]
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'train.jsonl'}: 2 of 5 rows have no letters and are left out",
        f"{tmp_path / 'train.jsonl'}: 1 of 5 rows repeat an earlier clue and notes and are left out",
    ]


def test_a_set_without_a_usable_row_is_refused(tmp_path):
    write(tmp_path / "train.jsonl", [raw_row(1, n=0)])
    with pytest.raises(ValueError, match=r"train\.jsonl has no row that can be used: expected rows such as"):
        read(CLUES, parse, "train", source=str(tmp_path))


def test_a_part_that_stays_empty_names_the_key_of_the_split(tmp_path):
    source = write(tmp_path / "few.jsonl", [raw_row(1)])
    with pytest.raises(ValueError, match="since a hash of the town keeps one row in ten for test"):
        read(CLUES, parse, "test", source=source)


def test_a_fault_of_our_own_is_not_blamed_on_the_row(tmp_path):
    write(tmp_path / "train.jsonl", [raw_row(1)])
    with pytest.raises(ValueError) as caught:
        read(CLUES, lambda raw: {"clue": int(raw["clue"])}, "train", source=str(tmp_path))
    assert "mend the row" not in str(caught.value)


def test_blank_lines_may_only_end_a_file(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(raw_row(1)) + "\n\n \n")
    assert len(read(CLUES, parse, "train", source=str(tmp_path))) == 1
    path.write_text("\n \n" + json.dumps(raw_row(1)))
    with pytest.raises(ValueError, match=r"row 1 is not JSON \(it is blank\)"):
        read(CLUES, parse, "train", source=str(tmp_path))


def test_first_says_what_is_short(capsys):
    assert first([{"a": 1}, {"a": 2}], 1, "here") == [{"a": 1}]
    assert first([{"a": 1}], None, "here") == [{"a": 1}]
    assert capsys.readouterr().out == ""
    assert first([{"a": 1}], 2, "here") == [{"a": 1}]
    assert capsys.readouterr().out == "here: 2 rows asked for, all 1 there are used\n"


# Values of a raw row


def test_values_are_found_by_path_and_stripped():
    row = {"answer": {"value": " a ", "aliases": [" b", "c\n"]}, "n": 3, "none": []}
    assert text(row, "answer.value") == "a"
    assert texts(row, "answer.aliases") == ["b", "c"]
    assert texts(row, "none") == []
    assert field(row, "n", int) == 3
    assert field(row, "answer.value", str) == " a "
    assert items(row, "answer.aliases") == {"answer.aliases[0]": " b", "answer.aliases[1]": "c\n"}
    assert text(row, "answer.aliases[0]") == "b"
    assert strings({"pages": [["x"], [" ", "y"]]}, "pages[1]") == [" ", "y"]


FAULTS = [
    ({}, "a", text, "has no 'a'"),
    ({"a": None}, "a", text, "has a 'a' of type NoneType, not a string"),
    ({"a": " \n"}, "a", text, "has an empty a"),
    ({"a": "\ud83d"}, "a", text, "has a 'a' with half a character in it (a lone surrogate)"),
    ({"a": "x"}, "a.b", text, "has a 'a' of type str, not an object"),
    ({"a": {}}, "a.b", text, "has no 'a.b'"),
    ({"a": {"b": 1}}, "a.b.c", text, "has a 'a.b' of type int, not an object"),
    ({"a": {"b": 1}}, "a.b", text, "has a 'a.b' of type int, not a string"),
    ({"a": "x"}, "a", texts, "has a 'a' of type str, not a list"),
    ({"a": {"b": ["x", 1]}}, "a.b", texts, "has a 'a.b[1]' of type int, not a string"),
    ({"a": ["x", ""]}, "a", texts, "has an empty a[1]"),
    ({"a": [{"b": 1}, {"c": 2}]}, "a[1].b", text, "has no 'a[1].b'"),
    ({"a": [[], ["x", 1]]}, "a[1]", strings, "has a 'a[1][1]' of type int, not a string"),
    ({"a": ["x"]}, "a[0].b", text, "has a 'a[0]' of type str, not an object"),
    ({"a": ["\ud83d"]}, "a", texts, "has a 'a[0]' with half a character in it (a lone surrogate)"),
    ({"a": True}, "a", lambda row, path: field(row, path, int), "has a 'a' of type bool, not a whole number"),
    ({"a": 1.5}, "a", lambda row, path: field(row, path, int), "has a 'a' of type float, not a whole number"),
]


@pytest.mark.parametrize(("row", "path", "get", "expected"), FAULTS)
def test_a_bad_value_is_named(row, path, get, expected):
    with pytest.raises(BadRow) as caught:
        get(row, path)
    assert str(caught.value) == expected
