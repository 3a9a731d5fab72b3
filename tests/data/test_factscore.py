"""Reading FactScore's people: the evidence, never the weak model's output, becomes the answer."""

import json
from dataclasses import replace
from typing import Any

import pytest

from data import factscore
from data.source import SAMPLES, is_held_out
from rewards.qa import f1_reward

LEAD = "Ada Vale (1871–1949) was a botanist. She described 41 mosses."


def raw_row(topic: str = "Ada Vale", lead: str = LEAD, **more: Any) -> dict[str, Any]:
    return {
        "input": f"Question: Tell me a bio of {topic}.",
        "output": f"{topic} is an American actor.",
        "topic": topic,
        "ctxs": [
            {"id": "1", "title": "Someone Else", "text": f"He wrote to {topic} once. He got no reply."},
            {"id": "2", "title": topic, "text": "of her sister. In later life Vale kept bees and"},
            {"id": "3", "title": topic, "text": lead},
        ],
    } | more


def ctx(title: str, text: str) -> dict[str, str]:
    return {"title": title, "text": text}


@pytest.fixture
def load(tmp_path):
    """A function that loads the given rows as the train split."""

    def load(*rows: Any) -> Any:
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return factscore.load("train", source=str(tmp_path))

    return load


def test_columns(load):
    (row,) = load(raw_row())
    assert list(row) == ["prompt", "completion", "question", "answer", "aliases", "topic", "passages"]
    assert row["question"] == "Tell me about Ada Vale in two or three sentences."
    assert row["prompt"] == [{"role": "user", "content": row["question"]}]
    assert row["completion"] == [{"role": "assistant", "content": LEAD}]
    assert row["answer"] == LEAD
    assert row["aliases"] == [LEAD]
    assert row["topic"] == "Ada Vale"
    assert row["passages"] == [
        f"Ada Vale: {LEAD}",
        "Ada Vale: of her sister. In later life Vale kept bees and",
        "Someone Else: He wrote to Ada Vale once. He got no reply.",
    ]


def test_the_weak_models_output_is_never_read(load):
    (row,) = load(raw_row(output=None))
    assert "actor" not in json.dumps(row)


@pytest.mark.parametrize(
    ("passages", "answer"),
    [
        ([ctx("Bo", "Ada Vale waved. Bo waved back."), ctx("ADA VALE", "Ada Vale sang.")], "Ada Vale sang."),
        ([ctx("Ada Vale", "She later ran a school."), ctx("Ada Vale", "Ada Vale sang.")], "Ada Vale sang."),
        ([ctx("Ada Vale", "She later ran a school."), ctx("Ada Vale", "She swam.")], "She later ran a school."),
        ([ctx("Bo", "Bo was a poet."), ctx("Cy", "Cy taught Ada Vale.")], "Cy taught Ada Vale."),
        (["Bo was a poet.", "Ada Vale sang."], "Ada Vale sang."),
        (["Bo was a poet.", ctx("", "Ada Vale sang.")], "Ada Vale sang."),
        ([ctx("Ada Vale", " "), "Ada Vale sang."], "Ada Vale sang."),
    ],
    ids=["title", "title and name", "title, no name", "name", "strings", "no title", "empty passage"],
)
def test_the_best_passage(load, passages, answer):
    (row,) = load(raw_row(ctxs=passages))
    assert row["answer"] == answer
    assert answer in row["passages"][0]
    assert not any(passage.startswith(":") for passage in row["passages"])


@pytest.mark.parametrize(
    ("passage", "lead"),
    [
        ("One is here. Two is here. Three is here. Four is here.", "One is here. Two is here. Three is here."),
        ("was born. Two is here. Three is here. Four is here.", "Two is here. Three is here."),
        ("One is here. Two breaks off in the", "One is here."),
        (
            "Dr. A. B. Vale was born c. 1820 in St. Orla. She left.",
            "Dr. A. B. Vale was born c. 1820 in St. Orla. She left.",
        ),
        ("One" + " word" * 40 + ". Two" + " word" * 40 + ".", "One" + " word" * 40 + "."),
        ("One" + " word" * 90 + ". Two.", "One" + " word" * 90 + "."),
        ("breaks off", ""),
        ("", ""),
    ],
)
def test_the_lead_ends_with_a_sentence(passage, lead):
    assert factscore.lead(passage) == lead


def test_rows_without_evidence_are_left_out_and_counted(load, capsys):
    nobody = raw_row("Bo Crane", ctxs=[ctx("Cy", "Cy was a poet."), "Nothing here."])
    nothing = raw_row("Di Moss", ctxs=[])
    fragment = raw_row("Ed Lund", ctxs=[ctx("Ed Lund", "Ed Lund was born in the")])
    assert load(nobody, nothing, fragment, raw_row())["topic"] == ["Ada Vale"]
    out = capsys.readouterr().out
    assert "2 of 4 rows have no passage about their topic and are left out" in out
    assert "1 of 4 rows have no whole sentence in their best passage and are left out" in out


def test_a_topic_counts_once(load, capsys):
    assert len(load(raw_row(), raw_row(lead="Ada Vale sang."))) == 1
    assert "1 of 2 rows repeat an earlier topic and are left out" in capsys.readouterr().out


def test_the_one_split_of_the_hub_is_carved_by_topic(tmp_path, monkeypatch):
    hub = tmp_path / "hub"
    hub.mkdir()
    topics = [f"Person {number}" for number in range(300)]
    lines = [json.dumps(raw_row(topic, f"{topic} was here.")) for topic in topics]
    (hub / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(factscore, "FACTSCORE", replace(factscore.FACTSCORE, hub_id=str(hub)))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    train, test = (factscore.load(split) for split in ("train", "test"))
    assert test["topic"] == [topic for topic in topics if is_held_out(topic)]
    assert set(train["topic"]) == set(topics) - set(test["topic"])
    assert train[0]["passages"][0] == f"{train[0]['topic']}: {train[0]['answer']}"


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in raw_row().items() if name != key}


BAD_ROWS = {
    "no topic": (without("topic"), "has no 'topic'"),
    "no passages": (without("ctxs"), "has no 'ctxs'"),
    "empty topic": (raw_row(topic=" "), "has an empty topic"),
    "topic is a list": (raw_row() | {"topic": ["Ada"]}, "'topic' of type list, not a string"),
    "passages are a string": (raw_row(ctxs="Ada Vale sang."), "'ctxs' of type str, not a list"),
    "a passage that is a number": (raw_row(ctxs=["Ada", 7]), "'ctxs[1]' of type int, not an object"),
    "a passage without text": (raw_row(ctxs=[{"title": "Ada"}]), "has no 'ctxs[0].text'"),
    "a passage without title": (raw_row(ctxs=[{"text": "Ada sang."}]), "has no 'ctxs[0].title'"),
    "a text that is null": (raw_row(ctxs=[ctx("Ada", None)]), "'ctxs[0].text' of type NoneType, not a string"),
    "half a character": (raw_row(ctxs=["\ud83d"]), "has a 'ctxs[0]' with half a character"),
    "a list": ([], "is of type list, not an object"),
}


@pytest.mark.parametrize(("row", "expected"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named(load, row, expected):
    with pytest.raises(ValueError) as caught:
        load(raw_row("Bo Crane"), row)
    message = str(caught.value)
    assert "train.jsonl, row 2 " in message
    assert expected in message
    assert factscore.FACTSCORE.raw_row in message
    assert "mend the row or remove it" in message
    assert "\n" not in message


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split is 'validation', and FactScore has 'train' and 'test'"):
        factscore.load("validation", source="sample")


@pytest.mark.parametrize(("split", "size"), [("train", 32), ("test", 16)])
def test_the_sample(split, size, capsys):
    rows = factscore.load(split, source="sample")
    assert len(rows) == size
    assert capsys.readouterr().out == ""
    assert f1_reward(rows["completion"], aliases=rows["aliases"]) == [1.0] * size
    for row in rows:
        assert len(row["passages"]) == 5
        assert row["answer"] in row["passages"][0]
        assert row["answer"].startswith(row["topic"])
        assert len(row["answer"].split()) <= factscore.MAX_WORDS
        assert sum(row["topic"] in passage.partition(": ")[0] for passage in row["passages"]) == 2


def test_the_parts_of_the_sample_share_nothing():
    train, test = (factscore.load(split, source="sample") for split in ("train", "test"))
    assert not set(train["topic"]) & set(test["topic"])
    seen, held_out = ({passage for own in part["passages"] for passage in own} for part in (train, test))
    assert not seen & held_out


def test_the_sample_keeps_its_evidence_in_no_fixed_place():
    for split in ("train", "test"):
        lines = (SAMPLES / f"factscore_{split}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        places = {[passage["title"] for passage in row["ctxs"]].index(row["topic"]) for row in rows}
        assert len(places) >= 3
