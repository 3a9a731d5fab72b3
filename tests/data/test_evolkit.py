"""Reading EvolKit: the last answer is imitated, what leads to it is the prompt, and odd conversations are counted."""

import json
from dataclasses import replace
from typing import Any

import pytest

from data import evolkit
from data.source import is_held_out


def turn(speaker: str, value: str) -> dict[str, str]:
    return {"from": speaker, "value": value}


def talk(*values: str, system: str = "", **more: Any) -> dict[str, Any]:
    """A raw row in which human and gpt say the values in turn."""
    turns = [turn(("human", "gpt")[index % 2], value) for index, value in enumerate(values)]
    return {"conversations": [turn("system", system)] * bool(system) + turns} | more


@pytest.fixture
def load(tmp_path):
    """A function that loads the given rows as the train split."""

    def load(*rows: Any) -> Any:
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return evolkit.load("train", source=str(tmp_path))

    return load


def test_columns(load):
    (row,) = load(talk(" Is 91 prime? ", " No.\n"))
    assert row == {
        "prompt": [{"role": "user", "content": "Is 91 prime?"}],
        "completion": [{"role": "assistant", "content": "No."}],
        "question": "Is 91 prime?",
        "answer": "No.",
        "opening": "Is 91 prime?",
    }


def test_earlier_turns_and_the_system_are_the_prompt(load):
    (row,) = load(talk("Is 91 prime?", "No.", "Why?", "7 times 13.", system="Be brief."))
    assert [message["role"] for message in row["prompt"]] == ["system", "user", "assistant", "user"]
    assert [message["content"] for message in row["prompt"]] == ["Be brief.", "Is 91 prime?", "No.", "Why?"]
    assert (row["opening"], row["question"], row["answer"]) == ("Is 91 prime?", "Why?", "7 times 13.")


def test_what_nobody_answers_is_dropped(load):
    (row,) = load(talk("Is 91 prime?", "No.", "Why?"))
    assert len(row["prompt"]) == 1
    assert row["answer"] == "No."
    (row,) = load(talk("Is 91 prime?", "No.", ""))
    assert row["answer"] == "No."


def test_conversations_of_no_use_are_counted(load, capsys):
    good = talk("Is 91 prime?", "No.")
    odd = [
        talk("Is 91 prime?", ""),
        talk(" ", "No."),
        talk("Why?"),
        {"conversations": []},
        talk("", "Hello.", system="Be brief."),
        {"conversations": [turn("gpt", "Hello.")]},
        {"conversations": [turn("gpt", "Hello."), *talk("Is 91 prime?", "No.")["conversations"]]},
        {"conversations": [*talk("Is 91 prime?", "No.")["conversations"], turn("gpt", "Really.")]},
        {"conversations": [*talk("Is 92 prime?", "No.", system="Be brief.")["conversations"]][::-1]},
        {"conversations": [turn("human", "Hm."), turn("system", "Be brief."), turn("gpt", "No.")]},
    ]
    assert len(load(good, *odd)) == 1
    out = capsys.readouterr().out
    assert "3 of 11 rows have an empty turn and are left out" in out
    assert "2 of 11 rows have no turn from gpt and are left out" in out
    assert "5 of 11 rows do not alternate between human and gpt and are left out" in out


def test_one_opening_may_lead_to_several_questions(load, capsys):
    rows = [talk("Hi.", "Hello."), talk("Hi.", "Hello.", "Why?", "So."), talk("Hi.", "Good day.")]
    assert load(*rows)["answer"] == ["Hello.", "So."]
    assert "1 of 3 rows repeat an earlier opening and question and are left out" in capsys.readouterr().out


def test_the_one_split_of_the_hub_is_carved_by_opening(tmp_path, monkeypatch):
    hub = tmp_path / "hub"
    hub.mkdir()
    openings = [f"What is {number} squared?" for number in range(150)]
    rows = [talk(opening, "A number.", *more) for opening in openings for more in ((), ("Which?", "Guess."))]
    (hub / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    monkeypatch.setattr(evolkit, "EVOLKIT", replace(evolkit.EVOLKIT, hub_id=str(hub)))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    train, test = (evolkit.load(split) for split in ("train", "test"))
    held_out = {opening for opening in openings if is_held_out(opening)}
    assert set(test["opening"]) == held_out
    assert set(train["opening"]) == set(openings) - held_out
    assert len(test) == 2 * len(held_out) > 0


BAD_ROWS = {
    "no conversations": ({"messages": []}, "has no 'conversations'"),
    "a string": ({"conversations": "Hi."}, "'conversations' of type str, not a list"),
    "a turn that is a string": ({"conversations": ["Hi."]}, "'conversations[0]' of type str, not an object"),
    "no speaker": ({"conversations": [{"value": "Hi."}]}, "has no 'conversations[0].from'"),
    "no value": ({"conversations": [{"from": "gpt"}]}, "has no 'conversations[0].value'"),
    "null": ({"conversations": [turn("gpt", None)]}, "'conversations[0].value' of type NoneType, not a string"),
    "unknown speaker": (
        {"conversations": [turn("human", "Hi."), turn("tool", "4")]},
        "has 'tool' as its 'conversations[1].from', which is none of system, human, gpt",
    ),
    "OpenAI's names": ({"conversations": [turn("user", "Hi.")]}, "has 'user' as its 'conversations[0].from'"),
    "half a character": (talk("\ud83d", "Hm."), "has a 'conversations[0].value' with half a character"),
    "a list": ([], "is of type list, not an object"),
}


@pytest.mark.parametrize(("row", "expected"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named(load, row, expected):
    with pytest.raises(ValueError) as caught:
        load(talk("Is 91 prime?", "No."), row)
    message = str(caught.value)
    assert "train.jsonl, row 2 " in message
    assert expected in message
    assert evolkit.EVOLKIT.raw_row in message
    assert "mend the row or remove it" in message
    assert "\n" not in message


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split is 'validation', and EvolKit has 'train' and 'test'"):
        evolkit.load("validation", source="sample")


@pytest.mark.parametrize(("split", "size"), [("train", 32), ("test", 16)])
def test_the_sample(split, size, capsys):
    rows = evolkit.load(split, source="sample").to_list()
    assert len(rows) == size
    assert capsys.readouterr().out == ""
    assert {len(row["prompt"]) for row in rows} >= {1, 2, 3}  # alone, with a system message, with earlier turns
    assert all(len(row["answer"].split()) <= 40 for row in rows)
    assert len({row["answer"] for row in rows}) == size


def test_the_parts_of_the_sample_share_no_opening():
    train, test = (evolkit.load(split, source="sample")["opening"] for split in ("train", "test"))
    assert not set(train) & set(test)
