import doctest
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import numeric
from rewards.numeric import (
    MAX_CHARACTERS,
    Number,
    correctness_reward,
    extract_number,
    grade_number,
    lenient_correctness_reward,
)
from rewards.tags import render

PROPERTY = settings(deadline=None, derandomize=True, database=None, max_examples=100)

WHOLE = st.integers(-(10**9), 10**9)
DRESSES = (
    "{}", " {}\n", "{}.", "{}.0", "= {}", "x = {}", "**{}**", "{} apples", "({})", "\\boxed{{{}}}",
    "Answer: {}", "The answer is {}.", "Tom's mother-in-law has {} of them in her garden.",
)  # fmt: skip
NUMBERISH = st.text(alphabet="0123456789,.-+$%/ \u2212eExor½²١１\u200b", max_size=12)


def test_doctests() -> None:
    results = doctest.testmod(numeric)
    assert results.failed == 0
    assert results.attempted >= 3


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18", Number(18, False)),
        ("-$1,080.50", Number(Fraction(-2161, 2), False)),
        ("$-5", Number(-5, False)),
        ("\u22121/2", Number(Fraction(-1, 2), False)),
        ("12.5 %", Number(Fraction(25, 2), True)),
        ("0", Number(0, False)),
        ("-0", Number(0, False)),
        ("007", Number(7, False)),
        ("9" * MAX_CHARACTERS, Number(10**MAX_CHARACTERS - 1, False)),
        ("9" * (MAX_CHARACTERS + 1), None),
        ("18 in the twenty-one bags", None),
        ("18 in the twenties", Number(18, False)),
        ("more than 18", None),
        ("18 more than Tom", Number(18, False)),
        ("18 quarters", Number(18, False)),
        ("18 and a quarter", None),
        ("18 kg", Number(18, False)),
        ("18 k", None),
        ("18m", Number(18, False)),
        ("18e", None),
        ("18th", None),
        ("18/hour", Number(18, False)),
        ("18/", None),
        ("18 °C", Number(18, False)),
        ("...5", None),
        ("Answer - 5", None),
        ("$$5", None),
        ("", None),
    ],
)
def test_extract_number(text: str, number: Number | None) -> None:
    assert extract_number(text) == number


@pytest.mark.parametrize(
    ("prediction", "gold", "score"),
    [
        ("50%", "50%", 1.0),
        ("50", "50%", 1.0),
        ("50 percent", "50%", 1.0),
        ("0.5", "50%", 0.0),
        ("50%", "50", 0.0),
        ("50%", "0.5", 0.0),
        ("50% ", "1/2", 0.0),
    ],
)
def test_a_percent_sign_counts_where_the_gold_has_one(prediction: str, gold: str, score: float) -> None:
    assert grade_number(prediction, gold) == score


@PROPERTY
@given(number=WHOLE, dress=st.sampled_from(DRESSES), offset=st.integers(1, 10**6), commas=st.booleans())
def test_dress_does_not_change_a_number(number: int, dress: str, offset: int, commas: bool) -> None:
    digits = f"{number:,}" if commas else str(number)
    assert grade_number(dress.format(digits), str(number)) == 1.0
    assert grade_number(dress.format(digits), f"{number:,}") == 1.0
    assert grade_number(dress.format(digits), str(number + offset)) == 0.0


@PROPERTY
@given(number=WHOLE, currency=st.sampled_from(["$", "€", "\\$"]), sign_inside=st.booleans())
def test_currency_and_sign_come_in_either_order(number: int, currency: str, sign_inside: bool) -> None:
    sign = "-" if number < 0 else ""
    amount = f"{currency}{sign}{abs(number):,}" if sign_inside else f"{sign}{currency}{abs(number):,}"
    assert grade_number(amount, str(number)) == 1.0
    assert grade_number(amount.replace("-", "\u2212"), str(number)) == 1.0
    assert grade_number(f"{amount}.00", str(number)) == 1.0


@PROPERTY
@given(st.decimals(-(10**6), 10**6, places=6), st.integers(1, 9))
def test_decimals_are_exact(number: Decimal, digit: int) -> None:
    assert extract_number(f"{number:,f}") == Number(Fraction(number), False)
    assert grade_number(f"{number:f}{'0' * 40}", str(number)) in (1.0, None)
    assert grade_number(f"{number:f}{'0' * 40}{digit}", f"{number:f}") == 0.0


@PROPERTY
@given(st.integers(-999, 999), st.integers(1, 999))
def test_a_fraction_counts_unless_it_is_undone_division(numerator: int, denominator: int) -> None:
    value = Fraction(numerator, denominator)
    expected = None if value.denominator == 1 else Number(value, False)
    assert extract_number(f"{numerator}/{denominator}") == expected
    assert extract_number(f"{numerator}/0") is None


@PROPERTY
@given(
    first=st.integers(0, 10**6),
    second=st.integers(0, 10**6),
    between=st.sampled_from(
        [" or ", " and ", " to ", ", ", "; ", " ", "\n", " = ", " + ", "-", " (", ":", "\u2013", "\t"]
    ),
)
def test_two_numbers_are_never_one_answer(first: int, second: int, between: str) -> None:
    for gold in (first, second):
        assert grade_number(f"{first}{between}{second}", str(gold)) == 0.0


@PROPERTY
@given(
    number=st.integers(10, 10**9),
    hidden=st.sampled_from("\u200b\u200d\u2060\ufeff\u00ad\u0336\u202e_"),
    data=st.data(),
)
def test_nothing_hides_inside_a_number(number: int, hidden: str, data: st.DataObject) -> None:
    digits = str(number)
    at = data.draw(st.integers(0, len(digits)))
    assert grade_number(digits[:at] + hidden + digits[at:], digits) == 0.0


@PROPERTY
@given(
    number=st.integers(0, 10**6),
    zero=st.sampled_from("٠०０𝟎𝟘"),
    kept=st.sets(st.integers(0, 5)),
)
def test_no_digit_outside_ascii_is_read(number: int, zero: str, kept: set[int]) -> None:
    digits = str(number)
    disguised = "".join(d if i in kept else chr(ord(zero) + int(d)) for i, d in enumerate(digits))
    assert grade_number(disguised, digits) == (1.0 if disguised == digits else 0.0)


@PROPERTY
@given(prediction=st.text() | NUMBERISH, gold=st.text() | NUMBERISH)
def test_any_text_gets_a_grade_and_only_the_gold_can_void_it(prediction: str, gold: str) -> None:
    grade = grade_number(prediction, gold)
    assert (grade is None) == (extract_number(gold) is None)
    assert grade in (0.0, 1.0, None)
    assert grade_number(gold, gold) in (1.0, None)
    [reward] = correctness_reward([f"<answer>{prediction}</answer>"], answer=[gold])
    assert reward in (0.0, None)  # no reasoning, no reward


def test_reward_reads_the_answer_block_only() -> None:
    golds = ["18", "18", "18", "?"]
    completions = [render("12 + 6", "$18"), render("It is 18.", "20"), "18", render("12 + 6", "18")]
    assert correctness_reward(completions, answer=golds, prompts=None) == [1.0, 0.0, 0.0, None]


def test_a_callers_bug_is_not_swallowed() -> None:
    with pytest.raises(ValueError):
        correctness_reward([render("12 + 6", "18")] * 2, answer=["18"])
    with pytest.raises(AttributeError):
        correctness_reward([render("12 + 6", "18")], answer=[18])  # type: ignore[list-item]


# The lenient measure beside it


@pytest.mark.parametrize(
    ("text", "solved"),
    [
        ("9 * 2 = 18", 1.0),
        ("<reasoning>\n20 - 2\n</reasoning>\n<answer>\n18\n</answer>", 1.0),
        ("<answer>18</answer", 1.0),  # cut off, so that it does not parse
        ("The answer is \\boxed{18}.", 1.0),
        ("18 of 20", 0.0),  # the last one counts
        ("eighteen", 0.0),
        ("x18", 0.0),
        ("", 0.0),
        ("18" + " and so on" * 200, 0.0),  # too far from its end
    ],
)
def test_the_last_number_is_graded_wherever_it_stands(text: str, solved: float) -> None:
    assert lenient_correctness_reward([text], answer=["18"]) == [solved]
    assert lenient_correctness_reward([text], answer=["?"]) == [None]


def test_the_last_number_of_a_hostile_text_is_found_quickly(is_fast: Callable[[Callable[[], object]], bool]) -> None:
    for text in ("$" * 100_000, "<a>" * 50_000, "1," * 50_000, "\\frac{1}" * 20_000, "- " * 50_000):
        assert is_fast(lambda text=text: lenient_correctness_reward([text], answer=["18"])), text[:9]
