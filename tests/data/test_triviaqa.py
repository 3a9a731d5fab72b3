"""Reading TriviaQA: the answer leads its aliases, placeholders are refused, and a bad row is named."""

import json
from dataclasses import replace
from typing import Any

import pytest

from data import triviaqa
from data.prompts import SHORT_ANSWER_INSTRUCTION


def raw_row(number: int = 1, value: Any = "The Nile", aliases: Any = ("Nile", "River Nile")) -> dict[str, Any]:
    return {
        "question": f"Question {number}: which river flows through Cairo?",
        "question_id": f"q{number}",
        "search_results": {"title": []},
        "answer": {"value": value, "aliases": aliases, "normalized_value": "nile", "type": "WikipediaEntity"},
    }


@pytest.fixture
def load(tmp_path):
    """A function that loads the given rows as the train split."""

    def load(*rows: Any) -> Any:
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return triviaqa.load("train", source=str(tmp_path))

    return load


def test_columns(load):
    (row,) = load(raw_row(value=" The Nile "))
    assert list(row) == ["prompt", "completion", "question", "answer", "aliases"]
    assert row["question"] == "Question 1: which river flows through Cairo?"
    assert row["prompt"] == [{"role": "user", "content": f"{row['question']}\n{SHORT_ANSWER_INSTRUCTION}"}]
    assert row["completion"] == [{"role": "assistant", "content": "The Nile"}]
    assert row["answer"] == "The Nile"
    assert row["aliases"] == ["The Nile", "Nile", "River Nile"]


@pytest.mark.parametrize(
    ("aliases", "expected"),
    [
        ([], ["The Nile"]),
        (["Nile", "The Nile", "Nile ", "NILE"], ["The Nile", "Nile", "NILE"]),
        (["The Nile"], ["The Nile"]),
    ],
)
def test_the_answer_leads_and_no_alias_repeats(load, aliases, expected):
    assert load(raw_row(aliases=aliases))["aliases"] == [expected]


def test_a_question_with_evidence_from_two_places_counts_once(load, capsys):
    assert len(load(raw_row(1), raw_row(2), raw_row(1))) == 2
    assert "1 of 3 rows repeat an earlier question and are left out" in capsys.readouterr().out


def test_test_is_the_validation_split_of_the_hub(tmp_path, monkeypatch):
    hub = tmp_path / "hub"
    hub.mkdir()
    for name, number in (("train", 1), ("validation", 2)):
        (hub / f"{name}.jsonl").write_text(json.dumps(raw_row(number)) + "\n")
    (hub / "test.jsonl").write_text(json.dumps(raw_row(3, "<unk>", [])) + "\n")
    here = replace(triviaqa.TRIVIAQA, hub_id=str(hub), hub_config="default")  # the same call reads a local folder
    monkeypatch.setattr(triviaqa, "TRIVIAQA", here)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    assert triviaqa.load("train")["question"] == [raw_row(1)["question"]]
    assert triviaqa.load("test")["question"] == [raw_row(2)["question"]]


BAD_ROWS = {
    "no question": ({"answer": raw_row()["answer"]}, "has no 'question'"),
    "empty question": (raw_row() | {"question": "\t"}, "has an empty question"),
    "no answer": ({"question": "Which?"}, "has no 'answer'"),
    "answer is a string": ({"question": "Which?", "answer": "Nile"}, "'answer' of type str, not an object"),
    "no value": ({"question": "Which?", "answer": {"aliases": []}}, "has no 'answer.value'"),
    "value is null": (raw_row(value=None), "'answer.value' of type NoneType, not a string"),
    "empty value": (raw_row(value=""), "has an empty answer.value"),
    "placeholder": (
        raw_row(value="<unk>", aliases=[]),
        "has the placeholder '<unk>' for an answer, as all of the hub's",
    ),
    "no aliases": ({"question": "Which?", "answer": {"value": "Nile"}}, "has no 'answer.aliases'"),
    "aliases are a string": (raw_row(aliases="Nile"), "'answer.aliases' of type str, not a list"),
    "an alias that is a number": (raw_row(aliases=["Nile", 7]), "'answer.aliases[1]' of type int, not a string"),
    "an empty alias": (raw_row(aliases=[" "]), "has an empty answer.aliases[0]"),
    "half a character": (raw_row(value="\ud83d"), "lone surrogate"),
    "a list": (["Which?"], "is of type list, not an object"),
}


@pytest.mark.parametrize(("row", "expected"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named(load, row, expected):
    with pytest.raises(ValueError) as caught:
        load(raw_row(9), row)
    message = str(caught.value)
    assert "train.jsonl, row 2 " in message
    assert expected in message
    assert triviaqa.TRIVIAQA.raw_row in message
    assert "mend the row or remove it" in message
    assert "\n" not in message


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split is 'validation', and TriviaQA has 'train' and 'test'"):
        triviaqa.load("validation", source="sample")


@pytest.mark.parametrize(("split", "size"), [("train", 48), ("test", 24)])
def test_the_sample(split, size, capsys):
    rows = triviaqa.load(split, source="sample").to_list()
    assert len(rows) == size
    assert capsys.readouterr().out == ""
    assert all(row["aliases"][0] == row["answer"] for row in rows)
    assert all(row["answer"].lower() not in row["question"].lower().split() for row in rows)
    assert sum(len(row["aliases"]) > 1 for row in rows) > size / 2


def test_the_parts_of_the_sample_share_no_question():
    train, test = (triviaqa.load(split, source="sample")["question"] for split in ("train", "test"))
    assert not set(train) & set(test)
