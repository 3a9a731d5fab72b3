"""SimPO on UltraFeedback: a model learns to make the better answer likelier per token, without a reference model.

SimPO (arXiv 2405.14734): -log sigmoid(beta x (mean log-probability of chosen - of rejected) - gamma). Deviations from
the paper and from TRL's defaults:
1. QLoRA through Unsloth instead of training every weight; hence ten times the learning rate of the authors' table.
2. beta 2 and gamma 1.6, the authors' for Mistral-7B, of which Zephyr's SFT model is one.
3. Pure SimPO: `--sft-weight` is CPO's SFT term on the chosen answers (CPO-SimPO), off.
4. Pairs are rendered here: TRL's experimental trainer ends a ChatML answer twice and divides by zero where a prompt
   fills the length limit (recipes/common/preference.py).
Held-out pairs, before and after: is the chosen answer the likelier one, per token?

    python recipes/ultrafeedback_simpo.py --model zephyr-sft
    python recipes/ultrafeedback_simpo.py                    # without a GPU: SmolLM2, our own pairs

SmolLM2, one CPU core, 5 min, 2.3 GB, n = 48 pairs of our own, 2026-11-22: accuracy 58 -> 100 % (95 % CI of the
difference +27 to +56), margin 0.3 -> 5.6, KL 1.2 nats a token. It learnt their form, an answer and its reason (cut off
at 64 tokens: 94 -> 35 %), and no facts. At a learning rate of 1e-4: +6 points (0 to +15). No GPU has run this yet.
"""

import math
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root first: runs from a clone

from data import ultrafeedback
from eval.metrics import PREFERENCE
from eval.pairs import measure_pairs
from eval.sampling import evaluate
from recipes.common import cli, machine
from recipes.common.model_table import ModelSpec
from recipes.common.models import default_alias, repair_tokenizer, resolve, weights_source
from recipes.common.preference import reference_policy, rendered, start_from, watch
from recipes.common.rollouts import Rollouts
from recipes.common.run import Run
from recipes.common.supervision import audit_pairs
from rewards import comparers


@dataclass(frozen=True)
class Args:
    # Model
    model: str = "zephyr-sft"
    """zephyr-sft, llama-3-8b, qwen2.5-1.5b, smollm2-135m, any of common/models.py, a hub id or a folder"""
    load_in_4bit: bool = True
    """Quantise the frozen weights to NF4 (QLoRA)"""
    start_from: str | None = None
    """Folder of a LoRA adapter (SFT's) to go on from"""
    # Data
    source: str = "hub"
    """hub (HuggingFaceH4/ultrafeedback_binarized), hub-raw (openbmb/UltraFeedback), sample, or a file of either"""
    max_length: int = 1024
    """Longest prompt and answer in tokens; longer ones are cut, and prompts as long are left out"""
    # LoRA
    lora_rank: int = 64
    """Rank of the adapter; its alpha is the same"""
    # Optimisation
    beta: float = 2.0
    """Scale of the reward, a mean log-probability: far larger than DPO's"""
    gamma: float = 1.6
    """Margin that the rewards are to reach; the authors tune its ratio to beta, 0.8 here"""
    sft_weight: float = 0.0
    """Weight of an SFT term on the chosen answers"""
    learning_rate: float = 3e-6
    """Ten times the authors' for training every weight"""
    max_steps: int = 3820
    """Updates: 3,820 x 16 pairs are one epoch of 61,135"""
    batch_size: int = 16
    """Pairs per update"""
    # Supervision
    show_tokens: int = 0
    """Print so many pairs with the answers marked, before training"""
    allow_unsupervised: bool = False
    """Train even where the audit finds pairs that teach nothing or teach a fault"""
    # Evaluation
    eval_pairs: int = 2000
    """Held-out pairs, the same before and after; UltraFeedback has 2,000"""
    max_completion_length: int = 256
    """Limit in tokens of the answers written for reading and judging"""
    judge: str = "none"
    """none, or the judge between before and after: a reward model's adapter folder, or pairrm (has seen these data)"""
    # Run
    output_dir: str = "outputs"
    """Where runs go: <output-dir>/ultrafeedback_simpo/<model>/<time>/"""
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
    model=default_alias(gpu=False), load_in_4bit=False, source="sample", max_length=256, lora_rank=16,
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


def simpo_config(args: Args, run: Run) -> object:
    from trl.experimental.cpo import CPOConfig

    return CPOConfig(
        **run.trainer_settings("simpo"),
        max_steps=args.max_steps,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        per_device_train_batch_size=math.gcd(2, args.batch_size),  # this trainer keeps the logits of all 4 rows
        gradient_accumulation_steps=args.batch_size // math.gcd(2, args.batch_size),
        max_length=args.max_length,
        beta=args.beta,
        loss_type="simpo",
        simpo_gamma=args.gamma,
        cpo_alpha=args.sft_weight,
        disable_dropout=True,
        remove_unused_columns=False,  # the collator picks its own
    )


def main(args: Args) -> None:
    spec = resolve(args.model)
    train = ultrafeedback.load("train", source=args.source)
    test = ultrafeedback.load("test", source=args.source, limit=args.eval_pairs)
    judge = comparers.by_name(args.judge)
    run = Run.open("ultrafeedback_simpo", spec, args, correct=PREFERENCE, format=None)
    model, tokenizer = load_model(args, spec)

    def pairs(held_out: Any) -> list:
        return measure_pairs(
            model, tokenizer, held_out, beta=args.beta, before=run.stages.get("before"), per_token=True,
            reference=partial(reference_policy, model), max_length=args.max_length,
        )  # fmt: skip

    assess = partial(
        evaluate, Rollouts("model", model, tokenizer, args.max_length).sampler, test, [], [], samples=0,
        temperature=0.0, max_tokens=args.max_completion_length, seed=args.seed, extra=pairs,
    )  # fmt: skip
    from trl.experimental.cpo import CPOTrainer

    run.stage("before", assess)
    rows = rendered(train, tokenizer, args.max_length)
    trainer = CPOTrainer(model, args=simpo_config(args, run), train_dataset=rows, processing_class=tokenizer)
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
