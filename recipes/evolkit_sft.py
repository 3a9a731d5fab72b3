"""Fine-tuning on EvolKit's conversations: OPT-1.3B, a base model, learns to answer a request and to stop.

Deviations from common practice and from TRL's defaults:
1. The loss is taken over the last answer and the end of the turn alone, through prompt and completion columns: a text
   that marks where answers begin is cut into other tokens in context than alone.
2. OPT has no chat template, and one token for beginning and end. Both are set in common/model_table.py; the audit
   before training shows whether the end is learnt.
3. Each adapter has the learning rate that suits it, and rows are grouped by length, not packed: see arc_sft.py.
There is no right answer: the held-out loss (perplexity) decides, and BLEU and ROUGE-L with the set's own answers, which
a language model wrote and nobody checked, are further figures. BERTScore is left out: its model is not at hand.

    python recipes/evolkit_sft.py --adapter full                  # OPT-1.3B; or lora, qlora, dora, p-tuning, ...
    python recipes/evolkit_sft.py                                 # without a GPU: SmolLM2, our own rows
    python -m recipes.tools.compare_adapters --dataset evolkit    # all of them, side by side

SmolLM2, one CPU core, LoRA, 24 steps, 1 min, 2.7 GB, n = 16 rows of our own, 2026-11-22: perplexity 30.4 -> 21.5 (loss
-0.35, 95 % CI -0.45 to -0.25), ROUGE-L 0.10 -> 0.16, cut off 56 -> 13 %. Shorter answers, no truer ones. OPT-1.3B, real
rows and a GPU: not yet.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root first: runs from a clone

from data import evolkit
from data.prompts import leave_out_long
from eval.methods import Adapter
from recipes.common import adapters, cli, machine
from recipes.common.args import Schedule, SFTArgs, split_batch
from recipes.common.models import resolve
from recipes.common.run import Run
from rewards.contract import Reward
from rewards.overlap import bleu_reward, rouge_l_reward

REWARDS: dict[Reward, float] = {rouge_l_reward: 1.0, bleu_reward: 0.0}


@dataclass(frozen=True, kw_only=True)
class Args(SFTArgs):
    model: str = "opt-1.3b"
    source: str = "hub"
    """hub (arcee-ai/EvolKit-75K), sample (48 conversations of our own), or a .jsonl or .parquet in its schema"""
    adapter: Adapter = "lora"
    max_length: int = 1024  # OPT has 2,048 positions, virtual tokens included
    max_answer: int = 256
    """Longest completion in tokens that is written for evaluation"""
    lora_rank: int = 16
    lr_scheduler_type: Schedule = "linear"
    weight_decay: float = 0.0
    max_steps: int = 1000  # x 16 rows are a quarter of an epoch of its 74,180
    batch_size: int = 16
    eval_problems: int = 256


ON_CPU = Args().on_cpu(max_length=512, max_answer=48, max_steps=20, batch_size=8)
SMOKE = {
    "max_length": 512,
    "max_answer": 8,
    "max_steps": 3,
    "batch_size": 4,
    "virtual_tokens": 4,
    "eval_problems": 4,
}


def sft_config(args: Args, run: Run) -> object:
    from trl import SFTConfig

    return SFTConfig(
        **run.trainer_settings("sft"),
        **split_batch(args, at_once=8),
        learning_rate=args.learning_rate or adapters.LEARNING_RATES[args.adapter],
        lr_scheduler_type=args.lr_scheduler_type,
        weight_decay=args.weight_decay,
        optim=machine.on_gpu("adamw_8bit", otherwise="adamw_torch_fused"),
        max_grad_norm=1.0,
        warmup_steps=0.05,
        max_length=args.max_length,
        completion_only_loss=True,
        packing=False,  # no row can see another one; grouped by length, little padding is left
        train_sampling_strategy="group_by_length",
    )


def main(args: Args) -> None:
    spec = resolve(args.model)
    if spec.context and args.max_length + args.virtual_tokens > spec.context:
        raise ValueError(f"--max-length {args.max_length} and virtual tokens exceed the {spec.context} of {spec.alias}")
    train = evolkit.load("train", source=args.source)
    test = evolkit.load("test", source=args.source, limit=args.eval_problems)
    run = Run.open("evolkit_sft", args, correct=None, format=None)
    model, tokenizer = adapters.load(args, run.spec)
    room = args.max_length - args.max_answer  # a prompt that is cut asks something else
    train = leave_out_long(train, tokenizer, room, flag="--max-length")
    assess = adapters.assessment(args, model, tokenizer, test, REWARDS, max_tokens=args.max_answer)
    run.stage("before", assess)
    run.train(adapters.trainer(args, model, tokenizer, train, sft_config(args, run)), then=assess)
    run.finish()


if __name__ == "__main__":
    cli.start(main, on_cpu=ON_CPU, on_gpu=Args(), smoke=SMOKE)
