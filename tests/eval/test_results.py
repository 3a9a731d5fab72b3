"""The types of what a run writes are what is written, and it is read back."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval.metrics import compare, summarise
from eval.pairs import reward_records
from eval.results import Comparison, Record, Stage, WinRate, complete_results, read_lines, read_results
from eval.winrate import win_rate

GUARDED: dict[str, Any] = {"correct": "a", "format": None, "guard": "b"}


def record(stage: str) -> dict[str, Any]:
    return {
        **{"stage": stage, "kind": "greedy", "index": 0, "sample": 0, "question": "?", "gold": "", "completion": "x"},
        **{"tokens": 1, "truncated": False, "scores": {"a": 1.0, "b": 0.0}, "reward": None},
    }


def test_what_is_measured_has_the_keys_of_its_type() -> None:
    before, after = [record("before")], [record("after")]  # type: ignore[list-item]
    plain = GUARDED | {"guard": None}
    assert summarise(before, **plain).keys() == Stage.__required_keys__
    assert summarise(before, **GUARDED).keys() == Stage.__required_keys__ | Stage.__optional_keys__
    assert compare(before, after, **plain).keys() == Comparison.__required_keys__
    assert compare(before, after, **GUARDED).keys() == Comparison.__required_keys__ | Comparison.__optional_keys__
    (scored,) = reward_records([{"question": "?", "answer": "x"}], [1.0], [0.0], stage="before")  # type: ignore[arg-type]
    assert scored.keys() == record("before").keys() == Record.__required_keys__
    assert win_rate(["?"], ["a"], ["b"], lambda *_: [0.5]).keys() == WinRate.__required_keys__


def test_lines_are_read_back_but_for_one_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    lines = [{"completion": "one\u2028line"}, {"completion": "two\r"}]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8", newline="")
    assert list(read_lines(path)) == lines
    path.write_text(text + '{"completion": "thr', encoding="utf-8", newline="")
    assert list(read_lines(path)) == lines
    path.write_text("", encoding="utf-8")
    assert list(read_lines(path)) == []


@pytest.mark.parametrize("damage", ["", "[1]", "null", '{"completion": "t', "\0\0"])
def test_a_damaged_line_is_one_sentence(damage: str, tmp_path: Path) -> None:
    """Whatever stands after it would be lost without a word, and at the end it is no kill, which ends no line."""
    path = tmp_path / "lines.jsonl"
    for lines in (["{}", damage, "{}"], ["{}", damage]):
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        with pytest.raises(ValueError, match=rf"^{path}, line 2 is damaged \(.+\): put a whole copy in its place"):
            list(read_lines(path))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"complete": "yes"}'])
def test_damaged_results_are_one_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(content, encoding="utf-8")
    assert complete_results(tmp_path / "results.json") is None  # where others are looked through, it is passed over
    with pytest.raises(ValueError, match=rf"^{tmp_path / 'results.json'} is damaged \(.+\): put a whole copy"):
        read_results(tmp_path / "results.json")


def test_results_are_read_back(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"complete": true, "steps": null}', encoding="utf-8")
    assert read_results(tmp_path / "results.json") == {"complete": True, "steps": None}
