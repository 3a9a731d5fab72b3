"""What preference recipes share: what the policy is compared with, the assessment, what is watched, and the rows that
TRL's experimental trainers misread.

The reference is never a second model. It is the trained one with its adapter switched off or, where training starts
from an adapter, with a frozen copy of that.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from data.prompts import leave_out_long
from eval.pairs import measure_pairs, token_kl
from eval.sampling import evaluate
from recipes.common import models
from recipes.common.args import PreferenceArgs
from recipes.common.model_table import ModelSpec
from recipes.common.rollouts import Rollouts
from recipes.common.run import Run
from recipes.common.supervision import audit_pairs
from recipes.common.training import planned_steps

if TYPE_CHECKING:
    from datasets import Dataset

# A share of the first magnitude. Chosen and rejected answers get likelier or less likely together by a few percent in
# sound runs; what both fall by beyond it goes to answers that nobody has rated.
FALL = 0.1
PROBE = 8  # held-out pairs on which the KL is watched


def load(args: PreferenceArgs, spec: ModelSpec, test: "Dataset") -> tuple[Any, Any, "Dataset"]:
    """The model for rows of `--max-length` tokens, its tokenizer, and the held-out pairs that it can answer.

    Those whose prompt leaves no room for `--max-completion-length` tokens are left out, and a line says how many.
    """
    model, tokenizer = models.load(args, spec, max_seq_length=args.max_length)
    room = args.max_length - args.max_completion_length
    return model, tokenizer, leave_out_long(test, tokenizer, room, flag="--max-length")


def reference_name(start: str | None) -> str:
    """Which weights the reference policy is, in words."""
    return "a frozen copy of the adapter that training starts from" if start else "the model, its adapter switched off"


def switch_off_reference(trainer: Any) -> None:
    """Delete the "ref" copy that TRL makes of every adapter; the reference is then the adapter switched off.

    For an adapter that starts at zero, which is the base model either way: without the copy it is half the memory
    of an adapter and a faster pass.
    """
    trainer.model.delete_adapter("ref")


def freeze_reference(model: Any) -> None:
    """Keep a copy of the adapter as it is now, "ref", for the reference policy; TRL's own trainers make theirs."""
    model.add_adapter("ref", model.peft_config["default"])
    model.set_adapter("default")
    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        if ".ref." in name:
            weight.data.copy_(weights[name.replace(".ref.", ".default.")])


@contextmanager
def reference_policy(model: Any) -> Iterator[None]:
    """The reference in place of the policy for the length of a `with`: adapter "ref" where there is one, else none."""
    from trl.trainer.utils import use_adapter

    with use_adapter(model, "ref" if "ref" in model.peft_config else None):
        yield


def assessment(
    args: PreferenceArgs, run: Run, model: Any, tokenizer: Any, test: "Dataset", *, beta: float, per_token: bool = False
) -> Callable[..., Any]:
    """`evaluate` of held-out pairs, but for its stage: how they are ranked, and an answer written greedily for each.

    `beta` scales the reward; `per_token` is for methods without a reference, whose reward is a mean log-probability.
    """

    def ranks(held_out: "Dataset") -> list[dict[str, float | None]]:
        return measure_pairs(
            model,
            tokenizer,
            held_out,
            beta=beta,
            before=run.stages.get("before"),
            reference=partial(reference_policy, model),
            max_length=args.max_length,
            per_token=per_token,
        )

    sampler = Rollouts("model", model, tokenizer, args.max_length).sampler
    return partial(evaluate, sampler, test, [], [], max_tokens=args.max_completion_length, seed=args.seed, extra=ranks)


def check_and_watch(args: PreferenceArgs, trainer: Any, held_out: "Dataset | None", *, remedy: str) -> Any:
    """The built trainer, its rows audited, its reference the adapter switched off unless training starts from one.

    It logs the KL to the reference on the first `PROBE` held-out pairs, ten times a run, and warns, once, where the
    log-probabilities of chosen and rejected answers both fall by more than `FALL`; `remedy` is what to try then.
    `held_out` is None for KTO, which logs a KL of its own in another unit under the same name.
    """
    from recipes.common.callbacks import KLProbe, LikelihoodWatch

    if not args.start_from and "ref" in trainer.model.peft_config:
        switch_off_reference(trainer)
    audit_pairs(trainer, allow_unsupervised=args.allow_unsupervised, show_tokens=args.show_tokens)
    trainer.add_callback(LikelihoodWatch(FALL, remedy=remedy))
    if held_out is None:
        return trainer
    probe, model = held_out.select(range(min(PROBE, len(held_out)))), trainer.model

    def kl() -> float:
        reference = partial(reference_policy, model)
        found = token_kl(model, trainer.processing_class, probe, reference, max_length=args.max_length)
        known = [nats for nats in found if nats is not None]
        return sum(known) / len(known) if known else math.nan

    trainer.add_callback(KLProbe(kl, every=max(1, planned_steps(trainer) // 10)))
    return trainer


def pairs(dataset: "Dataset") -> "Dataset":
    """What a trainer reads of pairs: `prompt`, `chosen` and `rejected`."""
    return dataset.select_columns(["prompt", "chosen", "rejected"])


def rendered(dataset: "Dataset", tokenizer: Any, max_length: int) -> "Dataset":
    """Pairs as the text that the model will be trained on, for TRL's experimental ORPO and CPO trainers.

    Given messages, those (TRL 1.15) end a ChatML answer twice, since a newline follows its end token, put a BOS in
    front that neither template nor tokenizer writes, and divide by zero where a prompt fills `max_length`. Rows of
    strings pass them unchanged; those whose prompt leaves no room for an answer are left out, and a line prints their
    number. A tokenizer with a BOS that its template does not write (Phi-4's) loses it.
    """
    end = tokenizer.eos_token

    def render(row: dict[str, Any]) -> dict[str, str]:
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        texts = {"prompt": prompt}
        for side in ("chosen", "rejected"):
            whole = tokenizer.apply_chat_template([*row["prompt"], *row[side]], tokenize=False)
            answer = whole.removeprefix(prompt)
            texts[side] = answer[: answer.rindex(end) + len(end)] if end in answer else answer
        return texts

    texts = dataset.map(render, remove_columns=dataset.column_names, desc="Rendering")
    if tokenizer.bos_token and not texts[0]["prompt"].startswith(tokenizer.bos_token):
        tokenizer.bos_token = None
    return leave_out_long(texts, tokenizer, max_length - 1, flag="--max-length")
