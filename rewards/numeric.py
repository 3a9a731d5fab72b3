"""Correctness of a number: what a person marking the answer would accept, compared exactly.

One number, with words around it that do not change it:

| accepted            | rule                                                                               |
|---------------------|------------------------------------------------------------------------------------|
| `1,080` `18.0` `.5` | compared by value, never as floats; a comma only before a group of three digits    |
| `-5` `-$5` `$-5`    | hyphen or minus sign (U+2212), touching the number or its currency sign            |
| `1/2`               | two whole numbers; `36/2` is undone work, not an answer                            |
| `50%` `50 percent`  | only where the gold has the sign; a gold of `50%` also takes `50`, but never `0.5` |
| `$18` `18 kg`       | other units are ignored: a GSM8K gold has none to compare with; so `US$18`, `Rs.18` |
| `x = 18` `**18**`   | also `Answer: 18`, `She needs a total of 18 eggs.`                                  |
| `\\boxed{18\\%}`      | LaTeX that only dresses it: see `plain`; a fraction counts, `\\sqrt{18}` does not    |

Refused: a second number in digits or words ("3 or 5", "18 (twenty)"); words that change the number ("not 18",
"at least 18", "half of 18", "18 thousand"); exponents, `inf`, `nan`, mixed numbers, numbers in words only;
digits outside ASCII (fullwidth, Arabic-Indic, superscript), characters that do not show; over 100 characters; a dash
for a minus sign, since lists, ranges and quotations have dashes too.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from rewards.contract import Completion
from rewards.tags import ANY_TAG, answer_text, completion_text

MAX_CHARACTERS = 100
LAST_CHARACTERS = 1000


class Number(NamedTuple):
    """An exact value, and whether it was written as a percentage (50% has the value 50)."""

    value: int | Fraction
    percent: bool


# The first digits of the text, with the sign, currency and percent sign that touch them. They start the text
# or follow a space or one of :=#'"(⟨ so that there is no number in "x18", "<18" and "--18".
_NUMBER = re.compile(
    r"""
    (?<![^\s:=#'"(⟨])
    ([+-]?) (?:\\?[$€£¥₹]\ ?)? ([+-]?)
    ( [0-9]+/[0-9]+ | (?:[1-9][0-9]{0,2}(?:,[0-9]{3})+ | [0-9]+)(?:\.[0-9]+)? | \.[0-9]+ )
    (\ ?(?:%|percent\b|per\ cent\b))? (?:\ ?(?:[$€£¥₹¢]|°[CF]?))?
    """,
    re.VERBOSE | re.IGNORECASE,
)

# LaTeX that says how a number looks, not which it is. Whatever else has a backslash stays, and is refused below.
STYLES = r"\\(?:boxed|fbox|emph|bm|boldsymbol|text(?:bf|it|rm|sf|tt)?|math(?:bf|it|rm|sf|tt))\{"
_SPACED = re.compile(rf"{STYLES}|\\[,;: ]|\\q?quad\b|[*`}}]|(?<=[0-9%}}])~(?=[A-Za-z\\])")
_RUN = re.compile(" {2,}")
_OPENING, _CLOSING = re.compile(r"\\[(\[]"), re.compile(r"\\[)\]]")  # of LaTeX; "(18)" is a loss to an accountant
# Between dollar signs, but not from "$5" to the next "$6"; whatever touches them from outside keeps them as they are.
_MATH = re.compile(r"(?<![^\s:=#'\"(*{])(\$\$?)((?:[^$\\]|\\.)*+)\1(?![^\s.,;:)'\"*}])")
# No digit, point or second fraction may touch it, with which it were another number.
_FRACTION = re.compile(r"(?<![\w.,/}\\])\\[dt]?frac(?:\{(-?[0-9]+)\}\{([0-9]+)\}|([0-9])([0-9]))(?![0-9{^]|[.,][0-9])")
_RUPEES = re.compile(r"(?<![^\W_])Rs\.?\ ?(?=[0-9])")
_US_DOLLARS = re.compile(r"(?<![^\W_])US(?=\\?\$)")

# Around the number stand letters and punctuation, and no further digit. A dash must join two letters and a
# slash lead to one ("km/h"): free-standing they could be a minus or a division. "f(" is a function's bracket.
# Letters that touch the number are a unit if they are three or more, or one of these: 18kg, not 18k or 18O.
_LETTER = r"[^\W\d_]"
_UNIT = r"(?:[kcm]?m|[km]?g|ml|lb|oz|mi|ft|in|yd|hr?|s|[ap]m)[²³]?"
_HYPHEN = rf"(?<={_LETTER})-(?={_LETTER})"
_BEFORE = re.compile(rf"(?:{_LETTER}++|[\s.,:;=#'\"\u2019)⟩]++|(?<!{_LETTER})[(⟨]|{_HYPHEN})*+")
_AFTER = re.compile(
    rf"(?:{_LETTER}{{3,}}|{_UNIT}(?!{_LETTER})|(?!{_LETTER}))"
    rf"(?:{_LETTER}++|[\s.,:;'\"\u2019()⟨⟩]++|{_HYPHEN}|/(?={_LETTER}))*+"
)
_WORD = re.compile(rf"{_LETTER}+")

# Words that make it another number, or no number at all.
_ALTERS = frozenset(
    _WORD.findall(
        "or nor not isn never plus minus least most half halves quarter dozen dozens hundred hundreds "
        "thousand thousands mil million millions billion billions trillion pi π zero two three four five six "
        "seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen "
        "twenty thirty forty fifty sixty seventy eighty ninety"
    )
)
_ALTERS_BEFORE = _ALTERS.union(
    _WORD.findall("than over under above below between almost nearly negative twice double triple root sqrt")
)
_ALTERS_AFTER = _ALTERS.union(_WORD.findall("k x squared cubed factorial"))


def _leaves_alone(before: str, after: str) -> bool:
    """Whether the text around a number holds no second number and nothing that changes the first."""
    if not _BEFORE.fullmatch(before) or not _AFTER.fullmatch(after):
        return False
    words_before, words_after = _WORD.findall(before.lower()), _WORD.findall(after.lower())
    # What `re` calls letters includes ², ½ and Ⅷ. Only after a unit's letters is a square or a cube welcome.
    return (
        _ALTERS_BEFORE.isdisjoint(words_before)
        and _ALTERS_AFTER.isdisjoint(words_after)
        and all(word.rstrip("²³").isalpha() for word in words_before + words_after)
    )


def plain(text: str) -> str:
    """`text` without Markdown's stars and ticks and the LaTeX that only dresses a number, and with one-sign currencies.

    >>> plain("$1{,}080 \\\\text{ eggs}$, \\\\(\\\\frac{1}{2}\\\\), US$18, Rs.18, 50\\\\%").split(", ")
    [' 1,080 eggs ', '⟨1/2⟩', '$18', '₹18', '50%']
    """
    text = _US_DOLLARS.sub("", _RUPEES.sub("₹", text.replace("\u2212", "-")))
    if "\\" in text or "$" in text or "{" in text:
        text = _FRACTION.sub(lambda found: "/".join(part for part in found.groups() if part), text)
        text = text.replace("{,}", ",").replace(",\\!", ",").replace("\\%", "%")
        text = text.replace("^{\\circ}", "°").replace("^\\circ", "°")
        text = _MATH.sub(r" \2 ", _CLOSING.sub("⟩", _OPENING.sub("⟨", text)))
    return _RUN.sub(" ", _SPACED.sub(" ", text))  # a space, so that no two digits come to touch


def extract_number(text: str) -> Number | None:
    """The one number that `text` states, or None where it states none, several, or one its words change.

    >>> extract_number("She pays $1,080.")
    Number(value=1080, percent=False)
    >>> extract_number("3 or 5") is None
    True
    """
    text = text.strip()
    if len(text) > MAX_CHARACTERS:
        return None
    if text.isdigit() and text.isascii():  # most answers
        return Number(int(text), False)

    text = plain(text)
    number = _NUMBER.search(text)
    if number is None:
        return None
    before, after = text[: number.start()], text[number.end() :]
    if (before or after) and not _leaves_alone(before, after):
        return None
    return _value(number)


def last_number(text: str) -> Number | None:
    """The last number in `text`, whatever stands around it; None where there is none in its last 1,000 characters.

    >>> last_number("3 or 5, so <answer>she has 5 eggs</answer>")
    Number(value=5, percent=False)
    """
    numbers = list(_NUMBER.finditer(plain(ANY_TAG.sub(" ", text[-LAST_CHARACTERS:]))))
    return _value(numbers[-1]) if numbers else None


def _value(number: re.Match[str]) -> Number | None:
    sign, inner_sign, digits, percent = number.groups()
    if sign and inner_sign:
        return None
    digits, slash, denominator = digits.replace(",", "").partition("/")
    if slash:
        value = Fraction(int(digits), int(denominator)) if int(denominator) else 0
        if value.denominator == 1:  # 36/2, 0/5 and 1/0
            return None
    else:
        value = int(digits) if digits.isdigit() else Fraction(digits)
    return Number(-value if "-" in (sign, inner_sign) else value, percent is not None)


def grade_number(prediction: str, gold: str) -> float | None:
    """1.0 where `prediction` states the number `gold` states, 0.0 where not, None where `gold` states none.

    >>> grade_number("-$1,080.00", "-1080"), grade_number("3 or 5", "5"), grade_number("5", "unknown")
    (1.0, 0.0, None)
    """
    return _same(extract_number(prediction), extract_number(gold))


def _same(stated: Number | None, expected: Number | None) -> float | None:
    if expected is None:
        return None
    if stated is None or stated.value != expected.value:
        return 0.0
    return 1.0 if expected.percent or not stated.percent else 0.0


def correctness_reward(
    completions: Sequence[Completion], answer: Sequence[str], **kwargs: object
) -> list[float | None]:
    """The number in the answer block against the gold column `answer`. Range {0, 1}, or None.

    1.0: the block states the gold number and no other. 0.0: it does not, or the completion does not parse.
    None: the gold cannot be read, so that nothing can be said about any completion.

    >>> correctness_reward(["<reasoning>9 * 2</reasoning><answer>$18</answer>", "18"], answer=["18", "18"])
    [1.0, 0.0]
    """
    return [grade_number(answer_text(c), gold) for c, gold in zip(completions, answer, strict=True)]


def lenient_correctness_reward(
    completions: Sequence[Completion], answer: Sequence[str], **kwargs: object
) -> list[float | None]:
    """The last number of a completion, wherever it stands, against the gold column `answer`. Range {0, 1}, or None.

    A measure beside `correctness_reward`, which asks for the form too: the two together tell whether a model learned
    the task or the form. It pays guesses and hedges, so nothing should be trained on it. None: the gold cannot be read.

    >>> lenient_correctness_reward(["9 * 2 is 18.", "18 or 20", "none"], answer=["18", "18", "18"])
    [1.0, 0.0, 0.0]
    """
    texts = [completion_text(completion) for completion in completions]
    return [_same(last_number(text), extract_number(gold)) for text, gold in zip(texts, answer, strict=True)]
