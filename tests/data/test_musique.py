"""Reading MuSiQue: labels follow their paragraphs, rows that cannot be answered are counted, a bad row is named."""

import json
from dataclasses import replace
from typing import Any

import pytest

from data import musique
from data.prompts import rag_messages


def paragraph(title: Any = "Tarby", text: Any = "Tarby lies on the river Arvel.", supports: Any = False) -> dict:
    return {"idx": 0, "title": title, "paragraph_text": text, "is_supporting": supports}


def raw_row(number: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"2hop__{number}",
        "question": f"Question {number}: on which river was Orla Vale born?",
        "question_decomposition": [{"id": 1, "question": "?", "answer": "Tarby", "paragraph_support_idx": None}],
        "answer": "Arvel ",
        "answer_aliases": ["River Arvel", "Arvel"],
        "answerable": True,
        "paragraphs": [
            paragraph(supports=True),
            paragraph(text="Tarby was founded in 1720."),
            paragraph("Orla Vale", "Orla Vale was born in Tarby.", True),
        ],
    } | changes


@pytest.fixture
def load(tmp_path):
    """A function that loads the given rows as the train split."""

    def load(*rows: Any) -> Any:
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return musique.load("train", source=str(tmp_path))

    return load


def test_columns_and_labels_of_paragraphs_that_share_a_title(load, capsys):
    (row,) = load(raw_row())
    assert row == {
        "prompt": rag_messages("Question 1: on which river was Orla Vale born?"),
        "question": "Question 1: on which river was Orla Vale born?",
        "answer": "Arvel",
        "aliases": ["Arvel", "River Arvel"],
        "passages": [
            "Orla Vale\nOrla Vale was born in Tarby.",
            "Tarby\nTarby lies on the river Arvel.",
            "Tarby\nTarby was founded in 1720.",
        ],
        "supporting": [True, True, False],
    }
    assert capsys.readouterr().out == ""


def test_labels_have_no_influence_on_the_order(load):
    others = [own | {"is_supporting": not own["is_supporting"]} for own in raw_row()["paragraphs"]]
    (row,), (other,) = load(raw_row()), load(raw_row(paragraphs=others))
    assert other["passages"] == row["passages"]
    assert other["supporting"] == [False, False, True]


def test_rows_that_cannot_be_answered_are_left_out_and_counted(load, capsys):
    twin = raw_row(1, answerable=False, paragraphs=[paragraph()])
    unlabelled = raw_row(2, paragraphs=[paragraph()])
    blank = raw_row(3, paragraphs=[paragraph("", " ", True), paragraph()])
    unsaid = raw_row(4)
    del unsaid["answerable"]
    assert len(load(twin, raw_row(1), unlabelled, blank, unsaid)) == 2
    out = capsys.readouterr().out
    assert "1 of 5 rows cannot be answered from their paragraphs and are left out" in out
    assert "2 of 5 rows have no supporting paragraph and are left out" in out


def test_test_is_the_validation_split_of_the_hub(tmp_path, monkeypatch):
    """The hub copy's files, found by their names: "dev" is validation."""
    hub = tmp_path / "hub"
    hub.mkdir()
    for name, number in (("train", 1), ("dev", 2)):
        (hub / f"musique_ans_v1.0_{name}.jsonl").write_text(json.dumps(raw_row(number)) + "\n")
    monkeypatch.setattr(musique, "MUSIQUE", replace(musique.MUSIQUE, hub_id=str(hub)))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    assert musique.load("train")["question"] == [raw_row(1)["question"]]
    assert musique.load("test")["question"] == [raw_row(2)["question"]]


BAD_ROWS = {
    "no question": ({"answer": "Arvel", "answer_aliases": []}, "has no 'question'"),
    "empty answer": (raw_row(answer=" "), "has an empty answer"),
    "aliases are a string": (raw_row(answer_aliases="Arvel"), "'answer_aliases' of type str, not a list"),
    "no paragraphs": ({"question": "?", "answer": "x", "answer_aliases": []}, "has no 'paragraphs'"),
    "a paragraph is a string": (
        raw_row(paragraphs=[paragraph(), "Tarby"]),
        "'paragraphs[1]' of type str, not an object",
    ),
    "no title": (raw_row(paragraphs=[{"paragraph_text": "x"}]), "has no 'paragraphs[0].title'"),
    "the text is null": (
        raw_row(paragraphs=[paragraph(text=None)]),
        "'paragraphs[0].paragraph_text' of type NoneType, not a string",
    ),
    "a label is a number": (
        raw_row(paragraphs=[paragraph(supports=1)]),
        "has no true or false as 'paragraphs[0].is_supporting'",
    ),
    "half a character": (raw_row(paragraphs=[paragraph(text="\ud83d")]), "lone surrogate"),
    "a list": (["Which?"], "is of type list, not an object"),
}


@pytest.mark.parametrize(("row", "expected"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named(load, row, expected):
    with pytest.raises(ValueError) as caught:
        load(raw_row(9), row)
    message = str(caught.value)
    assert "train.jsonl, row 2 " in message
    assert expected in message
    assert musique.MUSIQUE.raw_row in message
    assert "mend the row or remove it" in message
    assert "\n" not in message
