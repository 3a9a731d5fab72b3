"""What is known of a training method and of an adapter, as data.

Whatever prints, charts, audits or describes a run reads it here and guesses nothing from the names of figures.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

# How a preference trainer of TRL 1.15 has tokenised a row; see `recipes.common.supervision.split_row`.
Layout = Literal["pair", "whole pair", "labelled pair", "completion"]
Unit = Literal["share", "percent"]  # a share of 1, in ticks from 0 to 1 or in percent


class Column(NamedTuple):
    """One figure of the row that a step prints; with a star in its key, one for every reward (see `spelled_out`)."""

    heading: str
    key: str
    number: str
    legend: str
    always: bool = True
    """Whether a dash stands where nothing was logged; else there is no such column then"""


class Curve(NamedTuple):
    """One chart of the report, of one or two figures over the steps; with a star in its key, one for every reward."""

    title: str
    keys: tuple[str, ...]
    unit: Unit | None = None


@dataclass(frozen=True)
class Method:
    """A method, or a phase that prepares for one. Keys are those of metrics.jsonl."""

    title: str
    columns: tuple[Column, ...]
    curves: tuple[Curve, ...]
    cut_off: str | None = None
    """Key of the share of sampled completions that hit the length limit"""
    flat: str | None = None
    """Key of the share of groups that teach nothing"""
    margin: str | None = None
    """Key of the reward of chosen responses less that of rejected ones"""
    zero_margin_at_first: bool = False
    """Whether that margin begins at zero, so that one that stays there has learned nothing"""
    with_trl: bool = True
    """Whether a trainer of TRL's makes the model"""
    scores_texts: bool = False
    """Whether the model gives texts a number and writes none"""
    rows: Layout | None = None
    """Of a preference trainer's data set"""


LOSS = Column("loss", "loss", ".3f", "what training lowers")
NLL = LOSS._replace(legend="how unlikely the answers are to the model, nats per token")
FLAT = "share of groups whose completions all score alike and so teach nothing"
CUT_OFF, LENGTH = "share of completions that hit the length limit", "mean length of a completion"


def _loss(title: str) -> Curve:
    return Curve(f"{title}: loss", ("loss",))


def _preference(
    title: str,
    rows: Layout,
    *,
    accuracy: str | None = "rewards/accuracies",
    margin: str = "rewards/margins",
    logp: str | None,
    kl: str = "nats per token of held-out answers",
    **known: Any,
) -> Method:
    """A method that tells chosen from rejected responses; `logp` says of what it logs the log-probability."""
    columns, curves = [LOSS], [_loss(title)]
    if accuracy:
        ranked = "share of training pairs whose chosen response has the higher reward"
        columns.append(Column("accuracy", accuracy, ".0%", ranked))
        curves.append(Curve("Training pairs ranked right", (accuracy,), "percent"))
    apart = "reward of the chosen responses less that of the rejected"
    columns.append(Column("margin", margin, ".3f", apart))
    curves.append(Curve("Reward margin, chosen over rejected", (margin,)))
    if logp:
        keys = ("logps/chosen", "logps/rejected")
        legend = f"log-probability of {logp}, nats"
        columns += [Column(f"{key.removeprefix('logps/')} logp", key, ".2f", legend) for key in keys]
        curves += [Curve("Log-probability of the responses, nats", keys), Curve(f"KL to the reference, {kl}", ("kl",))]
    return Method(title, tuple(columns), tuple(curves), margin=margin, rows=rows, **known)


# By the name of the phase in metrics.jsonl, which is also how the name of a method's recipes ends.
METHODS = {
    "warm start": Method("Warm start", (NLL,), (_loss("Warm start"),)),
    "sft": Method("SFT", (NLL,), (_loss("SFT"),)),
    # Where a reward is maximised, the loss is near 0 by construction and says nothing.
    "grpo": Method(
        "GRPO",
        (
            Column("reward", "reward", ".3f", "weighted total of a completion's rewards, mean"),
            Column("*", "rewards/*/mean", ".2f", "one reward alone, mean"),
            Column("unjudged", "judge/unjudged", ".0%", "share of completions without a verdict", always=False),
            Column("flat", "frac_reward_zero_std", ".0%", FLAT),
            Column("cut off", "completions/clipped_ratio", ".0%", CUT_OFF),
            Column("tokens", "completions/mean_length", ".0f", LENGTH),
        ),
        (
            Curve("Reward, weighted total", ("reward",)),
            Curve("*", ("rewards/*/mean",), "share"),
            Curve("Groups without a signal (zero variance)", ("frac_reward_zero_std",), "percent"),
            Curve("Completion length, tokens", ("completions/mean_length",)),
            Curve("Truncated completions", ("completions/clipped_ratio",), "percent"),
        ),
        cut_off="completions/clipped_ratio",
        flat="frac_reward_zero_std",
    ),
    "dpo": _preference("DPO", "pair", logp="a response", zero_margin_at_first=True),
    # KTO knows no pairs that could be ranked.
    "kto": _preference(
        "KTO", "completion", accuracy=None, logp="a response", kl="as KTO estimates it, nats", zero_margin_at_first=True
    ),
    # Rewards without a reference begin at what the base model thinks.
    "orpo": _preference("ORPO", "labelled pair", logp="a response's tokens, mean"),
    "simpo": _preference("SimPO", "labelled pair", logp="a response's tokens, mean"),
    "reward": _preference(
        "Reward model",
        "whole pair",
        accuracy="accuracy",
        margin="margin",
        logp=None,
        zero_margin_at_first=True,
        scores_texts=True,
    ),
    "ppo": Method(
        "PPO",
        (
            Column("score", "score", ".3f", "reward of a completion, mean, before clipping and the KL penalty"),
            Column("kl", "kl", ".3f", "how far the policy is from its reference, nats per token"),
            Column("entropy", "entropy", ".2f", "how undecided the policy is, nats per token"),
            Column("explained", "explained_variance", ".2f", "share of the returns' variance that the values foretell"),
            Column("clipped", "clip_fraction", ".0%", "share of tokens whose update was held back"),
            Column("cut off", "truncated", ".0%", CUT_OFF),
            Column("tokens", "length", ".0f", LENGTH),
        ),
        (
            Curve("Reward, before clipping and the KL penalty", ("score",)),
            Curve("KL to the reference, nats per token", ("kl",)),
            Curve("Entropy of the policy, nats per token", ("entropy",)),
            Curve("Returns that the value function explains, share of variance", ("explained_variance",)),
            Curve("Tokens with a clipped ratio, share", ("clip_fraction",)),
            Curve("Completion length, tokens", ("length",)),
            Curve("Truncated completions", ("truncated",), "percent"),
        ),
        cut_off="truncated",
        with_trl=False,  # the trainer is this repository's own
    ),
}


def method_of(phase: str) -> Method:
    """The record of a phase; of one that is not in `METHODS` it is known that it has a loss.

    >>> method_of("nca").title, method_of("second round").title
    ('NCA', 'Second round')
    """
    title = phase.capitalize() if " " in phase else phase.upper()
    return METHODS.get(phase) or Method(title, (LOSS,), (_loss(title),))


def phase_of(trainer: Any) -> str:
    """The phase that a trainer was built for: the name of its folder."""
    return Path(trainer.args.output_dir).name.replace("_", " ")


def spelled_out(key: str, logged: Iterable[str]) -> dict[str, str]:
    """{name: key} of the logged keys that one with a star stands for; a plain key stands for itself alone.

    >>> spelled_out("rewards/*/mean", ["reward", "rewards/tags_reward/mean", "rewards/tags_reward/std"])
    {'tags_reward': 'rewards/tags_reward/mean'}
    >>> spelled_out("loss", [])
    {'loss': 'loss'}
    """
    if "*" not in key:
        return {key: key}
    pattern = re.escape(key).replace(r"\*", "([^/]+)")
    return {found[1]: name for name in logged if (found := re.fullmatch(pattern, name))}


Adapter = Literal["qlora", "lora", "dora", "p-tuning", "prefix-tuning", "prompt-tuning", "full"]


class Trained(NamedTuple):
    """What a recipe's `--adapter` trains: in a model card's words, and whether Unsloth loads it from its folder."""

    title: str | None
    through_unsloth: bool


ADAPTERS: dict[Adapter, Trained] = {
    "lora": Trained("LoRA adapter", True),
    "qlora": Trained("LoRA adapter over 4-bit weights (QLoRA)", True),
    "dora": Trained("DoRA adapter", True),
    "p-tuning": Trained("p-tuning adapter (virtual tokens)", False),
    "prefix-tuning": Trained("prefix-tuning adapter (virtual keys and values)", False),
    "prompt-tuning": Trained("prompt-tuning adapter (virtual tokens)", False),
    "full": Trained(None, False),  # all weights, and no adapter
}
