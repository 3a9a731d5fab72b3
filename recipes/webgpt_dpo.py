"""DPO on WebGPT: a base model learns which of two answers to a question people preferred.

Deviations from the DPO paper (arXiv 2305.18290) and from TRL's defaults:
1. QLoRA through Unsloth. The reference is the same model with its adapter switched off, never a second one; with
   `--start-from` it is a frozen copy of the adapter that training starts from.
2. A base model has no chat template: ours is set (common/model_table.py), and the data teach its end token. DPO is
   meant to follow SFT: give an adapter of evolkit_sft.py or of your own to `--start-from` for better answers.
3. `[1]` citation marks are taken out: the quotes they point to are not in the prompt.
4. `--loss` names any of TRL's losses, IPO (arXiv 2310.12036) among them; `--sft-weight` adds an SFT term on the chosen
   answers, the remedy where the probability of both answers falls (arXiv 2402.13228), which the run watches for.
Held-out pairs, before and after: does the reward, beta x (log policy - log reference), rank the chosen answer first?

    python recipes/webgpt_dpo.py --model llama-3-8b
    python recipes/webgpt_dpo.py                   # without a GPU: SmolLM2, our own pairs

SmolLM2, one CPU core, 7 min, 2.8 GB, n = 48 pairs of our own, 2026-11-22: accuracy 50 % (a coin) -> 100 % (95 % CI 93
to 100), margin 0 -> 6.0, KL 0.6 nats a token. Its answers became more direct (cut off at 64 tokens: 96 -> 42 %) and no
truer. No GPU has run this yet.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root first: runs from a clone

from data import webgpt
from eval.metrics import PREFERENCE
from recipes.common import cli, judging, machine
from recipes.common.args import PreferenceArgs, Schedule, split_batch
from recipes.common.preference import assessment, check_and_watch, load, pairs, reference_name
from recipes.common.run import Run

REMEDY = "--sft-weight 0.1, an SFT term on the chosen answers"  # where the probability of both answers falls
Loss = Literal["sigmoid", "ipo", "hinge", "apo_zero", "apo_down", "sigmoid_norm"]


@dataclass(frozen=True, kw_only=True)
class Args(PreferenceArgs):
    model: str = "llama-3-8b"
    source: str = "hub"
    """hub (openai/webgpt_comparisons), sample (96 pairs of our own), or a .jsonl or .parquet in its schema"""
    lora_rank: int = 64
    loss: Loss = "sigmoid"
    """sigmoid is DPO; IPO and others of trl.DPOConfig. The figures are of DPO's reward whatever the loss"""
    beta: float = 0.1
    """How closely the policy is held to the reference (IPO's tau)"""
    sft_weight: float = 0.0
    """Weight of an SFT term on the chosen answers"""
    precompute_ref: bool = False
    """Compute the reference's log-probabilities once, before training: a pass less in each step"""
    learning_rate: float = 5e-6  # of Unsloth's Zephyr notebook, as beta, rank and batch
    lr_scheduler_type: Schedule = "linear"
    weight_decay: float = 0.0
    max_steps: int = 1500
    batch_size: int = 8
    max_length: int = 1024
    max_completion_length: int = 256
    eval_pairs: int = 500


ON_CPU = Args().on_cpu(
    lora_rank=16, learning_rate=5e-4, max_steps=36, max_length=256, max_completion_length=64, eval_pairs=48
)
SMOKE = {"max_steps": 3, "batch_size": 4, "max_completion_length": 8}


def dpo_config(args: Args, run: Run) -> object:
    from trl import DPOConfig

    return DPOConfig(
        **run.trainer_settings("dpo"),
        **split_batch(args, at_once=4),  # 4 pairs are 8 rows
        learning_rate=args.learning_rate,
        lr_scheduler_type=args.lr_scheduler_type,
        weight_decay=args.weight_decay,
        optim=machine.on_gpu("adamw_8bit", otherwise="adamw_torch_fused"),
        max_grad_norm=1.0,
        warmup_steps=0.1,
        max_length=args.max_length,
        beta=args.beta,
        loss_type=[args.loss, "sft"] if args.sft_weight else [args.loss],
        loss_weights=[1.0, args.sft_weight] if args.sft_weight else None,
        precompute_ref_log_probs=args.precompute_ref,
        disable_dropout=True,  # policy and reference differ by training and not by noise
    )


def main(args: Args) -> None:
    train = webgpt.load("train", source=args.source)
    test = webgpt.load("test", source=args.source, limit=args.eval_pairs)
    prefer = judging.comparer(args)
    reference = reference_name(args.start_from)
    run = Run.open("webgpt_dpo", args, correct=PREFERENCE, format=None, reference=reference)
    model, tokenizer, test = load(args, run.spec, test)
    assess = assessment(args, run, model, tokenizer, test, beta=args.beta)
    from trl import DPOTrainer

    run.stage("before", assess)
    trainer = DPOTrainer(model, args=dpo_config(args, run), train_dataset=pairs(train), processing_class=tokenizer)
    run.train(check_and_watch(args, trainer, test, remedy=REMEDY), then=assess)
    run.finish(prefer=prefer, prompts=test["prompt"])


if __name__ == "__main__":
    cli.start(main, on_cpu=ON_CPU, on_gpu=Args(), smoke=SMOKE)
