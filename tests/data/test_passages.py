"""Sentence ends, cutting and ranking of evidence, on the texts that break the simple rules."""

import doctest
import logging
import math
import random
import re
import time

import pytest

from data import passages as passages_module
from data.passages import best_first, cut, is_whole, ranking, sentences, titled


def test_doctests():
    results = doctest.testmod(passages_module)
    assert results.failed == 0
    assert results.attempted >= 3


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


def bm25(passages: list[str], question: str) -> list[float]:
    """BM25 from its formula: what Lucene 8 and later give, which leave out the constant factor k1 + 1."""
    words = [re.findall(r"[a-z0-9]+", passage.lower()) for passage in passages]
    mean = sum(map(len, words)) / len(words)
    scores = [0.0] * len(passages)
    for word in re.findall(r"[a-z0-9]+", question.lower()):
        holders = sum(word in own for own in words)
        idf = math.log(1 + (len(words) - holders + 0.5) / (holders + 0.5))
        for index, own in enumerate(words):
            scores[index] += idf * own.count(word) / (own.count(word) + 1.5 * (1 - 0.75 + 0.75 * len(own) / mean))
    return scores


def test_the_ranking_is_bm25_and_ties_keep_their_order():
    rng = random.Random(0)
    ties = 0
    for _ in range(100):
        passages = [" ".join(rng.choices(["ant", "bee", "cow", "8", "x"], k=rng.randint(1, 6))) for _ in range(8)]
        question = " ".join(rng.choices(["ant", "bee", "emu", "8"], k=3))
        scores = bm25(passages, question)
        expected = sorted(range(8), key=lambda index: -round(scores[index], 6))
        assert ranking(passages, question) == expected
        assert best_first(passages, question) == [passages[index] for index in expected]
        ties += len({round(score, 6) for score in scores}) < 8
    assert ties > 50


@pytest.mark.parametrize(
    ("passages", "question"),
    [
        (["Apollo 9 flew.", "Apollo 8 flew."], "When did Apollo 8 fly?"),
        (["Vitamin C.", "Vitamin B."], "What is vitamin B good for?"),
        (["Windows 7, it is.", "Windows 8, it is."], "Who made Windows 8?"),
        (["大阪は商都。", "東京は首都。"], "首都はどこ？"),
        (["बिल्ली", "दिल्ली राजधानी"], "राजधानी?"),
    ],
)
def test_single_digits_letters_and_other_scripts_tell_passages_apart(passages, question):
    assert ranking(passages, question) == [1, 0]


@pytest.mark.parametrize("passages", [[], ["", " "], ["?!", "a I"], ["One word.", "Two words."]])
@pytest.mark.parametrize("question", ["", "?", "x", "Zebra?"])
def test_where_nothing_is_shared_the_order_stays(passages, question):
    assert ranking(passages, question) == list(range(len(passages)))


def test_ranking_logs_nothing(caplog):
    """The library logs each index it builds at DEBUG, which any handler of the root logger would show."""
    with caplog.at_level(logging.DEBUG):
        assert ranking(["The cash is safe.", "The margin fell."], "Which margin?") == [1, 0]
    assert caplog.records == []


def test_a_title_stands_above_its_text():
    assert titled(" Tarby\n", " Tarby lies\nthere. ") == "Tarby\nTarby lies\nthere."
    assert (titled("", "Text."), titled("Tarby", " "), titled("", "")) == ("Text.", "Tarby", "")


def test_cutting_takes_linear_time():
    started = time.perf_counter()
    sentences("Dr. " * 100_000)
    sentences(".\"'" * 20_000)
    assert time.perf_counter() - started < 2
