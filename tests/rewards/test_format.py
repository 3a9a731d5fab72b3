import doctest

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import format as format_rewards
from rewards.format import (
    multiline_reward,
    score_multiline,
    score_steps,
    score_structure,
    score_tags,
    steps_reward,
    structure_reward,
    tags_reward,
)
from rewards.tags import TAGS, Parsed, parse, render

PROPERTY = settings(deadline=None, derandomize=True, database=None, max_examples=100)
LEVELS = {
    tags_reward: {0.0, 1.0},
    multiline_reward: {0.0, 1.0},
    steps_reward: {0.0, 0.5, 1.0},
    structure_reward: {0.0, 1.0},
}

TAG_SOUP = st.lists(st.sampled_from([*TAGS, "Tom has 12", "so 6 is left", "\n", " "]) | st.text(max_size=5)).map(
    "".join
)
LINE = st.text(st.characters(exclude_characters="\n.!?;<", exclude_categories=["Cs"]))


def parsed(reasoning: str) -> Parsed:
    return Parsed(reasoning.strip(), "18", "", "")


def test_doctests() -> None:
    results = doctest.testmod(format_rewards)
    assert results.failed == 0
    assert results.attempted >= len(LEVELS)


def test_a_completion_that_does_not_parse_earns_nothing() -> None:
    assert [score(None) for score in (score_tags, score_multiline, score_steps, score_structure)] == [
        0,
        0,
        0,
        0,
    ]


@pytest.mark.parametrize(
    ("reasoning", "multiline", "steps"),
    [
        ("Tom has 12 apples.\nHe buys 6 more, so 12 + 6 = 18.", 1.0, 1.0),
        ("Tom has 12 apples. He buys 6 more, so 12 + 6 = 18.", 0.0, 1.0),
        ("First I count what he has.\nThen I add what he buys.", 1.0, 0.0),
        ("48/2 = 24 clips in May.\n48 + 24 = 72 clips altogether.", 1.0, 1.0),
        ("He pays $1.50 for each.\nThat is 4 * 1.50 = 6 dollars.", 1.0, 1.0),
        ("15 - 3 = 12 apples left\n12 - 5 = 7 apples left", 1.0, 1.0),
        ("Tom pays 5 dollars.\nTom pays 6 dollars.", 0.0, 0.5),
        ("Total = 12 + 6 = 18", 0.0, 0.5),
        ("18", 0.0, 0.0),
    ],
)
def test_each_idea_has_its_own_reward(reasoning: str, multiline: float, steps: float) -> None:
    assert score_multiline(parsed(reasoning)) == multiline
    assert score_steps(parsed(reasoning)) == steps


@PROPERTY
@given(st.text() | TAG_SOUP)
def test_scores_stay_on_their_levels_for_any_text(text: str) -> None:
    for reward, levels in LEVELS.items():
        [score] = reward([text], answer=["18"])
        assert score in levels
        assert reward([[{"role": "assistant", "content": text}]]) == [score]


@PROPERTY
@given(TAG_SOUP)
def test_no_reward_without_tags_reward(text: str) -> None:
    if tags_reward([text]) == [0.0]:
        assert [reward([text]) for reward in LEVELS] == [[0.0]] * len(LEVELS)


@PROPERTY
@given(line=LINE, times=st.integers(1, 20))
def test_repeating_a_line_never_pays(line: str, times: int) -> None:
    once, often = parsed(line), parsed("\n".join([line] * times))
    assert score_multiline(often) == 0.0
    assert score_steps(often) == score_steps(once) <= 0.5


@PROPERTY
@given(st.text(alphabet="0123456789 ,.+-*/=\n%$()", max_size=300))
def test_digits_and_signs_are_no_reasoning(reasoning: str) -> None:
    assert score_multiline(parsed(reasoning)) == score_steps(parsed(reasoning)) == 0.0


@PROPERTY
@given(before=LINE, after=LINE)
def test_structure_pays_for_nothing_around_the_blocks(before: str, after: str) -> None:
    completion = before + render("Tom has 12 apples.", "12") + after
    assert parse(completion)
    assert score_structure(parse(completion)) == (0.0 if before.strip() or after.strip() else 1.0)
