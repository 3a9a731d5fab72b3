"""Short answers, option letters and financial figures, graded on plain completions without tags.

The whole completion is the answer, never its first line or its best part: one that answers and rambles on has no
exact match and no second candidate is ever picked out of it. There is no substring credit. Token F1 alone pays for
a part, because that is what it measures.

| grader         | reads                                | and not                                              |
|----------------|--------------------------------------|------------------------------------------------------|
| `exact_match`  | `The Beatles.` for `Beatles`         | `Beatles, from Liverpool` `Beatles or Stones`        |
| `token_f1`     | both, by the words they share        |                                                      |
| `grade_choice` | `B` `b` `(B)` `B) heat` `Answer: B.` | `A or B` `not B` `Bob` `A plant needs light` `B heat`|
| `grade_figure` | `$1.2bn` for `1,200 million`         | `1.2` `1.2%` `€1.2bn` `$1.2bn in 2020` `($1.2bn)`    |

Normalisation is SQuAD's (Rajpurkar et al. 2016, arXiv:1606.05250) unless other `Rules` are passed, and gives what the
official script gives on ASCII, its faults included: `3.5` is `35`, `-5` is `5`, `C++` is `C`. Deviations:

1. Beyond ASCII the same rules hold. NFKC and case folding stand for lower case (`STRASSE` is `straße`, `ｱ` is `ア`),
   and Unicode's punctuation and symbols go as ASCII's do, together with characters that do not show. Accents stay.
2. An alias with nothing left, such as `The The`, is not used; without any other there is no grade. The official
   script gives such a gold's points to an empty answer.
3. More than 4,000 characters are no answer: NFKC takes time quadratic in a run of combining marks (0.34 s for 20,000).
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from rewards.contract import Completion, Reward
from rewards.numeric import STYLES, extract_number, plain
from rewards.tags import completion_text

MAX_CHARACTERS = 4_000

_ARTICLES = frozenset({"a", "an", "the"})
# Punctuation and symbols, of which ASCII has exactly `string.punctuation`, and format characters.
_DROPPED = frozenset({"Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So", "Cf"})


@dataclass(frozen=True, slots=True)
class Rules:
    """What the official script of a data set does otherwise than SQuAD's."""

    parts: bool = False
    """Whether punctuation parts words ("U.S." is "u s"), where SQuAD's script drops it without a trace ("us")"""
    whole: frozenset[str] = frozenset()
    """Answers that token F1 pays in full or not at all, whichever side they stand on: "no, yes" is no half of "yes\""""


SQUAD = Rules()  # evaluate-v1.1.py; MuSiQue's metrics/answer.py gives the same wherever gold and answer have a word
HOTPOTQA = Rules(whole=frozenset({"yes", "no", "noanswer"}))  # hotpot_evaluate_v1.py, `f1_score`
TRIVIAQA = Rules(parts=True)  # evaluation/triviaqa_evaluation.py, `handle_punc`


def normalise(text: str, rules: Rules = SQUAD) -> str:
    """`text` in SQuAD's normal form: folded case, no punctuation, no articles, single spaces. May be "".

    >>> normalise("  The “Beatles”, a BAND!"), normalise("U.S.-born", TRIVIAQA)
    ('beatles band', 'u s born')
    """
    if len(text) > MAX_CHARACTERS:
        return ""
    # An acute accent typed for an apostrophe, as TriviaQA's aliases have it, would leave a combining mark behind.
    text = unicodedata.normalize("NFKC", text.replace("\u00b4", "'")).casefold()
    kept = "".join(
        character if (kind := unicodedata.category(character)) not in _DROPPED else " " * (rules.parts and kind != "Cf")
        for character in text
    )
    return " ".join(token for token in kept.split() if token not in _ARTICLES)


def _usable(aliases: Sequence[str], rules: Rules) -> list[str]:
    """The aliases in normal form, without those that have nothing left."""
    if isinstance(aliases, str):  # its letters would pass for aliases
        raise ValueError(f"aliases is the string {aliases[:60]!r}: pass a list of the accepted answers")
    return [normal for alias in aliases if (normal := normalise(alias, rules))]


def exact_match(prediction: str, aliases: Sequence[str], rules: Rules = SQUAD) -> float | None:
    """1.0 where all of `prediction` is one of `aliases`, both in normal form, else 0.0. None without a usable alias.

    >>> exact_match("The Beatles.", ["Beatles"]), exact_match("Beatles, 1960", ["Beatles"]), exact_match("x", [""])
    (1.0, 0.0, None)
    """
    golds = _usable(aliases, rules)
    return float(normalise(prediction, rules) in golds) if golds else None


def token_f1(prediction: str, aliases: Sequence[str], rules: Rules = SQUAD) -> float | None:
    """Harmonic mean of precision and recall over normal words, for the best of `aliases`. None without a usable one.

    >>> token_f1("John Lennon", ["John Winston Lennon", "Lennon"]), token_f1("no, yes", ["yes"], HOTPOTQA)
    (0.8, 0.0)
    """
    golds = _usable(aliases, rules)
    if not golds:
        return None
    stated = normalise(prediction, rules)
    return max(_f1(stated, gold, rules) for gold in golds)


def _f1(stated: str, gold: str, rules: Rules) -> float:
    """`token_f1` of two texts in normal form, of which `gold` is not empty."""
    if stated != gold and not rules.whole.isdisjoint((stated, gold)):
        return 0.0
    words, own = Counter(stated.split()), Counter(gold.split())
    return 2 * (words & own).total() / (words.total() + own.total())


# What may lead to the letter: "Answer:", "So the correct answer is", "Final answer: option", "I choose". No "would": "I
# would choose B, if" does not.
_LEAD_IN = (
    r"(?:(?:so|thus|hence|therefore),?\ )?(?:I(?:\ will|['\u2019]ll)?\ (?:choose|pick|select|go\ with)\ (?:answer\ )?|"
    r"(?:(?:the|my)\ )?(?:(?:correct|right|best|final)\ )?"
    r"(?:answer|option|choice|letter)(?:\ is)?(?:\s*[:=]\s*|\s))(?:(?:option|choice|letter)\ )?"
)
_CHOICE_MARKUP = re.compile(rf"{STYLES}\ ?|\\[(\[]\ ?|\ ?\\[)\]]|[*`}}$#]")


@lru_cache(maxsize=64)
def _choice_patterns(letters: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What chooses a letter, and what merely mentions one."""
    upper, lower = re.escape(letters), re.escape(letters.lower())
    # Bare, a letter chooses at the start alone; a lead-in may also open a later line or clause, but not stand inside
    # one ("if the answer is B"). A sign must end the letter, so that "A plant" and "B or C" choose nothing. A
    # lower-case letter needs more: "a, b".
    choosing = rf"""
        (?: \A (?i:{_LEAD_IN})? | (?:(?<=\n)|(?<=[.,;!?]\ )) (?i:{_LEAD_IN}) )
        ["'(\[]*+
        (?: ([{upper}]) (?: [)\]] | ["'.,:;!]++ (?=[\s)\]]|\Z) | \Z | \n | \ [-\u2013\u2014]\ |
                            \ (?:because|since)\b | \ is\ (?:the\ )?(?:correct|right|best)\b )
          | ([{lower}]) (?: [)\]] | ["'.!]*+ \Z ) )
    """
    # "A" and "I" are words too: a word that follows makes them one. "0°C" and "C_6" are no letters.
    mention = rf"(?<![\w°])(?:[{upper}](?!\w)(?!(?<=[AI])\ (?!(?i:is|or|and)\b)\w)|[{lower}](?=[)\]]))"
    return re.compile(choosing, re.VERBOSE), re.compile(mention)


def extract_choice(text: str, letters: str) -> str | None:
    """The one of `letters` ("ABCD", capitals) that `text` chooses; None where it chooses none or names another too.

    >>> extract_choice("The answer is (B).", "ABCD"), extract_choice("A or B", "ABCD")
    ('B', None)
    """
    if len(text) > MAX_CHARACTERS:
        return None
    lines = _CHOICE_MARKUP.sub("", text).strip().splitlines()
    text = "\n".join(line.strip() for line in lines)
    choosing, mention = _choice_patterns(letters)
    match = choosing.search(text)
    if match is None:
        return None
    choice = (match[1] or match[2]).upper()
    return choice if {letter.upper() for letter in mention.findall(text)} <= {choice} else None


def grade_choice(prediction: str, gold: str, letters: str) -> float | None:
    """1.0 where `prediction` chooses the letter `gold`, 0.0 where not, None where `gold` is not one of `letters`.

    >>> grade_choice("b) heat", "B", "ABCD"), grade_choice("B", "C", "ABCD"), grade_choice("E", "E", "ABCD")
    (1.0, 0.0, None)
    """
    if gold not in tuple(letters):
        return None
    return 1.0 if extract_choice(prediction, letters) == gold else 0.0


class Figure(NamedTuple):
    """An exact value in ones, or in percent; its currency sign, "" where it has none; whether it may be a year."""

    value: Fraction
    percent: bool
    currency: str
    year: bool


# What may follow the number: its factor, and what to leave in its place for `rewards.numeric` to read. The space keeps
# "3M.5" from becoming 3.5.
_SUFFIXES: dict[str, tuple[Fraction, str]] = {
    **dict.fromkeys(("trillion", "tn", "t"), (Fraction(10**12), " ")),
    **dict.fromkeys(("billion", "bn", "b"), (Fraction(10**9), " ")),
    **dict.fromkeys(("million", "mn", "mm", "m"), (Fraction(10**6), " ")),
    **dict.fromkeys(("thousand", "k"), (Fraction(10**3), " ")),
    **dict.fromkeys(("cents", "cent"), (Fraction(1, 100), " ")),
    **dict.fromkeys(("basis points", "basis point", "bps", "bp"), (Fraction(1, 100), "%")),
    **dict.fromkeys(("percentage points", "percentage point", "pct"), (Fraction(1), "%")),
}
_SUFFIX = re.compile(rf"(?<=[0-9⟩])[ \u00a0]?({'|'.join(_SUFFIXES)})(?![\w/])", re.IGNORECASE)
_CURRENCY = re.compile(r"[$€£¥₹]")
# Accounting's minus sign: brackets around a figure and nothing else.
_BRACKETED = re.compile(rf"\(({_CURRENCY.pattern}?[0-9.,]++(?:{_SUFFIX.pattern}|\ ?%|\ percent)?)\)", re.IGNORECASE)
# To `rewards.numeric`, halves and quarters are fractions. These are not.
_PERIOD = re.compile(
    r"\b(?:(?:the|this|last|prior|next|per|each|year|first|second|third|fourth)[ -]quarter|(?:first|second)[ -]half)\b",
    re.IGNORECASE,
)
_YEAR = re.compile(r"\b(?:19|20)[0-9]{2}\b(?!\.[0-9])")


def extract_figure(text: str) -> Figure | None:
    """The one figure that `text` states, or None. `rewards.numeric` reads the number and judges the words around it.

    So the text has at most 100 characters and no second number. On top of that, a scale ("million", "bn", "k", "cents")
    or a unit of percentages ("bps", "percentage points") may follow the number, and brackets around a figure negate it.

    >>> extract_figure("a net loss of $(3.4) million")
    Figure(value=Fraction(-3400000, 1), percent=False, currency='$', year=False)
    """
    if len(text) > MAX_CHARACTERS:
        return None
    text = _PERIOD.sub("period", _BRACKETED.sub(r"-\1", plain(text)))
    suffix = _SUFFIX.search(text)
    factor = Fraction(1)
    if suffix:
        factor, left = _SUFFIXES[suffix[1].lower()]
        text = text[: suffix.start()] + left + text[suffix.end() :]
    number = extract_number(text)
    if number is None:
        return None
    currency = "".join(sorted(set(_CURRENCY.findall(text))))
    year = not (suffix or number.percent or currency) and _YEAR.search(text) is not None
    return Figure(number.value * factor, number.percent, currency, year)


def grade_figure(prediction: str, gold: str, *, tolerance: float = 0.01) -> float | None:
    """1.0 where `prediction` states the figure of `gold` within `tolerance`, 0.0 where not, None where `gold` has none.

    `tolerance` is relative to the gold figure, from 0 to below 1; ValueError elsewhere. A figure that may be a year
    ("2020", either side) must be met exactly: one percent of it is twenty years. Percentages are compared with
    percentages only, and two currency signs must agree. A period counts as a second figure ("$3 million in Q3 2020").

    >>> grade_figure("$1.2B", "1,195 million"), grade_figure("50 bps", "0.5%"), grade_figure("$5 in 2020", "$5")
    (1.0, 1.0, 0.0)
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance is {tolerance}, a share of the gold figure: pass a number from 0 to below 1")
    expected = extract_figure(gold)
    if expected is None:
        return None
    stated = extract_figure(prediction)
    if stated is None or stated.percent != expected.percent:
        return 0.0
    if stated.currency and expected.currency and stated.currency != expected.currency:
        return 0.0
    exact = stated.year or expected.year
    allowed = 0 if exact else Fraction(str(tolerance)) * abs(expected.value)  # by str, 0.03 is 3/100
    return 1.0 if abs(stated.value - expected.value) <= allowed else 0.0


def exact_match_reward(
    completions: Sequence[Completion], aliases: Sequence[Sequence[str]], **kwargs: object
) -> list[float | None]:
    """The completion against the gold column `aliases`, all accepted answers of a row. Range {0, 1}, or None.

    1.0: the whole completion is one of them, but for case, punctuation and articles. 0.0: it is not.
    None: no alias has a letter or digit besides articles, so that nothing can be said about any completion.

    >>> exact_match_reward(["The Beatles.", "Beatles or Stones"], aliases=[["Beatles"], ["Beatles"]])
    [1.0, 0.0]
    """
    return [exact_match(completion_text(c), golds) for c, golds in zip(completions, aliases, strict=True)]


def f1_reward(
    completions: Sequence[Completion], aliases: Sequence[Sequence[str]], **kwargs: object
) -> list[float | None]:
    """The words that the completion shares with the best of `aliases`. Range [0, 1], or None.

    1.0: the same words, in any order. 0.0: none shared. Between: their F1, so that every word too many costs.
    None: no alias has a letter or digit besides articles.

    >>> f1_reward(["Lennon, John", "John"], aliases=[["John Lennon"], ["John Winston Lennon"]])
    [1.0, 0.5]
    """
    return [token_f1(completion_text(c), golds) for c, golds in zip(completions, aliases, strict=True)]


def answer_rewards(rules: Rules, read: Callable[[Completion], str] = completion_text) -> tuple[Reward, Reward]:
    """`exact_match_reward` and `f1_reward`, under these names, by the rules of one data set.

    `read` gives the text to grade: the whole completion or, by `rewards.tags.answer_text`, its answer block.

    >>> exact, f1 = answer_rewards(HOTPOTQA)
    >>> exact(["Yes."], aliases=[["yes"]]), f1(["no, yes"], aliases=[["yes"]]), f1.__name__
    ([1.0], [0.0], 'f1_reward')
    """

    def exact_match_reward(
        completions: Sequence[Completion], aliases: Sequence[Sequence[str]], **kwargs: object
    ) -> list[float | None]:
        return [exact_match(read(c), golds, rules) for c, golds in zip(completions, aliases, strict=True)]

    def f1_reward(
        completions: Sequence[Completion], aliases: Sequence[Sequence[str]], **kwargs: object
    ) -> list[float | None]:
        return [token_f1(read(c), golds, rules) for c, golds in zip(completions, aliases, strict=True)]

    return exact_match_reward, f1_reward


def choice_reward(
    completions: Sequence[Completion], answer: Sequence[str], options: Sequence[Sequence[str]], **kwargs: object
) -> list[float | None]:
    """The letter that the completion chooses against the gold letter `answer`. Range {0, 1}, or None.

    1.0: it chooses that letter and mentions no other. 0.0: another letter, several, or none.
    None: `answer` is no letter of a row of `options`, which has A for the first, B for the second and so on.

    >>> choice_reward(["B) heat", "A or B"], answer=["B", "B"], options=[["cold", "heat"]] * 2)
    [1.0, 0.0]
    """
    return [
        grade_choice(completion_text(completion), gold, string.ascii_uppercase[: len(texts)])
        for completion, gold, texts in zip(completions, answer, options, strict=True)
    ]


def figure_reward(completions: Sequence[Completion], value: Sequence[str], **kwargs: object) -> list[float | None]:
    """The figure that the completion states against the gold column `value`, a text. Range {0, 1}, or None.

    1.0: it states that figure within one percent, and no other. 0.0: it does not.
    None: `value` is empty or is not one figure.

    >>> figure_reward(["$1.2 billion", "22"], value=["1,200 million", "22%"])
    [1.0, 0.0]
    """
    return [grade_figure(completion_text(c), gold) for c, gold in zip(completions, value, strict=True)]
