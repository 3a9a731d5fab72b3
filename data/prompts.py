"""The prompt of every task, written once: training, evaluation and tests all read it here.

Every rollout pays for every prompt token, so the texts are short: the math prompt with its format example is
36 tokens in SmolLM2's vocabulary.
"""

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rewards.tags import FORMAT_EXAMPLE

if TYPE_CHECKING:
    from datasets import Dataset

SYSTEM_PROMPT = f"Solve the problem step by step. Reply in this format:\n{FORMAT_EXAMPLE}"
CHOICE_INSTRUCTION = "Answer with the letter of the right option."
SHORT_ANSWER_INSTRUCTION = "Answer in a few words."
FIGURE_INSTRUCTION = "Answer with the figure alone or, where there is not just one, in a sentence."
PASSAGES_HEADING = "Use these passages:"
LETTERS = "ABCDE"


def math_messages(question: str) -> list[dict[str, str]]:
    """The conversation that asks one math question: a system and a user message (`role`, `content`)."""
    return [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": question}]


def choice_messages(question: str, options: list[str]) -> list[dict[str, str]]:
    """The conversation that asks for one of up to five options by its letter: a user message."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return [{"role": "user", "content": "\n".join([question, *lines, CHOICE_INSTRUCTION])}]


def short_answer_messages(question: str) -> list[dict[str, str]]:
    """The conversation that asks for a name, a place, a date: a user message."""
    return [{"role": "user", "content": f"{question}\n{SHORT_ANSWER_INSTRUCTION}"}]


def biography_messages(topic: str) -> list[dict[str, str]]:
    """The conversation that asks who someone is: a user message."""
    return [{"role": "user", "content": f"Tell me about {topic} in two or three sentences."}]


def earnings_messages(question: str, ticker: str, quarter: str) -> list[dict[str, str]]:
    """The conversation that asks about one company's call for one quarter ("2021-Q2", or ""): a user message."""
    call = f"Earnings call of {ticker}, {quarter}".removesuffix(", ")
    return [{"role": "user", "content": f"{call}: {question}\n{FIGURE_INSTRUCTION}"}]


def answer_messages(answer: str) -> list[dict[str, str]]:
    """What supervised fine-tuning imitates: one assistant message."""
    return [{"role": "assistant", "content": answer}]


def token_length(tokenizer: Any, text: str) -> int:
    """How many tokens `text` is by itself, without special tokens: what a budget of `add_passages` counts."""
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def add_passages(dataset: "Dataset", *, budget: int, count_tokens: Callable[[str], int]) -> "Dataset":
    """Puts the evidence of every row into its prompt, before the question, and prints how much of it was cut.

    Passages are taken best first; one that no longer fits is skipped, and none is shortened. They are shown in the
    order of a hash of their text, so that no position tells which is best.

    Args:
        dataset: with the columns `prompt`, whose last message is from the user, and `passages`, best first.
        budget: tokens for the passages of one prompt, their heading and the blank lines between them.
        count_tokens: the length of a text in tokens: `token_length` with its tokenizer.

    Returns:
        The same columns. `passages` holds what the prompt shows, in the order shown; where that is none, the prompt
        is as before.

    Raises:
        ValueError: the budget holds no passage of any row.
    """
    rows = dataset.to_list()
    all_passages = all_tokens = shown_passages = shown_tokens = without = 0
    # Blank lines count at the front, as they stand in the prompt: many vocabularies have shorter ones for a text's end.
    heading = count_tokens(f"\n\n{PASSAGES_HEADING}")
    for row in rows:
        shown = []
        room = budget - heading
        for passage in row["passages"]:
            tokens = count_tokens(f"\n\n{passage}")
            all_passages, all_tokens = all_passages + 1, all_tokens + tokens
            if tokens <= room:
                shown.append(passage)
                room, shown_tokens = room - tokens, shown_tokens + tokens
        row["passages"] = sorted(shown, key=lambda passage: hashlib.sha256(passage.encode()).digest())
        shown_passages += len(shown)
        if not shown:
            without += 1
            continue
        *earlier, asked = row["prompt"]
        content = "\n\n".join([PASSAGES_HEADING, *row["passages"], asked["content"]])
        row["prompt"] = [*earlier, {**asked, "content": content}]
    if not shown_passages:
        raise ValueError(
            f"a budget of {budget:,} tokens holds none of the {all_passages:,} passages: pass a larger one"
        )

    cut = 100 * (1 - shown_tokens / all_tokens)
    line = f"passages: {shown_passages:,} of {all_passages:,} fit into {budget:,} tokens a prompt, {cut:.1f} % of their"
    print(f"{line} tokens are cut" + (f"; {without:,} of {len(rows):,} prompts have none" if without else ""))

    from datasets import Dataset

    return Dataset.from_list(rows, features=dataset.features)
