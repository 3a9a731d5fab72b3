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

import gc
import os
import tempfile
from dataclasses import asdict, dataclass
from typing import Any

from recipes.bench import gauge, process
from recipes.bench.training_speed import settings, with_unsloth
from recipes.common.stand_ins.smollm2 import converted_folder

PAIRS, STEPS, MAX_LENGTH = 4, 3, 256
CONTENDERS = ("sft", "dpo", "dpo precomputed", "kto", "orpo", "simpo")
PEER = "sft"
BARS = {"dpo": 1.25, "dpo precomputed": 1.25}  # whose memory, and the largest ratio to the peer's


@dataclass(frozen=True)
class Memory:
    """What one contender took, and on what."""

    start_mib: int
    """Resident memory when the trainer is about to be built: model loaded, libraries imported"""
    peak_mib: int
    """Most resident memory from then to the end of training"""
    batch: list[int]
    """Rows, and tokens of the longest, of every batch that is learned from"""
    tokens: int
    """In a batch, padding left out"""

    @property
    def above_mib(self) -> int:
        return self.peak_mib - self.start_mib


def contend(name: str, folder: str) -> dict[str, Any]:
    """Train `STEPS` steps as the contender `name` with the model in `folder`. Returns the fields of a `Memory`.

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
    batches: set[tuple[int, int, int]] = set()

    def count(_: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled():  # a pass of the reference learns nothing
            rows, width = (args[0] if args else kwargs["input_ids"]).shape
            batches.add((rows, width, int(kwargs["attention_mask"].sum())))

    model.register_forward_pre_hook(count, with_kwargs=True)
    gc.collect()
    start = gauge.resident_mib("VmRSS")
    gauge.reset_peak()
    with tempfile.TemporaryDirectory() as output:
        shared: dict[str, Any] = {
            **settings(output),
            "max_steps": STEPS,
            "max_length": MAX_LENGTH,
            "bf16": True,
            "optim": "adamw_torch_fused",
            "dataloader_pin_memory": False,
        }
        by_row = {**shared, "per_device_train_batch_size": 2 * PAIRS}
        by_pair = {**shared, "per_device_train_batch_size": PAIRS}
        trainer: Any
        if name == "sft":
            config = trl.SFTConfig(**by_row, completion_only_loss=True)
            rows = unpaired(pairs).remove_columns("label")
            trainer = trl.SFTTrainer(model, config, train_dataset=rows, processing_class=tokenizer)
        elif name in ("dpo", "dpo precomputed"):
            config = trl.DPOConfig(**by_pair, precompute_ref_log_probs=name == "dpo precomputed")
            trainer = trl.DPOTrainer(model, args=config, train_dataset=pairs, processing_class=tokenizer)
            switch_off_reference(trainer)
        elif name == "kto":
            config = trl.KTOConfig(**by_row)
            trainer = trl.KTOTrainer(model, args=config, train_dataset=unpaired(pairs), processing_class=tokenizer)
            switch_off_reference(trainer)
        elif name == "orpo":
            config = ORPOConfig(**by_pair)
            texts = rendered(pairs, tokenizer, MAX_LENGTH)
            trainer = ORPOTrainer(model, args=config, train_dataset=texts, processing_class=tokenizer)
        else:
            config = CPOConfig(**by_pair, loss_type="simpo", cpo_alpha=0.0)
            texts = rendered(pairs, tokenizer, MAX_LENGTH)
            trainer = CPOTrainer(model, args=config, train_dataset=texts, processing_class=tokenizer)
        trainer.train()
    if len(batches) != 1:
        raise RuntimeError(f"{name}: batches of (rows, tokens of the longest, tokens) {sorted(batches)}, not all alike")
    ((rows, width, tokens),) = batches
    return asdict(Memory(start, gauge.resident_mib("VmHWM"), [rows, width], tokens))


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
    """Every contender beside `PEER`, which must be among them: "whose", "peer", "ratio" of what they took above their
    start, and "bar" and whether "met", both None where there is none.

    Raises RuntimeError where a contender with a bar had other tokens than `PEER`: the ratio would compare nothing.
    """
    peer, rows = memory[PEER], []
    for name, own in memory.items():
        bar = BARS.get(name)
        if bar and (own.batch, own.tokens) != (peer.batch, peer.tokens):
            raise RuntimeError(
                f"{name} had batches of {own.batch} with {own.tokens} tokens, and {PEER} of {peer.batch} with "
                f"{peer.tokens}: their memory cannot be compared"
            )
        if name != PEER:
            ratio = own.above_mib / peer.above_mib
            row = {"whose": name, "peer": PEER, "ratio": round(ratio, 3), "bar": bar}
            rows.append({**row, "met": None if bar is None else ratio <= bar})
    return rows


def table(memory: dict[str, Memory], judged: list[dict[str, Any]]) -> str:
    """A line for each contender: tokens of a batch, MiB at its start, at its peak and between, and its verdict."""
    verdicts = {PEER: ""}
    for row in judged:
        bar = "for information"
        if row["bar"] is not None:
            bar = f"at most {row['bar']:.2f}: {'met' if row['met'] else 'MISSED'}"
        verdicts[row["whose"]] = f"{row['ratio']:8.3f}   {bar}"
    lines = [f"{'':16}{'tokens':>8}{'start':>8}{'peak':>8}{'above':>8}{'/ ' + PEER:>8}"]
    for name, own in memory.items():
        figures = (own.tokens, own.start_mib, own.peak_mib, own.above_mib)
        lines.append((f"{name:16}" + "".join(f"{figure:8,}" for figure in figures) + verdicts[name]).rstrip())
    return "\n".join(lines)


def main() -> int:
    """Print the table and write it to eval/results/; 0 where every bar is met,
    1 where one is missed or a contender failed."""
    parser = gauge.command_line(__doc__)
    parser.parse_args()
    gauge.need_proc(parser)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    about, model = gauge.about(), str(converted_folder())
    memory: dict[str, Memory] = {}
    failed: list[str] = []
    for name in CONTENDERS:
        try:
            memory[name] = Memory(**process.call(contend, name, model))
        except process.Failed as error:  # the others' figures must not go with it
            print(f"{name} failed: {error}", flush=True)
            failed.append(name)
            continue
        print(f"{name}: {memory[name].above_mib:,} MiB", flush=True)
    if PEER not in memory:
        print(f"{PEER} did not end, so nothing can be compared and nothing is written.")
        return 1
    judged = judge(memory)
    rows, width = memory[PEER].batch
    print(f"\n{about['machine']}; {rows} rows of at most {width} tokens, {STEPS} steps; resident memory in MiB")
    print(table(memory, judged))

    figures = {
        **about,
        "steps": STEPS,
        "bars": judged,
        "memory": {name: {**asdict(own), "above_mib": own.above_mib} for name, own in memory.items()},
        "failed": failed,
    }
    gauge.keep("memory", figures)
    return 0 if all(row["met"] is not False for row in judged) and not failed else 1


if __name__ == "__main__":
    raise SystemExit(main())
