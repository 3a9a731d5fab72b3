"""GRPO on weekdays: a model learns to count days aloud and to answer with the one it arrives at.

Deviations from the GRPO paper (arXiv 2402.03300) and from TRL's defaults:
1. QLoRA, no KL penalty, DAPO's loss and clip bounds (arXiv 2503.14476), an SFT warm start: as in gsm8k_grpo.py.
2. The questions are all there are, 126, and one in ten of them is held out: far too few to call a small gain a gain.
Rewards, each in [0, 1], with weights: exact match of the answer block 2, tags 0.5, structure 0.5.

    python recipes/weekdays_grpo.py --model llama-3.2-3b
    python recipes/weekdays_grpo.py                     # without a GPU: SmolLM2-135M

SmolLM2, one CPU core of two (both busy), 23 min, n = 10, 2026-11-30: exact match 0 -> 30 (warm start) -> 20 %, which is
chance; sampled reward 0 -> 1.03 -> 1.24 of 3. The format it learnt, and no counting. No GPU has run this yet.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root first: runs from a clone

from data import weekdays
from recipes.common import cli, machine
from recipes.common.args import GRPOArgs, split_batch
from recipes.common.grpo import assessment, load_policy, warm_start
from recipes.common.run import Run
from rewards.contract import Reward
from rewards.format import structure_reward, tags_reward
from rewards.rag import exact_match_reward

REWARDS: dict[Reward, float] = {exact_match_reward: 2.0, tags_reward: 0.5, structure_reward: 0.5}
EVAL_SAMPLES, TEMPERATURE = 4, 1.0  # a question, beside the greedy one; the temperature of the rollouts too


@dataclass(frozen=True, kw_only=True)
class Args(GRPOArgs):
    source: str = "sample"
    """sample (all there are), or a .jsonl or .parquet with the columns day and days"""
    lora_rank: int = 16
    learning_rate: float = 1e-5  # ten times what full training takes
    lr_scheduler_type: str = "constant"
    weight_decay: float = 0.0
    max_steps: int = 30  # x 8 questions: twice all of them
    sft_steps: int = 0  # instruct models of 1B and more write the tags when asked
    sft_learning_rate: float = 2e-4
    prompts_per_step: int = 8  # 8 questions x 8 = 64 completions per update
    num_generations: int = 8
    max_prompt_length: int = 208  # 67 in SmolLM2's vocabulary; in that of --smoke a whole worked example has 214
    """Tokens; longer prompts are left out, and a line says how many"""
    max_completion_length: int = 256
    eval_problems: int = 10


# Minutes on two cores: 4 questions x 8 = 32 completions per update.
ON_CPU = Args().on_cpu(
    learning_rate=2e-4,
    max_steps=8,
    sft_steps=12,
    sft_learning_rate=1e-3,
    prompts_per_step=4,
    max_completion_length=96,
)
SMOKE = {"max_steps": 2, "sft_steps": 2, "prompts_per_step": 1, "num_generations": 4, "max_completion_length": 16}


def grpo_config(args: Args, run: Run, engine: str) -> object:
    from trl import GRPOConfig

    return GRPOConfig(
        **run.trainer_settings("grpo"),
        **split_batch(args, at_once=args.num_generations),  # one group: no batch can be indivisible
        learning_rate=args.learning_rate,
        lr_scheduler_type=args.lr_scheduler_type,
        weight_decay=args.weight_decay,
        optim=machine.on_gpu("adamw_8bit", otherwise="adamw_torch_fused"),
        max_grad_norm=1.0,
        warmup_steps=0,
        num_generations=args.num_generations,
        max_completion_length=args.max_completion_length,
        temperature=TEMPERATURE,
        top_p=1.0,
        beta=args.beta,
        loss_type="dapo",
        epsilon=0.2,
        epsilon_high=0.28,
        scale_rewards="group",
        mask_truncated_completions=True,
        reward_weights=[*REWARDS.values()],
        vllm_importance_sampling_correction=True,
        use_vllm=engine == "vllm" and machine.has_gpu(),  # on a CPU, Rollouts.attach brings the engine
    )


def main(args: Args) -> None:
    train = weekdays.load("train", source=args.source)
    test = weekdays.load("test", source=args.source, limit=args.eval_problems)
    run = Run.open("weekdays_grpo", args, correct="exact_match_reward", format="structure_reward")
    policy = load_policy(args, run.spec, max_prompt_length=args.max_prompt_length)
    assess = assessment(args, policy, test, REWARDS, samples=EVAL_SAMPLES, temperature=TEMPERATURE)
    run.stage("before", assess)
    warm_start(args, run, policy, partial(weekdays.worked_examples, train), assess)
    run.train(policy.trainer(REWARDS, grpo_config(args, run, policy.engine), train), then=assess)
    run.finish()


if __name__ == "__main__":
    cli.start(main, on_cpu=ON_CPU, on_gpu=Args(), smoke=SMOKE)
