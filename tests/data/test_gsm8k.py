"""Reading GSM8K: every source gives the same columns; every fault is one sentence with place and cure."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from data import gsm8k
from data.source import is_held_out
from rewards import tags
from rewards.numeric import grade_number

REPOSITORY = Path(__file__).resolve().parents[2]


def raw_row(number: int, gold: str = "4", steps: str = "They make 2+2=<<2+2=4>>4.\n") -> dict[str, str]:
    return {"question": f"Problem {number}: what is two and two?", "answer": f"{steps}#### {gold}"}


def write_jsonl(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_parquet(path: Path, rows: list) -> str:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


@pytest.fixture
def folder(tmp_path):
    """A function that puts the given rows into the train file of a folder and gives the folder's path."""

    def make(*rows) -> str:
        write_jsonl(tmp_path / "train.jsonl", list(rows))
        return str(tmp_path)

    return make


def complaint(*args, **kwargs) -> str:
    """The message of the ValueError that `load` raises: one line, whatever library it came from."""
    with pytest.raises(ValueError) as caught:
        gsm8k.load(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What comes out


def test_columns(folder):
    answer = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nIn all 48+24 = <<48+24=72>>72 clips.\n#### 72"
    (row,) = gsm8k.load("train", source=folder({"question": "  How many clips? ", "answer": answer, "id": 7}))
    assert list(row) == ["prompt", "question", "answer", "solution"]
    assert [message["role"] for message in row["prompt"]] == ["system", "user"]
    assert row["prompt"][1]["content"] == row["question"] == "How many clips?"
    assert row["answer"] == "72"
    assert row["solution"] == "Natalia sold 48/2 = 24 clips in May.\nIn all 48+24 = 72 clips."


@pytest.mark.parametrize("gold", ["1,080", "-10", "2.5", "109,200,000", "0", "1,234.50", "$18", "1/2", "50%"])
def test_golds_survive_as_written(folder, gold):
    dataset = gsm8k.load("train", source=folder(raw_row(1, gold)))
    assert dataset["answer"] == [gold]
    text = gsm8k.worked_examples(dataset)[0]["completion"][0]["content"]
    assert grade_number(tags.parse(text).answer, gold) == 1.0


def test_only_calculator_calls_are_removed(folder):
    row = raw_row(1, steps="Since 4 < 5 and 6 > 5, 4<<4=4>> and a << b.\n")
    dataset = gsm8k.load("train", source=folder(row))
    assert dataset["solution"] == ["Since 4 < 5 and 6 > 5, 4 and a << b."]


def test_the_order_is_kept_and_limit_takes_the_first(folder):
    rows = [raw_row(number) for number in range(20)]
    questions = [row["question"] for row in rows]
    assert gsm8k.load("train", source=folder(*rows))["question"] == questions
    assert gsm8k.load("train", source=folder(*rows), limit=3)["question"] == questions[:3]


def test_a_limit_beyond_the_set_uses_all_and_says_so(folder, capsys):
    assert len(gsm8k.load("train", source=folder(raw_row(1), raw_row(2)), limit=1000)) == 2
    assert capsys.readouterr().out.strip().endswith("train.jsonl: 1,000 rows asked for, all 2 there are used")


def test_repeats_are_left_out_and_counted(folder, capsys):
    first, other = raw_row(1, "4"), raw_row(2)
    dataset = gsm8k.load("train", source=folder(first, other, raw_row(1, "5"), first))
    assert dataset["answer"] == ["4", "4"]
    assert "2 of 4 rows repeat an earlier question and are left out" in capsys.readouterr().out


def test_a_clean_load_prints_nothing(folder, capfd):
    gsm8k.load("train", source=folder(raw_row(1)), limit=1)
    assert capfd.readouterr() == ("", "")


# Where it comes from


@pytest.mark.parametrize(("split", "size"), [("train", 800), ("test", 200)])
def test_the_sample(split, size):
    dataset = gsm8k.load(split, source="sample")
    assert len(dataset) == size
    assert "<<" not in "".join(dataset["solution"])


def test_parquet_and_jsonl_agree(tmp_path):
    rows = [raw_row(number, f"{number},080") for number in range(1, 40)]
    lines = gsm8k.load("train", source=write_jsonl(tmp_path / "a.jsonl", rows))
    table = gsm8k.load("train", source=write_parquet(tmp_path / "b.PARQUET", rows))
    assert lines.to_list() == table.to_list()


def test_the_hub_path_reads_what_the_hub_library_gives(tmp_path, monkeypatch):
    hub = tmp_path / "hub"
    hub.mkdir()
    write_jsonl(hub / "train.jsonl", [raw_row(1, "1,080")])
    write_jsonl(hub / "test.jsonl", [raw_row(2), raw_row(3)])
    here = replace(gsm8k.GSM8K, hub_id=str(hub), hub_config="default")  # the same call reads a local folder
    monkeypatch.setattr(gsm8k, "GSM8K", here)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    assert gsm8k.load("train")["answer"] == ["1,080"]
    assert len(gsm8k.load("test", source="hub")) == 2


def test_a_single_file_is_split_by_question_and_nothing_else(tmp_path):
    rows = [raw_row(number) for number in range(1000)]
    source = write_jsonl(tmp_path / "all.jsonl", rows)
    train, test = (set(gsm8k.load(split, source=source)["question"]) for split in ("train", "test"))
    assert not train & test
    assert train | test == {row["question"] for row in rows}
    assert 70 <= len(test) <= 130
    shorter = write_jsonl(tmp_path / "shorter.jsonl", rows[::-2])
    assert set(gsm8k.load("test", source=shorter)["question"]) <= test


def test_the_split_of_a_question_never_changes():
    """Pinned, because a changed hash would turn yesterday's training rows into today's held-out ones."""
    questions = [raw_row(number)["question"] for number in range(60)]
    assert [number for number in range(60) if is_held_out(questions[number])] == [0, 13, 19, 34, 41, 42, 45, 51, 58]


def test_a_folder_is_not_split_again(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [raw_row(number) for number in range(50)])
    write_parquet(tmp_path / "test.parquet", [raw_row(number) for number in range(50, 60)])
    assert len(gsm8k.load("train", source=str(tmp_path))) == 50
    assert len(gsm8k.load("test", source=str(tmp_path))) == 10


def test_windows_line_ends_a_byte_order_mark_and_line_separators_are_read(tmp_path):
    rows = [{"question": "one\u2028line\x85only?", "answer": "a\u2028b\n#### 4"}, raw_row(2)]
    lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode() + b"\r\n\r\n")
    assert gsm8k.load("train", source=str(tmp_path))["question"] == [row["question"] for row in rows]


# Worked examples


def test_worked_examples_parse_and_grade():
    dataset = gsm8k.load("train", source="sample")
    examples = gsm8k.worked_examples(dataset, 300)
    assert examples.column_names == ["prompt", "completion"]
    assert examples["prompt"] == dataset["prompt"][:300]
    for row, [message] in zip(dataset.select(range(300)), examples["completion"], strict=True):
        assert message["role"] == "assistant"
        parsed = tags.parse(message["content"])
        assert parsed.reasoning == row["solution"]
        assert grade_number(parsed.answer, row["answer"]) == 1.0


def test_rows_without_steps_train_but_are_no_worked_examples(folder, capsys):
    dataset = gsm8k.load("train", source=folder(raw_row(1, steps=""), raw_row(2)))
    assert dataset["solution"][0] == ""
    examples = gsm8k.worked_examples(dataset)
    assert [prompt[1]["content"] for prompt in examples["prompt"]] == [raw_row(2)["question"]]
    assert "1 of 2 rows have no steps and are left out" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no row has worked steps"):
        gsm8k.worked_examples(dataset.select([0]))


@pytest.mark.parametrize("steps", ["The tag <answer> opens.\n", "</reasoning>\n", "...\n"])
def test_a_solution_that_breaks_the_format_is_refused(folder, steps):
    dataset = gsm8k.load("train", source=folder(raw_row(1, steps=steps)))
    with pytest.raises(ValueError, match=r"Problem 1: .* mend the row or remove it"):
        gsm8k.worked_examples(dataset)


def test_worked_examples_mind_their_limit(folder, capsys):
    dataset = gsm8k.load("train", source=folder(raw_row(1), raw_row(2)))
    assert len(gsm8k.worked_examples(dataset, 1)) == 1
    assert len(gsm8k.worked_examples(dataset, 10)) == 2
    assert "10 rows asked for, all 2 there are used" in capsys.readouterr().out
    with pytest.raises(ValueError, match="at least 1"):
        gsm8k.worked_examples(dataset, 0)


# What goes wrong

QUESTION = "What is two and two?"
BAD_ROWS = {
    "no question": ({"answer": "#### 4"}, "has no 'question'"),
    "no answer": ({"question": QUESTION}, "has no 'answer'"),
    "question is null": ({"question": None, "answer": "#### 4"}, "'question' of type NoneType, not a string"),
    "answer is a number": ({"question": QUESTION, "answer": 4}, "'answer' of type int, not a string"),
    "a list": ([QUESTION, "#### 4"], "is of type list, not an object"),
    "a string": (QUESTION, "is of type str, not an object"),
    "empty question": ({"question": " \n ", "answer": "#### 4"}, "has an empty question"),
    "no mark": ({"question": QUESTION, "answer": "The answer is 4"}, "has no '####' in its answer"),
    "empty answer": ({"question": QUESTION, "answer": ""}, "has no '####' in its answer"),
    "nothing after the mark": ({"question": QUESTION, "answer": "4.\n#### "}, "has nothing after the '####'"),
    "two marks": ({"question": QUESTION, "answer": "#### 4\n#### 5"}, "which is not one number"),
    "a word": ({"question": QUESTION, "answer": "#### four"}, "has 'four' after its '####'"),
    "a range": ({"question": QUESTION, "answer": "#### between 3 and 5"}, "which is not one number"),
    "infinity": ({"question": QUESTION, "answer": "#### inf"}, "which is not one number"),
    "half a character": ({"question": "What is \ud83d?", "answer": "#### 4"}, "lone surrogate"),
}


@pytest.mark.parametrize(("row", "expected"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named(folder, row, expected):
    message = complaint("train", source=folder(raw_row(1), raw_row(2), row, raw_row(4)), limit=1)
    assert "train.jsonl, row 3 " in message
    assert expected in message
    assert '{"question": "...", "answer": "...\\n#### 72"}' in message
    assert "mend the row or remove it" in message


@pytest.mark.parametrize(
    "line",
    ["{'question': 'single quotes'}", '{"question": "cut off', "", "plain text", "[" * 100_000, "1" * 5000],
    ids=["quotes", "cut", "blank", "text", "deep", "digits"],
)
def test_a_line_that_is_not_json_is_named(tmp_path, line):
    good = json.dumps(raw_row(1))
    (tmp_path / "train.jsonl").write_text(f"{good}\n{line}\n{good}\n")
    message = complaint("train", source=str(tmp_path))
    assert "train.jsonl, row 2 is not JSON" in message
    assert "mend the row" in message


def test_a_file_that_is_not_text_is_named(tmp_path):
    content = json.dumps(raw_row(1)).encode() + b"\n\xff\xfe\x00binary"
    (tmp_path / "train.jsonl").write_bytes(content)
    assert "train.jsonl, row 2 is not UTF-8 text" in complaint("train", source=str(tmp_path))


def test_a_bad_parquet_file_or_row_is_named(tmp_path):
    (tmp_path / "train.parquet").write_text("not parquet")
    assert "train.parquet is not a Parquet file" in complaint("train", source=str(tmp_path))
    write_parquet(tmp_path / "train.parquet", [raw_row(1), {"question": QUESTION, "answer": "4"}])
    assert "train.parquet, row 2 has no '####'" in complaint("train", source=str(tmp_path))


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_named(tmp_path, content):
    (tmp_path / "train.jsonl").write_text(content)
    assert "train.jsonl is empty: expected rows such as" in complaint("train", source=str(tmp_path))


def test_a_file_too_small_to_split_says_how_it_is_split(tmp_path):
    source = write_jsonl(tmp_path / "few.jsonl", [raw_row(1)])
    message = complaint("test", source=source)
    assert f"the test part of {source} is empty" in message
    assert "add rows, or pass a folder" in message


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file that not even root can read")
def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "train.jsonl").symlink_to("/proc/self/mem")
    message = complaint("train", source=str(tmp_path))
    assert "train.jsonl cannot be read (Input/output error): check the file" in message


@pytest.mark.parametrize(
    ("source", "meant"),
    [("smaple", "sample"), ("hubb", "hub"), ("HUB", "hub"), ("gsm8k_trian.jsonl", "gsm8k_train.jsonl")],
)
def test_a_typo_in_the_source_suggests_the_closest(monkeypatch, tmp_path, source, meant):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "gsm8k_train.jsonl", [raw_row(1)])
    message = complaint("train", source=source)
    assert f"there is no source {source!r}" in message
    assert message.endswith(f"; did you mean {meant}?")


def test_a_typo_in_a_path_suggests_the_whole_path(tmp_path):
    write_jsonl(tmp_path / "problems.jsonl", [raw_row(1)])
    message = complaint("train", source=str(tmp_path / "problem.jsonl"))
    assert message.endswith(f"; did you mean {tmp_path / 'problems.jsonl'}?")


@pytest.mark.parametrize("source", ["", "no/such/folder/rows.jsonl", "a\0b", "x" * 5000, "~nobody/x"])
def test_a_source_like_nothing_there_is_refused_without_a_guess(source):
    message = complaint("train", source=source)
    assert "there is no source" in message
    assert "did you mean" not in message


def test_other_kinds_of_file_are_refused(tmp_path):
    source = tmp_path / "rows.csv"
    source.write_text("question,answer\n")
    assert "rows.csv is not a .jsonl or .parquet file: convert it" in complaint("train", source=str(source))


def test_a_folder_needs_exactly_one_file_for_the_split(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [raw_row(1)])
    write_parquet(tmp_path / "train.parquet", [raw_row(1)])
    assert "holds both of train.jsonl and train.parquet" in complaint("train", source=str(tmp_path))
    assert "holds neither of test.jsonl and test.parquet" in complaint("test", source=str(tmp_path))


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_that_leaves_nothing_is_refused_before_anything_is_read(limit):
    assert f"a limit of {limit} rows leaves nothing: pass at least 1" in complaint("train", limit=limit)


def test_an_unknown_split_is_refused():
    assert "split is 'validation', and GSM8K has 'train' and 'test'" in complaint("validation", source="sample")


def test_without_the_hub_the_way_out_is_named(tmp_path):
    # in a process of its own: the library reads these variables once, when it is imported
    code = "from data import gsm8k\ntry: gsm8k.load('train')\nexcept ValueError as error: print(error)"
    finished = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    (message,) = finished.stdout.splitlines()
    assert message.startswith("openai/gsm8k could not be loaded from the hub (")
    assert message.endswith("connect, or pass --source FILE or --source sample")


# The real rows


@pytest.mark.real_rows
def test_every_real_row_is_read_and_makes_a_worked_example(capsys, real_rows):
    parts = [gsm8k.load(split, source=real_rows("gsm8k_train.jsonl")) for split in ("train", "test")]
    assert sum(len(part) for part in parts) == 7473
    assert capsys.readouterr().out == ""
    rows = [row for part in parts for row in part.to_list()]
    assert sum("," in row["answer"] for row in rows) == 79
    assert sum(row["answer"].startswith("-") for row in rows) == 3
    assert not any("<<" in row["solution"] or "####" in row["solution"] for row in rows)
    for part in parts:
        completions = gsm8k.worked_examples(part)["completion"]
        for row, [message] in zip(part, completions, strict=True):
            parsed = tags.parse(message["content"])
            assert parsed is not None, row["question"]
            assert grade_number(parsed.answer, row["answer"]) == 1.0, row["question"]
