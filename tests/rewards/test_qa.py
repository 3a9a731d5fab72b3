import doctest
import string
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import qa
from rewards.qa import (
    MAX_CHARACTERS,
    Figure,
    choice_reward,
    exact_match,
    exact_match_reward,
    extract_choice,
    extract_figure,
    f1_reward,
    figure_reward,
    grade_choice,
    grade_figure,
    normalise,
    token_f1,
)

PROPERTY = settings(deadline=None, derandomize=True, database=None, max_examples=100)

ABCD = "ABCD"
WORDS = st.lists(st.sampled_from(["the", "a", "beatles", "Beatles", "john", "lennon", "of", "1960"]), max_size=5)
TEXT = st.text(max_size=30) | WORDS.map(" ".join)
CHOICEISH = st.text(alphabet="ABCDabcd ().,:*\n'xor", max_size=12)
FIGUREISH = st.text(alphabet="0123456789,.()-$€% bBmMkK", max_size=12)


def test_doctests() -> None:
    results = doctest.testmod(qa)
    assert results.failed == 0
    assert results.attempted >= 11


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Beatles,\n a band! ", "beatles band"),
        ("", ""),
        ("the a an", ""),
        ("theme an answer", "theme answer"),
        ("O'Neil", "oneil"),
        ("O’Neil", "oneil"),
        ("O´Neil", "oneil"),
        ("“Heroes”", "heroes"),
        ("1990–91", "199091"),
        ("£5", "5"),
        ("Straße", "strasse"),
        ("ΣΊΣΥΦΟΣ", "σίσυφοσ"),
        ("cafe\u0301", "café"),
        ("café", "café"),
        ("Ｐａｒｉｓ", "paris"),
        ("Par\u200bis\u200e", "paris"),
        ("\u200b", ""),
        ("東京。", "東京"),
        ("हिन्दी", "हिन्दी"),
        ("Paris 🎉", "paris"),
        ("x" * MAX_CHARACTERS, "x" * MAX_CHARACTERS),
        ("x" * (MAX_CHARACTERS + 1), ""),
    ],
)
def test_normalise(text: str, normal: str) -> None:
    assert normalise(text) == normal


@pytest.mark.parametrize(
    ("prediction", "gold", "exact", "f1"),
    [
        ("The Beatles.", "beatles", 1, 1),
        ("Beatles, 1960", "Beatles", 0, 2 / 3),
        ("John Lennon", "John Winston Lennon", 0, 0.8),
        ("Lennon, John", "John Lennon", 0, 1),
        ("a cat, the cat", "cat", 0, 2 / 3),
        ("state-of-the-art", "state of art", 0, 0),
        ("U.S.A", "USA", 1, 1),
        ("1,200", "1200", 1, 1),
        ("3.5", "35", 1, 1),
        ("-5", "5", 1, 1),
        ("C++", "C", 1, 1),
        ("", "x", 0, 0),
        ("the", "x", 0, 0),
    ],
)
def test_ascii_scores_are_those_of_the_official_squad_script(
    prediction: str, gold: str, exact: float, f1: float
) -> None:
    assert exact_match(prediction, [gold]) == exact
    assert token_f1(prediction, [gold]) == pytest.approx(f1, abs=1e-12)


def test_the_best_alias_counts_and_unusable_ones_do_not() -> None:
    assert exact_match("Mumbai", ["Bombay", "Mumbai"]) == 1.0
    assert token_f1("New Delhi", ["Bombay", "Old Delhi", "Delhi"]) == pytest.approx(2 / 3)
    assert exact_match("", ["", "The The", "Paris"]) == 0.0
    for unusable in ([], [""], ["The The", "!?", "\u200b"], ["x" * (MAX_CHARACTERS + 1)]):
        for prediction in ("", "the", unusable[0] if unusable else "x"):
            assert exact_match(prediction, unusable) is None
            assert token_f1(prediction, unusable) is None


CHOICES: dict[str | None, list[str]] = {
    "B": [
        "B", "b", " B\n", "B.", "b.", "(B)", "(b)", "[B]", "B)", '"B"', "'B'.", "B!",
        "**B**", "**B.** heat", "`B`", "$B$", "\\boxed{B}", "$\\boxed{\\text{B}}$", "#### B",
        "B) heat", "b) heat", "(B) heat", "B. heat", "B: heat", "B - heat", "B, heat", "B\nheat",
        "Answer: B", "answer: b", "Answer:\n\nB", "Answer B", "Final answer: (B)", "Option B",
        "The answer is B.", "The answer is: B", "the answer is option b", "My choice is B",
        "The correct answer is **B) heat**.", "So the correct option is B", "B is correct.",
        "Heat moves, so the answer is B.", "Heat moves.\nAnswer: B", "B because heat moves",
        "B) A plant", "B. A Ferris wheel", "A plant needs light. The answer is B.", "B. B it is",
        "B) 0°C", "B) C_{6}H_{12}O_{6}",
        "\\textbf{B}", "\\textbf{(B)} heat", "\\(B\\)", "\\( B \\)", "\\[B\\]", "\\boxed{\\textbf{(B) } 18}",
        "$\\mathrm{B}$", "The answer is \\(B\\).", "The answer is \\( B \\).", "The answer is \\textbf{B}.",
        "\\mathbf{B} because heat moves", "I choose B", "I choose B.",
        "I choose (B) heat.", "I choose option B", "I pick B", "I select B.",
        "I will choose B",
        "I'll go with B.", "So I choose B", "Heat moves. I choose B.", "I choose \\(B\\)", "I choose **B**",
    ],
    "A": [
        "A", "a", "A.", "A) a plant", "A. A plant needs light", "Answer: A", "A because a plant",
    ],
    None: [
        "", " ", "heat", "Bob", "AB", "BB", "B's", "B2", "B.C. 500", "E", "Answer: E", "1", "2",
        "A plant needs light", "a plant", "Answer: A plant", "The answer is a plant.", "B heat",
        "A or B", "A, B", "a, b", "A/B", "A & B", "A and B", "A) or B)", "a) or b)", "A\nB", "A B",
        "B, or A is right", "B. No, C", "B) heat\nC) light", "The answer is B. The answer is C.",
        "not B", "The answer is not B", "B is wrong", "B is not correct", "B?", "Is the answer B?",
        "If the answer is B", "I do not think the answer is B", "All of the above", "AnswerB",
        "\\(B\\) or \\(C\\)", "\\(A\\)\\(B\\)", "\\textbf{A} or \\textbf{B}", "\\text{not }B", "not \\(B\\)",
        "\\cancel{B}",
        "\\sout{B} C", "\\(B\\) is wrong", "\\textbf{A} B", "\\boxed{A}\\boxed{B}", "\\textbf{B}ob",
        "I choose B or C", "I choose neither B nor C", "I choose a plant", "I choose A plant", "I choose Bob",
        "I do not choose B", "I would choose B, if it were hot", "I never choose B", "Should I choose B?",
        "I choose B?",
        "If I choose B", "You choose B", "I choose B. No, C", "I could choose B", "I did choose B", "I choose",
        "Ｂ", "В", "Ⓑ", "B\u200b", "\u202eB", "B" + " " * MAX_CHARACTERS,
    ],
}  # fmt: skip


@pytest.mark.parametrize(("text", "choice"), [(text, choice) for choice, texts in CHOICES.items() for text in texts])
def test_extract_choice(text: str, choice: str | None) -> None:
    assert extract_choice(text, ABCD) == choice


def test_choices_are_the_letters_of_the_row() -> None:
    assert extract_choice("E", "ABCDE") == "E"
    assert extract_choice("C", "AB") is None
    assert extract_choice("I", "ABCDEFGHI") == "I"
    assert extract_choice("B. I am sure", "ABCDEFGHI") == "B"
    assert [grade_choice(text, "B", "ABC") for text in ("B", "C", "D", "")] == [1.0, 0.0, 0.0, 0.0]
    for gold in ("", "b", "D", "AB", "ABC", "1", " "):
        assert grade_choice(gold, gold, "ABC") is None


def figure(value: str, percent: bool = False, currency: str = "", year: bool = False) -> Figure:
    return Figure(Fraction(value), percent, currency, year)


NO_FIGURE = [
    "", "n/a", "unknown", "inf", "1e9", "million", "$", "()", "(,)", "thirty-four million",
    "10% to 15%", "18 (3.4)", "$34 million in 2020", "Q3: $34 million", "FY21 5%",
    "1.2 million billion", "3M.5", "3M,500", "$34M+", "-(3.4)", "f(3)", "10-K", "NT$5",
    "over $5", "more than 70%", "not 5%", "5 and a quarter", "half of 18", "quarter of 18",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$1.2 billion", figure("1200000000", currency="$")),
        ("1,200 million.", figure("1200000000")),
        ("1.2B", figure("1200000000")),
        ("US$1.2bn", figure("1200000000", currency="$")),
        ("$1.2\u00a0Billion", figure("1200000000", currency="$")),
        ("**$1.2 billion**", figure("1200000000", currency="$")),
        ("-$5M", figure("-5000000", currency="$")),
        ("\u22125.5 mm", figure("-5500000")),
        ("1/2 million", figure("500000")),
        ("35 K", figure("35000")),
        ("€2 trillion", figure("2000000000000", currency="€")),
        ("34 cents", figure("0.34")),
        ("(3.4)", figure("-3.4")),
        ("$(3.4) million", figure("-3400000", currency="$")),
        ("($3.4 million)", figure("-3400000", currency="$")),
        ("(3.4%)", figure("-3.4", percent=True)),
        ("(3.4)%", figure("-3.4", percent=True)),
        ("22%", figure("22", percent=True)),
        ("approximately 22 percent", figure("22", percent=True)),
        ("50 basis points", figure("0.5", percent=True)),
        ("-50bps", figure("-0.5", percent=True)),
        ("3 percentage points", figure("3", percent=True)),
        ("2020", figure("2020", year=True)),
        ("in 2020.", figure("2020", year=True)),
        ("$2020", figure("2020", currency="$")),
        ("2,020", figure("2020")),
        ("2020.5", figure("2020.5")),
        ("2020 million", figure("2020000000")),
        ("Adjusted EBITDA was $34 million.", figure("34000000", currency="$")),
        ("up 6% in the fourth quarter", figure("6", percent=True)),
        ("$15 million per quarter", figure("15000000", currency="$")),
        ("\\boxed{\\$1.2\\text{ billion}}", figure("1200000000", currency="$")),
        ("\\(22\\%\\)", figure("22", percent=True)),
        ("Rs.1{,}200 million", figure("1200000000", currency="₹")),
        ("-US$5M", figure("-5000000", currency="$")),
        ("(US$5M)", figure("-5000000", currency="$")),
        ("(Rs.5M)", figure("-5000000", currency="₹")),
        ("(3{,}400)", figure("-3400")),
        ("\\((3.4\\%)\\)", figure("-3.4", percent=True)),
        ("$(3.4)$ million", figure("-3400000")),
        ("\\(3.4\\) million", figure("3400000")),
        ("\\[\\$3.4\\text{ million}\\]", figure("3400000", currency="$")),
        *[(text, None) for text in NO_FIGURE],
    ],
)
def test_extract_figure(text: str, expected: Figure | None) -> None:
    assert extract_figure(text) == expected


@pytest.mark.parametrize(
    ("prediction", "gold", "tolerance", "score"),
    [
        ("101", "100", 0.01, 1.0),
        ("99", "100", 0.01, 1.0),
        ("101.01", "100", 0.01, 0.0),
        ("103", "100", 0.03, 1.0),  # float 0.03 is a little less than 3/100
        ("100.1", "100", 0, 0.0),
        ("100.0", "100", 0, 1.0),
        ("0.001", "0", 0.5, 0.0),
        ("-0", "0", 0.01, 1.0),
        ("-100", "100", 0.99, 0.0),
        ("2021", "2020", 0.01, 0.0),
        ("2020", "$2,021", 0.01, 0.0),
        ("2020", "$2,020", 0.01, 1.0),
        ("$2,021", "$2,020", 0.01, 1.0),
    ],
)
def test_tolerance_is_relative_to_the_gold_and_no_use_for_years(
    prediction: str, gold: str, tolerance: float, score: float
) -> None:
    assert grade_figure(prediction, gold, tolerance=tolerance) == score


@pytest.mark.parametrize("tolerance", [-0.01, 1, 5, float("nan")])
def test_a_tolerance_outside_its_range_is_refused(tolerance: float) -> None:
    with pytest.raises(ValueError, match=r"tolerance is .*: pass a number from 0 to below 1"):
        grade_figure("5", "5", tolerance=tolerance)


class Case(NamedTuple):
    name: str
    completion: str
    gold: Any
    score: float | None


def em(completion: str, gold: Any) -> list[float | None]:
    return exact_match_reward([completion], aliases=[gold])


def f1(completion: str, gold: Any) -> list[float | None]:
    return f1_reward([completion], aliases=[gold])


def choice(completion: str, gold: str) -> list[float | None]:
    return choice_reward([completion], answer=[gold], options=[["wet", "dry", "oil", "lotion"]])


def figures(completion: str, gold: str) -> list[float | None]:
    return figure_reward([completion], value=[gold])


PARIS = ["Paris", "City of Paris"]
# Completions that game a grader, each with what it must get. A score that changes here is a change of what models
# are paid for: make it on purpose.
ADVERSARIAL: dict[Callable[[str, Any], list[float | None]], list[Case]] = {
    em: [
        Case("answer, then a ramble", "Paris\nParis is the capital of France.", PARIS, 0.0),
        Case("answer, then the next question", "Paris\n\nQuestion: And of Italy?\nAnswer: Rome", PARIS, 0.0),
        Case("answer on the last line", "Let me think.\nParis", PARIS, 0.0),
        Case("two candidates", "Paris or London", PARIS, 0.0),
        Case("a list", "Paris, London, Rome, Berlin", PARIS, 0.0),
        Case("the answer twice", "Paris Paris", PARIS, 0.0),
        Case("two aliases", "Paris, City of Paris", PARIS, 0.0),
        Case("denied", "not Paris", PARIS, 0.0),
        Case("in a sentence", "The answer is Paris.", PARIS, 0.0),
        Case("in a longer word", "Parisian", PARIS, 0.0),
        Case("part of an alias", "City", PARIS, 0.0),
        Case("letters spaced", "P a r i s", PARIS, 0.0),
        Case("a Cyrillic letter", "P\u0430ris", PARIS, 0.0),
        Case("an accent", "París", PARIS, 0.0),
        Case("nothing", "", PARIS, 0.0),
        Case("an article", "the", PARIS, 0.0),
        Case("padded past reading", "Paris" + "." * MAX_CHARACTERS, PARIS, 0.0),
        Case("a list by any other name", str(PARIS), PARIS, 0.0),
        Case("quotes and a full stop", "“Paris”.", PARIS, 1.0),
        Case("the gold is an article, and so is the answer", "The The", ["The The"], None),
        Case("an empty gold met by nothing", "", [""], None),
        # Faults of SQuAD's normal form, kept so that scores compare with published ones.
        Case("known limit: a lost point", "35", ["3.5"], 1.0),
        Case("known limit: a lost sign", "5", ["-5"], 1.0),
    ],
    f1: [
        Case("answer, then a ramble", "Paris is capital of France", ["Paris"], 1 / 3),
        Case("a list of four", "Paris London Rome Berlin", ["Paris"], 0.4),
        Case("the answer five times", "Paris " * 5, ["Paris"], 1 / 3),
        Case("all words of all aliases", "Paris City of Paris", PARIS, 6 / 7),
        Case("articles for words", "a an the " * 20, PARIS, 0.0),
        Case("in a longer word", "Parisian", ["Paris"], 0.0),
        Case("function words", "of of of of", ["City of Paris"], 2 / 7),
        Case("nothing", "", PARIS, 0.0),
        Case("a hundred wrong words", "Paris " + "x " * 99, ["Paris"], 2 / 101),
        Case("padded past reading", "Paris" + " " * MAX_CHARACTERS, PARIS, 0.0),
        Case("known limit: denied", "not Paris", ["Paris"], 2 / 3),
        Case("known limit: shuffled", "Paris of City", ["City of Paris"], 1.0),
        Case("no gold", "Paris", ["", "!"], None),
    ],
    choice: [
        Case("every letter", "A B C D", "B", 0.0),
        Case("every letter in a list", "A, B, C, D", "A", 0.0),
        Case("every letter on a line of its own", "B\nA\nC\nD", "B", 0.0),
        Case("either", "B or C", "B", 0.0),
        Case("hedged in brackets", "(B) or (C)", "B", 0.0),
        Case("corrected", "A. Sorry, B.", "B", 0.0),
        Case("answered twice", "Answer: A\nAnswer: B", "B", 0.0),
        Case("answer, then the next question", "B\n\nWhich is dry?\nAnswer: C", "B", 0.0),
        Case("the options repeated", "A) wet B) dry C) oil D) lotion", "A", 0.0),
        Case("an article", "A wet palm.", "A", 0.0),
        Case("an article after a lead-in", "The answer is a wet palm.", "A", 0.0),
        Case("inside a word", "Because", "B", 0.0),
        Case("denied", "The answer is not B.", "B", 0.0),
        Case("ruled out", "B is wrong", "B", 0.0),
        Case("a question", "B?", "B", 0.0),
        Case("supposed", "Suppose the answer is B", "B", 0.0),
        Case("the option's text alone", "dry", "B", 0.0),
        Case("the option's number", "2", "B", 0.0),
        Case("nothing", "", "B", 0.0),
        Case("the letter eight times", "BBBBBBBB", "B", 0.0),
        Case("chosen twice", "I choose A. I choose B.", "B", 0.0),
        Case("chosen, were it so", "I would choose B, if it were wet.", "B", 0.0),
        Case("either in LaTeX", "\\(A\\) or \\(B\\)", "B", 0.0),
        Case("every letter in bold LaTeX", "\\textbf{A}, \\textbf{B}, \\textbf{C}, \\textbf{D}", "A", 0.0),
        Case("struck out in LaTeX", "\\sout{B}", "B", 0.0),
        Case("a letter that is no option", "E", "B", 0.0),
        Case("a gold that is no option", "E", "E", None),
        Case("an empty gold", "", "", None),
        Case("known limit: a letter in the option's text", "B) vitamin C", "B", 0.0),
        Case("known limit: the option's text denies the letter", "B) is not it", "B", 1.0),
    ],
    figures: [
        Case("a year beside it", "$34 million in 2020", "$34 million", 0.0),
        Case("a quarter beside it", "Q3: $34 million", "$34 million", 0.0),
        Case("the year instead", "2020", "$34 million", 0.0),
        Case("the gold's year missed by one", "2019", "2020", 0.0),
        Case("a range", "$30-$38 million", "$34 million", 0.0),
        Case("a range in words", "between $30 million and $38 million", "$34 million", 0.0),
        Case("two candidates", "$34 million or $43 million", "$34 million", 0.0),
        Case("the same twice", "$34 million, that is $34 million", "$34 million", 0.0),
        Case("in words as well", "thirty-four million ($34 million)", "$34 million", 0.0),
        Case("scale left out", "$34", "$34 million", 0.0),
        Case("scale swapped", "$34 billion", "$34 million", 0.0),
        Case("scale doubled", "$34 million million", "$34 million", 0.0),
        Case("bounded", "at least $34 million", "$34 million", 0.0),
        Case("bounded above", "under $34 million", "$34 million", 0.0),
        Case("denied", "not $34 million", "$34 million", 0.0),
        Case("open-ended", "$34M+", "$34 million", 0.0),
        Case("just outside the tolerance", "$34.35 million", "$34 million", 0.0),
        Case("sign lost", "$3.4 million", "$(3.4) million", 0.0),
        Case("sign won", "($3.4 million)", "$3.4 million", 0.0),
        Case("two signs", "-($3.4 million)", "-$3.4 million", 0.0),
        Case("another currency", "€34 million", "$34 million", 0.0),
        Case("rupees for dollars", "Rs.34 million", "$34 million", 0.0),
        Case("two candidates in LaTeX", "\\(34\\) or \\(43\\) million", "34 million", 0.0),
        Case("percent sign left out", "22", "22%", 0.0),
        Case("percent sign won", "22%", "22", 0.0),
        Case("share for a percentage", "0.22", "22%", 0.0),
        Case("basis points for percent", "22 bps", "22%", 0.0),
        Case("exponent", "3.4e7", "34 million", 0.0),
        Case("undone sum", "30 + 4 million", "34 million", 0.0),
        Case("digits after the scale", "3M.4", "3.4 million", 0.0),
        Case("digits of another script", "٣٤ million", "34 million", 0.0),
        Case("padded past reading", "so " * 100 + "$34 million", "$34 million", 0.0),
        Case("nothing", "", "$34 million", 0.0),
        Case("no gold", "$34 million", "", None),
        Case("a gold of two figures", "10%", "10% to 15%", None),
        Case("a gold in words", "a lot", "a lot", None),
        Case("known limit: another currency in words", "34 million euros", "$34 million", 1.0),
    ],
}


@pytest.mark.parametrize(
    ("grade", "case"),
    [
        pytest.param(grade, case, id=f"{grade.__name__}: {case.name}")
        for grade, cases in ADVERSARIAL.items()
        for case in cases
    ],
)
def test_gaming_pays_what_it_must(grade: Callable[[str, Any], list[float | None]], case: Case) -> None:
    assert grade(case.completion, case.gold) == [pytest.approx(case.score) if case.score else case.score]


def test_rewards_read_conversations_and_other_columns_do_not_matter() -> None:
    def said(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    golds = [["Paris"], ["Rome"], [""]]
    texts = [said("Paris."), said("Rome, Italy"), said("x")]
    assert exact_match_reward(completions=texts, aliases=golds, question=["?"] * 3) == [1.0, 0.0, None]
    assert f1_reward(completions=texts, aliases=golds, question=["?"] * 3) == [1.0, pytest.approx(2 / 3), None]
    options = [["1", "2", "3"], ["1", "2", "3", "4", "5"], ["1", "2", "3"]]
    assert choice_reward([said(x) for x in "CED"], answer=["C", "E", "D"], options=options) == [1.0, 1.0, None]
    assert figure_reward([said("22%"), said("$1")], value=["22.1 percent", ""], answer=["", ""]) == [1.0, None]


def test_a_callers_bug_is_not_swallowed() -> None:
    with pytest.raises(ValueError, match="aliases is the string 'Paris': pass a list"):
        exact_match("P", "Paris")
    with pytest.raises(ValueError, match="pass a list"):
        f1_reward(["P"], aliases=["Paris"])
    for reward in (exact_match_reward, f1_reward):
        with pytest.raises(ValueError):
            reward(["x", "y"], aliases=[["x"]])
    with pytest.raises(ValueError):
        figure_reward(["1", "2"], value=["1"])
    with pytest.raises(ValueError):
        choice_reward(["A", "B"], answer=["A"], options=[["x", "y"]] * 2)


@PROPERTY
@given(prediction=TEXT, aliases=st.lists(TEXT, max_size=4), data=st.data())
def test_answers_are_in_range_and_only_the_gold_can_void_them(
    prediction: str, aliases: list[str], data: st.DataObject
) -> None:
    exact, overlap = exact_match(prediction, aliases), token_f1(prediction, aliases)
    unusable = not any(normalise(alias) for alias in aliases)
    assert (exact is None) == (overlap is None) == unusable
    if exact is not None and overlap is not None:
        assert exact in (0.0, 1.0)
        assert exact <= overlap <= 1.0
    shuffled = data.draw(st.permutations(aliases))
    assert (exact_match(prediction, shuffled), token_f1(prediction, shuffled)) == (exact, overlap)
    for alias in aliases:
        if normalise(alias):
            assert exact_match(alias, aliases) == token_f1(alias, aliases) == 1.0


@PROPERTY
@given(first=TEXT, second=TEXT)
def test_answer_and_gold_may_swap(first: str, second: str) -> None:
    if normalise(first) and normalise(second):
        assert exact_match(first, [second]) == exact_match(second, [first])
        assert token_f1(first, [second]) == token_f1(second, [first])
    assert normalise(normalise(first)) == normalise(first)


@PROPERTY
@given(prediction=TEXT, aliases=st.lists(TEXT, max_size=3), more=TEXT)
def test_a_further_alias_never_lowers_a_score(prediction: str, aliases: list[str], more: str) -> None:
    for grade in (exact_match, token_f1):
        assert (grade(prediction, aliases) or 0.0) <= (grade(prediction, [*aliases, more]) or 0.0)


@PROPERTY
@given(text=CHOICEISH | st.text(), count=st.integers(1, 26))
def test_any_text_chooses_one_letter_or_none(text: str, count: int) -> None:
    letters = string.ascii_uppercase[:count]
    chosen = extract_choice(text, letters)
    assert chosen is None or chosen in tuple(letters)
    paid = [letter for letter in letters if grade_choice(text, letter, letters)]
    assert paid == ([chosen] if chosen else [])
    assert all(grade_choice(letter, letter, letters) == 1.0 for letter in letters)


@PROPERTY
@given(prediction=FIGUREISH | st.text(), gold=FIGUREISH | st.text())
def test_any_figure_gets_a_grade_and_only_the_gold_can_void_it(prediction: str, gold: str) -> None:
    grade = grade_figure(prediction, gold)
    assert grade in (0.0, 1.0, None)
    assert (grade is None) == (extract_figure(gold) is None)
    assert grade_figure(gold, gold) in (1.0, None)
    if extract_figure(prediction) and extract_figure(gold):
        assert grade_figure(prediction, gold, tolerance=0) == grade_figure(gold, prediction, tolerance=0)


@PROPERTY
@given(millions=st.integers(1, 10**6), negative=st.booleans(), off=st.sampled_from(["0.985", "1.015"]))
def test_one_figure_in_many_dresses(millions: int, negative: bool, off: str) -> None:
    whole = millions * 10**6
    amounts = [f"${millions:,} million", f"${millions}M", f"{millions}mn", f"{whole:,}", f"${whole // 1000}k"]
    if negative:
        amounts = [f"({amount})" for amount in amounts] + [f"-{amount}" for amount in amounts]
    for amount in amounts:
        assert grade_figure(amount, amounts[0]) == grade_figure(amounts[0], amount) == 1.0
        missed = Fraction(off) * Fraction(extract_figure(amount).value)  # type: ignore[union-attr]
        assert grade_figure(f"{float(missed):.0f}", amount) == 0.0


MEGABYTE = 1_000_000
HOSTILE = (
    *("a", " ", "\n", ".", ",", "(", "%", "$", "'", "1", "1,", "(1", "1m ", "$1 billion ", "the ", "word "),
    *("B", "B ", "A ", "B) ", "B\n", "Answer: ", "the answer is ", "\nAnswer", "so the ", "I choose ", "\nI'll "),
    *("\\textbf{", "\\( ", " \\)", "\\frac{1}{2}", "$1$ ", "\\$", "Rs.", "18~", "{,}"),
    *("é", "\u0315\u0300", "\ufdfa", "\u200b", "𝟏"),
)  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
@pytest.mark.parametrize("length", [MAX_CHARACTERS, MEGABYTE])
def test_hostile_text_costs_little(text: str, length: int, is_fast: Any) -> None:
    flood = (text * (length // len(text) + 1))[:length]
    for completion in (flood, "Answer" + flood[6:], "$1" + flood[2:]):
        for grade in (em, f1, lambda text, _: choice(text, "B"), lambda text, _: figures(text, "$1")):
            assert is_fast(lambda text=completion, grade=grade: grade(text, ["a b", "c"]))
