"""Adapter fine-tuning on TriviaQA: a model learns to answer trivia questions from memory, in a few words.

Deviations from common practice and from TRL's defaults:
1. The loss is taken over the answer and the end of the turn alone.
2. Each adapter has the learning rate that suits it, and rows are grouped by length, not packed: see arc_sft.py.
3. Closed book (`rc.nocontext`), on the hub's validation split: the answers of its test split are placeholders.
Graded by exact match and token F1 as TriviaQA's script does, the best over all accepted answers.

    python recipes/triviaqa_sft.py --model llama-3.2-3b --adapter qlora    # or lora, dora, full, p-tuning, ...
    python recipes/triviaqa_sft.py                                         # without a GPU: SmolLM2, our own rows
    python -m recipes.tools.compare_adapters --dataset triviaqa            # all of them, side by side

SmolLM2, one CPU core, LoRA, 24 steps, 4 min, 1.9 GB, n = 24 rows of our own, 2026-11-22: loss 2.51 -> 1.27, exact match
4 -> 21 % (95 % CI of the difference +4 to +33, p = 0.12), F1 0.17 -> 0.24. It learnt to answer in a word; it believes
what it did before (a dartboard's top is 1, Frankenstein's author another). Real rows and a GPU: not yet.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root first: runs from a clone

from data import triviaqa
from recipes.common import adapters, cli, machine
from recipes.common.args import Schedule, SFTArgs, split_batch
from recipes.common.run import Run
from rewards.contract import Reward
from rewards.qa import TRIVIAQA, answer_rewards

exact_match_reward, f1_reward = answer_rewards(TRIVIAQA)  # punctuation parts words, as in the official script
REWARDS: dict[Reward, float] = {exact_match_reward: 1.0, f1_reward: 0.0}
MAX_ANSWER = 24  # tokens; longer ones are wrong anyway


@dataclass(frozen=True, kw_only=True)
class Args(SFTArgs):
    source: str = "hub"
    """hub (mandarjoshi/trivia_qa), sample (72 questions of our own), or a .jsonl or .parquet in its schema"""
    max_length: int = 256
    lora_rank: int = 16
    lr_scheduler_type: Schedule = "linear"
    weight_decay: float = 0.0
    max_steps: int = 500  # 500 x 16 = 8,000 rows of TriviaQA's 138,384
    batch_size: int = 16
    eval_problems: int = 1000


ON_CPU = Args().on_cpu(max_steps=40, batch_size=8, eval_problems=64)
SMOKE = {"max_steps": 3, "batch_size": 4, "virtual_tokens": 4}


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
    train = triviaqa.load("train", source=args.source)
    test = triviaqa.load("test", source=args.source, limit=args.eval_problems)
    run = Run.open("triviaqa_sft", args, correct="exact_match_reward", format=None)
    model, tokenizer = adapters.load(args, run.spec)
    assess = adapters.assessment(args, model, tokenizer, test, REWARDS, max_tokens=MAX_ANSWER)
    run.stage("before", assess)
    run.train(adapters.trainer(args, model, tokenizer, train, sft_config(args, run)), then=assess)
    run.finish()


if __name__ == "__main__":
    cli.start(main, on_cpu=ON_CPU, on_gpu=Args(), smoke=SMOKE)
