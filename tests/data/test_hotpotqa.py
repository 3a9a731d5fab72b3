"""Reading HotpotQA: labels follow their paragraphs through the ranking, and a bad row is named."""

import json
from dataclasses import replace
from typing import Any

import pytest

from data import hotpotqa
from data.prompts import add_passages, rag_messages

CONTEXT = {
    "Arvel": ["Arvel is a river.", " It flows into Lake Orm."],
    "Tom &amp; Orla": ["Tom &amp; Orla is a film."],
    "Orla Vale": ["Orla Vale is a baker.", "", " She was born in Tarby."],
    "Tarby": ["Tarby lies on the river Arvel."],
}


def raw_row(number: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"q{number}",
        "question": f"Question {number}: on which river was Orla Vale born?",
        "answer": " Arvel",
        "type": "bridge",
        "level": "hard",
        "supporting_facts": {"title": ["Orla Vale", "Tarby", "Tarby"], "sent_id": [2, 0, 900]},
        "context": {"title": list(CONTEXT), "sentences": list(CONTEXT.values())},
    } | changes


@pytest.fixture
def load(tmp_path):
    """A function that loads the given rows as the train split."""

    def load(*rows: Any) -> Any:
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return hotpotqa.load("train", source=str(tmp_path))

    return load


def test_columns(load, capsys):
    (row,) = load(raw_row())
    assert list(row) == ["prompt", "question", "answer", "aliases", "passages", "supporting"]
    assert row["prompt"] == rag_messages("Question 1: on which river was Orla Vale born?")
    assert (row["answer"], row["aliases"]) == ("Arvel", ["Arvel"])
    assert set(row["passages"]) == {
        "Arvel\nArvel is a river. It flows into Lake Orm.",
        "Tom & Orla\nTom &amp; Orla is a film.",
        "Orla Vale\nOrla Vale is a baker. She was born in Tarby.",
        "Tarby\nTarby lies on the river Arvel.",
    }
    assert capsys.readouterr().out == ""


def test_labels_follow_their_passages_and_do_not_rank_them(load):
    (row,) = load(raw_row())
    assert row["passages"][0].startswith("Orla Vale")
    labels = {passage.partition("\n")[0]: own for passage, own in zip(row["passages"], row["supporting"], strict=True)}
    assert labels == {"Orla Vale": True, "Tarby": True, "Arvel": False, "Tom & Orla": False}
    (other,) = load(raw_row(supporting_facts={"title": ["Arvel", "Tom &amp; Orla"], "sent_id": [0, 0]}))
    assert other["passages"] == row["passages"]
    assert other["supporting"] == [not own for own in row["supporting"]]


def test_rows_without_their_evidence_are_left_out_and_counted(load, capsys):
    missing = raw_row(2, supporting_facts={"title": ["Orla Vale", "Elsewhere"], "sent_id": [0, 0]})
    unlabelled = raw_row(3, supporting_facts={"title": [], "sent_id": []})
    empty = raw_row(4, context={"title": list(CONTEXT), "sentences": [*list(CONTEXT.values())[:3], ["", " "]]})
    assert len(load(raw_row(), missing, unlabelled, empty)) == 1
    assert "3 of 4 rows miss a supporting paragraph and are left out" in capsys.readouterr().out


def test_test_is_the_validation_split_of_the_hub_and_parquet_reads_alike(tmp_path, monkeypatch):
    from datasets import Dataset

    hub = tmp_path / "hub"
    hub.mkdir()
    for name, number in (("train", 1), ("validation", 2)):
        Dataset.from_list([raw_row(number)]).to_parquet(hub / f"{name}.parquet")
    Dataset.from_list([raw_row(3, answer="")]).to_parquet(hub / "test.parquet")
    here = replace(hotpotqa.HOTPOTQA, hub_id=str(hub), hub_config="default")  # the same call reads a local folder
    monkeypatch.setattr(hotpotqa, "HOTPOTQA", here)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    assert hotpotqa.load("train")["question"] == [raw_row(1)["question"]]
    (row,) = hotpotqa.load("test", limit=1)
    assert row["question"] == raw_row(2)["question"]
    (again,) = hotpotqa.load("train", source=str(hub / "train.parquet"), limit=1)
    assert again["passages"] == row["passages"]


def context(**changes: Any) -> dict[str, Any]:
    return raw_row(context=raw_row()["context"] | changes)


BAD_ROWS = {
    "no question": ({"answer": "Arvel"}, "has no 'question'"),
    "empty answer": (raw_row(answer=" "), "has an empty answer"),
    "no facts": ({"question": "Which?", "answer": "x"}, "has no 'supporting_facts'"),
    "facts as the authors have them": (
        raw_row(supporting_facts=[["Tarby", 0]]),
        "'supporting_facts' of type list, not an object",
    ),
    "context as the authors have it": (
        raw_row(context=[["Tarby", ["Tarby lies ..."]]]),
        "'context' of type list, not an object",
    ),
    "a title is missing": (
        context(title=["Tarby", "Orla Vale"]),
        "has 2 titles and 4 paragraphs in its context",
    ),
    "a title is a number": (context(title=["Tarby", 7]), "'context.title[1]' of type int, not a string"),
    "a paragraph is a string": (
        context(sentences=[["x"], "Tarby lies", ["x"], ["x"]]),
        "'context.sentences[1]' of type str, not a list",
    ),
    "a sentence is null": (
        context(sentences=[["x"], ["x", None], ["x"], ["x"]]),
        "'context.sentences[1][1]' of type NoneType, not a string",
    ),
    "half a character": (context(sentences=[["\ud83d"], ["x"], ["x"], ["x"]]), "lone surrogate"),
    "a list": (["Which?"], "is of type list, not an object"),
}


@pytest.mark.parametrize(("row", "expected"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named(load, row, expected):
    with pytest.raises(ValueError) as caught:
        load(raw_row(9), row)
    message = str(caught.value)
    assert "train.jsonl, row 2 " in message
    assert expected in message
    assert hotpotqa.HOTPOTQA.raw_row in message
    assert "mend the row or remove it" in message
    assert "\n" not in message


@pytest.mark.real_rows
def test_every_real_row_is_read_and_its_evidence_survives(capsys, real_rows):
    parts = [hotpotqa.load(split, source=real_rows("hotpot_qa_distractor.jsonl")) for split in ("train", "test")]
    assert sum(len(part) for part in parts) == 60
    assert capsys.readouterr().out == ""
    for part in parts:
        assert all(len(passages) == 10 for passages in part["passages"])
        assert all(sum(supporting) == 2 for supporting in part["supporting"])
        shown = add_passages(part, budget=1_500, count_tokens=lambda text: len(text.split()), numbered=True)
        assert shown["supporting_lost"] == [0] * len(part)
