"""Reading FreshQA: a sheet with several valid answers and false premises, and passages looked up for its questions."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data import freshqa
from data.prompts import add_passages, rag_messages
from data.source import is_held_out
from rewards.qa import exact_match, normalise, token_f1

HEADER = "id,split,question,effective_year,next_review,false_premise,num_hops,fact_type,source,"
HEADER += "".join(f"answer_{number}," for number in range(10)) + "note"


def raw_row(question: str = "Who is the mayor of Tarby?", **changes: Any) -> dict[str, Any]:
    row = dict.fromkeys(HEADER.split(","), "")
    row |= {"id": "1", "split": "DEV", "question": question, "false_premise": "FALSE", "num_hops": "one-hop"}
    return row | {"fact_type": "slow-changing", "answer_0": "Orla Vale", "answer_1": "Vale"} | changes


@pytest.fixture
def load(tmp_path):
    """A function that loads the given raw rows as the train split."""

    def load(*rows: dict[str, Any], **options: Any) -> Any:
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return freshqa.load("train", source=str(tmp_path), **options)

    return load


@pytest.fixture
def folder(tmp_path):
    """A function that makes a folder of passages from names and contents."""

    def folder(**files: str) -> str:
        place = tmp_path / "passages"
        for name, content in files.items():
            path = place / name.replace("__", "/").replace("_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        return str(place)

    return folder


# Rows


def test_columns(load):
    (row,) = load(raw_row(answer_2=" Orla Vale ", answer_3="  ", answer_9="Mayor Vale"))
    assert row == {
        "prompt": rag_messages("Who is the mayor of Tarby?"),
        "question": "Who is the mayor of Tarby?",
        "answer": "Orla Vale",
        "aliases": ["Orla Vale", "Vale", "Mayor Vale"],
        "false_premise": False,
        "num_hops": "one-hop",
        "fact_type": "slow-changing",
        "passages": [],
        "supporting": [],
    }


def test_the_day_stands_in_the_prompt(load):
    question = "Who is the mayor of Tarby?"
    (row,) = load(raw_row(), as_of=" 2026-11-01 ")
    assert row["prompt"] == rag_messages(question, "2026-11-01")
    assert row["prompt"] != rag_messages(question)
    assert row["question"] == question


@pytest.mark.parametrize(("cell", "expected"), [("TRUE", True), ("false ", False), (True, True), (False, False)])
def test_a_false_premise_is_a_truth_value(load, cell, expected):
    assert load(raw_row(false_premise=cell))["false_premise"] == [expected]


def test_cells_that_a_table_reader_left_out_are_empty(load):
    row = {name: value or None for name, value in raw_row().items()}
    del row["answer_9"]
    assert load(row)["aliases"] == [["Orla Vale", "Vale"]]


def test_rows_without_an_answer_are_counted(load, capsys):
    assert len(load(raw_row(), raw_row("Why?", answer_0="", answer_1=" "))) == 1
    assert "1 of 2 rows have no answer and are left out" in capsys.readouterr().out


BAD_ROWS = {
    "no question": ({"question": " "}, "has an empty question"),
    "unknown split": ({"split": "dev"}, "has the split 'dev', neither DEV nor TEST"),
    "split missing": ({"split": None}, "has a 'split' of type NoneType, not a string"),
    "premise": ({"false_premise": "maybe"}, "has 'maybe' for its false_premise, neither TRUE nor FALSE"),
    "no premise": ({"false_premise": None}, "has None for its false_premise"),
    "a number": ({"answer_1": 7}, "has a 'answer_1' of type int, not a string"),
    "half a character": ({"answer_1": "\ud83d"}, "has a 'answer_1' with half a character in it"),
    "no hops": ({"num_hops": ""}, "has an empty num_hops"),
}


@pytest.mark.parametrize(("changes", "expected"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named(load, changes, expected):
    with pytest.raises(ValueError) as caught:
        load(raw_row("Why?"), raw_row(**changes))
    message = str(caught.value)
    assert "train.jsonl, row 2 " in message
    assert expected in message
    assert freshqa.FRESHQA.raw_row in message
    assert "\n" not in message


# The sheet


def test_a_sheet_as_it_is_exported(tmp_path):
    rows = "".join(
        f'{number},{split},"{split} {number}, ""q""?",2023,N/A,TRUE,one-hop,never-changing,"a\nb",No.,"No, it\'s not."'
        ",,,,,,,,,note\r\n"
        for split in ("TEST", "DEV")
        for number in (1, 2)
    )
    path = tmp_path / "sheet.csv"
    path.write_text(f"Warning: answers change every week.,,,\r\n\r\n{HEADER}\r\n{rows}", encoding="utf-8", newline="")
    train, test = (freshqa.load(split, source=str(path)) for split in ("train", "test"))
    assert train["question"] == ['DEV 1, "q"?', 'DEV 2, "q"?']
    assert test["question"] == ['TEST 1, "q"?', 'TEST 2, "q"?']
    assert test["aliases"] == [["No.", "No, it's not."]] * 2
    assert test["false_premise"] == [True, True]


def test_a_sheet_with_one_part_is_divided_by_the_hash(tmp_path):
    path = tmp_path / "dev.jsonl"
    path.write_text("".join(json.dumps(raw_row(f"Question {number}?")) + "\n" for number in range(60)))
    train, test = (freshqa.load(split, source=str(path))["question"] for split in ("train", "test"))
    assert len(train) + len(test) == 60
    assert all(is_held_out(question) for question in test)


def test_the_hub_is_refused_with_the_way_to_the_sheet():
    with pytest.raises(ValueError) as caught:
        freshqa.load("train")
    assert "github.com/freshllms/freshqa" in str(caught.value)
    assert "pass --source FILE" in str(caught.value)


# Passages


def test_passages_come_best_first_from_all_files_and_cut(load, folder):
    long = " ".join(f"The harbour of Tarby has a boat called number {number}." for number in range(40))
    place = folder(
        a_txt="Tarby\nOrla Vale is the mayor of Tarby.\n\nWesby\nWesby is elsewhere.",
        deep__b_md=long,
        c_csv="The mayor of Tarby is a secret.",
    )
    (row,) = load(raw_row(), passages=place)
    assert row["passages"][0] == "Tarby\nOrla Vale is the mayor of Tarby."
    assert len(row["passages"]) > 3
    assert all("Tarby" in passage and "secret" not in passage for passage in row["passages"])
    assert max(map(len, row["passages"])) <= freshqa.PASSAGE_CHARACTERS
    assert row["supporting"] == [False] * len(row["passages"])


def test_a_question_that_shares_no_word_has_no_passage(load, folder):
    place = folder(a_txt="\ufeffOrla Vale is the mayor of Tarby.", empty_txt="")
    rows = load(raw_row(), raw_row("Is it the one?"), raw_row("Quis?"), passages=place)
    assert rows["passages"] == [["Orla Vale is the mayor of Tarby."], [], []]


def test_no_more_passages_than_the_maximum_and_none_twice(load, folder):
    lines = "\n".join(f"Mayor number {number % 30}" for number in range(60))
    (own,) = load(raw_row(), passages=folder(a_txt=lines))["passages"]
    assert len(own) == freshqa.MAX_PASSAGES == len(set(own))


def test_the_gold_answer_has_no_influence(load, folder):
    place = folder(a_txt="Orla Vale\nShe swims.\n\nTarby\nThe mayor of Tarby is here.")
    assert load(raw_row(), passages=place)["passages"] == load(raw_row(answer_0="x"), passages=place)["passages"]
    assert load(raw_row(), passages=place)["passages"] == [["Tarby\nThe mayor of Tarby is here."]]


def test_prompts_with_and_without_passages_go_together(load, folder, capsys):
    rows = load(raw_row(), raw_row("Quis?"), passages=folder(a_txt="Orla Vale is the mayor of Tarby."))
    shown = add_passages(rows, budget=100, count_tokens=len, numbered=True)
    assert "[1] Orla Vale" in shown[0]["prompt"][-1]["content"]
    assert shown[1]["prompt"] == rag_messages("Quis?")
    assert "1 of 2 prompts have none" in capsys.readouterr().out


def test_words_that_are_all_stop_words_are_no_fault(load, folder):
    assert load(raw_row(), passages=folder(a_txt="It is the."))["passages"] == [[]]


@pytest.mark.parametrize("name", ["", "no/such/folder", "a\0b"])
def test_a_missing_folder_is_refused(load, name):
    with pytest.raises(ValueError, match=r"there is no folder .* for passages: pass one with \.txt or \.md files, or"):
        load(raw_row(), passages=name)


def test_a_folder_without_text_is_refused(load, folder):
    place = folder(a_txt=" \n", b_csv="Tarby")
    with pytest.raises(ValueError, match=r"has no text in \.txt or \.md files: put some there"):
        load(raw_row(), passages=place)


def test_a_file_that_is_not_utf8_is_named(load, folder):
    place = folder(a_txt="Tarby")
    Path(place, "b.md").write_bytes("Tarby\nKöln\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"b\.md, line 2 is not UTF-8 text: save it as UTF-8, or remove it"):
        load(raw_row(), passages=place)


# SealQA


@pytest.fixture
def sealqa(tmp_path, monkeypatch):
    """A function that puts rows where SealQA's would be."""

    def sealqa(*rows: dict[str, Any]) -> None:
        hub = tmp_path / "hub"
        hub.mkdir()
        (hub / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        here = replace(freshqa.SEALQA, hub_id=str(hub), hub_config="default")
        monkeypatch.setattr(freshqa, "SEALQA", here)
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    return sealqa


def documents(*items: Any) -> dict[str, Any]:
    return {"question": "Why?", "12_docs": list(items), "20_docs": list(items), "30_docs": list(items)}


def test_documents_of_sealqa_with_titles(load, sealqa):
    sealqa(
        documents(
            {"title": "Tarby", "text": "Orla Vale is the mayor.", "url": "u", "date": None},
            {"title": None, "text": "The mayor swims.", "url": "u", "date": "2024"},
            {"title": "The mayor", "text": None, "url": "u", "date": None},
        )
    )
    (own,) = load(raw_row(), passages="sealqa")["passages"]
    assert own == ["Tarby\nOrla Vale is the mayor.", "The mayor swims."]


def test_documents_of_sealqa_as_strings(load, sealqa):
    sealqa(documents("The mayor of Tarby swims.", "Nothing here."))
    assert load(raw_row(), passages="sealqa")["passages"] == [["The mayor of Tarby swims."]]


def test_other_documents_are_refused(load, sealqa):
    sealqa({"question": "Why?", "12_docs": "Tarby", "20_docs": [], "30_docs": []})
    with pytest.raises(ValueError, match=r"row 1 has a '12_docs' of type str, not a list: expected"):
        load(raw_row(), passages="sealqa")


# The sample


@pytest.fixture(scope="module")
def sample():
    return {split: freshqa.load(split, source="sample").to_list() for split in ("train", "test")}


@pytest.mark.parametrize(("split", "size"), [("train", 64), ("test", 32)])
def test_the_sample(sample, split, size, capsys):
    rows = sample[split]
    assert len(rows) == size
    assert sum(row["false_premise"] for row in rows) == size / 4
    assert sum(len(row["aliases"]) > 1 for row in rows) > size / 2
    assert {row["num_hops"] for row in rows} == {"one-hop", "multi-hop"}
    assert capsys.readouterr().out == ""


def test_the_parts_of_the_sample_share_no_question(sample):
    train, test = ({row["question"] for row in sample[split]} for split in ("train", "test"))
    assert not train & test


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_sample_finds_its_evidence(sample, split):
    for row in sample[split]:
        assert row["passages"], row["question"]
        if not row["false_premise"]:  # a refutation is said in other words
            best = f" {normalise(' '.join(row['passages'][:3]))} "
            assert any(f" {normalise(alias)} " in best for alias in row["aliases"]), row["question"]


def test_passages_of_the_sample_are_short():
    passages = freshqa._folder(str(freshqa.SAMPLES / "freshqa_passages"))
    assert len(passages) == 99
    assert all(4 < len(passage.split()) < 30 and passage.count("\n") == 1 for passage in passages)


# The real rows


@pytest.mark.real_rows
def test_every_row_of_a_real_sheet_is_read(capsys, real_rows):
    parts = [freshqa.load(split, source=real_rows("freshqa_dev.csv")) for split in ("train", "test")]
    assert [len(part) for part in parts] == [90, 10]
    assert capsys.readouterr().out == ""
    rows = [row for part in parts for row in part.to_list()]
    refuted = [row for row in rows if row["false_premise"]]
    assert len(refuted) == 26
    assert all(exact_match(row["answer"], row["aliases"]) == 1.0 for row in rows)
    scores = [token_f1(row["question"], row["aliases"]) for row in refuted]
    assert sum(scores) / len(scores) == pytest.approx(0.32, abs=0.005)
