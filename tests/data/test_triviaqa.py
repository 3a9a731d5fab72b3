"""Reading TriviaQA: the answer leads its aliases, pages become ranked passages, and a bad row is named."""

import json
from dataclasses import replace
from typing import Any

import pytest

from data import triviaqa
from data.prompts import SHORT_ANSWER_INSTRUCTION, rag_messages
from rewards.qa import normalise


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


# With passages


def pages(entity: list[tuple[str, str]], found: list[tuple[str, str]], **answer: Any) -> dict[str, Any]:
    """A raw row with pages of (title, text)."""
    row = raw_row(**answer)
    row["entity_pages"] = {"title": [title for title, _ in entity], "wiki_context": [text for _, text in entity]}
    row["search_results"] = {"title": [title for title, _ in found], "search_context": [text for _, text in found]}
    return row


@pytest.fixture
def load_for_rag(tmp_path):
    """A function that loads the given rows as the train split, with passages."""

    def load_for_rag(*rows: Any) -> Any:
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return triviaqa.load_for_rag("train", source=str(tmp_path))

    return load_for_rag


def test_columns_with_passages(load_for_rag):
    row = pages([("Rome", "The Tiber flows through Rome.")], [(" Egypt ", "The Nile flows through Cairo.\n")])
    (row,) = load_for_rag(row)
    assert row == {
        "prompt": rag_messages("Question 1: which river flows through Cairo?"),
        "question": "Question 1: which river flows through Cairo?",
        "answer": "The Nile",
        "aliases": ["The Nile", "Nile", "River Nile"],
        "passages": ["Egypt\nThe Nile flows through Cairo.", "Rome\nThe Tiber flows through Rome."],
        "supporting": [False, False],
    }


def test_long_pages_are_cut_under_their_title_and_the_best_are_kept(load_for_rag):
    fillers = " ".join(f"Sentence {number} is about boats on the water." for number in range(400))
    page = f"{fillers} This river flows through Cairo. {fillers}"
    row = pages([("Nile", page)], [("Nile", page), ("", "The river of Cairo."), ("Empty", " ")])
    (own,) = load_for_rag(row)["passages"]
    assert len(own) == triviaqa.MAX_PASSAGES == len(set(own))
    assert {"The river of Cairo."} | {passage for passage in own if "flows through Cairo" in passage} == set(own[:2])
    assert sum(passage.startswith("Nile\n") for passage in own) == len(own) - 1
    assert max(map(len, own)) <= triviaqa.PASSAGE_CHARACTERS + len("Nile\n")


def test_the_gold_answer_has_no_influence_on_the_passages(load_for_rag):
    texts = [("", "The Nile, the Nile, the River Nile."), ("", "A river in Cairo."), ("", "Boats.")]
    (first,) = load_for_rag(pages(texts, []))["passages"]
    (second,) = load_for_rag(pages(texts, [], value="Boats", aliases=[]))["passages"]
    assert first == second == ["A river in Cairo.", "The Nile, the Nile, the River Nile.", "Boats."]


def test_a_question_without_pages_has_no_passages(load_for_rag):
    rows = load_for_rag(pages([], []), pages([("A", "B.")], []) | {"question": "Why?"})
    assert rows["passages"] == [[], ["A\nB."]]
    assert rows["supporting"] == [[], [False]]


BAD_PAGES = {
    "no pages": ({"entity_pages": None}, "has a 'entity_pages' of type NoneType, not an object"),
    "no titles": ({"entity_pages": {"wiki_context": []}}, "has no 'entity_pages.title'"),
    "without contexts": (
        {"search_results": {"title": ["A"], "search_context": []}},
        "has 1 titles and 0 of search_context in its search_results",
    ),
    "a number": (
        {"search_results": {"title": ["A"], "search_context": [7]}},
        "has a 'search_results.search_context[0]' of type int, not a string",
    ),
}


@pytest.mark.parametrize(("changes", "expected"), BAD_PAGES.values(), ids=BAD_PAGES)
def test_bad_pages_are_named(load_for_rag, changes, expected):
    with pytest.raises(ValueError) as caught:
        load_for_rag(pages([], []) | changes)
    message = str(caught.value)
    assert "train.jsonl, row 1 " in message
    assert expected in message
    assert triviaqa.TRIVIAQA_WITH_PASSAGES.raw_row in message


def test_all_of_the_hub_with_its_pages_is_refused():
    with pytest.raises(ValueError, match="is about 9 GB and 138,384 rows: pass a limit, such as 2,000"):
        triviaqa.load_for_rag("train")


def test_the_hub_with_its_pages_is_read_no_further_than_the_limit(tmp_path, monkeypatch):
    hub = tmp_path / "hub"
    hub.mkdir()
    rows = [pages([("A", "B.")], []) | {"question": f"Question {number}?"} for number in (1, 2)]
    (hub / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"question": ""}]))
    here = replace(triviaqa.TRIVIAQA_WITH_PASSAGES, hub_id=str(hub), hub_config="default")
    assert here.streamed
    monkeypatch.setattr(triviaqa, "TRIVIAQA_WITH_PASSAGES", here)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    assert triviaqa.load_for_rag("test", limit=2)["question"] == ["Question 1?", "Question 2?"]


# The sample


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


@pytest.mark.parametrize(("split", "best"), [("train", 42), ("test", 23)])
def test_one_passage_of_each_question_of_the_sample_names_the_answer(split, best):
    rows = triviaqa.load_for_rag(split, source="sample").to_list()
    assert [row["question"] for row in rows] == triviaqa.load(split, source="sample")["question"]
    first = 0
    for row in rows:
        golds = [f" {normalise(alias)} " for alias in row["aliases"]]
        texts = [f" {normalise(passage.partition(chr(10))[2])} " for passage in row["passages"]]
        naming = [any(gold in text for gold in golds) for text in texts]
        assert (len(naming), sum(naming)) in {(3, 1), (4, 1)}, row["question"]
        first += naming[0]
    assert first == best


def test_closed_book_reads_no_passages() -> None:
    asked = triviaqa.load_for_rag("test", source="sample", closed_book=True)
    shown = triviaqa.load_for_rag("test", source="sample")
    assert not any(asked["passages"]) and all(shown["passages"])
    for column in ("prompt", "question", "answer", "aliases"):
        assert asked[column] == shown[column]
