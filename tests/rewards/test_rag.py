"""Answers from evidence: only the answer block is graded, and only the reasoning can cite."""

import doctest
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import qa, rag
from rewards.rag import (
    citation_reward,
    cited,
    exact_match_reward,
    f1_reward,
    grade_citations,
    lenient_match_reward,
)
from rewards.tags import render

PROPERTY = settings(deadline=None, derandomize=True, database=None, max_examples=100)


def test_doctests() -> None:
    results = doctest.testmod(rag)
    assert results.failed == 0
    assert results.attempted >= 5


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("[1]", {1}),
        ("[2] Ada was born in Tarby. [1] Tarby lies in Brill.", {1, 2}),
        ("[1][2]", {1, 2}),
        ("[1, 2] and [3,4]", {1, 2, 3, 4}),
        ("see [10].", {10}),
        ("[07]", {7}),
        ("[[3]]", {3}),
        ("", set()),
        ("1 (1) {1} <1> [one] [a1] [1a] [-1] [1.5] [ 1]", set()),
        ("[1-3]", set()),
        ("[1,]", set()),
        ("[1234]", set()),
        ("[١] [１]", set()),
        ("[1", set()),
    ],
)
def test_cited(text: str, numbers: set[int]) -> None:
    assert cited(text) == numbers


@pytest.mark.parametrize(
    ("numbers", "supporting", "score"),
    [
        ({2}, [False, True], 1.0),
        ({1, 3}, [True, False, True], 1.0),
        ({1}, [True, False, True], 2 / 3),
        ({1, 2, 3}, [True, False, True], 0.8),
        ({1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, [True] * 2 + [False] * 8, 1 / 3),
        ({2}, [True, False], 0.0),
        ({0, 99}, [True], 0.0),
        (set(), [True], 0.0),
        ({1}, [False, False], None),
        (set(), [], None),
    ],
)
def test_grade_citations(numbers: set[int], supporting: list[bool], score: float | None) -> None:
    assert grade_citations(numbers, supporting) == (score if score is None else pytest.approx(score))


def test_citations_count_in_the_reasoning_alone() -> None:
    gold = [False, True]
    texts = [
        render("[2] says Tarby.", "Tarby"),
        render("It is Tarby.", "Tarby [2]"),
        "[2] " + render("It is Tarby.", "Tarby") + " [2]",
        "[2] says Tarby.",
        render("[2]", "[2]") + "</answer>",
    ]
    assert citation_reward(texts, supporting=[gold] * 5, prompts=None) == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert citation_reward(texts, supporting=[[]] * 4 + [[False]]) == [None] * 5


def test_answers_count_in_the_answer_block_alone() -> None:
    aliases = [["Tarby", "town of Tarby"]] * 6 + [["The"]]
    texts = [
        render("[2] says so.", "tarby!"),
        render("[2] says so.", "The town of Tarby"),
        render("[2] says so.", "Tarby, in Brill"),
        render("Tarby", "Brill"),
        "Tarby",
        render("[2] says so.", "Tarby") + "<answer>Tarby</answer>",
        render("[2] says so.", "The"),
    ]
    exact = [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, None]
    assert exact_match_reward(completions=texts, aliases=aliases, question=["?"] * 7) == exact
    assert f1_reward(completions=texts, aliases=aliases, question=["?"] * 7) == [1.0, 1.0, 0.5, 0.0, 0.0, 0.0, None]


def test_conversational_completions_and_callers_bugs() -> None:
    said = [[{"role": "assistant", "content": render("[1] says so.", "Tarby")}]]
    assert exact_match_reward(said, aliases=[["Tarby"]]) == [1.0]
    assert f1_reward(said, aliases=[["Tarby"]]) == [1.0]
    assert citation_reward(said, supporting=[[True]]) == [1.0]
    for reward, column in ((exact_match_reward, "aliases"), (f1_reward, "aliases"), (citation_reward, "supporting")):
        with pytest.raises(ValueError):
            reward(said * 2, **{column: [["Tarby"]]})


@PROPERTY
@given(answer=st.text(max_size=20), aliases=st.lists(st.text(max_size=10), max_size=3))
def test_the_block_is_graded_as_a_plain_completion_is(answer: str, aliases: list[str]) -> None:
    text = render("[1] says so.", answer)
    parsed = rag.parse(text)
    plain = [parsed.answer if parsed else ""]
    assert exact_match_reward([text], [aliases]) == qa.exact_match_reward(plain, [aliases])
    assert f1_reward([text], [aliases]) == qa.f1_reward(plain, [aliases])


@PROPERTY
@given(numbers=st.sets(st.integers(0, 30)), supporting=st.lists(st.booleans(), max_size=20))
def test_citing_is_in_range_and_best_when_exact(numbers: set[int], supporting: list[bool]) -> None:
    gold = {index + 1 for index, own in enumerate(supporting) if own}
    reasoning = "It says " + " ".join(f"[{number}]" for number in numbers)
    (reward,) = citation_reward([render(reasoning, "x")], supporting=[supporting])
    assert (reward is None) == (not gold)
    if reward is not None:
        assert 0.0 <= reward <= 1.0
        assert (reward == 1.0) == (numbers == gold)
        assert (reward > 0.0) == bool(numbers & gold)


@pytest.mark.parametrize("piece", ["[", "[1", "[1,", "[1, ", "1,", "[1]", "[1,1", "[999,999,"])
def test_hostile_text_costs_little(piece: str, is_fast: Any) -> None:
    flood = (piece * 100_000)[:100_000]
    assert is_fast(lambda: cited(flood))
    assert is_fast(lambda: cited("[" + "1," * 50_000))


# The lenient measure beside exact match


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It was Tarby Cove.", 1.0),
        ("<reasoning>[1] says so.</reasoning><answer>in Tarby Cove</answer>", 1.0),
        ("<answer>tarby cove", 1.0),  # cut off, so that it does not parse
        ("Tarby Cove?\nNo, it was Elm.", 0.0),  # the last line counts
        ("Tarby Coves", 0.0),  # whole words
        ("", 0.0),
    ],
)
def test_an_accepted_answer_in_the_last_line_is_seen_wherever_it_stands(text: str, found: float) -> None:
    assert lenient_match_reward([text], [["Tarby Cove", "the cove"]]) == [found]
    assert lenient_match_reward([text], [["the"]]) == [None]
