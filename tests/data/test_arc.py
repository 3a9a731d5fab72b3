"""Reading ARC: labels become letters, options keep their order, and a bad row is named."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data import arc
from data.prompts import CHOICE_INSTRUCTION

MATERIALS = ["wool", "copper", "rubber", "glass", "wood"]


def raw_row(labels: str = "ABCD", key: str = "B", **more: Any) -> dict[str, Any]:
    choices = {"text": MATERIALS[: len(labels)], "label": list(labels)}
    return {"id": "1", "question": "Which of these conducts?", "choices": choices, "answerKey": key} | more


@pytest.fixture
def load(tmp_path):
    """A function that loads the given rows as the train split."""

    def load(*rows: Any) -> Any:
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return arc.load("train", source=str(tmp_path))

    return load


def test_columns(load):
    (row,) = load(raw_row(question=" Which of these conducts? "))
    assert list(row) == ["prompt", "completion", "question", "answer", "options"]
    assert row["question"] == "Which of these conducts?"
    assert row["answer"] == "B"
    assert row["options"] == MATERIALS[:4]
    assert row["completion"] == [{"role": "assistant", "content": "B"}]
    assert row["prompt"] == [
        {
            "role": "user",
            "content": f"Which of these conducts?\nA. wool\nB. copper\nC. rubber\nD. glass\n{CHOICE_INSTRUCTION}",
        }
    ]


@pytest.mark.parametrize("labels", ["AB", "ABC", "ABCD", "ABCDE", "12", "123", "1234", "12345"])
def test_every_label_becomes_a_letter(load, labels):
    for index, key in enumerate(labels):
        (row,) = load(raw_row(labels, key))
        assert row["answer"] == "ABCDE"[index]
        assert row["options"] == MATERIALS[: len(labels)]
        assert f"\n{row['answer']}. {MATERIALS[index]}\n" in row["prompt"][0]["content"]
        assert row["prompt"][0]["content"].count("\n") == len(labels) + 1


def test_a_question_may_return_with_other_options(load, capsys):
    other = raw_row() | {
        "choices": {"text": ["silver", "wax", "paper", "air"], "label": list("ABCD")},
        "answerKey": "A",
    }
    assert load(raw_row(), other, raw_row())["answer"] == ["B", "A"]
    assert "1 of 3 rows repeat an earlier question and options" in capsys.readouterr().out


def choices(texts: Any, labels: Any) -> dict[str, Any]:
    return raw_row() | {"choices": {"text": texts, "label": labels}}


BAD_ROWS = {
    "no question": ({"choices": raw_row()["choices"], "answerKey": "A"}, "has no 'question'"),
    "empty question": (raw_row(question=" "), "has an empty question"),
    "no choices": ({"question": "Which?", "answerKey": "A"}, "has no 'choices'"),
    "a list of choices": (raw_row(choices=[{"text": "a", "label": "A"}]), "'choices' of type list, not an object"),
    "no texts": (raw_row(choices={"label": ["A", "B"]}), "has no 'choices.text'"),
    "no labels": (raw_row(choices={"text": ["a", "b"]}), "has no 'choices.label'"),
    "an option that is a number": (choices(["a", 2], ["A", "B"]), "'choices.text[1]' of type int, not a string"),
    "an empty option": (choices(["a", " "], ["A", "B"]), "has an empty choices.text[1]"),
    "one option": (choices(["a"], ["A"]), "has 1 options, not two to five"),
    "six options": (choices(list("abcdef"), list("ABCDEF")), "has 6 options, not two to five"),
    "fewer labels": (choices(["a", "b", "c"], ["A", "B"]), "labels its 3 options A, B, not A, B, ... or 1, 2, ..."),
    "labels out of order": (choices(["a", "b"], ["B", "A"]), "labels its 2 options B, A, not"),
    "labels of two kinds": (choices(["a", "b"], ["A", "2"]), "labels its 2 options A, 2, not"),
    "no key": ({"question": "Which?", "choices": raw_row()["choices"]}, "has no 'answerKey'"),
    "a key that is a number": (raw_row("1234", answerKey=2), "'answerKey' of type int, not a string"),
    "a key of no option": (raw_row(key="E"), "has the 'answerKey' 'E', which is none of its labels A, B, C, D"),
    "a key of the other kind": (
        raw_row("1234", "B"),
        "has the 'answerKey' 'B', which is none of its labels 1, 2, 3, 4",
    ),
    "half a character": (raw_row(question="\ud83d?"), "lone surrogate"),
    "a string": ("Which?", "is of type str, not an object"),
}


@pytest.mark.parametrize(("row", "expected"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named(load, row, expected):
    with pytest.raises(ValueError) as caught:
        load(raw_row(), row)
    message = str(caught.value)
    assert "train.jsonl, row 2 " in message
    assert expected in message
    assert arc.ARC.raw_row in message
    assert "mend the row or remove it" in message
    assert "\n" not in message


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split is 'validation', and ARC has 'train' and 'test'"):
        arc.load("validation", source="sample")


@pytest.mark.parametrize(("split", "size"), [("train", 64), ("test", 32)])
def test_the_sample_is_balanced_and_varied(split, size, capsys):
    rows = arc.load(split, source="sample").to_list()
    assert len(rows) == size
    assert capsys.readouterr().out == ""
    assert {len(row["options"]) for row in rows} == {3, 4, 5}
    assert all(len({option.lower() for option in row["options"]}) == len(row["options"]) for row in rows)
    letters = Counter(row["answer"] for row in rows)
    assert all(size / 5 <= letters[letter] <= size / 3 for letter in "ABCD")
    assert letters["E"] > 0
    # the right option is not to be found by its length
    longest = sum(max(row["options"], key=len) == row["options"]["ABCDE".index(row["answer"])] for row in rows)
    assert longest < size / 2


def test_the_sample_has_both_kinds_of_labels():
    path = Path(arc.__file__).parent / "samples" / "arc_train.jsonl"
    kinds = Counter(json.loads(line)["choices"]["label"][0] for line in path.read_text("utf-8").splitlines())
    assert kinds["A"] > kinds["1"] > 5


def test_the_parts_of_the_sample_share_no_question():
    train, test = (arc.load(split, source="sample")["question"] for split in ("train", "test"))
    assert not set(train) & set(test)


@pytest.mark.real_rows
def test_every_real_row_is_read(capsys, real_rows):
    parts = [arc.load(split, source=real_rows("ai2_arc_challenge_train.jsonl")) for split in ("train", "test")]
    assert [len(part) for part in parts] == [1003, 115]
    assert capsys.readouterr().out.count("1 of 1,119 rows repeat an earlier question and options") == 2
