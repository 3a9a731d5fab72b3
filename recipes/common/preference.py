"""What preference recipes share: where training starts, what the policy is compared with, and the rows that TRL's
experimental trainers misread.

The reference is never a second model. It is the trained one with its adapter switched off or, where training starts
from an adapter, with a frozen copy of that.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# What an adapter must share with the one that it is loaded into; of another alpha it would become another model.
SAME = ("peft_type", "task_type", "r", "lora_alpha", "use_rslora", "use_dora", "target_modules")
# A share of the first magnitude. Chosen and rejected answers get likelier or less likely together by a few percent in
# sound runs; what both fall by beyond it goes to answers that nobody has rated.
FALL = 0.1
PROBE = 8  # held-out pairs on which the KL is watched


def start_from(model: Any, folder: str) -> None:
    """Load the LoRA adapter in `folder` into the new one of `model`: training goes on from it.

    Raises:
        ValueError: no adapter there, or one of another kind, rank or scale, of other layers or of another model.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    path = Path(folder).expanduser()
    for file in (WEIGHTS, CONFIG):
        if not (path / file).is_file():
            raise ValueError(f"--start-from {folder} has no {file}: give the adapter folder of a finished run")
    found, own = json.loads((path / CONFIG).read_text(encoding="utf-8")), model.peft_config["default"]
    for field in SAME:
        theirs, ours = _plain(found.get(field, False)), _plain(getattr(own, field))
        if theirs != ours:
            raise ValueError(
                f"--start-from {folder} has {field} {theirs} in its {CONFIG}, and this recipe trains {ours}: give "
                "--lora-rank and --model as they were, or merge it into its model and give that as --model"
            )
    try:
        outcome = set_peft_model_state_dict(model, load_file(path / WEIGHTS))
    except RuntimeError as error:
        wrong = str(error).splitlines()[-1].strip()
    else:
        missing = [f"no weights for {name}" for name in outcome.missing_keys if ".default." in name]
        unknown = [f"weights for {name}, which it lacks" for name in outcome.unexpected_keys]
        wrong = " and ".join(missing[:1] + unknown[:1])
    if wrong:
        raise ValueError(
            f"--start-from {folder} does not fit {own.base_model_name_or_path} ({wrong}): give the model it was "
            "trained on"
        )


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


def watch(trainer: Any, held_out: "Dataset | None", *, remedy: str) -> None:
    """Log the KL to the reference on the first `PROBE` held-out pairs, ten times a run, and warn, once, where the
    log-probabilities of chosen and rejected answers both fall by more than `FALL`; `remedy` is what to try then.

    `held_out` is None for KTO, which logs a KL of its own in another unit under the same name.
    """
    from eval.pairs import token_kl
    from recipes.common.callbacks import KLProbe, LikelihoodWatch

    trainer.add_callback(LikelihoodWatch(FALL, remedy=remedy))
    if held_out is None:
        return
    probe, args = held_out.select(range(min(PROBE, len(held_out)))), trainer.args

    def kl() -> float:
        found = token_kl(
            trainer.model, trainer.processing_class, probe, lambda: reference_policy(trainer.model),
            max_length=args.max_length,
        )  # fmt: skip
        known = [nats for nats in found if nats is not None]
        return sum(known) / len(known) if known else math.nan

    trainer.add_callback(KLProbe(kl, every=max(1, args.max_steps // 10)))


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

    def has_room(row: dict[str, str]) -> bool:
        return len(tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]) < max_length

    texts = dataset.map(render, remove_columns=dataset.column_names, desc="Rendering")
    if tokenizer.bos_token and not texts[0]["prompt"].startswith(tokenizer.bos_token):
        tokenizer.bos_token = None
    kept = texts.filter(has_room, desc="Measuring prompts")
    if len(kept) < len(texts):
        print(
            f"{len(texts) - len(kept):,} of {len(texts):,} pairs are left out: their prompt alone fills {max_length:,} "
            "tokens"
        )
    return kept


def _plain(value: Any) -> Any:
    """A field of a PEFT config as its JSON has it, lists in order."""
    return sorted(value) if isinstance(value, list | set) else getattr(value, "value", value)
