"""KTO on UltraFeedback: a model learns from single answers marked good or bad, without knowing any pair.

Deviations from the KTO paper (arXiv 2402.01306) and from TRL's defaults:
1. QLoRA through Unsloth. The reference is the same model with its adapter switched off, never a second one; with
   `--start-from` it is a frozen copy of the adapter that training starts from.
2. Each pair becomes two rows, which stand far apart: the KL term is estimated from the neighbours of a row in its
   batch, which must answer other prompts (data/preferences.py). A micro-batch below 4 would make it noise.
3. The weights of good and bad rows follow from their numbers, to the paper's range of 1:1 to 4:3.
Held-out pairs, before and after: does the reward, beta x (log policy - log reference), rank the chosen answer first?

    python recipes/ultrafeedback_kto.py --model qwen2.5-1.5b
    python recipes/ultrafeedback_kto.py                      # without a GPU: SmolLM2, our own rows

SmolLM2, one CPU core, 5 min, 2.6 GB, n = 48 pairs of our own, 2026-11-22: accuracy 50 % (a coin) -> 100 % (95 % CI 93
to 100), margin 0 -> 6.1, KL 0.8 nats a token. Its answers became direct (cut off at 64 tokens: 94 -> 2 %) and no truer
("rub red wine into the carpet"). No GPU has run this yet.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root first: runs from a clone

from data import ultrafeedback
from data.preferences import label_weights, unpaired
from eval.metrics import PREFERENCE
from recipes.common import cli, judging, machine
from recipes.common.args import PreferenceArgs, Schedule, split_batch
from recipes.common.preference import assessment, check_and_watch, load, reference_name
from recipes.common.run import Run


@dataclass(frozen=True, kw_only=True)
class Args(PreferenceArgs):
    model: str = "qwen2.5-1.5b"
    source: str = "hub"
    """hub (HuggingFaceH4/ultrafeedback_binarized), hub-raw (openbmb/UltraFeedback), sample, or a file of either"""
    lora_rank: int = 16
    beta: float = 0.1
    """How closely the policy is held to the reference"""
    precompute_ref: bool = False
    """Compute the reference's log-probabilities once, before training: a pass less in each step"""
    learning_rate: float = 5e-7  # of TRL's QLoRA example, as the rank; the paper's 5e-6 is for batches of 32
    lr_scheduler_type: Schedule = "cosine"
    weight_decay: float = 0.0
    max_steps: int = 15_283  # x 8 rows are one epoch of 61,135 pairs
    batch_size: int = 8
    max_length: int = 1024
    max_completion_length: int = 256
    eval_pairs: int = 2000  # all that UltraFeedback has


ON_CPU = Args().on_cpu(learning_rate=5e-4, max_steps=48, max_length=256, max_completion_length=64, eval_pairs=48)
SMOKE = {"max_steps": 3, "batch_size": 4, "max_completion_length": 8}


def kto_config(args: Args, run: Run, weights: tuple[float, float]) -> object:
    from trl import KTOConfig

    return KTOConfig(
        **run.trainer_settings("kto"),
        **split_batch(args, at_once=8),  # below 4, the KL term would be noise
        learning_rate=args.learning_rate,
        lr_scheduler_type=args.lr_scheduler_type,
        weight_decay=args.weight_decay,
        optim=machine.on_gpu("adamw_8bit", otherwise="adamw_torch_fused"),
        max_grad_norm=1.0,
        warmup_steps=0.1,
        max_length=args.max_length,
        beta=args.beta,
        loss_type="kto",
        desirable_weight=weights[0],
        undesirable_weight=weights[1],
        precompute_ref_log_probs=args.precompute_ref,
        disable_dropout=True,
    )


def main(args: Args) -> None:
    train = ultrafeedback.load("train", source=args.source)
    test = ultrafeedback.load("test", source=args.source, limit=args.eval_pairs)
    prefer = judging.comparer(args)
    reference = reference_name(args.start_from)
    run = Run.open("ultrafeedback_kto", args, correct=PREFERENCE, format=None, reference=reference)
    model, tokenizer, test = load(args, run.spec, test)
    assess = assessment(args, run, model, tokenizer, test, beta=args.beta)
    from trl import KTOTrainer

    run.stage("before", assess)
    rows = unpaired(train)
    config = kto_config(args, run, label_weights(rows["label"]))
    trainer = KTOTrainer(model, args=config, train_dataset=rows, processing_class=tokenizer)
    run.train(check_and_watch(args, trainer, None, remedy="a higher --beta or a lower --learning-rate"), then=assess)
    run.finish(prefer=prefer, prompts=test["prompt"])


if __name__ == "__main__":
    cli.start(main, on_cpu=ON_CPU, on_gpu=Args(), smoke=SMOKE)
