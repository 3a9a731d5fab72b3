"""DPO on WebGPT: a base model learns which of two answers to a question people preferred.

Deviations from the DPO paper (arXiv 2305.18290) and from TRL's defaults:
1. QLoRA through Unsloth. The reference is the same model with its adapter switched off, never a second one; with
   `--start-from` it is a frozen copy of the adapter that training starts from.
2. A base model has no chat template: ours is set (recipes/common/models.py), and the data teach its end token. DPO is
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

import math
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root first: runs from a clone

from data import webgpt
from eval.metrics import PREFERENCE
from eval.pairs import measure_pairs
from eval.sampling import evaluate
from recipes.common import cli, machine
from recipes.common.model_table import ModelSpec
from recipes.common.models import default_alias, repair_tokenizer, resolve, weights_source
from recipes.common.preference import reference_name, reference_policy, start_from, switch_off_reference, watch
from recipes.common.rollouts import Rollouts
from recipes.common.run import Run
from recipes.common.supervision import audit_pairs
from rewards import comparers

Loss = Literal["sigmoid", "ipo", "hinge", "apo_zero", "apo_down", "sigmoid_norm"]


@dataclass(frozen=True)
class Args:
    # Model
    model: str = "llama-3-8b"
    """llama-3-8b, zephyr-sft, qwen2.5-1.5b, smollm2-135m, any of common/models.py, a hub id or a folder"""
    load_in_4bit: bool = True
    """Quantise the frozen weights to NF4 (QLoRA)"""
    start_from: str | None = None
    """Folder of a LoRA adapter (SFT's) to go on from; it is then also the reference"""
    # Data
    source: str = "hub"
    """hub (openai/webgpt_comparisons), sample (96 pairs of our own), or a .jsonl or .parquet in its schema"""
    max_length: int = 1024
    """Longest prompt and answer in tokens; longer ones are cut"""
    # LoRA
    lora_rank: int = 64
    """Rank of the adapter; its alpha is the same"""
    # Optimisation
    loss: Loss = "sigmoid"
    """sigmoid is DPO; IPO and others of trl.DPOConfig. The figures are of DPO's reward whatever the loss"""
    beta: float = 0.1
    """How closely the policy is held to the reference (IPO's tau)"""
    sft_weight: float = 0.0
    """Weight of an SFT term on the chosen answers"""
    precompute_ref: bool = False
    """Compute the reference's log-probabilities once, before training: a pass less in each step"""
    learning_rate: float = 5e-6
    """Of Unsloth's Zephyr notebook, as beta, rank and batch"""
    max_steps: int = 1500
    """Updates of 8 pairs"""
    batch_size: int = 8
    """Pairs per update"""
    # Supervision
    show_tokens: int = 0
    """Print so many pairs with the answers marked, before training"""
    allow_unsupervised: bool = False
    """Train even where the audit finds pairs that teach nothing or teach a fault"""
    # Evaluation
    eval_pairs: int = 500
    """Held-out pairs, the same before and after"""
    max_completion_length: int = 256
    """Limit in tokens of the answers written for reading and judging"""
    judge: str = "none"
    """none, or the judge between before and after: a reward model's adapter folder, or pairrm (has seen these data)"""
    # Run
    output_dir: str = "outputs"
    """Where runs go: <output-dir>/webgpt_dpo/<model>/<time>/"""
    max_hours: float | None = None
    """Stop in time for the last evaluation to end within so many hours"""
    resume: bool = False
    """Continue the newest unfinished run of this model"""
    seed: int = 3407
    """Seed of data order and adapter"""
    report_to: str = "none"
    """Tracker beside the run folder: none, wandb, trackio, tensorboard"""
    smoke: bool = False
    """Walk the whole path in seconds with a tiny random model; its figures mean nothing"""


ON_CPU = Args(
    model=default_alias(gpu=False), load_in_4bit=False, source="sample", max_length=256, lora_rank=16, beta=0.1,
    learning_rate=5e-4, max_steps=36, batch_size=8, eval_pairs=48, max_completion_length=64,
)  # fmt: skip
SMOKE = {"source": "sample", "max_steps": 3, "batch_size": 4, "eval_pairs": 8, "max_completion_length": 8}


def load_model(args: Args, spec: ModelSpec) -> tuple:
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        weights_source(spec, args.load_in_4bit), revision=spec.revision, load_in_4bit=args.load_in_4bit,
        max_seq_length=args.max_length,
    )  # fmt: skip
    repair_tokenizer(tokenizer, spec)
    model = FastLanguageModel.get_peft_model(
        model, r=args.lora_rank, lora_alpha=args.lora_rank, target_modules=list(spec.lora_targets), lora_dropout=0.0,
        use_gradient_checkpointing="unsloth" if machine.has_gpu() else False, random_state=args.seed,
    )  # fmt: skip
    if args.start_from:
        start_from(model, args.start_from)
    return model, tokenizer


def dpo_config(args: Args, run: Run) -> object:
    from trl import DPOConfig

    return DPOConfig(
        **run.trainer_settings("dpo"),
        max_steps=args.max_steps,
        learning_rate=args.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=0.1,
        per_device_train_batch_size=math.gcd(4, args.batch_size),  # 4 pairs are 8 rows
        gradient_accumulation_steps=args.batch_size // math.gcd(4, args.batch_size),
        max_length=args.max_length,
        beta=args.beta,
        loss_type=[args.loss, "sft"] if args.sft_weight else [args.loss],
        loss_weights=[1.0, args.sft_weight] if args.sft_weight else None,
        precompute_ref_log_probs=args.precompute_ref,
        disable_dropout=True,
    )


def main(args: Args) -> None:
    spec = resolve(args.model)
    train = webgpt.load("train", source=args.source)
    test = webgpt.load("test", source=args.source, limit=args.eval_pairs)
    judge = comparers.by_name(args.judge)
    name = "webgpt_dpo"
    run = Run.open(name, spec, args, correct=PREFERENCE, format=None, reference=reference_name(args.start_from))
    model, tokenizer = load_model(args, spec)

    def pairs(held_out: Any) -> list:
        return measure_pairs(
            model, tokenizer, held_out, beta=args.beta, before=run.stages.get("before"),
            reference=partial(reference_policy, model), max_length=args.max_length,
        )  # fmt: skip

    assess = partial(
        evaluate, Rollouts("model", model, tokenizer, args.max_length).sampler, test, [], [], samples=0,
        temperature=0.0, max_tokens=args.max_completion_length, seed=args.seed, extra=pairs,
    )  # fmt: skip
    from trl import DPOTrainer

    run.stage("before", assess)
    rows = train.select_columns(["prompt", "chosen", "rejected"])
    trainer = DPOTrainer(model, args=dpo_config(args, run), train_dataset=rows, processing_class=tokenizer)
    if not args.start_from:
        switch_off_reference(trainer)
    audit_pairs(trainer, allow_unsupervised=args.allow_unsupervised, show_tokens=args.show_tokens)
    watch(trainer, test, remedy="--sft-weight 0.1, an SFT term on the chosen answers")
    run.train(trainer)
    run.save_adapter("adapter", model, tokenizer)
    run.stage("after", assess)
    if judge:
        run.judge(judge, test["prompt"])
    run.finish()


if __name__ == "__main__":
    cli.start(main, on_cpu=ON_CPU, on_gpu=Args(), smoke=SMOKE)
