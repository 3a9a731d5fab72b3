"""Reading WebGPT's comparisons: the preferred answer is chosen, citations go, and no question is on both sides."""

import json
from dataclasses import replace
from typing import Any

import pytest

from data import webgpt
from data.source import SAMPLES, is_held_out
from data.webgpt import without_citations

QUESTION = "Why do cats purr?"


def raw_row(score: Any = 0.5, question: Any = QUESTION, **more: Any) -> dict[str, Any]:
    """A row of the hub set, in which a positive score prefers answer_0."""
    quotes = {"title": ["Cats (example.org)"], "extract": ["Cats purr."]}
    tokens = {"prefix": [1], "completion": [2]}
    return {
        "question": {"dataset": "eli5", "id": "1", "full_text": question},
        **{"quotes_0": quotes, "answer_0": "To ask for care [1].", "tokens_0": tokens, "score_0": score},
        **{"quotes_1": quotes, "answer_1": "Some are ginger [1][2].", "tokens_1": tokens, "score_1": -score},
    } | more


@pytest.fixture
def load(tmp_path):
    """A function that loads the given rows as the train split."""

    def load(*rows: Any) -> Any:
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return webgpt.load("train", source=str(tmp_path))

    return load


def test_columns(load):
    (row,) = load(raw_row(question=f" {QUESTION}\n"))
    assert row == {
        "prompt": [{"role": "user", "content": QUESTION}],
        "chosen": [{"role": "assistant", "content": "To ask for care."}],
        "rejected": [{"role": "assistant", "content": "Some are ginger."}],
        "question": QUESTION,
        "answer": "To ask for care.",
        "score_chosen": 0.5,
        "score_rejected": -0.5,
    }


def test_the_higher_score_is_chosen(load):
    (row,) = load(raw_row(-0.25))
    assert (row["answer"], row["score_chosen"], row["score_rejected"]) == ("Some are ginger.", 0.25, -0.25)
    (row,) = load(raw_row(-1))
    assert (row["answer"], row["score_chosen"]) == ("Some are ginger.", 1.0)


@pytest.mark.parametrize(
    ("cited", "plain"),
    [
        ("Cats purr [1].", "Cats purr."),
        ("Cats purr [1, 2], and so do we [3][14].", "Cats purr, and so do we."),
        ("Cats purr [1,2,3]. Dogs [1] [2] bark.", "Cats purr. Dogs bark."),
        ("Cats purr.[1] Dogs bark.   [2]\n\n[3] Cows moo.", "Cats purr. Dogs bark.\n\n Cows moo."),
        ("[1] Cats purr.", "Cats purr."),
        (" Cats purr. \n", "Cats purr."),
        ("Orwell wrote [sic] in [1949] of x[i], a[] and [1 to 3].", None),
        ("  spaces   stay  as they are  ", "spaces   stay  as they are"),
        (" [1] [2]", ""),
        ("", ""),
    ],
)
def test_citations_go(cited, plain):
    assert without_citations(cited) == (cited if plain is None else plain)


def test_a_long_run_of_spaces_costs_little(is_fast):
    assert is_fast(lambda: without_citations("a" + " " * 100_000 + "b"))


def test_rows_of_no_use_are_counted(load, capsys):
    odd = [
        raw_row(0),
        raw_row(0.0, answer_0="So."),
        raw_row(answer_0=""),
        raw_row(answer_1=" [1] [2, 3]"),
        raw_row(answer_1="To ask for care [2]."),
        raw_row(0.75),
    ]
    assert len(load(raw_row(), *odd)) == 1
    out = capsys.readouterr().out
    assert "2 of 7 rows are ties and are left out" in out
    assert "2 of 7 rows have an empty response and are left out" in out
    assert "1 of 7 rows have the same response on both sides and are left out" in out
    assert "1 of 7 rows repeat an earlier question and chosen and rejected and are left out" in out


def test_a_question_may_return_with_other_answers(load, capsys):
    assert load(raw_row(), raw_row(answer_0="To heal."))["answer"] == ["To ask for care.", "To heal."]
    assert capsys.readouterr().out == ""


def test_the_parquet_of_the_hub_is_carved_by_question(tmp_path, monkeypatch):
    import pyarrow
    import pyarrow.parquet

    questions = [f"Why do {number} cats purr?" for number in range(150)]
    rows = [raw_row(question=question, answer_0=answer) for question in questions for answer in ("So.", "Thus.")]
    for number, row in enumerate(rows):  # the same question under two ids is still the same question
        row["question"]["id"] = str(number)
    folder = tmp_path / "hub" / "default" / "train"
    folder.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "0000.parquet")
    assert webgpt.WEBGPT.hub_revision == "refs/convert/parquet"
    monkeypatch.setattr(webgpt, "WEBGPT", replace(webgpt.WEBGPT, hub_id=str(tmp_path / "hub"), hub_revision=None))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    train, test = (webgpt.load(split) for split in ("train", "test"))
    held_out = {question for question in questions if is_held_out(question)}
    assert set(test["question"]) == held_out
    assert set(train["question"]) == set(questions) - held_out
    assert len(test) == 2 * len(held_out) > 0


def test_a_file_is_carved_by_question(tmp_path):
    rows = [raw_row(question=f"Why do {number // 2} cats purr?", answer_0=f"{number}") for number in range(300)]
    path = tmp_path / "comparisons.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    train, test = (webgpt.load(split, source=str(path)) for split in ("train", "test"))
    assert len(train) + len(test) == 300
    assert not set(train["question"]) & set(test["question"])


BAD_ROWS = {
    "no question": ({"answer_0": "So."}, "has no 'question'"),
    "a question that is a string": (raw_row() | {"question": QUESTION}, "'question' of type str, not an object"),
    "no text": (raw_row() | {"question": {"id": "1"}}, "has no 'question.full_text'"),
    "an empty question": (raw_row(question=" "), "has an empty question.full_text"),
    "no answer": ({"question": {"full_text": QUESTION}, "score_0": 1.0}, "has no 'answer_0'"),
    "an answer in an object": (raw_row(answer_1={"text": "So."}), "'answer_1' of type dict, not a string"),
    "an answer that is null": (raw_row(answer_0=None), "'answer_0' of type NoneType, not a string"),
    "half a character": (raw_row(answer_0="\ud83d"), "'answer_0' with half a character"),
    "a preference": ({"question": {"full_text": QUESTION}, "preference": 0}, "has no 'score_0'"),
    "a score that is a string": (raw_row(score_1="-0.5"), "'score_1' of type str, not a number"),
    "a score that is no number": (raw_row(score_0=float("nan")), "'score_0' that is not a finite number"),
    "a row of the authors' file": ([{"answer": "So.", "score": 0.5}, {}], "is of type list, not an object"),
}


@pytest.mark.parametrize(("row", "expected"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named(load, row, expected):
    with pytest.raises(ValueError) as caught:
        load(raw_row(), row)
    message = str(caught.value)
    assert "train.jsonl, row 2 " in message
    assert expected in message
    assert webgpt.WEBGPT.raw_row in message
    assert "mend the row or remove it" in message
    assert "\n" not in message


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split is 'validation', and WebGPT has 'train' and 'test'"):
        webgpt.load("validation", source="sample")


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_sample_cites_and_prefers_either_side(split):
    lines = (SAMPLES / f"webgpt_{split}.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert all("[1" in row[f"answer_{side}"] for row in rows for side in (0, 1))
    assert all(row["score_0"] == -row["score_1"] != 0 for row in rows)
    assert len(rows) / 3 < sum(row["score_0"] > 0 for row in rows) < 2 * len(rows) / 3
    loaded = webgpt.load(split, source="sample").to_list()
    assert not any("[" in row[side][0]["content"] for row in loaded for side in ("chosen", "rejected"))
