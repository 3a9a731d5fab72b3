"""The graders against the rules that the authors of each data set published, written again here from those rules.

Sources: evaluate-v1.1.py of SQuAD; hotpot_evaluate_v1.py of hotpotqa/hotpot (commit 4c0fa5e); metrics/answer.py of
StonyBrookNLP/musique (8b8d8ce); evaluation/triviaqa_evaluation.py of mandarjoshi90/triviaqa (2f98ab3); and
grade_school_math/dataset.py of openai/grade-school-math (2909d34). Nothing below uses what it tests.
"""

import random
import re
import string
from collections.abc import Callable

import pytest

from rewards.numeric import grade_number
from rewards.qa import HOTPOTQA, SQUAD, TRIVIAQA, Rules, exact_match, token_f1

PAIRS = 2_500
DROP = {ord(sign): None for sign in string.punctuation}
PART = {ord(sign): " " for sign in f"{string.punctuation}‘’´`"}


def words(text: str, signs: dict[int, str | None]) -> list[str]:
    """Lower case, then punctuation, then the three articles, then spaces, in this order: so say all of the scripts."""
    return re.sub(r"\b(?:the|an|a)\b", " ", text.lower().translate(signs)).split()


def overlap(stated: list[str], gold: list[str]) -> float:
    left, shared = list(gold), 0
    for word in stated:
        if word in left:
            left.remove(word)
            shared += 1
    if shared == 0:
        return 0.0
    precision, recall = shared / len(stated), shared / len(gold)
    return 2 * precision * recall / (precision + recall)


def squad(prediction: str, gold: str) -> tuple[float, float]:
    stated, own = words(prediction, DROP), words(gold, DROP)
    return float(stated == own), overlap(stated, own)


def musique(prediction: str, gold: str) -> tuple[float, float]:
    """As SQuAD 2.0's script: a text without words agrees with another one. No gold answer here is without."""
    stated, own = words(prediction, DROP), words(gold, DROP)
    return float(stated == own), overlap(stated, own) if stated and own else float(stated == own)


def hotpotqa(prediction: str, gold: str) -> tuple[float, float]:
    stated, own = words(prediction, DROP), words(gold, DROP)
    closed = any(side in (["yes"], ["no"], ["noanswer"]) for side in (stated, own))
    return float(stated == own), 0.0 if closed and stated != own else overlap(stated, own)


def triviaqa(prediction: str, gold: str) -> tuple[float, float]:
    stated, own = words(prediction, PART), words(gold, PART)
    return float(stated == own), overlap(stated, own)


OFFICIAL: dict[str, tuple[Callable[[str, str], tuple[float, float]], Rules]] = {
    "SQuAD": (squad, SQUAD),
    "MuSiQue": (musique, SQUAD),
    "HotpotQA": (hotpotqa, HOTPOTQA),
    "TriviaQA": (triviaqa, TRIVIAQA),
}
TEXTS = (
    "yes|No|noanswer|no answer|Yes,|NO!|yes-no|The|a|An|the-|theme|a.|U.S.A.|USA|O'Neil|ONeil|rock-n-roll|3.5|35|-5|$5"
    '|C++|C|under_score|1,200|1200|John|john|Lennon|of|of,|Beatles|"Beatles"|AT&T|at t|p.m.|x=y|\t|\n|!|...|\u00a0|a/b'
)
VOCABULARY = TEXTS.split("|")
QUOTES = ["O’Neil", "‘Heroes’", "rock´n´roll", "`a`"]  # TriviaQA's script knows these four beyond ASCII


def text(rng: random.Random, vocabulary: list[str]) -> str:
    if rng.random() < 0.15:  # anything that can be typed
        return "".join(rng.choices(string.printable, k=rng.randint(1, 12)))
    return rng.choice([" ", " ", "  ", "", "-"]).join(rng.choices(vocabulary, k=rng.choice([1, 1, 2, 3, 4])))


def variant(rng: random.Random, gold: str) -> str:
    """What a model may write for `gold`: the same, or nearly, or more, or less."""
    match rng.randrange(7):
        case 0:
            return rng.choice([gold.upper(), gold.lower(), gold.title(), f" the {gold}. ", f'"{gold}"!'])
        case 1:
            return gold.translate(rng.choice([DROP, PART]))
        case 2:
            return " ".join(gold.split()[:-1])
        case 3:
            return f"{gold} {rng.choice(VOCABULARY)}"
        case 4:
            return f"{rng.choice(VOCABULARY)}, {gold}"
        case 5:
            return " ".join(reversed(gold.split()))
        case _:
            return text(rng, VOCABULARY)


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_pair_scores_as_the_official_script_has_it(name: str) -> None:
    official, rules = OFFICIAL[name]
    rng = random.Random(19)
    vocabulary = VOCABULARY + QUOTES * (name == "TriviaQA")
    compared = paid = parts = 0
    while compared < PAIRS:
        golds = [text(rng, vocabulary) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
        if not all(words(gold, PART if rules is TRIVIAQA else DROP) for gold in golds):
            continue  # ours gives no grade by such a gold answer
        prediction = variant(rng, rng.choice(golds))
        exact, f1 = (max(scores) for scores in zip(*(official(prediction, gold) for gold in golds), strict=True))
        assert exact_match(prediction, golds, rules) == exact, (prediction, golds)
        assert token_f1(prediction, golds, rules) == pytest.approx(f1, abs=1e-12), (prediction, golds)
        compared, paid, parts = compared + 1, paid + int(exact), parts + (0 < f1 < 1)
    assert paid > PAIRS / 10 and parts > PAIRS / 10  # the pairs are no mere noise


@pytest.mark.parametrize(
    ("prediction", "gold", "exact", "f1"),
    [
        ("yes", "Yes.", 1, 1),
        ("the NO!", "no", 1, 1),
        ("no, yes", "yes", 0, 0),
        ("yes or no", "no", 0, 0),
        ("yes, they are", "yes", 0, 0),
        ("yes", "yes, they are", 0, 0),
        ("no way out", "no", 0, 0),
        ("noanswer", "no answer", 0, 0),
        ("no answer", "noanswer", 0, 0),
        ("no answer given", "no answer", 0, 0.8),  # two words are none of the three
        ("yes sir", "yes sir captain", 0, 0.8),
    ],
)
def test_yes_and_no_are_whole_answers_on_hotpotqa(prediction: str, gold: str, exact: float, f1: float) -> None:
    assert exact_match(prediction, [gold], HOTPOTQA) == exact
    assert token_f1(prediction, [gold], HOTPOTQA) == pytest.approx(f1)
    assert hotpotqa(prediction, gold) == (exact, pytest.approx(f1))


def test_a_hedge_earns_its_words_where_the_official_script_says_so() -> None:
    assert token_f1("no, yes", ["yes"]) == pytest.approx(2 / 3)  # SQuAD's and MuSiQue's
    assert token_f1("no, yes", ["yes", "no yes"], HOTPOTQA) == 1.0  # the best of the accepted answers


@pytest.mark.parametrize(
    ("prediction", "gold", "squad_exact", "triviaqa_exact"),
    [
        ("U.S.", "us", 1, 0),
        ("U.S.", "u s", 0, 1),
        ("under_score", "under score", 0, 1),
        ("AT&T", "AT T", 0, 1),
        ("3.5", "35", 1, 0),
        ("rock´n´roll", "rock n roll", 0, 1),
        ("the ‘Heroes’", "heroes", 1, 1),
        ("O’Neil", "O'Neil", 1, 1),
        ("Par\u200bis", "Paris", 1, 1),
    ],
)
def test_punctuation_parts_words_on_triviaqa(prediction: str, gold: str, squad_exact: int, triviaqa_exact: int) -> None:
    assert exact_match(prediction, [gold]) == squad_exact
    assert exact_match(prediction, [gold], TRIVIAQA) == triviaqa_exact


def gsm8k(completion: str, solution: str) -> float:
    """Equal texts after the first "#### " of each, without commas: a minus sign perhaps, digits, points and commas."""
    stated, own = (re.search(r"#### (-?[\d.,]+)", side, re.ASCII) for side in (completion, solution))
    assert own
    return float(stated is not None and stated[1].replace(",", "") == own[1].replace(",", ""))


def amount(rng: random.Random) -> str:
    """A number as GSM8K's gold answers have them, with or without commas, and some with decimals."""
    whole = rng.choice([rng.randint(0, 20), rng.randint(0, 2_000), rng.randint(0, 10**7)])
    decimals = rng.choice(["", "", "", f".{rng.randint(0, 9)}{rng.randint(1, 9)}"])
    return rng.choice(["", "", "-"]) * (whole > 0) + f"{whole:{rng.choice(['', ','])}}" + decimals


def test_every_number_scores_as_gsm8ks_own_rule_has_it() -> None:
    rng = random.Random(19)
    paid = 0
    for _ in range(PAIRS):
        gold = amount(rng)
        positive = gold.removeprefix("-")
        stated = rng.choice([gold, gold.replace(",", ""), positive, f"-{positive}", gold[:-1], f"{gold}5", amount(rng)])
        if not re.fullmatch(r"-?(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[1-9][0-9]*|0)(?:\.[0-9]*[1-9])?", stated):
            stated = amount(rng)  # what only one of the two can read: see below
        if stated == "-0":
            stated = "0"
        official = gsm8k(f"The steps.\n#### {stated}", f"Steps.\n#### {gold}")
        assert grade_number(stated, gold) == official == grade_number(f"#### {stated}", gold), (stated, gold)
        paid += int(official)
    assert PAIRS / 10 < paid < PAIRS * 0.9


@pytest.mark.parametrize(
    ("stated", "official", "ours"),
    [
        ("18.0", 0, 1),  # by value
        ("18.", 0, 1),
        ("$18", 0, 1),  # no digit after "#### "
        ("18 or 20", 1, 0),  # the first number is not the answer where there are two
        ("18,", 1, 1),
        ("1,8", 1, 0),  # a comma in no place for one
        ("18%", 1, 0),
        ("18 thousand", 1, 0),
    ],
)
def test_where_ours_is_meant_to_differ_from_gsm8ks(stated: str, official: float, ours: float) -> None:
    assert gsm8k(f"#### {stated}", "#### 18") == official
    assert grade_number(stated, "18") == ours
