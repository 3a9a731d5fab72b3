"""Reading UltraFeedback: pairs without the turn they repeat, ratings that may be no numbers, and bad rows named."""

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from data import ultrafeedback
from data.source import is_held_out

QUESTION = "Name a red fruit."


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def pair_row(chosen: Any = None, rejected: Any = None, **more: Any) -> dict[str, Any]:
    """A row of the binarized set."""
    return {
        "prompt": QUESTION,
        "prompt_id": "0",
        "chosen": chosen or [turn("user", QUESTION), turn("assistant", "A cherry.")],
        "rejected": rejected or [turn("user", QUESTION), turn("assistant", "Fruit.")],
        "messages": [],
        "score_chosen": 8.0,
        "score_rejected": 4.5,
    } | more


def completion(response: Any, *ratings: Any) -> dict[str, Any]:
    """One of the four responses of a raw row, with the ratings of its aspects in their order."""
    aspects = ["instruction_following", "honesty", "truthfulness", "helpfulness"]
    rated = zip(aspects, ratings, strict=False)
    annotations = {aspect: {"Rating": rating, "Rationale": "..."} for aspect, rating in rated}
    return {"model": "m", "response": response, "annotations": annotations, "overall_score": 1.0}


def rated_row(*completions: Any, **more: Any) -> dict[str, Any]:
    """A row of the raw set."""
    completions = completions or (completion("A cherry.", "5"), completion("Fruit.", "1"))
    return {"source": "flan", "instruction": QUESTION, "models": ["m"], "completions": list(completions)} | more


@pytest.fixture
def load(tmp_path):
    """A function that loads the given rows as the train split."""

    def load(*rows: Any) -> Any:
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return ultrafeedback.load("train", source=str(tmp_path))

    return load


# Pairs


def test_columns(load):
    (row,) = load(pair_row())
    assert row == {
        "prompt": [turn("user", QUESTION)],
        "chosen": [turn("assistant", "A cherry.")],
        "rejected": [turn("assistant", "Fruit.")],
        "question": QUESTION,
        "answer": "A cherry.",
        "score_chosen": 8.0,
        "score_rejected": 4.5,
    }


def test_earlier_turns_and_the_system_are_the_prompt(load):
    turns = [turn("system", "Be brief."), turn("user", QUESTION), turn("assistant", "A plum."), turn("user", " Red! ")]
    (row,) = load(pair_row([*turns, turn("assistant", "A cherry.\n")], [*turns, turn("assistant", "So?")]))
    assert row["prompt"] == [*turns[:-1], turn("user", "Red!")]
    assert (row["question"], row["answer"]) == ("Red!", "A cherry.")
    assert row["rejected"] == [turn("assistant", "So?")]


def test_scores_may_be_whole_numbers(load):
    (row,) = load(pair_row(score_chosen=8, score_rejected=0))
    assert (row["score_chosen"], row["score_rejected"]) == (8.0, 0.0)


def test_pairs_of_no_use_are_counted(load, capsys):
    empty = [turn("user", QUESTION), turn("assistant", " ")]
    odd = [
        pair_row(score_rejected=8),
        pair_row(score_rejected=8.0),
        pair_row(score_rejected=9.0),
        pair_row(rejected=pair_row()["chosen"]),
        pair_row(rejected=empty),
        pair_row(chosen=empty),
        pair_row(prompt="Name a blue fruit."),
        pair_row(score_chosen=9.0),
    ]
    assert len(load(pair_row(), *odd)) == 1
    out = capsys.readouterr().out
    assert "2 of 9 rows are ties and are left out" in out
    assert "1 of 9 rows score the rejected response above the chosen one and are left out" in out
    assert "1 of 9 rows have the same response on both sides and are left out" in out
    assert "2 of 9 rows have an empty response and are left out" in out
    assert "1 of 9 rows have a 'prompt' that is not among their turns and are left out" in out
    assert "1 of 9 rows repeat an earlier prompt and are left out" in out


# Ratings


def test_a_score_is_the_mean_of_the_ratings_that_are_numbers(load):
    better = completion("A cherry.", "5", "N/A", 4, "4.5")
    worse = completion("Fruit.", "1", "2", "N/A", None)
    (row,) = load(rated_row(worse, better))
    assert row == {
        "prompt": [turn("user", QUESTION)],
        "chosen": [turn("assistant", "A cherry.")],
        "rejected": [turn("assistant", "Fruit.")],
        "question": QUESTION,
        "answer": "A cherry.",
        "score_chosen": 4.5,
        "score_rejected": 1.5,
    }


def test_both_spellings_of_an_aspect_count(load):
    for key in ("instruction_following", "instruction-following"):
        worse = completion("Fruit.", "1", "1", "1", "1")
        better = completion("A cherry.")
        better["annotations"] = {key: {"Rating": "5"}, "honesty": {"Rating": "2"}, "helpfulness": None}
        (row,) = load(rated_row(better, worse))
        assert row["score_chosen"] == 3.5
    better["annotations"] |= {"instruction_following": None}  # as a table with a column for each spelling has it
    (row,) = load(rated_row(better, worse))
    assert row["score_chosen"] == 3.5


def test_the_first_of_the_best_is_chosen_and_any_lower_one_rejected(load):
    four = [completion("Low.", "2"), completion("First.", "5"), completion("Second.", "5"), completion("Mid.", "3")]
    rows = [rated_row(*four, instruction=f"Name fruit {number}.") for number in range(200)]
    once, again = load(*rows).to_list(), load(*rows[::-1]).to_list()
    assert {row["answer"] for row in once} == {"First."}
    rejected = Counter(row["rejected"][0]["content"] for row in once)
    assert set(rejected) == {"Low.", "Mid."}
    assert min(rejected.values()) > 70
    assert once == again[::-1]
    # nor does the hash that picks it go with the one that splits the set
    assert {row["rejected"][0]["content"] for row in once if is_held_out(row["question"])} == {"Low.", "Mid."}


def test_ratings_of_no_use_are_counted(load, capsys):
    good = completion("A cherry.", "5", "5")
    odd = [
        rated_row(good),
        rated_row(good, completion("Fruit.", "N/A", "", None)),
        rated_row(good, completion("", "1")),
        rated_row(good, completion("Fruit.")),
        rated_row(good, completion("Fruit.", "5")),
        rated_row(good, completion("A cherry.", "1")),
        rated_row(completions=[]),
    ]
    assert len(load(rated_row(), *odd)) == 1
    out = capsys.readouterr().out
    assert "5 of 8 rows have fewer than two rated responses and are left out" in out
    assert "2 of 8 rows are ties and are left out" in out


def test_a_file_may_hold_both_kinds_of_rows(load):
    other = "Name a green fruit."
    turns = [[turn("user", other), turn("assistant", answer)] for answer in ("A lime.", "No.")]
    rows = load(rated_row(), pair_row(*turns, prompt=other)).to_list()
    assert [row["question"] for row in rows] == [QUESTION, other]
    assert [row["answer"] for row in rows] == ["A cherry.", "A lime."]


# The hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A function that makes a folder with one file of rows for each split stand for the hub set of a spec."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def make(name: str, *, hub_test: str, **splits: list[dict[str, Any]]) -> None:
        for split, rows in splits.items():
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        changes = {"hub_id": str(tmp_path / name), "hub_revision": None, "hub_train": "train", "hub_test": hub_test}
        monkeypatch.setattr(ultrafeedback, name, replace(getattr(ultrafeedback, name), **changes))

    return make


def test_the_pins():
    assert ultrafeedback.ULTRAFEEDBACK.hub_train == "train_prefs"
    assert ultrafeedback.ULTRAFEEDBACK.hub_test == "test_prefs"
    assert ultrafeedback.ULTRAFEEDBACK_RAW.hub_id == "openbmb/UltraFeedback"
    assert ultrafeedback.ULTRAFEEDBACK_RAW.hub_train == ultrafeedback.ULTRAFEEDBACK_RAW.hub_test == "train"
    assert ultrafeedback.ULTRAFEEDBACK_RAW.hub_revision == "40b436560ca83a8dba36114c22ab3c66e43f6d5e"


def test_the_raw_set_of_the_hub_is_carved_by_instruction(hub):
    questions = [f"Name fruit {number}." for number in range(150)]
    hub("ULTRAFEEDBACK_RAW", hub_test="train", train=[rated_row(instruction=question) for question in questions])
    train, test = (ultrafeedback.load(split, source="hub-raw") for split in ("train", "test"))
    held_out = [question for question in questions if is_held_out(question)]
    assert test["question"] == held_out
    assert train["question"] == [question for question in questions if question not in held_out]
    assert len(ultrafeedback.load("test", source="hub-raw", limit=2)) == 2


def test_the_pairs_of_the_hub_are_split_as_they_are(hub):
    # a folder of files cannot name its splits train_prefs and test_prefs
    hub("ULTRAFEEDBACK", hub_test="test", train=[pair_row()], test=[pair_row(score_rejected=1.0)])
    assert [ultrafeedback.load(split)["score_rejected"] for split in ("train", "test")] == [[4.5], [1.0]]


# Bad rows


def asked(*turns: dict[str, Any]) -> dict[str, Any]:
    return pair_row([*turns, turn("assistant", "A cherry.")])


BAD_ROWS = {
    "no prompt": ({"chosen": pair_row()["chosen"]}, "has no 'prompt'"),
    "empty prompt": (pair_row(prompt=" "), "has an empty prompt"),
    "a prompt of messages": (pair_row(prompt=[turn("user", QUESTION)]), "'prompt' of type list, not a string"),
    "no chosen": ({"prompt": QUESTION}, "has no 'chosen'"),
    "a string": (pair_row(chosen="A cherry."), "'chosen' of type str, not a list"),
    "no turns": (pair_row() | {"chosen": []}, "has roles out of order in 'chosen', not user and assistant in turn"),
    "a turn that is a string": (pair_row(["Hi."]), "'chosen[0]' of type str, not an object"),
    "no role": (pair_row([{"content": "Hi."}]), "has no 'chosen[0].role'"),
    "no content": (pair_row(rejected=[{"role": "user"}]), "has no 'rejected[0].content'"),
    "null": (pair_row([turn("user", None)]), "'chosen[0].content' of type NoneType, not a string"),
    "half a character": (pair_row([turn("user", "\ud83d")]), "'chosen[0].content' with half a character"),
    "an empty turn": (asked(turn("user", " ")), "has an empty chosen[0].content"),
    "no answer": (pair_row([turn("user", QUESTION)]), "roles out of order in 'chosen' (user), not user and"),
    "no question": (asked(), "roles out of order in 'chosen' (assistant), not user and assistant in turn"),
    "two questions": (asked(*[turn("user", QUESTION)] * 2), "out of order in 'chosen' (user, user, assistant)"),
    "only a system": (pair_row(rejected=[turn("system", "Hi.")]), "roles out of order in 'rejected' (system)"),
    "a late system": (asked(turn("user", "Hi."), turn("system", "Hm.")), "in 'chosen' (user, system, assistant)"),
    "the wrong speaker last": (
        pair_row([turn("user", QUESTION), turn("assistant", "Hm."), turn("user", "A cherry.")]),
        "roles out of order in 'chosen' (user, assistant, user)",
    ),
    "an unknown role": (asked(turn("human", QUESTION)), "roles out of order in 'chosen' (human, assistant)"),
    "other turns": (asked(turn("user", "Hi.")), "'chosen' and a 'rejected' that do not begin with the same turns"),
    "more turns": (
        asked(turn("user", QUESTION), turn("assistant", "Which?"), turn("user", "Any.")),
        "'chosen' and a 'rejected' that do not begin with the same turns",
    ),
    "no score": ({key: pair_row()[key] for key in ("prompt", "chosen", "rejected")}, "has no 'score_chosen'"),
    "a score that is a string": (pair_row(score_rejected="4.5"), "'score_rejected' of type str, not a number"),
    "no instruction": ({"completions": []}, "has no 'instruction'"),
    "empty instruction": (rated_row(instruction=""), "has an empty instruction"),
    "completions in an object": (rated_row(completions={}), "'completions' of type dict, not a list"),
    "a completion that is a string": (rated_row("A cherry."), "'completions[0]' of type str, not an object"),
    "no response": (rated_row({"annotations": {}}), "has no 'completions[0].response'"),
    "a response that is null": (rated_row(completion(None)), "'completions[0].response' of type NoneType"),
    "no annotations": (rated_row({"response": "A cherry."}), "has no 'completions[0].annotations'"),
    "an aspect in a list": (
        rated_row(completion("A cherry.") | {"annotations": {"honesty": [{"Rating": "5"}]}}),
        "'completions[0].annotations.honesty' of type list, not an object",
    ),
    "a list": ([], "is of type list, not an object"),
}


@pytest.mark.parametrize(("row", "expected"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named(load, row, expected):
    with pytest.raises(ValueError) as caught:
        load(pair_row(), row)
    message = str(caught.value)
    assert "train.jsonl, row 2 " in message
    assert expected in message
    assert ultrafeedback.ULTRAFEEDBACK.raw_row in message
    assert "mend the row or remove it" in message
    assert "\n" not in message


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split is 'train_prefs', and UltraFeedback has 'train' and 'test'"):
        ultrafeedback.load("train_prefs", source="sample")
