"""The prompt of every task, written once: training, evaluation and tests all read it here.

Every rollout pays for every prompt token, so the texts are short: the math prompt with its format example is
36 tokens in SmolLM2's vocabulary.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from rewards.tags import FORMAT_EXAMPLE

if TYPE_CHECKING:
    from datasets import Dataset

SYSTEM_PROMPT = f"Solve the problem step by step. Reply in this format:\n{FORMAT_EXAMPLE}"
RAG_SYSTEM_PROMPT = f"Reason step by step, then answer in a few words. Reply in this format:\n{FORMAT_EXAMPLE}"
CHOICE_INSTRUCTION = "Answer with the letter of the right option."
SHORT_ANSWER_INSTRUCTION = "Answer in a few words."
FIGURE_INSTRUCTION = "Answer with the figure alone or, where there is not just one, in a sentence."
PASSAGES_HEADING = "Use these passages:"
NUMBERED_HEADING = "Use these passages and cite them as [1], [2]:"
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


def rag_messages(question: str, as_of: str = "") -> list[dict[str, str]]:
    """The conversation that asks for a reasoned answer, from passages or from memory: a system and a user message.

    `as_of` is the day on which the gold answers held, "March 4, 2024", for questions whose answers change.
    """
    asked = f"Today is {as_of}.\n{question}" if as_of else question
    return [{"role": "system", "content": RAG_SYSTEM_PROMPT}, {"role": "user", "content": asked}]


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


def leave_out_long(rows: "Dataset", tokenizer: Any, limit: int, *, flag: str) -> "Dataset":
    """The rows whose `prompt`, messages or the text of them, has at most `limit` tokens; a line says how many had more.

    Raises ValueError, naming the `flag` to raise, where none is left.
    """

    def fit(prompts: list[Any]) -> list[bool]:
        if isinstance(prompts[0], str):
            return [token_length(tokenizer, prompt) <= limit for prompt in prompts]
        written = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, return_dict=False)
        return [len(ids) <= limit for ids in written]

    kept = rows.filter(fit, batched=True, input_columns="prompt", desc="Measuring prompts") if len(rows) else rows
    if len(kept) < len(rows):
        print(f"{len(rows) - len(kept):,} of {len(rows):,} prompts are left out: longer than {limit:,} tokens")
    if not len(kept):
        raise ValueError(f"no prompt has at most {limit:,} tokens: raise {flag}")
    return kept


def with_passages(*sets: "Dataset", tokenizer: Any, budget: int, numbered: bool = False) -> "list[Dataset]":
    """`add_passages` of each of `sets`, counted in this tokenizer's tokens."""
    count = partial(token_length, tokenizer)
    return [add_passages(rows, budget=budget, count_tokens=count, numbered=numbered) for rows in sets]


def add_passages(
    dataset: "Dataset", *, budget: int, count_tokens: Callable[[str], int], numbered: bool = False
) -> "Dataset":
    """Puts the evidence of every row into its prompt, before the question, and prints how much of it was cut.

    Passages are taken best first; one that no longer fits is skipped, and none is shortened. They are shown in the
    order of a hash of their text, so that no position tells which is best.

    Args:
        dataset: with the columns `prompt`, whose last message is from the user, and `passages`, best first; perhaps
            `supporting`, which tells for each passage whether the gold answer rests on it.
        budget: tokens for the passages of one prompt, their heading and the blank lines between them.
        count_tokens: the length of a text in tokens: `token_length` with its tokenizer.
        numbered: whether they are shown as "[1] ...", "[2] ..." under a heading that asks to cite them so.

    Returns:
        The same columns. `passages` holds what the prompt shows, in the order shown; where that is none, the prompt
        is as before. `supporting` is cut and ordered likewise, so that it is about passage [i] at i - 1; a column
        `supporting_lost` says how many supporting passages a row has lost, and a second line is printed about them.

    Raises:
        ValueError: there are passages, and the budget holds none of them.
    """
    rows = dataset.to_list()
    labelled = "supporting" in dataset.column_names
    heading = NUMBERED_HEADING if numbered else PASSAGES_HEADING
    all_passages = all_tokens = shown_passages = shown_tokens = without = 0
    # Blank lines count at the front, as they stand in the prompt: many vocabularies have shorter ones for a text's end.
    heading_tokens = count_tokens(f"\n\n{heading}")
    for row in rows:
        shown = []
        room = budget - heading_tokens
        mark = f"[{len(row['passages'])}] " if numbered else ""  # the longest that a number can turn out to be
        labels = row["supporting"] if labelled else [False] * len(row["passages"])
        for passage, label in zip(row["passages"], labels, strict=True):
            tokens = count_tokens(f"\n\n{mark}{passage}")
            all_passages, all_tokens = all_passages + 1, all_tokens + tokens
            if tokens <= room:
                shown.append((passage, label))
                room, shown_tokens = room - tokens, shown_tokens + tokens
        shown.sort(key=lambda pair: hashlib.sha256(pair[0].encode()).digest())
        row["passages"] = [passage for passage, _ in shown]
        if labelled:
            row["supporting"] = [label for _, label in shown]
            row["supporting_lost"] = sum(labels) - sum(row["supporting"])
        shown_passages += len(shown)
        if not shown:
            without += 1
            continue
        *earlier, asked = row["prompt"]
        texts = [f"[{n}] {passage}" if numbered else passage for n, passage in enumerate(row["passages"], start=1)]
        row["prompt"] = [*earlier, {**asked, "content": "\n\n".join([heading, *texts, asked["content"]])}]
    if all_passages and not shown_passages:
        raise ValueError(
            f"a budget of {budget:,} tokens holds none of the {all_passages:,} passages: pass a larger one"
        )

    cut = 100 * (1 - shown_tokens / all_tokens) if all_tokens else 0.0
    line = f"passages: {shown_passages:,} of {all_passages:,} fit into {budget:,} tokens a prompt, {cut:.1f} % of their"
    print(f"{line} tokens are cut" + (f"; {without:,} of {len(rows):,} prompts have none" if without else ""))

    from datasets import Dataset, Value

    features = dataset.features.copy()
    if labelled:
        features["supporting_lost"] = Value("int64")
        _print_survival([(sum(row["supporting"]), row["supporting_lost"]) for row in rows])
    return Dataset.from_list(rows, features=features)


def _print_survival(rows: list[tuple[int, int]]) -> None:
    """Says how many supporting passages are shown, given (shown, lost) of each row; silent where there is no label."""
    rows = [(shown, lost) for shown, lost in rows if shown + lost]
    if rows:
        shown, lost = (sum(column) for column in zip(*rows, strict=True))
        whole = sum(not lost for _, lost in rows)
        print(
            f"supporting passages: {shown:,} of {shown + lost:,} are shown ({100 * shown / (shown + lost):.1f} %); "
            f"{whole:,} of {len(rows):,} rows have all of theirs ({100 * whole / len(rows):.1f} %)"
        )
