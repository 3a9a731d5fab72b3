"""PPO on UltraFeedback: a model learns to write what PairRM, or a reward model of your own, prefers.

Deviations from PPO as in arXiv 1707.06347 and, for language models, in arXiv 2203.02155 and 2403.17031:
1. One 4-bit trunk through Unsloth: policy and value function are adapters of it, the reference is the policy's switched
   off or, with `--start-from`, a frozen copy. A reward model trained on the same trunk is one adapter more.
2. Policy and value share no trained weight: each has its learning rate, and there is no coefficient between the losses.
3. One completion a prompt, at temperature 1 in rollouts and training alike; no dropout.
4. PairRM's reward is its logit against the dataset's chosen answer (`--pairrm-reference greedy`: against what the model
   wrote before training). It learned from UltraFeedback itself: ask another judge too (`--judge <reward model>`).
Held-out prompts, before and after: the mean reward of what is sampled at temperature 1.

    python recipes/ultrafeedback_ppo.py --start-from <SFT adapter>           # Llama-3-8B, PairRM
    python recipes/ultrafeedback_ppo.py --reward outputs/ultrafeedback_reward/<model>/<time>/adapter

SmolLM2, its own reward model, one CPU core of two (the other busy), 21 min, 2.8 GB, n = 48 prompts of our own,
2026-11-22: sampled reward 0.36 -> 0.50 (+0.13, 95 % CI +0.04 to +0.23), KL 0.08 nats a token. Its answers sound more
direct, are no truer, and end even less often: cut-off ones score higher. No GPU has run this yet.
"""

import math
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root first: runs from a clone

from data import ultrafeedback
from eval.sampling import evaluate
from recipes.common import cli, machine
from recipes.common.model_table import ModelSpec
from recipes.common.models import default_alias, repair_tokenizer, resolve, weights_source
from recipes.common.preference import freeze_reference, reference_name, start_from
from recipes.common.rollouts import Choice, Rollouts, choose, engine_settings
from recipes.common.run import Run
from recipes.common.stand_ins.tiny import tiny_pairrm_folder
from rewards import comparers

EVAL_SAMPLES = 2  # per prompt, beside the greedy completion
TEMPERATURE = 1.0  # of rollouts, of the probabilities that are trained, and of the sampled evaluation


@dataclass(frozen=True)
class Args:
    # Model
    model: str = "llama-3-8b"
    """llama-3-8b, zephyr-sft, qwen2.5-1.5b, smollm2-135m, any of common/models.py, a hub id or a folder"""
    load_in_4bit: bool = True
    """Quantise the frozen weights to NF4 (QLoRA)"""
    start_from: str | None = None
    """Folder of a LoRA adapter (SFT's) to go on from; it is then also the reference"""
    reward: str = "pairrm"
    """pairrm, a folder of it, or the adapter folder of a reward model (recipes/ultrafeedback_reward.py)"""
    pairrm_reference: Literal["dataset", "greedy"] = "dataset"
    """What PairRM compares with: the dataset's chosen answer, or the model's greedy one before training"""
    # Data
    source: str = "hub"
    """hub (HuggingFaceH4/ultrafeedback_binarized), hub-raw (openbmb/UltraFeedback), sample, or a file of either"""
    max_prompt_length: int = 512
    """Tokens; longer prompts are left out, and a line says how many"""
    # LoRA
    lora_rank: int = 32
    """Rank of the policy's adapter and of the value function's; alpha is the same"""
    # Optimisation
    learning_rate: float = 1e-5
    """Of the policy"""
    value_learning_rate: float = 1e-4
    """Of the value function, which starts at zero"""
    max_steps: int = 500
    """Updates"""
    batch_size: int = 64
    """Completions per update, one for each prompt: 500 updates x 64 are half an epoch of 61,135"""
    minibatch_size: int = 16
    """Completions per optimiser step: 4 epochs x 4 minibatches are 16 steps per update"""
    ppo_epochs: int = 4
    """Passes over the completions of an update"""
    kl_coefficient: float = 0.05
    """Weight of the KL penalty against the reference"""
    target_kl: float | None = None
    """Nats a completion; with it the coefficient adapts"""
    max_update_kl: float | None = 0.1
    """Nats a token that the policy may move in one update; the rest of the update is then left out"""
    score_clip: float | None = 5.0
    """Largest magnitude of a completion's score"""
    whiten_rewards: bool = False
    """Scale rewards to variance 1 before advantages are estimated; these are whitened anyway"""
    missing_end_penalty: float = 1.0
    """Taken off the score of a completion that the length limit cut off"""
    # Generation
    max_completion_length: int = 256
    """Limit in tokens"""
    rollouts: Choice = "auto"
    """vllm: the engine in this process; model: the model's own generate; auto: vllm where it can"""
    # Evaluation
    eval_prompts: int = 256
    """Held-out prompts, the same before and after"""
    judge: str = "none"
    """none, or who compares before with after: a reward model's adapter folder, or pairrm (has seen these data)"""
    # Run
    output_dir: str = "outputs"
    """Where runs go: <output-dir>/ultrafeedback_ppo/<model>/<time>/"""
    max_hours: float | None = None
    """Stop in time for the last evaluation to end within so many hours"""
    resume: bool = False
    """Continue the newest unfinished run of this model"""
    seed: int = 3407
    """Seed of data order, adapters and sampling"""
    report_to: str = "none"
    """Tracker beside the run folder: none, wandb, trackio, tensorboard"""
    smoke: bool = False
    """Walk the whole path in seconds with tiny random models; its figures mean nothing"""


ON_CPU = Args(
    model=default_alias(gpu=False), load_in_4bit=False, source="sample", lora_rank=16, learning_rate=5e-4,
    value_learning_rate=1e-3, max_steps=16, batch_size=32, minibatch_size=8, ppo_epochs=2, missing_end_penalty=0.2,
    max_completion_length=48, eval_prompts=48,
)  # fmt: skip
SMOKE = {"source": "sample", "max_steps": 3, "batch_size": 8, "minibatch_size": 4, "max_completion_length": 8,
         "eval_prompts": 8, "rollouts": "model"}  # fmt: skip


def load_model(args: Args, spec: ModelSpec, engine: str) -> tuple:
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        weights_source(spec, args.load_in_4bit), revision=spec.revision, load_in_4bit=args.load_in_4bit,
        max_seq_length=args.max_prompt_length + args.max_completion_length, **engine_settings(engine, args.lora_rank),
    )  # fmt: skip
    repair_tokenizer(tokenizer, spec)
    model = FastLanguageModel.get_peft_model(
        model, r=args.lora_rank, lora_alpha=args.lora_rank, target_modules=list(spec.lora_targets), lora_dropout=0.0,
        use_gradient_checkpointing="unsloth" if machine.has_gpu() else False, random_state=args.seed,
    )  # fmt: skip
    if args.start_from:
        start_from(model, args.start_from)
        freeze_reference(model)
    return model, tokenizer


def ppo_config(args: Args, run: Run) -> Any:
    from recipes.common.ppo import PPOConfig

    return PPOConfig(
        **run.trainer_settings("ppo"),
        max_steps=args.max_steps,
        learning_rate=args.learning_rate,
        value_learning_rate=args.value_learning_rate,
        lr_scheduler_type="constant",
        per_device_train_batch_size=args.batch_size,
        minibatch_size=args.minibatch_size,
        micro_batch_size=math.gcd(8, args.minibatch_size),
        ppo_epochs=args.ppo_epochs,
        max_completion_length=args.max_completion_length,
        temperature=TEMPERATURE,
        kl_coefficient=args.kl_coefficient,
        kl_estimator="k1",  # what a token costs may be negative, as in the papers; k3 is never
        target_kl=args.target_kl,
        max_update_kl=args.max_update_kl,
        score_clip=args.score_clip,
        whiten_rewards=args.whiten_rewards,
        missing_end_penalty=args.missing_end_penalty,
        mask_truncated=False,  # that a completion does not end is what the penalty teaches
    )


def main(args: Args) -> None:
    spec, engine = resolve(args.model), choose(args.rollouts, args.load_in_4bit)
    rated_by = comparers.reward_by_name(str(tiny_pairrm_folder()) if args.smoke else args.reward)
    judge = comparers.by_name(args.judge)
    train = ultrafeedback.load("train", source=args.source)
    test = ultrafeedback.load("test", source=args.source, limit=args.eval_prompts)
    reference = reference_name(args.start_from)
    run = Run.open("ultrafeedback_ppo", spec, args, correct=None, format=None, reference=reference)
    model, tokenizer = load_model(args, spec, engine)
    rollouts = Rollouts(engine, model, tokenizer, args.max_prompt_length + args.max_completion_length)
    from recipes.common.ppo import PPOTrainer, add_references, short_prompts

    train, test = (short_prompts(rows, tokenizer, args.max_prompt_length) for rows in (train, test))
    refer = partial(add_references, args.pairrm_reference, rollouts.sampler, args.max_completion_length)
    train, test = refer(train, "train"), refer(test, "held out")
    reward = rated_by(model)
    assess = partial(
        evaluate, rollouts.sampler, test, [reward], [1.0], samples=EVAL_SAMPLES, temperature=TEMPERATURE,
        max_tokens=args.max_completion_length, seed=args.seed,
    )  # fmt: skip
    run.stage("before", assess)
    config = ppo_config(args, run)
    run.train(PPOTrainer(model, reward, config, rollouts.sampler, train_dataset=train, processing_class=tokenizer))
    run.save_adapter("adapter", model, tokenizer)
    run.stage("after", assess)
    if judge:
        run.judge(judge, test["prompt"])
    run.finish()


if __name__ == "__main__":
    cli.start(main, on_cpu=ON_CPU, on_gpu=Args(), smoke=SMOKE)
