"""The supervision audit: before training, what the trainer will really learn from, row by row.

A template that never ends the answer, a limit that cuts it or a collator that masks it all leave the loss looking
healthy, and a model that does not stop.
"""

import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

ROWS = 500  # a fault of the template or of the limit shows in far fewer; more would cost time at every start
# A stray long or empty row costs little. Where more than one row in twenty is bad, it is not the row: it is the
# template, the limit or the data set, and the model would learn the fault.
THRESHOLD = 0.05
MASKED = -100  # the label that the loss leaves out

DOUBLE_BOS = "double BOS"
NOTHING = "no supervised token"
CUT = "truncated answer"
PADDED = "end token masked as padding (pad = eos)"
ENDLESS = "no supervised end token"


@dataclass(frozen=True)
class Tokens:
    """What the audit must know of a tokenizer and a model: ids of special tokens, and which ids are white space."""

    ends: frozenset[int]
    bos: int | None
    pad: int | None
    is_blank: Callable[[int], bool]


def audit(trainer: Any, *, allow_unsupervised: bool = False, show_tokens: int = 0) -> dict[str, Any]:
    """Check the first `ROWS` rows that a built `trl.SFTTrainer` will train on; print one line, or a table of flaws.

    Reads the trainer's tokenised data set through its own collator, so that whatever masks, cuts or joins rows has
    done so. Leaves the random state as it was.

    Args:
        trainer: `trl.SFTTrainer`, before `train()`.
        allow_unsupervised: print the table and go on where it would refuse.
        show_tokens: how many rows to print first, with the supervised tokens marked.

    Returns:
        For results.json: `rows` audited; `flaws`, rows by kind; `pad_is_eos`; `length_limit` in tokens or None;
        `tokens` per row as `p50`, `p95` and `max`; `padding`, the share of padding in the trainer's batches of
        these rows, in its own order. Grouping by length pads less over the whole of a larger set.

    Raises:
        ValueError: a flaw in more than `THRESHOLD` of the rows, unless `allow_unsupervised`; or nothing to train on.
    """
    tokenizer, args = trainer.processing_class, trainer.args
    tokens = _tokens(tokenizer, trainer.model)
    # Unsloth moves the limit to `max_seq_length` where it trains without padding.
    limit = args.max_length or getattr(args, "max_seq_length", None)
    rows = _rows(trainer)
    for number, (ids, labels) in enumerate(rows[:show_tokens], start=1):
        print(_shown(number, ids, labels, tokenizer))

    flaws = [find_flaws(ids, labels, tokens, limit) for ids, labels in rows]
    counts = {kind: sum(kind in found for found in flaws) for kind in (NOTHING, DOUBLE_BOS, ENDLESS, CUT, PADDED)}
    lengths = sorted(len(ids) for ids, _ in rows)
    result = {
        "rows": len(rows),
        "flaws": counts,
        "pad_is_eos": tokens.pad is not None and tokens.pad == tokenizer.eos_token_id,
        "length_limit": limit,
        "tokens": {"p50": _quantile(lengths, 0.5), "p95": _quantile(lengths, 0.95), "max": lengths[-1]},
        "padding": round(_padding(trainer), 4),
    }
    fixes = _fixes(tokenizer, limit)
    _print_table(result, fixes, args.train_batch_size)
    # TRL 1.15's collator pads the labels by themselves and never looks for the pad token. transformers' own one for
    # language modelling does, and there every row comes out as PADDED.
    if result["pad_is_eos"] and not counts[PADDED]:
        print(
            f"  The pad token is the end token, {tokenizer.eos_token}: harmless here, since this collator masks by "
            "position; one that masks by token would leave the end untrained."
        )

    kind, count = max(counts.items(), key=lambda item: item[1])
    if counts[NOTHING] == len(rows):
        raise ValueError(f"no row has a supervised token, so there is nothing to train on: {fixes[NOTHING]}")
    if count > THRESHOLD * len(rows) and not allow_unsupervised:
        raise ValueError(
            f"{kind} in {count:,} of {len(rows):,} rows, where at most {THRESHOLD:.0%} may be bad: {fixes[kind]}; or "
            "train all the same with --allow-unsupervised"
        )
    return result


def find_flaws(ids: Sequence[int], labels: Sequence[int], tokens: Tokens, limit: int | None) -> list[str]:
    """The flaws of one row, by name: at most `DOUBLE_BOS` and one of the others.

    The end is supervised where an end token is among the labels after the last other one that is not white space:
    ChatML, for one, writes a newline after it.

    Args:
        ids: the row without padding.
        labels: as long as `ids`; `MASKED` where nothing is learnt.
        limit: tokens that a row may have, None for any number.
    """
    # Two tokens are all of an empty text where the beginning is marked as the end is (OPT).
    found = [DOUBLE_BOS] if len(ids) > 2 and ids[0] == ids[1] == tokens.bos else []
    supervised = [i for i in range(1, len(ids)) if labels[i] != MASKED]  # nothing predicts the first token
    if not supervised:
        return [*found, NOTHING]
    for last in reversed(supervised):
        if labels[last] in tokens.ends:
            return found
        if not tokens.is_blank(labels[last]):
            break
    following = next((token for token in ids[last + 1 :] if not tokens.is_blank(token)), None)
    if following in tokens.ends and following == tokens.pad:
        return [*found, PADDED]
    return [*found, CUT if limit and len(ids) >= limit else ENDLESS]


def mark_supervised(
    ids: Sequence[int], labels: Sequence[int], decode: Callable[[list[int]], str], marks: tuple[str, str]
) -> str:
    """A row as text, each run of supervised tokens between `marks`; unprintable characters are spelled out."""
    parts = []
    for supervised, run in groupby(zip(ids, labels, strict=True), key=lambda pair: pair[1] != MASKED):
        text = "".join(_visible(character) for character in decode([token for token, _ in run]))
        parts.append(f"{marks[0]}{text}{marks[1]}" if supervised else text)
    return "".join(parts)


def _tokens(tokenizer: Any, model: Any) -> Tokens:
    ends = model.generation_config.eos_token_id
    ends = [*ends] if isinstance(ends, list | tuple) else [ends]
    return Tokens(
        ends=frozenset(end for end in [*ends, tokenizer.eos_token_id] if end is not None),
        bos=tokenizer.bos_token_id,
        pad=tokenizer.pad_token_id,
        is_blank=lambda token: not tokenizer.decode([token]).strip(),
    )


def _rows(trainer: Any) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of the first `ROWS` rows, as the collator gives them to the model, without padding."""
    from datasets import Dataset

    dataset = trainer.train_dataset
    if trainer.args.max_length is not None:
        # TRL filters out, without a word, the rows that the limit leaves without a supervised token. A filtered
        # data set still has them in its table.
        dataset = Dataset(dataset.data)
    dataset = trainer._remove_unused_columns(dataset.select(range(min(ROWS, len(dataset)))), description="audit")
    rows: list[tuple[list[int], list[int]]] = []
    for row in dataset:
        rows += _documents({name: tensor.tolist() for name, tensor in trainer.data_collator([row]).items()})
    return rows[:ROWS]


def _documents(batch: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    """The documents of a collated batch of one row: several where rows are packed, and then without padding."""
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    if "attention_mask" in batch:
        kept = [i for i, real in enumerate(batch["attention_mask"][0]) if real]
        return [([ids[i] for i in kept], [labels[i] for i in kept])]
    starts = [i for i, position in enumerate(batch["position_ids"][0]) if position == 0]
    return [(ids[a:b], labels[a:b]) for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)]


def _padding(trainer: Any) -> float:
    """Share of padding in the batches that the trainer's sampler and collator make of the first `ROWS` rows."""
    import torch

    dataset = trainer.train_dataset
    dataset = trainer._remove_unused_columns(dataset.select(range(min(ROWS, len(dataset)))), description="audit")
    with torch.random.fork_rng():
        torch.manual_seed(trainer.args.seed)
        order = list(trainer._get_train_sampler(dataset)) if len(dataset) else []
    size = trainer.args.train_batch_size
    batches = [[dataset[i] for i in order[at : at + size]] for at in range(0, len(order), size)]
    masks = [trainer.data_collator(batch).get("attention_mask") for batch in batches]
    real = sum(int(mask.sum()) for mask in masks if mask is not None)
    return 1 - real / sum(mask.numel() for mask in masks if mask is not None) if real else 0.0


def _fixes(tokenizer: Any, limit: int | None) -> dict[str, str]:
    length = f"the length limit ({limit:,} tokens)" if limit else "the length limit"
    return {
        NOTHING: f"raise {length} where the prompt alone fills it, or give the row an answer",
        DOUBLE_BOS: f"take {tokenizer.bos_token} out of the template or the text: the tokenizer adds its own",
        ENDLESS: f"end the answer with {tokenizer.eos_token} in the chat template, inside what is trained",
        CUT: f"raise {length} or shorten the prompt: a cut answer teaches no end",
        PADDED: f"set a pad token other than {tokenizer.eos_token}: this collator masks both",
    }


def _print_table(result: dict[str, Any], fixes: dict[str, str], batch_size: int) -> None:
    rows, tokens, limit = result["rows"], result["tokens"], result["length_limit"]
    found = {kind: count for kind, count in result["flaws"].items() if count}
    print(
        f"Supervision of {rows:,} rows: {'flaws found' if found else 'all well'}; "
        f"{tokens['p50']:,} tokens (p50), {tokens['p95']:,} (p95), {tokens['max']:,} (max)"
        f"{f' of at most {limit:,}' if limit else ''}; {result['padding']:.1%} padding in batches of {batch_size}"
    )
    if found:
        width = max(len(kind) for kind in found)
        print(f"  {'what':{width}}  rows   share  what to do")
        for kind, count in found.items():
            print(f"  {kind:{width}}  {count:4}  {count / rows:6.1%}  {fixes[kind]}")


def _shown(number: int, ids: list[int], labels: list[int], tokenizer: Any) -> str:
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    supervised = sum(label != MASKED for label in labels)
    how = "in green" if colour else "between « and »"
    marks = ("\033[32m", "\033[0m") if colour else ("«", "»")
    return f"Row {number}: {len(ids):,} tokens, {supervised:,} supervised ({how}):\n" + mark_supervised(
        ids, labels, lambda run: tokenizer.decode(run, skip_special_tokens=False), marks
    )


def _visible(character: str) -> str:
    if character == "\n":
        return "\\n\n"
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


def _quantile(ordered: list[int], share: float) -> int:
    return ordered[math.ceil(share * len(ordered)) - 1]
