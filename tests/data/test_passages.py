"""Sentence ends, cutting and ranking of evidence, on the texts that break the simple rules."""

import time

import pytest

from data.passages import best_first, cut, is_whole, sentences


@pytest.mark.parametrize(
    "expected",
    [
        ["One.", "Two!", "Three?", "4 is a number.", "Élan too."],
        ["Dr. J. R. Vale (c. 1612 – 1681) lived in the U.S. Territories.", "He left."],
        ["John F. Amblin Jr. met Mrs. Nunn vs. No. 5 at St. Orla.", "She won."],
        ['"It works." He smiled.', "(It did not.)", "“Well …” She sat."],
        ["It rose by 3.5 million to $1.20 a share.", "Then it fell"],
    ],
)
def test_sentences(expected):
    # a sentence after a quotation is cut from it
    pieces = [piece for text in expected for piece in sentences(text)]
    assert sentences(" ".join(expected)) == pieces
    assert sentences("\n".join(expected)) == pieces


def test_quotations_end_where_they_end():
    assert sentences('"It works." He smiled. “No …” She sat.') == ['"It works."', "He smiled.", "“No …”", "She sat."]


@pytest.mark.parametrize("text", ["", " \n "])
def test_nothing_has_no_sentences(text):
    assert sentences(text) == []
    assert cut(text, 100) == []


@pytest.mark.parametrize(
    ("sentence", "whole"),
    [("She left.", True), ('"No!"', True), ("3 left.", True), ("and left.", False), ("She left", False)],
)
def test_whole_sentences_have_both_ends(sentence, whole):
    assert is_whole(sentence) is whole


def test_lines_are_joined_and_speakers_begin_a_passage():
    lines = ["Operator", "Welcome.", "", "Per Lund -- President", "Thank you.", "Milk is cheap.", "Sales fell."]
    assert cut("\n".join(lines), 100) == [
        "Operator\nWelcome.",
        "Per Lund -- President\nThank you.\nMilk is cheap.\nSales fell.",
    ]
    assert cut("\n".join(lines[4:]), 26) == ["Thank you.\nMilk is cheap.", "Sales fell."]


def test_long_lines_are_cut_after_sentences():
    line = " ".join(f"This is sentence {number} of the speech." for number in range(30))
    passages = cut(line, 100)
    assert " ".join(passages) == line
    assert all(len(passage) <= 100 and is_whole(passage) for passage in passages)
    assert cut("word " * 50, 100) == [("word " * 50).strip()]  # one sentence, however long


def test_passages_are_ranked_by_shared_words_and_rare_ones_count_more():
    passages = ["The the of of.", "Revenue of the cheese.", "The revenue of ships.", "Nothing."]
    ranked = best_first(passages, "What was the revenue of Cheese?")
    assert ranked == [passages[1], passages[2], passages[0], passages[3]]
    assert best_first(passages, "Xylophone?") == passages  # no word in common: as they stood
    assert best_first([], "Anything?") == []


def test_cutting_takes_linear_time():
    started = time.perf_counter()
    sentences("Dr. " * 100_000)
    sentences(".\"'" * 20_000)
    assert time.perf_counter() - started < 2
