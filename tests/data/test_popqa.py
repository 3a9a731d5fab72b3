"""Reading PopQA: answers in a JSON string, one split carved by subject, and bad rows that are named."""

import json
from dataclasses import replace
from typing import Any

import pytest

from data import popqa
from data.prompts import SHORT_ANSWER_INSTRUCTION


def raw_row(number: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "id": number,
        "subj": f"Town {number // 4}",
        "prop": "country",
        "obj": "Portugal",
        "s_pop": 40 * number,
        "question": f"In what country is street {number}?",
        "possible_answers": '["Portugal", "Portuguese Republic"]',
    } | more


@pytest.fixture
def load(tmp_path):
    """A function that loads the given rows as the train split."""

    def load(*rows: Any) -> Any:
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return popqa.load("train", source=str(tmp_path))

    return load


def test_columns(load):
    (row,) = load(raw_row(9))
    assert list(row) == ["prompt", "completion", "question", "answer", "aliases", "subject", "popularity"]
    assert row["question"] == "In what country is street 9?"
    assert row["prompt"] == [{"role": "user", "content": f"{row['question']}\n{SHORT_ANSWER_INSTRUCTION}"}]
    assert row["completion"] == [{"role": "assistant", "content": "Portugal"}]
    assert row["answer"] == "Portugal"
    assert row["aliases"] == ["Portugal", "Portuguese Republic"]
    assert row["subject"] == "Town 2"
    assert row["popularity"] == 360


@pytest.mark.parametrize(
    ("possible", "expected"),
    [
        ("[]", ["Portugal"]),
        ('["Portugal"]', ["Portugal"]),
        ('["Lusitania", "Portugal", "Lusitania "]', ["Portugal", "Lusitania"]),
        ('["T\\u00fcrkiye", "Türkiye"]', ["Portugal", "Türkiye"]),
    ],
)
def test_the_object_leads_the_possible_answers(load, possible, expected):
    assert load(raw_row(possible_answers=possible))["aliases"] == [expected]


def test_the_one_split_of_the_hub_is_carved_by_subject(tmp_path, monkeypatch):
    """From a table with tabs, as on the hub, whose JSON strings hold commas and quotes."""
    import pandas

    hub = tmp_path / "hub"
    hub.mkdir()
    rows = [raw_row(number) for number in range(400)]
    pandas.DataFrame(rows).to_csv(hub / "test.tsv", sep="\t", index=False)
    monkeypatch.setattr(popqa, "POPQA", replace(popqa.POPQA, hub_id=str(hub), hub_revision=None))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    train, test = (popqa.load(split) for split in ("train", "test"))
    assert set(train["question"]) | set(test["question"]) == {row["question"] for row in rows}
    assert not set(train["subject"]) & set(test["subject"])
    assert 2 <= len(set(test["subject"])) <= 20  # of 100
    assert test["aliases"][0] == ["Portugal", "Portuguese Republic"]


def test_names_that_a_table_reader_took_for_nothing_are_left_out(load, capsys):
    assert len(load(raw_row(1), raw_row(2, subj=None), raw_row(3, obj=None))) == 1
    assert "2 of 3 rows have no subject or no object and are left out" in capsys.readouterr().out


def test_of_namesakes_the_first_stays(load, capsys):
    namesake = raw_row(1, obj="Spain", possible_answers='["Spain"]')
    assert load(raw_row(1), namesake)["answer"] == ["Portugal"]
    assert "1 of 2 rows repeat an earlier question and are left out" in capsys.readouterr().out


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in raw_row(2).items() if name != key}


BAD_ROWS = {
    "no question": (without("question"), "has no 'question'"),
    "no subject": (without("subj"), "has no 'subj'"),
    "no object": (without("obj"), "has no 'obj'"),
    "no answers": (without("possible_answers"), "has no 'possible_answers'"),
    "no popularity": (without("s_pop"), "has no 's_pop'"),
    "empty question": (raw_row(2, question=" "), "has an empty question"),
    "empty subject": (raw_row(2, subj=""), "has an empty subj"),
    "answers are a list": (raw_row(2, possible_answers=["Spain"]), "'possible_answers' of type list, not a string"),
    "answers are no JSON": (raw_row(2, possible_answers="['Spain']"), "has 'possible_answers' that are not JSON"),
    "answers too deep": (raw_row(2, possible_answers="[" * 100_000), "has 'possible_answers' that are not JSON"),
    "answers are an object": (raw_row(2, possible_answers="{}"), "'possible_answers' of type dict, not a list"),
    "an answer that is a number": (
        raw_row(2, possible_answers="[1]"),
        "'possible_answers[0]' of type int, not a string",
    ),
    "an empty answer": (raw_row(2, possible_answers='["a", ""]'), "has an empty possible_answers[1]"),
    "popularity is a word": (raw_row(2, s_pop="many"), "'s_pop' of type str, not a whole number"),
    "popularity is a fraction": (raw_row(2, s_pop=1.5), "'s_pop' of type float, not a whole number"),
    "popularity below zero": (raw_row(2, s_pop=-1), "has -1 as its 's_pop', which counts page views"),
    "half a character": (raw_row(2, obj="\ud83d"), "lone surrogate"),
    "a number": (7, "is of type int, not an object"),
}


@pytest.mark.parametrize(("row", "expected"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named(load, row, expected):
    with pytest.raises(ValueError) as caught:
        load(raw_row(1), row)
    message = str(caught.value)
    assert "train.jsonl, row 2 " in message
    assert expected in message
    assert popqa.POPQA.raw_row in message
    assert "mend the row or remove it" in message
    assert "\n" not in message


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split is 'validation', and PopQA has 'train' and 'test'"):
        popqa.load("validation", source="sample")


@pytest.mark.parametrize(("split", "size"), [("train", 48), ("test", 24)])
def test_the_sample_is_varied(split, size, capsys):
    rows = popqa.load(split, source="sample").to_list()
    assert len(rows) == size
    assert capsys.readouterr().out == ""
    assert all(row["subject"] in row["question"] for row in rows)
    digits = {len(str(row["popularity"])) for row in rows}
    assert digits >= {3, 4, 5, 6}


def test_the_parts_of_the_sample_share_no_subject():
    train, test = (popqa.load(split, source="sample")["subject"] for split in ("train", "test"))
    assert not set(train) & set(test)
