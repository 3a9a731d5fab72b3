"""Completions that game a reward or break a parser, each with the score it must get from every reward.

Grouped by trick. A score that changes here is a change of what models are paid for: make it on purpose.
"""

from typing import Any, NamedTuple

import pytest

from rewards.format import multiline_reward, steps_reward, structure_reward, tags_reward
from rewards.numeric import correctness_reward, grade_number
from rewards.tags import parse

REWARDS = (tags_reward, multiline_reward, steps_reward, structure_reward, correctness_reward)

# What the tests below share, in the order of REWARDS: tags, multiline, steps, structure, correctness.
Scores = tuple[float, float, float, float, float | None]
RIGHT: Scores = (1, 1, 1, 1, 1)
WRONG: Scores = (1, 1, 1, 1, 0)  # perfect form around a wrong, hedged or hidden answer
ABSENT: Scores = (0, 0, 0, 0, 0)  # not one reasoning block and then one answer block
AROUND: Scores = (1, 1, 1, 0, 1)  # something stands outside the blocks
UNREADABLE_GOLD: Scores = (1, 1, 1, 1, None)

WORK = "Tom has 12 apples.\nHe buys 6 more, so 12 + 6 = 18."


def thinking(reasoning: str, answer: str = "18") -> str:
    return f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{answer}\n</answer>"


def answering(answer: str) -> str:
    return thinking(WORK, answer)


IDEAL = answering("18")


class Case(NamedTuple):
    name: str
    completion: str
    scores: Scores
    gold: str = "18"


GROUPS: dict[str, list[Case]] = {
    "honest layouts that others refuse": [
        Case("several lines", IDEAL, RIGHT),
        Case("newline at the end", IDEAL + "\n", RIGHT),
        Case("whitespace all around", f" \n\t{IDEAL}\n\n ", RIGHT),
        Case("tags on the lines of the text", f"<reasoning>{WORK}</reasoning><answer>18</answer>", RIGHT),
        Case("carriage returns", IDEAL.replace("\n", "\r\n"), RIGHT),
        Case("blank lines between the blocks", IDEAL.replace("</reasoning>\n", "</reasoning>\n\n \n"), RIGHT),
        Case("no-break space between the blocks", IDEAL.replace("g>\n<a", "g>\u00a0<a"), RIGHT),
        Case("steps on one line", thinking("Tom has 12 apples. He buys 6, so 12 + 6 = 18."), (1, 0, 1, 1, 1)),
        Case("a numbered list", thinking("1. Tom has 12 apples.\n2. 12 + 6 = 18 apples."), RIGHT),
        Case("steps with labels", thinking("Step 1: Tom has 12 apples.\nStep 2: 12 + 6 = 18 apples."), RIGHT),
        Case("comparison signs in the text", thinking("5 < 6 so Tom has more.\n12 + 6 = 18 apples > 6."), RIGHT),
        Case("a tag of another grammar in the text", thinking(f"{WORK}\n<b>Done with it all.</b>"), RIGHT),
        Case("another script", thinking("小明有 12 个苹果。\n他又买了 6 个, 12 + 6 = 18 个。"), (1, 1, 1, 1, 1)),
    ],
    "text outside the blocks": [
        Case("talk before", f"Sure! Let us see.\n{IDEAL}", AROUND),
        Case("talk after", f"{IDEAL}\nI hope that helps!", AROUND),
        Case("another answer after, without tags", f"{IDEAL}\nOr 20.", AROUND),
        Case("another answer after, in capital tags", f"{IDEAL}<ANSWER>20</ANSWER>", AROUND),
        Case("code fence around", f"```\n{IDEAL}\n```", AROUND),
        Case("think block before", f"<think>12 + 6</think>{IDEAL}", AROUND),
        Case("the next turn played too", f"{IDEAL}<|im_end|>\n<|im_start|>user\nThanks!", AROUND),
        Case("zero-width space after", f"{IDEAL}\u200b", AROUND),
        Case("a null character before", f"\0{IDEAL}", AROUND),
    ],
    "missing, misplaced and repeated tags": [
        Case("nothing", "", ABSENT),
        Case("whitespace", " \n ", ABSENT),
        Case("a bare number", "18", ABSENT),
        Case("talk and the right number", "Tom has 12 + 6 = 18 apples.\nSo the answer is 18.", ABSENT),
        Case("answer block only", "<answer>18</answer>", ABSENT),
        Case("reasoning block only", f"<reasoning>{WORK}</reasoning>", ABSENT),
        Case("four tags and nothing else", "<reasoning></reasoning><answer></answer>", ABSENT),
        Case("answer before reasoning", f"<answer>18</answer><reasoning>{WORK}</reasoning>", ABSENT),
        Case("truncated in the answer", IDEAL.removesuffix("\n</answer>"), ABSENT),
        Case("truncated in the last tag", IDEAL.removesuffix(">"), ABSENT),
        Case("truncated in the reasoning", IDEAL[:40], ABSENT),
        Case("reasoning never closed", IDEAL.replace("</reasoning>", ""), ABSENT),
        Case("reasoning never opened", IDEAL.replace("<reasoning>", ""), ABSENT),
        Case("answer never opened", IDEAL.replace("<answer>", ""), ABSENT),
        Case("closing tags without a slash", IDEAL.replace("</", "<"), ABSENT),
        Case("two answer blocks", f"{IDEAL}<answer>20</answer>", ABSENT),
        Case("two equal answer blocks", f"{IDEAL}<answer>18</answer>", ABSENT),
        Case("three reasoning blocks", "<reasoning>a 1</reasoning>" * 2 + IDEAL, ABSENT),
        Case("the whole completion twice", IDEAL + IDEAL, ABSENT),
        Case("a stray closing tag after", f"{IDEAL}</answer>", ABSENT),
        Case("a stray opening tag before", f"<reasoning>{IDEAL}", ABSENT),
        Case("a stray answer tag before", f"<answer>{IDEAL}", ABSENT),
        Case("text between the blocks", IDEAL.replace("g>\n<a", "g>\nSo:\n<a"), ABSENT),
        Case("zero-width space between the blocks", IDEAL.replace("g>\n<a", "g>\u200b<a"), ABSENT),
        Case("prompt's format example repeated", thinking("...", "..."), ABSENT),
        Case("tag spam", "<reasoning></reasoning><answer></answer>" * 50, ABSENT),
        Case("opening tags by the hundred", "<reasoning>" * 100 + IDEAL, ABSENT),
    ],
    "nested tags": [
        Case("answer inside reasoning", f"<reasoning>{WORK}<answer>18</answer></reasoning>", ABSENT),
        Case("answer inside reasoning, and after", thinking(f"{WORK}<answer>18</answer>"), ABSENT),
        Case("answer tag named in the reasoning", thinking(f"{WORK}\nNow the <answer> part."), ABSENT),
        Case("reasoning inside reasoning", thinking(f"<reasoning>{WORK}</reasoning>"), ABSENT),
        Case("reasoning inside answer", answering("<reasoning>a 1</reasoning>18"), ABSENT),
        Case("answer inside answer", answering("<answer>18</answer>"), ABSENT),
        Case("blocks that cross", f"<reasoning>{WORK}<answer></reasoning>18</answer>", ABSENT),
        Case("reasoning closed and opened again", thinking(f"{WORK}</reasoning><reasoning>"), ABSENT),
    ],
    "things that look like tags": [
        Case("capitals", IDEAL.upper(), ABSENT),
        Case("a space inside", IDEAL.replace("answer>", "answer >"), ABSENT),
        Case("an attribute", IDEAL.replace("<answer>", '<answer id="1">'), ABSENT),
        Case("escaped", IDEAL.replace("<", "&lt;").replace(">", "&gt;"), ABSENT),
        Case("fullwidth brackets", IDEAL.replace("<", "\uff1c").replace(">", "\uff1e"), ABSENT),
        Case("a Cyrillic letter", IDEAL.replace("<answer>", "<\u0430nswer>"), ABSENT),
        Case("a newline inside", IDEAL.replace("<answer>", "<ans\nwer>"), ABSENT),
        Case("a zero-width space inside", IDEAL.replace("<answer>", "<ans\u200bwer>"), ABSENT),
        Case("self-closing", IDEAL.replace("<answer>", "<answer/>"), ABSENT),
        Case("think for reasoning", IDEAL.replace("reasoning>", "think>"), ABSENT),
        Case("capital tags inside the answer", answering("18<ANSWER>20</ANSWER>"), WRONG),
    ],
    "reasoning without reasons": [
        Case("empty", thinking(""), ABSENT),
        Case("blank lines", thinking("\n \n\t\n"), ABSENT),
        Case("zero-width characters", thinking("\u200b\n\u200b\n\ufeff"), ABSENT),
        Case("punctuation", thinking("- . -\n! ? !\n* * *"), ABSENT),
        Case("underscores", thinking("___\n___"), ABSENT),
        Case("the answer's number", thinking("18"), (1, 0, 0, 1, 1)),
        Case("the answer's sentence", thinking("The answer is 18."), (1, 0, 0.5, 1, 1)),
        Case("one word", thinking("Because."), (1, 0, 0, 1, 1)),
        Case("one word a line", thinking("ok\nyes\nright\nfine"), (1, 0, 0, 1, 1)),
        Case("labels only", thinking("Step 1\nStep 2\nStep 3"), (1, 0, 0, 1, 1)),
        Case("labels and a number", thinking("Step 1: 12\nStep 2: 6\nStep 3: 18"), (1, 0, 0, 1, 1)),
        Case("an empty list", thinking("1.\n2.\n3."), (1, 0, 0, 1, 1)),
        Case("counting", thinking("1\n2\n3\n4\n5\n6"), (1, 0, 0, 1, 1)),
        Case("a spam of digits", thinking("12 6 18 " * 200), (1, 0, 0, 1, 1)),
        Case("one long number", thinking("9" * 5_000), (1, 0, 0, 1, 1)),
        Case("equations without words", thinking("12 + 6 = 18\n18 - 0 = 18"), (1, 0, 0, 1, 1)),
        Case("words without numbers", thinking("Let me think about it.\nNow it is clear."), (1, 1, 0, 1, 1)),
        Case("one step", thinking("He has 12 + 6 = 18 apples."), (1, 0, 0.5, 1, 1)),
        Case("one step, then fluff", thinking("12 + 6 = 18 apples.\nThat is all there is."), (1, 1, 0.5, 1, 1)),
        Case("newlines written out", thinking(WORK.replace("\n", "\\n")), (1, 0, 0.5, 1, 1)),
        Case("lines by markup", thinking(WORK.replace("\n", "<br>")), (1, 0, 0.5, 1, 1)),
        Case("digits of another script", thinking("Tom has ١٢ of it.\nHe buys ٦ more."), (1, 1, 0, 1, 1)),
    ],
    "repetition": [
        Case("one line over and over", thinking("Tom has 12 apples now.\n" * 20), (1, 0, 0.5, 1, 1)),
        Case("one sentence over and over", thinking("Tom has 12 apples. " * 20), (1, 0, 0.5, 1, 1)),
        Case("case and punctuation changed", thinking("Tom has 12, yes.\ntom HAS 12 yes!"), (1, 0, 0.5, 1, 1)),
        Case("one number changed", thinking("The answer is 5.\nThe answer is 6."), (1, 0, 0.5, 1, 1)),
        Case("words shuffled", thinking("Tom has 12 apples.\n12 apples has Tom."), (1, 0, 0.5, 1, 1)),
        Case("operands swapped", thinking("12 + 6 = 18 apples\n6 + 12 = 18 apples"), (1, 0, 0.5, 1, 1)),
        Case("words stretched", thinking("has has has 12\nhas 12 12 12"), (1, 0, 0, 1, 1)),
        Case("copies under labels", thinking("1. Tom has 12 now.\n2. Tom has 12 now."), (1, 0, 0.5, 1, 1)),
        Case("copies under step labels", thinking("Step 1: 2 is a two\nStep 2: 2 is a two"), (1, 0, 0.5, 1, 1)),
    ],
    # What form cannot see. These stay cheap to earn: correctness must outweigh them in a recipe.
    "known limits of format rewards": [
        Case("nonsense with numbers", thinking("blue 12 moon 6\nfish 18 tree 7", "7"), WRONG),
        Case("the question repeated", thinking("Tom has 12 apples.\nHow many has he after 6 more?", "7"), WRONG),
        Case("wrong arithmetic", thinking("Tom has 12 apples.\nNow 12 + 6 = 19 apples.", "19"), WRONG),
    ],
    "answers that a person accepts": [
        Case("thousands comma", answering("1,080"), RIGHT, "1080"),
        Case("thousands comma in the gold", answering("1080"), RIGHT, "1,080"),
        Case("two commas", answering("1,234,567"), RIGHT, "1234567"),
        Case("decimal zero", answering("18.0"), RIGHT),
        Case("cents", answering("$1,080.50"), RIGHT, "1080.5"),
        Case("dollar sign", answering("$18"), RIGHT),
        Case("dollar sign after", answering("18$"), RIGHT),
        Case("dollars", answering("18 dollars"), RIGHT),
        Case("apples", answering("18 apples"), RIGHT),
        Case("unit that touches", answering("18kg"), RIGHT),
        Case("unit of area", answering("18 m²"), RIGHT),
        Case("unit per unit", answering("18 km/h"), RIGHT),
        Case("currency code before", answering("USD 18"), RIGHT),
        Case("negative", answering("-5"), RIGHT, "-5"),
        Case("minus before dollar", answering("-$5"), RIGHT, "-5"),
        Case("minus after dollar", answering("$-5"), RIGHT, "-5"),
        Case("unicode minus", answering("\u22125"), RIGHT, "-5"),
        Case("fraction", answering("1/2"), RIGHT, "1/2"),
        Case("decimal for fraction", answering("0.5"), RIGHT, "1/2"),
        Case("no leading zero", answering(".5"), RIGHT, "0.5"),
        Case("percent where the gold has it", answering("50%"), RIGHT, "50%"),
        Case("percent spelled out", answering("50 percent"), RIGHT, "50%"),
        Case("percent left out", answering("50"), RIGHT, "50%"),
        Case("full stop", answering("18."), RIGHT),
        Case("equals sign", answering("= 18"), RIGHT),
        Case("variable", answering("x = 18"), RIGHT),
        Case("label", answering("Answer: 18"), RIGHT),
        Case("sentence", answering("The answer is 18."), RIGHT),
        Case("longer sentence", answering("She needs a total of 18 more eggs than Tom."), RIGHT),
        Case("bold", answering("**18**"), RIGHT),
        Case("boxed", answering("$\\boxed{18}$"), RIGHT),
        Case("dataset's own mark", answering("#### 18"), RIGHT),
    ],
    "LaTeX and money that a person accepts": [
        Case("percent sign, boxed", answering("\\boxed{18\\%}"), RIGHT, "18%"),
        Case("percent sign after the box", answering("\\boxed{18}\\%"), RIGHT, "18%"),
        Case("unit as text", answering("18 \\text{ eggs}"), RIGHT),
        Case("unit as text, boxed", answering("\\boxed{18 \\text{ eggs}}"), RIGHT),
        Case("unit as text, in dollars of maths", answering("$18 \\text{ eggs}$"), RIGHT),
        Case("unit after a thin space", answering("18\\,\\mathrm{km/h}"), RIGHT),
        Case("unit after a tie", answering("18~cm"), RIGHT),
        Case("unit as text after a tie", answering("18~\\text{cm}"), RIGHT),
        Case("degrees", answering("18^\\circ"), RIGHT),
        Case("degrees in braces", answering("$18^{\\circ}\\text{C}$"), RIGHT),
        Case("inline maths", answering("\\(18\\)"), RIGHT),
        Case("inline maths in a sentence", answering("The answer is \\( 18 \\)."), RIGHT),
        Case("displayed maths", answering("\\[18\\]"), RIGHT),
        Case("displayed maths on lines", answering("\\[\nx = 18\n\\]"), RIGHT),
        Case("displayed maths in dollars", answering("$$18$$"), RIGHT),
        Case("displayed maths in dollars, boxed", answering("$$\\boxed{18}$$"), RIGHT),
        Case("inline maths with dollars", answering("\\(\\$18\\)"), RIGHT),
        Case("dollars in dollars", answering("$\\$18$"), RIGHT),
        Case("bold", answering("\\textbf{18}"), RIGHT),
        Case("bold maths", answering("$\\mathbf{18}$"), RIGHT),
        Case("comma in braces", answering("1{,}080"), RIGHT, "1080"),
        Case("comma and a negative space", answering("\\boxed{1,\\!080}"), RIGHT, "1080"),
        Case("fraction", answering("\\frac{1}{2}"), RIGHT, "1/2"),
        Case("fraction for a decimal", answering("$\\dfrac{1}{2}$"), RIGHT, "0.5"),
        Case("fraction without braces", answering("\\(\\frac12\\)"), RIGHT, "1/2"),
        Case("fraction, boxed, with a unit", answering("\\boxed{\\frac{3}{4}} cups"), RIGHT, "3/4"),
        Case("negative fraction", answering("-\\frac{1}{2}"), RIGHT, "-1/2"),
        Case("negative numerator", answering("\\frac{-1}{2}"), RIGHT, "-1/2"),
        Case("minus in maths", answering("\\(-5\\)"), RIGHT, "-5"),
        Case("US dollars", answering("US$18"), RIGHT),
        Case("US dollars, escaped", answering("US\\$1{,}080"), RIGHT, "1080"),
        Case("minus before US dollars", answering("-US$5"), RIGHT, "-5"),
        Case("rupees", answering("Rs.18"), RIGHT),
        Case("rupees apart", answering("Rs. 18"), RIGHT),
        Case("rupees that touch", answering("Rs18"), RIGHT),
        Case("minus before rupees", answering("-Rs.5"), RIGHT, "-5"),
    ],
    "LaTeX and money around what is wrong": [
        Case("either", answering("\\(18\\) or \\(20\\)"), WRONG),
        Case("either as text", answering("\\boxed{18 \\text{ or } 20}"), WRONG),
        Case("either in words as text", answering("18 \\text{ or twenty}"), WRONG),
        Case("two boxes", answering("\\boxed{18}\\boxed{20}"), WRONG),
        Case("two boxes, the same", answering("\\boxed{18} \\boxed{18}"), WRONG),
        Case("two displays", answering("$$18$$ $$20$$"), WRONG),
        Case("two prices", answering("$18 and $20"), WRONG),
        Case("a range of prices", answering("$18-$20"), WRONG),
        Case("a range with a tie", answering("18~20"), WRONG),
        Case("about", answering("~18"), WRONG),
        Case("about, by command", answering("\\approx 18"), WRONG),
        Case("about, in maths", answering("\\(\\sim 18\\)"), WRONG),
        Case("give or take", answering("18 \\pm 2"), WRONG),
        Case("at most", answering("\\leq 18"), WRONG),
        Case("denied as text", answering("\\text{not } 18"), WRONG),
        Case("denied in bold", answering("\\textbf{not} \\(18\\)"), WRONG),
        Case("struck out", answering("\\cancel{18}"), WRONG),
        Case("struck out beside another", answering("\\sout{20} 18"), WRONG),
        Case("hidden", answering("\\phantom{20}18"), WRONG),
        Case("joined by style", answering("\\textbf{1}8"), WRONG),
        Case("joined by nothing", answering("1\\text{}8"), WRONG),
        Case("joined by a negative space", answering("1\\!8"), WRONG),
        Case("joined by dollars", answering("1$8$"), WRONG),
        Case("joined by brackets", answering("1\\(8\\)"), WRONG),
        Case("a point before maths", answering(".$18$"), WRONG),
        Case("a point in maths", answering("$.$18"), WRONG),
        Case("decimals after maths", answering("$18$.5"), WRONG),
        Case("a variable before maths", answering("x\\(18\\)"), WRONG),
        Case("a function", answering("\\log(18)"), WRONG),
        Case("a root", answering("\\sqrt{18}"), WRONG),
        Case("a power", answering("18^{2}"), WRONG),
        Case("a power of ten", answering("18 \\times 10^3"), WRONG),
        Case("a product", answering("9 \\cdot 2"), WRONG),
        Case("a mixed number", answering("1\\frac{1}{2}"), WRONG, "1.5"),
        Case("a mixed number, as its fraction", answering("1\\frac{1}{2}"), WRONG, "1/2"),
        Case("a mixed number apart", answering("1 \\frac{1}{2}"), WRONG, "1/2"),
        Case("two fractions", answering("\\frac{1}{2}\\frac{1}{2}"), WRONG, "1/2"),
        Case("a fraction before a digit", answering("\\frac{1}{2}0"), WRONG, "1/20"),
        Case("a fraction before decimals", answering("\\frac{1}{2}.5"), WRONG, "1/2"),
        Case("a fraction before a group", answering("\\frac{1}{2}{,}000"), WRONG, "1/2000"),
        Case("a power of a fraction", answering("\\frac{1}{2}^2"), WRONG, "1/2"),
        Case("a fraction of a boxed digit", answering("\\boxed{1}\\frac{1}{2}"), WRONG, "1/2"),
        Case("a fraction of digits that touch", answering("\\frac123"), WRONG, "1/2"),
        Case("undone division", answering("\\frac{36}{2}"), WRONG),
        Case("a fraction over zero", answering("\\frac{18}{0}"), WRONG),
        Case("an inverse fraction", answering("\\frac{2}{1}"), WRONG, "1/2"),
        Case("comma in braces misplaced", answering("1{,}08"), WRONG, "108"),
        Case("a list with braces", answering("16{,}17{,}18"), WRONG),
        Case("thin space for a comma", answering("1\\,080"), WRONG, "1080"),
        Case("percent where the gold has none", answering("\\boxed{18\\%}"), WRONG),
        Case("two percent signs", answering("18\\%\\%"), WRONG, "18%"),
        Case("thousands as text", answering("18 \\text{ thousand}"), WRONG),
        Case("sign lost in money", answering("US$5"), WRONG, "-5"),
        Case("sign won in money", answering("-Rs.18"), WRONG),
        Case("two prices of two currencies", answering("US$18, Rs.20"), WRONG),
        Case("rupees and paise", answering("Rs.18.50.5"), WRONG, "18.5"),
        Case("another dollar", answering("NT$18"), WRONG),
        Case("a half-width code", answering("BUS$18"), WRONG),
        # A list, a range and a quotation begin with it as well, so that nobody knows its sign.
        Case("en dash for a minus", answering("\u20135"), WRONG, "-5"),
        Case("en dash before a number", answering("\u20135"), WRONG, "5"),
        Case("en dash of a list", answering("\u2013 18"), WRONG),
        Case("en dash in maths", answering("\\(\u20135\\)"), WRONG, "-5"),
        Case("em dash before a number", answering("\u201418"), WRONG),
    ],
    "several candidates": [
        Case("or", answering("18 or 20"), WRONG),
        Case("or, right one last", answering("20 or 18"), WRONG),
        Case("brackets", answering("18 (or 20)"), WRONG),
        Case("between", answering("between 18 and 20"), WRONG),
        Case("range", answering("18-20"), WRONG),
        Case("list", answering("16, 17, 18, 19"), WRONG),
        Case("list without spaces", answering("16,17,18"), WRONG),
        Case("lines", answering("17\n18\n19"), WRONG),
        Case("the same twice", answering("18 18"), WRONG),
        Case("correction", answering("20, no, 18"), WRONG),
        Case("second one in words", answering("18 or twenty"), WRONG),
        Case("second one without or", answering("18 (twenty)"), WRONG),
        Case("uncertain", answering("18?"), WRONG),
        Case("uncertain in words", answering("18 or so"), WRONG),
        Case("all numbers", answering(" ".join(map(str, range(100)))), WRONG),
    ],
    "a number hidden or changed": [
        Case("undone sum", answering("12 + 6"), WRONG),
        Case("sum and result", answering("12 + 6 = 18"), WRONG),
        Case("undone division", answering("36/2"), WRONG),
        Case("over one", answering("18/1"), WRONG),
        Case("over zero", answering("18/0"), WRONG),
        Case("inside a longer number", answering("118"), WRONG),
        Case("inside a word", answering("x18"), WRONG),
        Case("inside a sentence with others", answering("Of 12 and 6 it is 18"), WRONG),
        Case("more digits glued", answering("18.0.0"), WRONG),
        Case("denied", answering("not 18"), WRONG),
        Case("denied loudly", answering("NOT 18"), WRONG),
        Case("bounded", answering("at least 18"), WRONG),
        Case("compared", answering("more than 18"), WRONG),
        Case("sign of comparison", answering(">18"), WRONG),
        Case("part of it", answering("half of 18"), WRONG),
        Case("and a half", answering("18 and a half"), WRONG),
        Case("thousands", answering("18 thousand"), WRONG),
        Case("thousands that touch", answering("18k"), WRONG),
        Case("squared", answering("18²"), WRONG),
        Case("square root", answering("sqrt 18"), WRONG),
        Case("function", answering("log(18)"), WRONG),
        Case("factorial", answering("18!"), WRONG),
        Case("times x", answering("18x"), WRONG),
        Case("two signs", answering("--18"), WRONG),
        Case("a sign on either side of the dollar", answering("-$-18"), WRONG, "-18"),
        Case("sign apart", answering("- 18"), WRONG),
        Case("sign lost", answering("18"), WRONG, "-18"),
        Case("sign won", answering("-18"), WRONG),
        Case("nearly", answering("17.999999999999999999"), WRONG),
        Case("nearly by float", answering("0.30000000000000004"), WRONG, "0.3"),
        Case("percent where the gold has none", answering("50%"), WRONG, "50"),
        Case("percent spelled out where the gold has none", answering("50 Percent"), WRONG, "50"),
        Case("percent for a share", answering("50%"), WRONG, "0.5"),
        Case("share for a percent", answering("0.5"), WRONG, "50%"),
        Case("in the reasoning only", thinking(WORK, "unknown"), WRONG),
        Case("in the text after only", f"{answering('20')}\n18", (1, 1, 1, 0, 0)),
        Case("empty answer", answering(""), ABSENT),
        Case("answer of dots", answering("..."), ABSENT),
        Case("answer padded past reading", answering("so " * 100 + "18"), WRONG),
    ],
    "numbers that are none": [
        Case("infinity", answering("inf"), WRONG),
        Case("not a number", answering("nan"), WRONG),
        Case("exponent", answering("1.8e1"), WRONG),
        Case("power", answering("10^3"), WRONG, "1000"),
        Case("huge exponent", answering("1e999999999"), WRONG),
        Case("hexadecimal", answering("0x12"), WRONG),
        Case("underscore", answering("1_080"), WRONG, "1080"),
        Case("words only", answering("eighteen"), WRONG),
        Case("comma misplaced", answering("1,08"), WRONG, "108"),
        Case("comma of a decimal", answering("18,0"), WRONG),
        Case("comma of four digits", answering("1,0800"), WRONG, "10800"),
        Case("comma of Europe", answering("1.080,00"), WRONG, "1080"),
        Case("space for a comma", answering("1 080"), WRONG, "1080"),
        Case("a mixed number", answering("1 1/2"), WRONG, "1.5"),
        Case("a clock", answering("18:00"), WRONG),
        Case("ten thousand digits", answering("18" * 5_000), WRONG),
        Case("zeros without end", answering("18." + "0" * 5_000), WRONG),
        Case("Arabic-Indic digits", answering("١٨"), WRONG),
        Case("fullwidth digits", answering("１８"), WRONG),
        Case("bold digits", answering("𝟏𝟖"), WRONG),
        Case("circled number", answering("⑱"), WRONG),
        Case("Roman number", answering("ⅩⅧ"), WRONG),
        Case("one-character fraction", answering("½"), WRONG, "1/2"),
        Case("one-character fraction after", answering("18½"), WRONG),
        Case("one-character fraction apart", answering("18 ½"), WRONG),
        Case("bold marks inside", answering("1**8"), WRONG),
        Case("letter l for one", answering("l8"), WRONG),
        Case("letter O for nought", answering("1O"), WRONG, "10"),
        Case("zero-width space inside", answering("1\u200b8"), WRONG),
        Case("text direction turned", answering("\u202e81"), WRONG),
        Case("struck through", answering("1\u03368\u0336"), WRONG),
    ],
    "a gold that cannot be read": [
        Case("no number", IDEAL, UNREADABLE_GOLD, "unknown"),
        Case("nothing", IDEAL, UNREADABLE_GOLD, ""),
        Case("two numbers", IDEAL, UNREADABLE_GOLD, "18 or 20"),
        Case("answer equals it", answering("n/a"), UNREADABLE_GOLD, "n/a"),
        Case("infinity equals it", answering("inf"), UNREADABLE_GOLD, "inf"),
        Case("exponent equals it", answering("1e3"), UNREADABLE_GOLD, "1e3"),
        Case("no answer either", "18", (0, 0, 0, 0, None), "unknown"),
    ],
}
CASES = [case for cases in GROUPS.values() for case in cases]


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=f"{group}: {case.name}") for group, cases in GROUPS.items() for case in cases],
)
def test_every_reward_pays_what_it_must(case: Case) -> None:
    message = [{"role": "assistant", "content": case.completion}]
    for completion in (case.completion, message):
        scores = tuple(reward([completion], answer=[case.gold])[0] for reward in REWARDS)
        assert scores == case.scores


def test_a_batch_scores_as_its_completions_one_by_one() -> None:
    completions, golds = [case.completion for case in CASES], [case.gold for case in CASES]
    by_reward = [reward(completions, answer=golds, prompts=completions) for reward in REWARDS]
    assert list(zip(*by_reward, strict=True)) == [case.scores for case in CASES]


MEGABYTE = 1_000_000
HOSTILE = {
    "opening tags": "<reasoning>",
    "half tags": "<reasoning",
    "brackets": "<",
    "answers": "<answer>1",
    "pairs of tags": "<reasoning></reasoning><answer></answer>",
    "completions": IDEAL,
    "spaces": " ",
    "dots": ".",
    "digits": "1",
    "digits and commas": "1,",
    "thousands": ",000",
    "fractions": "1/",
    "signs": "-",
    "hyphens": "a-",
    "words": "word ",
    "short lines": "a 1\n",
    "distinct sentences": " ".join(f"Tom has {n} apples." for n in range(1_000)),
    "bold digits": "𝟏",
    "dollars": "$",
    "dollars in pairs": "$1$ ",
    "dollars escaped": "\\$",
    "fractions in LaTeX": "\\frac{1}{2}",
    "styles": "\\text{",
    "brackets of LaTeX": "\\(",
    "rupees": "Rs.",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_megabyte_of_hostile_text_costs_little(text: str, is_fast: Any) -> None:
    flood = text * (MEGABYTE // len(text))
    for completion in (flood, thinking(flood), answering(flood), flood + IDEAL, IDEAL + flood):
        assert is_fast(lambda text=completion: parse(text))
        assert is_fast(lambda text=completion: grade_number(text, "18"))
        for reward in REWARDS:
            assert is_fast(lambda text=completion, reward=reward: reward([text], answer=["18"]))
