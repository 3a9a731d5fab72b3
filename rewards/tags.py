"""The tag grammar: the one place that knows what a well-formed completion looks like.

    <reasoning> ... </reasoning> <answer> ... </answer>

Prompts show `FORMAT_EXAMPLE`, `render` writes worked examples, and rewards and evaluation read with `parse`.
All use the four constants, so what a model is asked for and what it is paid for cannot differ.
"""

import re
from dataclasses import dataclass

from rewards.contract import Completion

REASONING_OPEN = "<reasoning>"
REASONING_CLOSE = "</reasoning>"
ANSWER_OPEN = "<answer>"
ANSWER_CLOSE = "</answer>"
TAGS = (REASONING_OPEN, REASONING_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)
ANY_TAG = re.compile(r"</?[a-z]{1,20}>")  # of this grammar or one that a model made up, for lenient readers


def render(reasoning: str, answer: str) -> str:
    """The well-formed completion that holds `reasoning` and `answer`, with every tag on a line of its own."""
    lines = (REASONING_OPEN, reasoning.strip(), REASONING_CLOSE, ANSWER_OPEN, answer.strip(), ANSWER_CLOSE)
    return "\n".join(lines)


# Dots hold no letter or digit, so a completion that only repeats the prompt's example does not parse.
FORMAT_EXAMPLE: str = render("...", "...")


@dataclass(frozen=True, slots=True)
class Parsed:
    """A completion taken apart: the blocks without surrounding whitespace, and what stood outside them."""

    reasoning: str
    answer: str
    before: str
    after: str


_EMPTY = re.compile(r"[\W_]*+")  # neither letter nor digit


def parse(text: str) -> Parsed | None:
    """Take a completion apart, or return None where it is not one reasoning block and then one answer block.

    Anything may stand before and after the pair, only whitespace between its blocks, and no tag a second time
    anywhere. Each block holds a letter or a digit: whitespace, dots and zero-width characters count as empty.
    Tags are matched exactly: `<Answer>` and `<answer >` are ordinary text. Linear in the length of the text.

    >>> parse("<reasoning>2 and 2 make 4.</reasoning> <answer>4</answer>")
    Parsed(reasoning='2 and 2 make 4.', answer='4', before='', after='')
    >>> parse("<reasoning>2 and 2 make 4.</reasoning> <answer>4</answer> <answer>5</answer>") is None
    True
    """
    before, _, rest = text.partition(REASONING_OPEN)
    reasoning, _, rest = rest.partition(REASONING_CLOSE)
    between, _, rest = rest.partition(ANSWER_OPEN)
    answer, closed, after = rest.partition(ANSWER_CLOSE)
    # A missing tag leaves nothing for the later ones to be found in, so the last one answers for all four.
    if not closed or between.strip():
        return None
    # A further tag needs a further "<". Almost no completion has one: a cheap scan spares it four dear ones.
    if "<" in f"{before}{reasoning}{answer}{after}" and any(text.count(tag) > 1 for tag in TAGS):
        return None
    reasoning, answer = reasoning.strip(), answer.strip()
    if _EMPTY.fullmatch(reasoning) or _EMPTY.fullmatch(answer):
        return None
    return Parsed(reasoning, answer, before, after)


def answer_text(completion: Completion) -> str:
    """The text of the answer block; "" where the completion does not parse."""
    parsed = parse(completion_text(completion))
    return parsed.answer if parsed else ""


def completion_text(completion: Completion) -> str:
    """The text to score: the completion itself, or the last assistant message of a conversational one.

    A message that only calls tools has no content and reads as "". Raises ValueError where no message is the
    assistant's, because then the caller passed something that is not a completion.
    """
    if isinstance(completion, str):
        return completion
    for message in reversed(completion):
        if message.get("role", "assistant") == "assistant":  # TRL's own examples leave the role out
            return message.get("content") or ""
    roles = [message.get("role") for message in completion]
    raise ValueError(f"completion has roles {roles}; expected a string, or messages with one by the assistant")
