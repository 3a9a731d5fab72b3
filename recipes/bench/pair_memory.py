"""How much memory preference training takes beside SFT on the same tokens: `make bench-memory`.

Contenders, each in a process of its own, all on the same 8 rows: prompt and answer, chosen and rejected, of the
sample's four longest pairs.

- sft: TRL's SFTTrainer, the loss over the answers alone
- dpo: DPOTrainer, with the reference of `recipes/ultrafeedback_dpo.py`: the model with its adapter switched off
- dpo precomputed: the same, the reference's log-probabilities computed before training (`--precompute-ref`)
- kto, orpo, simpo: the trainers of the other recipes, for information. The latter two get rows without the newline
  after the end token (recipes/common/preference.py), one token less in each

Equal for all: SmolLM2-135M in 16 bit through Unsloth, LoRA of rank 16 on all seven projections, bf16 autocast, no
gradient checkpointing, all rows in one batch a step.

Compared is the peak of resident memory above what the process holds when its trainer is about to be built: libraries
and weights are the same everywhere and would hide the difference. Not when training is about to begin: a pass of the
reference before it leaves the process with memory that training then uses, and would look like less. No GPU is used.
The kernel's own mark of the peak is read and reset through /proc, which is Linux's.
"""

import os
import tempfile
from functools import partial
from typing import Any

from recipes.bench import gauge, process
from recipes.bench.training_speed import settings, with_unsloth
from recipes.common.stand_ins.smollm2 import converted_folder

PAIRS, STEPS, MAX_LENGTH = 4, 3, 256
PEER = "sft"
BARS: list[gauge.Bar] = [
    ("memory", "dpo", PEER, 1.25),
    ("memory", "dpo precomputed", PEER, 1.25),
    *(("memory", name, PEER, None) for name in ("kto", "orpo", "simpo")),
]
CONTENDERS = (PEER, *(name for _, name, _, _ in BARS))


Memory = dict[str, Any]
"""What one contender took, see `gauge.memory`, from when its trainer was about to be built to the end of training; on a
"batch", rows and tokens of the longest, of so many "tokens", padding left out"""


def contend(name: str, folder: str) -> Memory:
    """Train `STEPS` steps as the contender `name` with the model in `folder`.

    Raises RuntimeError where the batches are not all alike.
    """
    model, tokenizer = with_unsloth(folder, MAX_LENGTH)

    import torch
    import trl
    from trl.experimental.cpo import CPOConfig, CPOTrainer  # all of them in every process: they count as libraries
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    from data.preferences import unpaired
    from recipes.common.preference import rendered, switch_off_reference

    pairs = longest_pairs(tokenizer)
    singles, texts = unpaired(pairs), rendered(pairs, tokenizer, MAX_LENGTH)
    dpo = (trl.DPOTrainer, trl.DPOConfig, pairs)
    kinds: dict[str, tuple[Any, Any, Any, dict[str, Any]]] = {
        "sft": (trl.SFTTrainer, trl.SFTConfig, singles.remove_columns("label"), {"completion_only_loss": True}),
        "dpo": (*dpo, {}),
        "dpo precomputed": (*dpo, {"precompute_ref_log_probs": True}),
        "kto": (trl.KTOTrainer, trl.KTOConfig, singles, {}),
        "orpo": (ORPOTrainer, ORPOConfig, texts, {}),
        "simpo": (CPOTrainer, CPOConfig, texts, {"loss_type": "simpo", "cpo_alpha": 0.0}),
    }
    build, configure, rows, own = kinds[name]
    batches: set[tuple[int, int, int]] = set()

    def count(_: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled():  # a pass of the reference learns nothing
            rows, width = (args[0] if args else kwargs["input_ids"]).shape
            batches.add((rows, width, int(kwargs["attention_mask"].sum())))

    model.register_forward_pre_hook(count, with_kwargs=True)
    start = gauge.reset_peak()
    with tempfile.TemporaryDirectory() as output:
        config = configure(
            **settings(output),
            **own,
            max_steps=STEPS,
            max_length=MAX_LENGTH,
            per_device_train_batch_size=len(rows),
            bf16=True,
            optim="adamw_torch_fused",
            dataloader_pin_memory=False,
        )
        trainer = build(model, args=config, train_dataset=rows, processing_class=tokenizer)
        if name in ("dpo", "dpo precomputed", "kto"):
            switch_off_reference(trainer)
        trainer.train()
    if len(batches) != 1:
        raise RuntimeError(f"{name}: batches of (rows, tokens of the longest, tokens) {sorted(batches)}, not all alike")
    *batch, tokens = batches.pop()
    return {**gauge.memory(start), "batch": batch, "tokens": tokens}


def longest_pairs(tokenizer: Any) -> Any:
    """The `PAIRS` pairs of the UltraFeedback sample with most tokens: `prompt`, `chosen` and `rejected`."""
    from data import ultrafeedback

    def tokens(row: dict[str, Any]) -> int:
        sides = (row["prompt"] + row[side] for side in ("chosen", "rejected"))
        return sum(len(tokenizer.apply_chat_template(side, return_dict=False)) for side in sides)

    sample = ultrafeedback.load("train", source="sample")
    lengths = [tokens(row) for row in sample]
    longest = sorted(range(len(sample)), key=lengths.__getitem__, reverse=True)[:PAIRS]
    return sample.select(longest).select_columns(["prompt", "chosen", "rejected"])


def judge(memory: dict[str, Memory]) -> list[dict[str, Any]]:
    """`gauge.judged` of what the contenders took above their start.

    Raises RuntimeError where one with a bar had other tokens than `PEER`: the ratio would compare nothing.
    """
    for _, name, _, bar in BARS:
        if bar and name in memory and PEER in memory:
            own, peer = ((one["batch"], one["tokens"]) for one in (memory[name], memory[PEER]))
            if own != peer:
                raise RuntimeError(
                    f"{name} had batches of {own[0]} with {own[1]} tokens, and {PEER} of {peer[0]} with {peer[1]}: "
                    "their memory cannot be compared"
                )
    return gauge.judged(BARS, {"memory": {name: own["above_mib"] for name, own in memory.items()}})


def table(memory: dict[str, Memory], judged: list[dict[str, Any]]) -> str:
    """A line for each contender: tokens of a batch, MiB at its start, at its peak and between; then the verdicts."""
    head = ("tokens", "start_mib", "peak_mib", "above_mib")
    rows = [[name, *(f"{own[what]:,}" for what in head)] for name, own in memory.items()]
    return "\n".join([*gauge.aligned([["", *head], *rows]), "", *gauge.verdicts(judged)])


def main() -> int:
    """Print the table and write it to eval/results/; 0 where every bar is met and no contender failed, else 1."""
    parser = gauge.command_line(__doc__)
    parser.parse_args()
    gauge.need_proc(parser)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    about, model = gauge.about(), str(converted_folder())
    turns = gauge.in_turn((name, partial(process.call, contend, name, model)) for name in CONTENDERS)
    memory = {name: found for name, found in turns if found}
    judged = judge(memory)
    print(f"\n{about['machine']}; batches of {2 * PAIRS} rows, {STEPS} steps; resident memory in MiB")
    print(table(memory, judged))
    gauge.keep("memory", {**about, "steps": STEPS, "bars": judged, "memory": memory})
    return 0 if len(judged) == len(BARS) and all(row["met"] is not False for row in judged) else 1


if __name__ == "__main__":
    raise SystemExit(main())
