"""What the sets with evidence have in common: the columns of a row, and worked examples that cite their passages."""

from typing import TYPE_CHECKING

from data.passages import ranking, sentences
from data.prompts import answer_messages, rag_messages
from data.source import Row, check_limit, first
from rewards import tags
from rewards.qa import normalise

if TYPE_CHECKING:
    from datasets import Dataset

CITED_CHARACTERS = 240  # of one passage in a worked example: two sentences of Wikipedia
FROM_MEMORY = "No passage here says it: I answer from memory."


def rag_row(question: str, aliases: list[str], passages: list[str], supporting: list[bool]) -> Row:
    """The columns of one question: its passages best first, `supporting` along with them, and the rest as given.

    `aliases` begins with the gold answer and may repeat it. `supporting` tells for each passage whether the answer
    rests on it, and has no influence on the order. The prompt shows no passage yet: see `data.prompts.add_passages`.
    """
    order = ranking(passages, question)
    return {
        "prompt": rag_messages(question),
        "question": question,
        "answer": aliases[0],
        "aliases": list(dict.fromkeys(aliases)),
        "passages": [passages[index] for index in order],
        "supporting": [supporting[index] for index in order],
    }


def worked_examples(dataset: "Dataset", limit: int | None = None) -> "Dataset":
    """What a warm start imitates: the first `limit` questions whose evidence is all in the prompt, answered from it.

    The reasoning quotes the beginning of each supporting passage after its number, one a line, in an order
    in which each leads to the next: "[2] Orla Vale was born in Tarby.", "[1] Tarby lies ..."; the answer is the gold
    one. Where no row of a set says which passages support its answer, the best-ranked one that holds the answer is
    quoted (distant supervision, Chen et al. 2017, arXiv:1704.00051), and where none does, the reasoning is
    `FROM_MEMORY`.

    Args:
        dataset: as `data.prompts.add_passages` returns it with `numbered`, with the column `supporting`.
        limit: at least 1, None for all. If there are fewer, all: a line says so.

    Returns:
        Columns `prompt` and `completion` (one assistant message); given these two, TRL's SFTTrainer takes its loss
        over the completion only. A line prints how many rows are left out, those that show no supporting passage
        where others do, have lost one, or hold a tag or an answer without words.

    Raises:
        ValueError: no row is left, or the limit is below 1.
    """
    check_limit(limit)
    rows = dataset.to_list()
    if any(any(row["supporting"]) or row["supporting_lost"] for row in rows):
        rows = [row for row in rows if any(row["supporting"]) and not row["supporting_lost"]]
    else:
        rows = [row | {"supporting": _holding_the_answer(row)} for row in rows]
    rows = [row for row in rows if tags.parse(tags.render("\n".join([FROM_MEMORY, *row["passages"]]), row["answer"]))]
    if not rows:
        raise ValueError(
            f"none of the {len(dataset):,} prompts shows all the passages that its answer rests on: pass a larger "
            "budget for passages, or do without a warm start"
        )
    if len(rows) < len(dataset):
        missing = len(dataset) - len(rows)
        print(f"worked examples: {missing:,} of {len(dataset):,} rows do not show all they rest on and are left out")

    rows = first(rows, limit, "worked examples")
    completions = [answer_messages(tags.render(_cited(row), row["answer"])) for row in rows]

    from datasets import Dataset

    return Dataset.from_dict({"prompt": [row["prompt"] for row in rows], "completion": completions})


def _holding_the_answer(row: Row) -> list[bool]:
    """For each passage shown, whether it is the best-ranked one that holds an accepted answer, word for word."""
    answers = [f" {normalise(alias)} " for alias in row["aliases"]]
    for index in ranking(row["passages"], row["question"]):
        if any(answer.strip() and answer in f" {normalise(row['passages'][index])} " for answer in answers):
            return [number == index for number in range(len(row["passages"]))]
    return [False] * len(row["passages"])


def _cited(row: Row) -> str:
    """The reasoning of a worked example: a passage comes after those that name its title, else as it is ranked."""
    supporting = [
        (number, passage)
        for number, (passage, supports) in enumerate(zip(row["passages"], row["supporting"], strict=True), start=1)
        if supports
    ]
    left = [supporting[index] for index in ranking([passage for _, passage in supporting], row["question"])]
    lines = []
    while left:
        texts = [passage for _, passage in left]
        named = [any(_title(text) in other for other in texts if other is not text) for text in texts]
        number, passage = left.pop(named.index(False) if False in named else 0)
        lines.append(f"[{number}] {_beginning(passage)}")
    return "\n".join(lines) or FROM_MEMORY


def _title(passage: str) -> str:
    return passage.partition("\n")[0]


def _beginning(passage: str) -> str:
    """The first sentences below the title, as many as `CITED_CHARACTERS` hold; the very first is cut at a word."""
    head, *rest = sentences(passage.partition("\n")[2]) or [passage]
    if len(head) > CITED_CHARACTERS:
        return head[:CITED_CHARACTERS].rpartition(" ")[0] + " ..."
    for sentence in rest:
        if len(head) + len(sentence) >= CITED_CHARACTERS:
            break
        head += f" {sentence}"
    return head
