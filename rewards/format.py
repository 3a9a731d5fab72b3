"""Four format rewards, one idea each: the blocks, the lines, the steps, and nothing around them.

They pay for form and cannot tell sense from nonsense, so a recipe weights them below correctness. What they
refuse is form without content: empty blocks, a lone number, one line repeated, a spam of digits. Honest work
passes: of GSM8K's 7,473 training solutions, 7,435 earn 1.0 from every one of them.
"""

import re
from collections.abc import Sequence

from rewards.contract import Completion
from rewards.tags import Parsed, completion_text, parse

# Two steps show in far less. The limit bounds the time spent on a runaway completion.
_CHARACTERS_READ = 20_000

# ASCII digits only, as in rewards.numeric. Single letters are variables, not words.
_WORD_OR_NUMBER = re.compile(r"[0-9]+(?:[.,][0-9]+)*|[^\W\d_]{2,}")
_LABEL = re.compile(r"\s*(?:step\s*)?[0-9]{1,3}\s*[.:)]\s")  # "step 2: ", "3) "
_SENTENCE_END = re.compile(r"\n|[.!?;]\s")


def _content(piece: str) -> tuple[frozenset[str], frozenset[str]] | None:
    """The distinct words and numbers of a lower-case line or sentence, or None where it says nothing.

    To say something takes a word, and three words and numbers together: "step 2", "18" and "ok" do not.
    """
    label = _LABEL.match(piece)
    tokens = frozenset(_WORD_OR_NUMBER.findall(piece, label.end() if label else 0))
    words = frozenset(filter(str.isalpha, tokens))
    return (words, tokens - words) if words and len(tokens) >= 3 else None


def _identity(words: frozenset[str], numbers: frozenset[str]) -> frozenset[str]:
    """What tells two pieces apart: their words, and their numbers only where there are several.

    "The answer is 5", "The answer is 6" is filler. "12 + 6 = 18 apples", "18 - 5 = 13 apples" is work.
    """
    return words | numbers if len(numbers) > 1 else words


def score_tags(parsed: Parsed | None) -> float:
    """1.0 for a completion that parses, else 0.0."""
    return 0.0 if parsed is None else 1.0


def score_multiline(parsed: Parsed | None) -> float:
    """1.0 for reasoning with two distinct lines that say something, else 0.0."""
    if parsed is None:
        return 0.0
    lines = parsed.reasoning[:_CHARACTERS_READ].casefold().split("\n")
    distinct = {_identity(*content) for line in lines if (content := _content(line))}
    return 1.0 if len(distinct) >= 2 else 0.0


def score_steps(parsed: Parsed | None) -> float:
    """0.0, 0.5 or 1.0 for no, one, or more distinct lines or sentences that hold words and numbers."""
    if parsed is None:
        return 0.0
    pieces = _SENTENCE_END.split(parsed.reasoning[:_CHARACTERS_READ].casefold())
    distinct = {_identity(*content) for piece in pieces if (content := _content(piece)) and content[1]}
    return min(len(distinct), 2) / 2


def score_structure(parsed: Parsed | None) -> float:
    """1.0 for a completion that parses with only whitespace outside its blocks, else 0.0."""
    return 0.0 if parsed is None or parsed.before.strip() or parsed.after.strip() else 1.0


def tags_reward(completions: Sequence[Completion], **kwargs: object) -> list[float | None]:
    """Exactly one reasoning block, then exactly one answer block, neither empty. Range {0, 1}.

    1.0: the pair stands in the completion, once and in order.
    0.0: a tag is missing, repeated, nested or misplaced, or a block is empty.

    >>> tags_reward(["<reasoning>3 + 4 = 7</reasoning><answer>7</answer>", "<answer>7</answer>"])
    [1.0, 0.0]
    """
    return [score_tags(parse(completion_text(completion))) for completion in completions]


def multiline_reward(completions: Sequence[Completion], **kwargs: object) -> list[float | None]:
    """Reasoning laid out over lines. Range {0, 1}.

    1.0: at least two different lines that say something: three words or numbers, one of them a word.
    0.0: fewer, the rest being blank, repeated, labels or bare numbers; or the completion does not parse.

    >>> lines = ("<reasoning>Tom has 3 cats.", "He gets 4 more: 3 + 4 = 7.</reasoning><answer>7</answer>")
    >>> multiline_reward(["\\n".join(lines), " ".join(lines)])
    [1.0, 0.0]
    """
    return [score_multiline(parse(completion_text(completion))) for completion in completions]


def steps_reward(completions: Sequence[Completion], **kwargs: object) -> list[float | None]:
    """Reasoning in steps that carry work, on one line or many. Range {0, 0.5, 1}.

    1.0: at least two different lines or sentences with words and numbers; 0.5: one.
    0.0: none (empty, bare numbers, words without numbers); or the completion does not parse.

    >>> end = "</reasoning><answer>7</answer>"
    >>> steps_reward([f"<reasoning>Tom has 3 cats. With 4 more it is 7.{end}", f"<reasoning>7{end}"])
    [1.0, 0.0]
    """
    return [score_steps(parse(completion_text(completion))) for completion in completions]


def structure_reward(completions: Sequence[Completion], **kwargs: object) -> list[float | None]:
    """Nothing but whitespace outside the two blocks. Range {0, 1}.

    1.0: the completion is the two blocks and no more. 0.0: there is text around them, or it does not parse.

    >>> blocks = "<reasoning>3 + 4 = 7</reasoning><answer>7</answer>"
    >>> structure_reward([blocks, f"Sure! {blocks}"])
    [1.0, 0.0]
    """
    return [score_structure(parse(completion_text(completion))) for completion in completions]
