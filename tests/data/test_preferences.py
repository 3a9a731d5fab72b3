"""Pairs of responses: which are of use, the order KTO needs, and the weights that balance its labels."""

import json
from collections import Counter

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from data import ultrafeedback, webgpt
from data.preferences import label_weights, pair, score, unpaired
from data.source import SAMPLES, BadRow, LeftOut

ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]


def pairs(size: int) -> Dataset:
    return Dataset.from_list(
        [pair([{"role": "user", "content": f"Q{n}"}], f"good {n}", f"bad {n}", 2.0, 1.0) for n in range(size)]
    )


def test_columns():
    assert pair(ASKED, "So.", "Hm.", 2.0, -1.5) == {
        "prompt": ASKED,
        "chosen": [{"role": "assistant", "content": "So."}],
        "rejected": [{"role": "assistant", "content": "Hm."}],
        "question": "Why?",
        "answer": "So.",
        "score_chosen": 2.0,
        "score_rejected": -1.5,
    }


@pytest.mark.parametrize(
    ("chosen", "rejected", "scores", "reason"),
    [
        ("", "Hm.", (2.0, 1.0), "have an empty response"),
        ("So.", "", (2.0, 1.0), "have an empty response"),
        ("So.", "So.", (2.0, 1.0), "have the same response on both sides"),
        ("So.", "Hm.", (0.0, 0.0), "are ties"),
        ("So.", "Hm.", (1.0, 2.0), "score the rejected response above the chosen one"),
    ],
)
def test_a_pair_of_no_use_is_left_out(chosen, rejected, scores, reason):
    with pytest.raises(LeftOut, match=reason):
        pair(ASKED, chosen, rejected, *scores)


@pytest.mark.parametrize("value", [0.5, -1, 0, 2**64])
def test_a_score_is_a_number(value):
    number = score({"s": value}, "s")
    assert type(number) is float
    assert number == value


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({}, "has no 's'"),
        ({"s": None}, "has a 's' of type NoneType, not a number"),
        ({"s": "0.5"}, "has a 's' of type str, not a number"),
        ({"s": True}, "has a 's' of type bool, not a number"),
        ({"s": float("nan")}, "has a 's' that is not a finite number"),
        ({"s": float("-inf")}, "has a 's' that is not a finite number"),
        ({"s": 10**400}, "has a 's' that is not a finite number"),
    ],
)
def test_what_is_no_score_is_refused(row, fault):
    with pytest.raises(BadRow, match=fault):
        score(row, "s")


# One response at a time


def test_responses_stand_alone_with_their_label():
    assert unpaired(pairs(3)).to_list() == [
        {
            "prompt": [{"role": "user", "content": f"Q{n}"}],
            "completion": [{"role": "assistant", "content": f"{'good' if label else 'bad'} {n}"}],
            "label": label,
        }
        for n, label in [(0, True), (1, False), (2, True), (0, False), (1, True), (2, False)]
    ]


@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_every_response_is_there_once(size):
    rows = unpaired(pairs(size)).to_list()
    assert Counter(row["label"] for row in rows) == {True: size, False: size}
    assert len({row["completion"][0]["content"] for row in rows}) == 2 * size


@pytest.mark.parametrize("size", [2, 7, 8])
def test_any_run_as_long_as_there_are_pairs_has_no_prompt_twice(size):
    prompts = [row["prompt"][0]["content"] for row in unpaired(pairs(size)).to_list()]
    for start in range(size + 1):
        assert len(set(prompts[start : start + size])) == size


@pytest.mark.parametrize("module", [ultrafeedback, webgpt])
def test_batches_of_the_sample_hold_different_prompts_and_both_labels(module):
    rows = unpaired(module.load("train", source="sample"))
    for batch in rows.batch(8):
        assert len({repr(prompt) for prompt in batch["prompt"]}) == 8
        assert Counter(batch["label"]) == {True: 4, False: 4}


# Weights


@pytest.mark.parametrize(
    ("desirable", "undesirable", "weights"),
    [
        (5, 5, (1.0, 1.0)),
        (4, 3, (1.0, 1.0)),
        (6, 5, (1.0, 1.0)),
        (1, 10, (1.0, 0.1)),
        (9, 10, (1.0, 0.9)),
        (10, 1, (4 / 30, 1.0)),
    ],
)
def test_weights(desirable, undesirable, weights):
    assert label_weights([True] * desirable + [False] * undesirable) == pytest.approx(weights, rel=1e-12)


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_weights_balance_the_labels_and_do_no_more(desirable, undesirable):
    for_desirable, for_undesirable = label_weights([True] * desirable + [False] * undesirable)
    ratio = desirable * for_desirable / (undesirable * for_undesirable)
    assert 1 - 1e-12 <= ratio <= 4 / 3 + 1e-12
    assert max(for_desirable, for_undesirable) == 1.0
    assert min(for_desirable, for_undesirable) > 0
    if 3 * undesirable <= 3 * desirable <= 4 * undesirable:
        assert for_desirable == for_undesirable == 1.0
    else:  # at the edge that is nearest to where the counts are
        assert ratio == pytest.approx(1 if desirable < undesirable else 4 / 3, rel=1e-12)


@pytest.mark.parametrize(("labels", "counts"), [([], (0, 0)), ([True] * 3, (3, 0)), ([False] * 2, (0, 2))])
def test_one_kind_of_label_cannot_be_balanced(labels, counts):
    with pytest.raises(ValueError) as caught:
        label_weights(iter(labels))
    message = str(caught.value)
    assert f"of {sum(counts)} labels {counts[0]} are desirable and {counts[1]} undesirable" in message
    assert "add rows of the missing one" in message
    assert "\n" not in message


# The samples


@pytest.mark.parametrize("module", [ultrafeedback, webgpt])
@pytest.mark.parametrize(("split", "size"), [("train", 96), ("test", 48)])
def test_length_does_not_tell_chosen_from_rejected(module, split, size, capsys):
    rows = module.load(split, source="sample").to_list()
    assert len(rows) == size
    assert capsys.readouterr().out == ""
    lengths = [[len(row[side][0]["content"].split()) for row in rows] for side in ("chosen", "rejected")]
    assert all(10 <= length <= 45 for side in lengths for length in side)
    chosen, rejected = map(sum, lengths)
    assert chosen == pytest.approx(rejected, rel=0.05)
    longer = sum((one > other) - (one < other) for one, other in zip(*lengths, strict=True))
    assert abs(longer) <= size / 4


@pytest.mark.parametrize("module", [ultrafeedback, webgpt])
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_no_phrase_gives_a_side_away(module, split, side):
    rows = module.load(split, source="sample")[side]
    phrases: Counter[tuple[str, ...]] = Counter()
    for messages in rows:
        words = messages[0]["content"].lower().split()
        phrases.update(set(zip(words, words[1:], words[2:], strict=False)))
    ((_, count),) = phrases.most_common(1)
    assert count <= len(rows) / 10


def test_no_question_of_the_samples_is_asked_twice():
    files = [SAMPLES / f"{name}_{split}.jsonl" for name in ("ultrafeedback", "webgpt") for split in ("train", "test")]
    rows = [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]
    questions = [row["prompt"] if "prompt" in row else row["question"]["full_text"] for row in rows]
    assert len(questions) == len({question.lower() for question in questions}) == 288
