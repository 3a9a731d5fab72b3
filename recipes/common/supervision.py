"""The supervision audit: before training, what the trainer will really learn from, row by row.

A template that never ends the answer, a limit that cuts it or a collator that masks it all leave the loss looking
healthy, and a model that does not stop. `audit` is for supervised fine-tuning, `audit_pairs` for preferences.
"""

import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, takewhile
from typing import Any

from eval.methods import METHODS, Layout, method_of, phase_of

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
NO_BOS = "no BOS"
LEFT_OUT = "left out as too long"
PROMPTS_DIFFER = "chosen and rejected with different prompts"
SAME = "chosen identical to rejected"

Text = tuple[list[int], list[int]]
"""Token ids of a prompt, and of a response to it."""


@dataclass(frozen=True)
class Tokens:
    """What the audit must know of a tokenizer and a model: ids of special tokens, and which ids are white space."""

    ends: frozenset[int]
    bos: int | None
    pad: int | None
    is_blank: Callable[[int], bool]
    begins: bool = False
    """Whether a text begins with `bos`, by the tokenizer's doing or by the template's."""


def audit(trainer: Any, *, allow_unsupervised: bool = False, show_tokens: int = 0) -> dict[str, Any]:
    """Check the first `ROWS` rows that a built `trl.SFTTrainer` will train on; print one line, or a table of flaws.

    Reads the trainer's tokenised data set through its own collator, so that whatever masks, cuts or joins rows has
    done so. Leaves the random state as it was.

    Args:
        trainer: `trl.SFTTrainer`, before `train()`.
        allow_unsupervised: print the table and go on where it would refuse.
        show_tokens: how many rows to print first, with the supervised tokens marked.

    Returns:
        `rows` audited; `flaws`, rows by kind; `pad_is_eos`; `length_limit` in tokens or None;
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
        print(_shown(f"Row {number}", ids, labels, tokenizer))

    flaws = [find_flaws(ids, labels, tokens, limit) for ids, labels in rows]
    counts = {kind: sum(kind in found for found in flaws) for kind in (NOTHING, DOUBLE_BOS, ENDLESS, CUT, PADDED)}
    lengths = [len(ids) for ids, _ in rows]
    return _conclude(trainer, len(rows), counts, lengths, limit, _padding(trainer), allow_unsupervised)


def audit_pairs(trainer: Any, *, allow_unsupervised: bool = False, show_tokens: int = 0) -> dict[str, Any]:
    """The same for preferences: what a built TRL DPO, KTO, Reward, ORPO or CPO trainer will compare.

    A row is bad where either of its texts is. DPO's and KTO's are read as the collator will cut them. The rows that
    DPO and Reward drop for their length are counted; KTO's are lost when it adds the texts for its KL term.

    Args:
        trainer: `trl.DPOTrainer`, `KTOTrainer` or `RewardTrainer`, or `trl.experimental`'s `ORPOTrainer` or
            `CPOTrainer`, before `train()`.
        allow_unsupervised: as for `audit`.
        show_tokens: how many rows to print first, with the response marked (a reward model scores the whole text).

    Returns:
        As `audit`, with `tokens` and `padding` of texts, each a prompt with one response; KTO's comparison texts for
        the KL term are not among them.

    Raises:
        ValueError: as `audit`; a single row without a response, where the trainer divides by its length; or a trainer
            whose folder is not named after one of these methods.
    """
    tokenizer, limit = trainer.processing_class, trainer.args.max_length
    layout = method_of(phase_of(trainer)).rows
    if layout is None:
        known = ", ".join(name for name, method in METHODS.items() if method.rows)
        raise ValueError(
            f"no preference method is called {phase_of(trainer)!r}, as this trainer's output_dir says: expected one of "
            f"{known}, or a record of its own in eval/methods.py"
        )
    tokens = replace(_tokens(tokenizer, trainer.model), begins=_begins(tokenizer))
    table = _tokenised(trainer)
    if not len(table):
        raise ValueError(f"no row is left to train on: each prompt alone fills the length limit ({limit:,} tokens)")
    cut = getattr(trainer.data_collator, "max_length", None)
    rows = [split_row(row, layout, cut) for row in table]
    for number, texts in enumerate(rows[:show_tokens], start=1):
        for side, (prompt, response) in zip(("chosen", "rejected"), texts, strict=False):
            name = f"Row {number}, {side}" if len(texts) > 1 else f"Row {number}"
            print(_shown(name, prompt + response, [MASKED] * len(prompt) + response, tokenizer))

    flaws = [find_pair_flaws(texts, tokens, limit) for texts in rows]
    kinds = (NOTHING, DOUBLE_BOS, NO_BOS, ENDLESS, CUT, LEFT_OUT, PROMPTS_DIFFER, SAME)
    counts = {kind: sum(kind in found for found in flaws) for kind in kinds}
    lengths = [len(prompt) + len(response) for texts in rows for prompt, response in texts]
    padding = _pair_padding(trainer, layout, cut)
    divides = layout == "labelled pair"  # ORPO and SimPO. CPO's own loss sums, and is refused with them.
    return _conclude(trainer, len(rows), counts, lengths, limit, padding, allow_unsupervised, divides)


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


def find_pair_flaws(texts: Sequence[Text], tokens: Tokens, limit: int | None) -> set[str]:
    """The flaws of one preference row, by name: those of `find_flaws` in any text, and those of the pair.

    Args:
        texts: of chosen and rejected, or KTO's one, as the collator cuts them.
        limit: tokens that a text may have, None for any number.
    """
    if limit and any(response and len(prompt) + len(response) > limit for prompt, response in texts):
        return {LEFT_OUT}
    found: set[str] = set()
    for prompt, response in texts:
        ids, labels = [*prompt, *response], [MASKED] * len(prompt) + [*response]
        found.update(find_flaws(ids, labels, tokens, limit))
        if tokens.begins and ids[:1] != [tokens.bos]:
            found.add(NO_BOS)
    if len(texts) == 2:
        (prompt, response), (other_prompt, other_response) = texts
        if prompt != other_prompt:
            found.add(PROMPTS_DIFFER)
        if response and response == other_response:
            found.add(SAME)
    return found


def split_row(row: dict[str, Any], layout: Layout, cut: int | None = None) -> list[Text]:
    """The texts of a row that a preference trainer has tokenised: of chosen and rejected, or KTO's one.

    Args:
        row: of the `train_dataset` of a TRL 1.15 trainer for DPO, KTO, Reward, ORPO or CPO.
        layout: how that trainer tokenises. Reward's takes prompt and response as one, which is all response here.
        cut: tokens of a text that the collator keeps, None for all.
    """
    if layout == "completion":
        texts = [(row["prompt_ids"], row["completion_ids"])]
    elif layout == "labelled pair":  # whole texts, whose labels mask the prompt
        texts = []
        for side in ("chosen", "rejected"):
            ids, labels = row[f"{side}_input_ids"], row[f"{side}_labels"]
            start = sum(1 for _ in takewhile(lambda label: label == MASKED, labels))
            texts.append((ids[:start], ids[start:]))
    else:
        prompt = row["prompt_ids"] if layout == "pair" else []
        texts = [(prompt, row[f"{side}_ids"]) for side in ("chosen", "rejected")]
    if cut is None:
        return texts
    return [(prompt[:cut], response[: max(0, cut - len(prompt))]) for prompt, response in texts]


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
    # A reward model generates nothing and has no such settings.
    ends = (getattr(model, "generation_config", None) or model.config).eos_token_id
    ends = [*ends] if isinstance(ends, list | tuple) else [ends]
    return Tokens(
        ends=frozenset(end for end in [*ends, tokenizer.eos_token_id] if end is not None),
        bos=tokenizer.bos_token_id,
        pad=tokenizer.pad_token_id,
        is_blank=lambda token: not tokenizer.decode([token]).strip(),
    )


def _begins(tokenizer: Any) -> bool:
    """Whether the tokenizer begins a plain text with its BOS, or the template a chat."""
    starts = [tokenizer("a")["input_ids"][0]]
    if tokenizer.chat_template:
        starts += tokenizer.apply_chat_template([{"role": "user", "content": "a"}], return_dict=False)[:1]
    return tokenizer.bos_token_id in starts  # which hold no None


def _rows(trainer: Any) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of the first `ROWS` rows, as the collator gives them to the model, without padding."""
    dataset = trainer._remove_unused_columns(_tokenised(trainer), description="audit")
    rows: list[tuple[list[int], list[int]]] = []
    for row in dataset:
        rows += _documents({name: tensor.tolist() for name, tensor in trainer.data_collator([row]).items()})
    return rows[:ROWS]


def _tokenised(trainer: Any) -> Any:
    """The first `ROWS` rows of the trainer's data set, as it has tokenised them."""
    from datasets import Dataset

    dataset = trainer.train_dataset
    if trainer.args.max_length is not None:
        # TRL filters out, without a word, the rows that the limit leaves without a supervised token. A filtered
        # data set still has them in its table.
        dataset = Dataset(dataset.data)
    return dataset.select(range(min(ROWS, len(dataset))))


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
    dataset = trainer.train_dataset
    dataset = trainer._remove_unused_columns(dataset.select(range(min(ROWS, len(dataset)))), description="audit")
    batches = [[dataset[i] for i in batch] for batch in _batches(trainer, dataset)]
    masks = [trainer.data_collator(batch).get("attention_mask") for batch in batches]
    real = sum(int(mask.sum()) for mask in masks if mask is not None)
    return 1 - real / sum(mask.numel() for mask in masks if mask is not None) if real else 0.0


def _pair_padding(trainer: Any, layout: Layout, cut: int | None) -> float:
    """The same for preference rows, whose batch is padded to the longest of all its texts."""
    dataset = trainer.train_dataset.select(range(min(ROWS, len(trainer.train_dataset))))
    lengths = [[len(prompt) + len(response) for prompt, response in split_row(row, layout, cut)] for row in dataset]
    batches = [[length for i in batch for length in lengths[i]] for batch in _batches(trainer, dataset)]
    padded = sum(len(batch) * max(batch) for batch in batches)
    return 1 - sum(map(sum, batches)) / padded if padded else 0.0


def _batches(trainer: Any, dataset: Any) -> list[list[int]]:
    """The numbers of the rows in each batch that the trainer's sampler makes of `dataset`."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(trainer.args.seed)
        order = list(trainer._get_train_sampler(dataset)) if len(dataset) else []
    size = trainer.args.train_batch_size
    return [order[at : at + size] for at in range(0, len(order), size)]


def _fixes(tokenizer: Any, limit: int | None) -> dict[str, str]:
    length = f"the length limit ({limit:,} tokens)" if limit else "the length limit"
    return {
        NOTHING: f"raise {length} where the prompt alone fills it, or give the row an answer",
        DOUBLE_BOS: f"take {tokenizer.bos_token} out of the template or the text: the tokenizer adds its own",
        ENDLESS: f"end the answer with {tokenizer.eos_token} in the chat template, inside what is trained",
        CUT: f"raise {length} or shorten the prompt: a cut answer teaches no end",
        PADDED: f"set a pad token other than {tokenizer.eos_token}: this collator masks both",
        NO_BOS: f"begin the chat template with {tokenizer.bos_token}: a chat is tokenised as the template writes it",
        LEFT_OUT: f"raise {length} or shorten the texts: this trainer drops what is longer without a word",
        PROMPTS_DIFFER: "end the generation prompt where a token ends, such as a newline: its last characters merge "
        "with the answer's first",
        SAME: f"leave such pairs out, or raise {length} where it cuts off what tells them apart",
    }


def _conclude(
    trainer: Any,
    rows: int,
    counts: dict[str, int],
    lengths: list[int],
    limit: int | None,
    padding: float,
    allow_unsupervised: bool,
    divides: bool = False,
) -> dict[str, Any]:
    """Print one line or the table of flaws, and refuse what nobody should train on; returns what `audit` does.

    Args:
        divides: the loss divides by the number of supervised tokens, row by row.
    """
    tokenizer, fixes = trainer.processing_class, _fixes(trainer.processing_class, limit)
    ordered, found = sorted(lengths), {kind: count for kind, count in counts.items() if count}
    p50, p95 = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.95))
    print(
        f"Supervision of {rows:,} rows: {'flaws found' if found else 'all well'}; "
        f"{p50:,} tokens (p50), {p95:,} (p95), {ordered[-1]:,} (max){f' of at most {limit:,}' if limit else ''}; "
        f"{padding:.1%} padding in batches of {trainer.args.train_batch_size}"
    )
    if found:
        width = max(len(kind) for kind in found)
        print(f"  {'what':{width}}  rows   share  what to do")
        for kind, count in found.items():
            print(f"  {kind:{width}}  {count:4}  {count / rows:6.1%}  {fixes[kind]}")
    pad_is_eos = tokenizer.pad_token_id is not None and tokenizer.pad_token_id == tokenizer.eos_token_id
    # TRL 1.15's collators pad the labels by themselves and never look for the pad token. transformers' own one for
    # language modelling does, and there every row comes out as PADDED.
    if pad_is_eos and not counts.get(PADDED):
        print(
            f"  The pad token is the end token, {tokenizer.eos_token}: harmless here, since this collator masks by "
            "position; one that masks by token would leave the end untrained."
        )

    kind, count = max(counts.items(), key=lambda item: item[1])
    if counts[NOTHING] == rows:
        raise ValueError(f"no row has a supervised token, so there is nothing to train on: {fixes[NOTHING]}")
    if divides and counts[NOTHING]:
        raise ValueError(
            f"{NOTHING} in {counts[NOTHING]:,} of {rows:,} rows, and this trainer divides by their number, so that one "
            f"such row makes every weight NaN: {fixes[NOTHING]}"
        )
    if count > THRESHOLD * rows and not allow_unsupervised:
        raise ValueError(
            f"{kind} in {count:,} of {rows:,} rows, where at most {THRESHOLD:.0%} may be bad: {fixes[kind]}; or "
            "train all the same with --allow-unsupervised"
        )
    tokens = {"p50": p50, "p95": p95, "max": ordered[-1]}
    facts = {"pad_is_eos": pad_is_eos, "length_limit": limit, "tokens": tokens, "padding": round(padding, 4)}
    return {"rows": rows, "flaws": counts, **facts}


def _shown(name: str, ids: list[int], labels: list[int], tokenizer: Any) -> str:
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    supervised = sum(label != MASKED for label in labels)
    how = "in green" if colour else "between « and »"
    marks = ("\033[32m", "\033[0m") if colour else ("«", "»")
    return f"{name}: {len(ids):,} tokens, {supervised:,} supervised ({how}):\n" + mark_supervised(
        ids, labels, lambda run: tokenizer.decode(run, skip_special_tokens=False), marks
    )


def _visible(character: str) -> str:
    if character == "\n":
        return "\\n\n"
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
