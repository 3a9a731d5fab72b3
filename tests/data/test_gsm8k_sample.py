"""The shipped word problems: reproducible, correct, disjoint, and in agreement with their own grammar.

A question is read back with a pattern made of its wording, so these tests judge what stands there, not what
the generator meant.
"""

import json
import random
import re
import runpy
from collections import Counter

import pytest

from data import gsm8k_sample
from data.gsm8k_sample import BOYS, GIRLS, LARGEST, SMALLEST, STORIES
from data.source import SAMPLES

SPLITS = {
    split: [json.loads(line) for line in (SAMPLES / f"gsm8k_{split}.jsonl").read_text("utf-8").splitlines()]
    for split in ("train", "test")
}
ROWS = SPLITS["train"] + SPLITS["test"]

SLOTS = {
    "a": r"\d+",
    "b": r"\d+",
    "name": r"\w+",
    "friend": r"\w+",
    "she": "she|he",
    "She": "She|He",
    "her": "her|his",
    "Her": "Her|His",
}


def reading_pattern(wording: gsm8k_sample.Wording) -> re.Pattern[str]:
    """What the wording looks like with its slots filled; a slot that comes twice must be filled alike."""
    nouns = "|".join(wording.nouns)
    pattern, known = "", set()
    for text, slot in re.findall(r"([^{]*)(?:\{(\w+)\})?", wording.question):
        pattern += re.escape(text)
        if slot in known:
            pattern += f"(?P={slot})"
        elif slot:
            pattern += f"(?P<{slot}>{SLOTS.get(slot, nouns)})"
            known.add(slot)
    return re.compile(pattern)


PATTERNS = [(story, reading_pattern(wording)) for story, told in STORIES.items() for wording in told.wordings]


def read(question: str) -> tuple[str, tuple[int, int], dict[str, str]]:
    """Story, numbers and filled slots of a question; fails unless exactly one wording fits."""
    fits = [(story, match) for story, pattern in PATTERNS if (match := pattern.fullmatch(question))]
    assert len(fits) == 1, question
    story, slots = fits[0][0], fits[0][1].groupdict()
    return story, (int(slots["a"]), int(slots["b"])), slots


def test_sizes_and_stories():
    assert [len(SPLITS[split]) for split in ("train", "test")] == [800, 200]
    assert len(STORIES) >= 8
    assert all(len(story.wordings) >= 3 for story in STORIES.values())
    for rows in SPLITS.values():
        counts = Counter(read(row["question"])[0] for row in rows)
        assert counts.keys() == STORIES.keys()
        assert len(set(counts.values())) == 1


def test_no_question_comes_twice_in_all_rows():
    assert len({row["question"] for row in ROWS}) == len(ROWS)


def test_no_test_problem_is_a_training_problem_under_another_name():
    told = {split: {read(row["question"])[:2] for row in rows} for split, rows in SPLITS.items()}
    assert not told["train"] & told["test"]
    assert len(told["test"]) == len(SPLITS["test"])


def test_the_lines_follow_from_the_question_and_are_correct():
    for row in ROWS:
        story, (a, b), _ = read(row["question"])
        known, work, final = row["answer"].split("\n")
        assert [int(number) for number in re.findall(r"\d+", known)] == [a, b], known
        assert "<<" not in known
        written = re.search(r"(\d+) ([-+]) (\d+) = <<(\d+)([-+])(\d+)=(\d+)>>(\d+)", work)
        assert written is not None, work
        left, sign, right, *call, shown = written.groups()
        assert call == [left, sign, right, shown], work
        assert (int(left), sign, int(right)) == (a, STORIES[story].sign, b), work
        # undone with the inverse operation, so that a wrong one in the generator cannot confirm itself
        assert (int(shown) - b if sign == "+" else int(shown) + b) == a, work
        assert final == f"#### {shown}"
        assert all(SMALLEST <= value <= LARGEST for value in (a, b, int(shown)))


def test_answers_are_well_spread_and_cannot_be_copied():
    for rows in SPLITS.values():
        answers = [row["answer"].split("#### ")[1] for row in rows]
        assert max(Counter(answers).values()) / len(rows) < 0.1
        for row, answer in zip(rows, answers, strict=True):
            assert answer not in re.findall(r"\d+", row["question"])
    for story in STORIES:
        answers = {row["answer"].split("#### ")[1] for row in ROWS if read(row["question"])[0] == story}
        assert len(answers) >= 8, story


def test_people_and_pronouns_agree():
    for row in ROWS:
        _, _, slots = read(row["question"])
        if "name" not in slots:
            continue
        assert slots["name"] in GIRLS + BOYS
        assert slots["name"] != slots.get("friend")
        wrong = r"\b(he|his)\b" if slots["name"] in GIRLS else r"\b(she|her)\b"
        assert not re.search(wrong, row["question"] + row["answer"], re.IGNORECASE), row


def test_texts_are_short_and_tidy():
    for row in ROWS:
        steps = re.sub(r"<<.*?>>", "", row["answer"]).split("\n")[:2]
        assert 12 <= len(row["question"].split()) <= 30
        assert row["question"].endswith("?")
        for text in (row["question"], *steps):
            assert text[0].isupper() and text[-1] in ".?", text
            assert not re.search(r"[{}]|  |\b(\w+) \1\b", text), text
        assert all(len(step.split()) <= 14 for step in steps), steps


@pytest.mark.parametrize("largest", [18, 28])
def test_the_difficulty_knob_holds_its_bound(monkeypatch, largest):
    monkeypatch.setattr(gsm8k_sample, "LARGEST", largest)
    splits = gsm8k_sample.build()
    assert [len(splits[f"gsm8k_{split}"]) for split in ("train", "test")] == [800, 200]
    numbers = [int(n) for row in splits["gsm8k_train"] for n in re.findall(r"\d+", row["question"] + row["answer"])]
    assert max(numbers) == largest


def test_too_small_a_range_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(gsm8k_sample, "LARGEST", 6)
    with pytest.raises(ValueError, match="raise LARGEST"):
        gsm8k_sample.build()


def test_numbers_that_do_not_suit_a_story_are_refused():
    assert gsm8k_sample.solve("-", 8, 15) is None  # would need -7
    assert gsm8k_sample.solve("-", 10, 5) is None  # 5 is copied
    with pytest.raises(AssertionError, match="do not suit"):
        gsm8k_sample.tell("still needed", 8, 15, random.Random(0))


def test_the_command_writes_both_files_as_they_are_shipped_and_leaves_nothing_else(monkeypatch, tmp_path):
    monkeypatch.setattr("data.source.SAMPLES", tmp_path / "samples")
    runpy.run_path(gsm8k_sample.__file__, run_name="__main__")
    written = {path.name: path.read_bytes() for path in (tmp_path / "samples").iterdir()}
    names = ("gsm8k_train.jsonl", "gsm8k_test.jsonl")
    assert written == {name: (SAMPLES / name).read_bytes() for name in names}
