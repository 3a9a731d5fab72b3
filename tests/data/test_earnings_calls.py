"""Reading earnings calls: the figure out of a model's sentence, passages by relevance, and a set that is streamed."""

import json
from dataclasses import replace
from typing import Any

import pytest

from data import earnings_calls
from data.earnings_calls import stated_figure
from data.prompts import FIGURE_INSTRUCTION
from data.source import is_held_out
from rewards.qa import figure_reward

TRANSCRIPT = "Operator\nWelcome to Tallerwick.\nHester Quaile -- President\nRevenue was $48 million. We have no debt."


def raw_row(number: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "ticker": f"T{number // 3}",
        "q": "2021-Q2",
        "date": "Aug 4, 2021, 8:30 a.m. ET",
        "transcript": TRANSCRIPT,
        "prompt": "<s>[INSTR] You are a financial analyst ...",
        "question": f"What was the revenue of shop {number} ",
        "answer": " The revenue in Q2 2021 was $48 million.",
    } | more


@pytest.fixture
def load(tmp_path):
    """A function that loads the given rows as the train split."""

    def load(*rows: Any) -> Any:
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return earnings_calls.load("train", source=str(tmp_path))

    return load


def test_columns(load):
    (row,) = load(raw_row(7))
    question = "What was the revenue of shop 7"
    assert row == {
        "prompt": [{"role": "user", "content": f"Earnings call of T2, 2021-Q2: {question}\n{FIGURE_INSTRUCTION}"}],
        "completion": [{"role": "assistant", "content": "$48 million"}],
        "question": question,
        "answer": "The revenue in Q2 2021 was $48 million.",
        "value": "$48 million",
        "ticker": "T2",
        "quarter": "2021-Q2",
        "passages": [
            "Hester Quaile -- President\nRevenue was $48 million. We have no debt.",
            "Operator\nWelcome to Tallerwick.",
        ],
    }


def test_without_a_figure_the_completion_is_the_answer(load):
    told, untold = "Cheese and milk.", "I do not know. The transcript mentions 12% only."
    rows = load(raw_row(1, answer=told), raw_row(2, answer=untold))
    assert [completion[0]["content"] for completion in rows["completion"]] == [told, untold]
    assert rows["value"] == ["", ""]


def test_context_stands_for_transcript(load):
    old = {"context" if key == "transcript" else key: value for key, value in raw_row().items()}
    both_columns = raw_row(2, context=None)  # a table of both kinds of rows
    rows = load(old, both_columns, raw_row(3))
    assert rows["passages"] == [rows[0]["passages"]] * 3


def test_the_copy_with_extracted_values_is_read_by_its_answers(load):
    wrong = {"has_value": True, "value": 0.48, "units": "percent"}
    (row,) = load(raw_row(1, **wrong))
    assert row["value"] == "$48 million"


def test_a_quarter_may_be_missing(load):
    (row,) = load(raw_row(q=None))
    assert row["quarter"] == ""
    assert row["prompt"][0]["content"].startswith("Earnings call of T0: What")


def test_rows_without_a_transcript_are_counted(load, capsys):
    without = {key: value for key, value in raw_row(2).items() if key != "transcript"}
    assert len(load(raw_row(1), without, raw_row(3, transcript=None))) == 1
    assert "2 of 3 rows have no transcript and are left out" in capsys.readouterr().out


def test_a_question_may_come_up_in_every_call_but_once_in_each(load, capsys):
    question = "What was the net income?"
    rows = [raw_row(number, question=question) for number in (1, 2, 4)]
    assert len(load(*rows, raw_row(1, question=question, q="2021-Q3"))) == 3
    assert "1 of 4 rows repeat an earlier ticker and quarter and question" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("The growth rate of Green Dot in Q3 2020 was 22%.", "22%"),
        ("It was $1,080.5 million in 2020-Q4.", "$1,080.5 million"),
        ("It was $1.2B in fiscal '21.", "$1.2B"),
        ("The adjusted EPS was CAD1.49 on August 9, 2022.", "1.49"),
        ("Returns were ZAR 22.3 billion.", "22.3 billion"),
        ("It was US$34 million, that is $34 million.", "$34 million"),
        ("It was $34 million, or $34,000,000.", "$34 million"),
        ("The margin fell by 50 basis points.", "50 basis points"),
        ("Growth was \u22125%.", "-5%"),
        ("About 37,000 people work on 5G in the 3D lab.", "37,000"),
        ("The revenue was $2.020 billion.", "$2.020 billion"),
        ("It rose from 5% to 7%.", ""),
        ("Between $1.4 billion and $1.5 billion.", ""),
        ("It takes 20-25 weeks.", ""),
        ("The contracts end in 2023.", ""),
        ("Sales were up high single digits.", ""),
        ("I do not know. Revenue was up 5%.", ""),
        ("It does not explicitly state the margin, which was 5% before.", ""),
        ("The margin is not explicitly stated; it was 5% before.", ""),
        ("The transcript doesn't mention it, but 5% is.", ""),
        ("", ""),
    ],
)
def test_the_figure_of_an_answer(answer, value):
    assert stated_figure(answer) == value


def test_figures_of_the_question_are_not_the_answer():
    answer = "The cost of the $50 million plant was 12% above plan."
    assert stated_figure(answer) == ""
    assert stated_figure(answer, "By how much was the $50 million plant above plan?") == "12%"
    assert stated_figure("It was 12%.", "Was it 12%?") == ""


# The stream


def hub(tmp_path, monkeypatch, lines: list[str]) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    spec = replace(earnings_calls.EARNINGS_CALLS, hub_id=str(folder))
    monkeypatch.setattr(earnings_calls, "EARNINGS_CALLS", spec)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_the_one_split_of_the_hub_is_carved_by_ticker(tmp_path, monkeypatch):
    hub(tmp_path, monkeypatch, [json.dumps(raw_row(number)) for number in range(300)])
    train, test = (earnings_calls.load(split, limit=1000) for split in ("train", "test"))
    tickers = {f"T{number}" for number in range(100)}
    assert set(test["ticker"]) == {ticker for ticker in tickers if is_held_out(ticker)}
    assert set(train["ticker"]) == tickers - set(test["ticker"])
    assert len(train) + len(test) == 300


def test_reading_stops_at_the_limit(tmp_path, monkeypatch, capsys):
    """The line that cannot be read lies behind the library's first block of 10 MB."""
    rows = [json.dumps(raw_row(number, prompt="We sell. " * 5000)) for number in range(300)]
    hub(tmp_path, monkeypatch, [*rows, "{broken"])
    assert len(earnings_calls.load("train", limit=5)) == 5
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="could not be loaded from the hub"):
        earnings_calls.load("train", limit=1000)


def test_all_of_the_hubs_set_is_refused():
    with pytest.raises(ValueError, match=r"^all of lamini/earnings-calls-qa is 3\.9 GB .*: pass a limit"):
        earnings_calls.load("train")


# What goes wrong


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in raw_row(2).items() if name != key}


BAD_ROWS = {
    "no question": (without("question"), "has no 'question'"),
    "no answer": (without("answer"), "has no 'answer'"),
    "no ticker": (without("ticker"), "has no 'ticker'"),
    "empty question": (raw_row(2, question=" "), "has an empty question"),
    "empty answer": (raw_row(2, answer=" "), "has an empty answer"),
    "empty transcript": (raw_row(2, transcript="\n"), "has an empty transcript"),
    "empty context": (raw_row(2, context=""), "has an empty context"),
    "quarter is a number": (raw_row(2, q=3), "'q' of type int, not a string"),
    "answer is a number": (raw_row(2, answer=48), "'answer' of type int, not a string"),
    "transcript is a list": (raw_row(2, transcript=["Welcome."]), "'transcript' of type list, not a string"),
    "half a character": (raw_row(2, answer="\ud83d"), "lone surrogate"),
    "a list": ([], "is of type list, not an object"),
}


@pytest.mark.parametrize(("row", "expected"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named(load, row, expected):
    with pytest.raises(ValueError) as caught:
        load(raw_row(1), row)
    message = str(caught.value)
    assert "train.jsonl, row 2 " in message
    assert expected in message
    assert earnings_calls.EARNINGS_CALLS.raw_row in message
    assert "mend the row or remove it" in message
    assert "\n" not in message


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split is 'validation', and Earnings calls has 'train' and 'test'"):
        earnings_calls.load("validation", source="sample")


@pytest.mark.parametrize(("split", "size", "values"), [("train", 33, 27), ("test", 15, 13)])
def test_the_sample(split, size, values, capsys):
    rows = earnings_calls.load(split, source="sample")
    assert len(rows) == size
    assert capsys.readouterr().out == ""
    grades = figure_reward(rows["completion"], value=rows["value"])
    assert [grade for grade in grades if grade is not None] == [1.0] * values  # the gold answer is a right answer
    best = [row["value"] in row["passages"][0] for row in rows if row["value"]]
    assert sum(best) >= 0.7 * values  # word overlap finds the paragraph more often than not
    for row in rows:
        assert any(row["value"] in passage for passage in row["passages"])
        assert max(map(len, row["passages"])) <= earnings_calls.PASSAGE_CHARACTERS


def test_the_parts_of_the_sample_share_no_company():
    train, test = (earnings_calls.load(split, source="sample") for split in ("train", "test"))
    assert not set(train["ticker"]) & set(test["ticker"])
    assert len(set(train["ticker"])) == 11
    assert len(set(test["ticker"])) == 5
