"""Word overlap in any script: what the libraries give on ASCII, and beyond it no 0 for a perfect answer."""

import doctest
import random

import pytest

from rewards import overlap
from rewards.overlap import bleu_reward, rouge_l_reward, words

# A reference, a good answer that is not it, and an answer that shares nothing.
SCRIPTS = {
    "Chinese": ("东京是日本的首都。", "东京是首都。", "他喜欢猫！"),
    "Japanese": ("東京は日本の首都です。", "東京は首都です。", "ネコ"),
    "Korean": ("서울은 대한민국의 수도입니다.", "서울은 수도입니다.", "고양이"),
    "Thai": ("กรุงเทพเป็นเมืองหลวง", "กรุงเทพเมืองหลวง", "ฟฟ"),
    "Hindi": ("दिल्ली भारत की राजधानी है।", "दिल्ली राजधानी है।", "बिल्ली"),
    "Arabic": ("القاهرة هي عاصمة مصر؟", "القاهرة عاصمة مصر؟", "قطة"),
    "Russian": ("Москва — столица России.", "Москва — столица.", "Кошка"),
    "Greek": ("Η Αθήνα είναι η πρωτεύουσα.", "Αθήνα είναι η πρωτεύουσα.", "Γάτα"),
    "Hebrew": ("ירושלים היא עיר גדולה.", "ירושלים עיר גדולה.", "חתול"),
    "accents alone": ("é à ü", "é ü", "ô"),
}


def test_doctests() -> None:
    results = doctest.testmod(overlap)
    assert results.failed == 0
    assert results.attempted >= 3


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_perfect_answer_scores_one_in_every_script(name: str) -> None:
    reference, near, other = SCRIPTS[name]
    for reward in (rouge_l_reward, bleu_reward):
        perfect, good, none = reward([reference, near, other], answer=[reference] * 3)
        assert perfect == pytest.approx(1.0)
        assert good is not None and 0.1 < good < 1.0
        assert none is not None and none < good
    assert rouge_l_reward([other], answer=[reference]) == [0.0]


def test_rouge_l_is_over_characters_where_no_spaces_are_written() -> None:
    assert rouge_l_reward(["东京首都"], answer=["东京是首都"]) == [pytest.approx(8 / 9)]
    assert rouge_l_reward(["столица Москва"], answer=["Москва столица"]) == [pytest.approx(1 / 2)]


def test_composed_and_decomposed_letters_are_the_same() -> None:
    assert rouge_l_reward(["cafe\u0301 au lait"], answer=["café au lait"]) == [1.0]
    assert bleu_reward(["cafe\u0301 au lait, le matin"], answer=["café au lait, le matin"]) == [pytest.approx(1.0)]


def test_a_reference_without_words_has_no_rouge() -> None:
    assert rouge_l_reward(["x", "x", "x"], answer=["", " ", "🎉!"]) == [None] * 3
    assert bleu_reward(["x", "x"], answer=["", " \n"]) == [None] * 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Apollo 8's crew", ["apollo", "8", "s", "crew"]),
        ("under_score", ["under", "score"]),
        ("Straße ８", ["straße", "8"]),
        ("naïve", ["naïve"]),
        ("中文abc", ["中", "文", "abc"]),
        ("हिन्दी", ["हिन्दी"]),
        ("🎉 …", []),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_ascii_scores_are_the_libraries_own() -> None:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU

    rng = random.Random(0)
    vocabulary = ["The", "cats", "cat", "running", "ran", "3.5", "it's", "well-known", "a_b", "U.S.", "\n", "!"]
    rouge, bleu = RougeScorer(["rougeL"], use_stemmer=True), BLEU(effective_order=True)
    for _ in range(100):
        reference, answer = (" ".join(rng.choices(vocabulary, k=rng.randint(1, 9))) + " dog" for _ in range(2))
        assert rouge_l_reward([answer], answer=[reference]) == [rouge.score(reference, answer)["rougeL"].fmeasure]
        assert bleu_reward([answer], answer=[reference]) == [
            pytest.approx(bleu.sentence_score(answer, [reference]).score / 100)
        ]
