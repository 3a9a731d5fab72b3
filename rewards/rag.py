"""Rewards for answers from evidence, in the tag format: rules on the answer block, and what the reasoning cites.

The answer block is graded as `rewards.qa` grades a plain completion: SQuAD's normalisation, the best of the aliases. So
does MuSiQue's script; for a data set with other rules, recipes take `rewards.qa.answer_rewards`.
Nothing outside the block is read for it, so an answer that stands in the reasoning alone earns nothing.
"""

import re
from collections.abc import Sequence

from rewards.contract import Completion
from rewards.qa import exact_match, normalise, token_f1
from rewards.tags import ANY_TAG, answer_text, completion_text, parse

# "[2]", and "[1, 2]" as models write it; ASCII digits only. No prompt shows a thousand passages.
_CITATION = re.compile(r"\[([0-9]{1,3}(?:, ?[0-9]{1,3})*+)\]")


def cited(reasoning: str) -> set[int]:
    """The numbers of the passages that a text cites.

    >>> sorted(cited("[2] says so [2], and [1, 12] agree; [x] and (3) are nothing."))
    [1, 2, 12]
    """
    return {int(number) for citation in set(_CITATION.findall(reasoning)) for number in citation.split(",")}


def grade_citations(numbers: set[int], supporting: Sequence[bool]) -> float | None:
    """F1 between the cited numbers and the gold ones: i is gold where `supporting[i - 1]`. None where nothing is gold.

    >>> grade_citations({1, 2}, [False, True, True]), grade_citations({1}, [False])
    (0.5, None)
    """
    gold = {number for number, supports in enumerate(supporting, start=1) if supports}
    if not gold:
        return None
    return 2 * len(numbers & gold) / (len(numbers) + len(gold))


def exact_match_reward(
    completions: Sequence[Completion], aliases: Sequence[Sequence[str]], **kwargs: object
) -> list[float | None]:
    """All of the answer block against the accepted answers `aliases`, in SQuAD's normal form. Range {0, 1}, or None.

    1.0: the block is one of them. 0.0: it is not, or the completion does not parse.
    None: no alias has a letter or digit besides articles.

    >>> exact_match_reward(["<reasoning>[1] A band.</reasoning><answer>The Beatles.</answer>"], [["Beatles"]])
    [1.0]
    """
    return [exact_match(answer_text(c), golds) for c, golds in zip(completions, aliases, strict=True)]


def f1_reward(
    completions: Sequence[Completion], aliases: Sequence[Sequence[str]], **kwargs: object
) -> list[float | None]:
    """Token F1 of the answer block with the best of `aliases`. Range [0, 1], or None.

    1.0: the same words, in any order. 0.0: none in common, or the completion does not parse.
    None: no alias has a letter or digit besides articles.

    >>> f1_reward(["<reasoning>[1] A band.</reasoning><answer>John</answer>"], [["John Winston Lennon"]])
    [0.5]
    """
    return [token_f1(answer_text(c), golds) for c, golds in zip(completions, aliases, strict=True)]


def citation_reward(
    completions: Sequence[Completion], supporting: Sequence[Sequence[bool]], **kwargs: object
) -> list[float | None]:
    """F1 between the passages cited as [1], [2] in the reasoning and those in `supporting`. Range [0, 1], or None.

    1.0: the reasoning cites each supporting passage of its prompt and no other number. 0.0: it cites none of them,
    or the completion does not parse. None: no supporting passage is in the prompt, or nobody knows which are.

    >>> citation_reward(["<reasoning>[2] has Tarby.</reasoning><answer>Tarby</answer>"], [[False, True]])
    [1.0]
    """
    parsed = [parse(completion_text(completion)) for completion in completions]
    return [grade_citations(cited(p.reasoning) if p else set(), own) for p, own in zip(parsed, supporting, strict=True)]


def lenient_match_reward(
    completions: Sequence[Completion], aliases: Sequence[Sequence[str]], **kwargs: object
) -> list[float | None]:
    """Whether one of `aliases` stands in the last line of a completion, as whole words. Range {0, 1}, or None.

    A measure beside `exact_match_reward`, which asks for the form too: the two together tell whether a model learned
    the task or the form. It pays for listing guesses, so nothing should be trained on it. The last line is the last one
    with a letter or digit, tags left out; of a completion that parses, of its answer block. None: as
    `exact_match_reward`.

    >>> lenient_match_reward(["It is a band.\\nSo it was The Beatles, I think.", "A band."], [["Beatles"]] * 2)
    [1.0, 0.0]
    """
    graded: list[float | None] = []
    for completion, golds in zip(completions, aliases, strict=True):
        wanted = [words for gold in golds if (words := normalise(gold))]
        lines = [
            normalise(line)
            for line in ANY_TAG.sub("\n", answer_text(completion) or completion_text(completion)).split("\n")
        ]
        last = next((line for line in reversed(lines) if line), "")
        graded.append(float(any(f" {words} " in f" {last} " for words in wanted)) if wanted else None)
    return graded
