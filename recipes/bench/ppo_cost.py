"""PPO beside TRL's and beside GRPO: what it learns, what memory it takes and how fast it is: `make bench-ppo`.

Contenders, each trained in a process of its own: "ours" is `recipes/common/ppo.py` with the recipes' rollouts; "trl"
the PPO of TRL 1.12.0, its last, on stock transformers and peft in an environment of its own (`--peer-python`); "grpo"
TRL's GRPO through Unsloth as `recipes/gsm8k_grpo.py` has it, in groups of 8 and without a reference.

In the first part SmolLM2-135M makes updates of 32 completions of exactly 48 tokens, for the same 32 prompts of the
UltraFeedback sample, of 36 to 46 tokens: the model is given an end token that it never writes. Compared are the peak
of resident memory above what a process holds after its imports, before it loads a model (Linux), and the median time
of an update, the first of each process left out. The contenders take turns (`TURNS`), since the machine is slower for
minutes at a time. TRL's value model is an adapter and a head on a second copy of the model, which takes less than one
trained whole, as in its example, and it writes 32 completions at once.

In the second a nano model (recipes/common/stand_ins/nano.py) learns the successor task in 15 updates of 80 episodes,
with three seeds; what counts is how many of 250 fresh answers are right (after 30 updates either gets 98 of 100 right,
and nothing can be told apart). TRL's value model is trained whole, with the policy's learning rate; ours, an adapter,
with five times that, as our trainer allows and as the recipes' own rates of twice and ten times suggest. Each PPO takes
its turn at each of `RATES`, and its best counts.

Equal for all: LoRA of rank 16 on all seven projections, bf16 autocast, AdamW at a constant rate, no gradient
checkpointing, temperature 1, a reward that a program computes; for PPO four epochs of one minibatch, KL coefficient
0.05, clip ranges 0.2, lambda 0.95, gamma 1, and 1 off for a completion without an end. Micro-batches are of 8, the nano
model's of 80. TRL's PPO ignores `bf16` (its Accelerator is not told), so the environment says it to every process.
"""

import os
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from eval.files import read_json, write_json_atomic
from recipes.bench import gauge, process
from recipes.bench.training_speed import clock, endless_model, settings, with_peft, with_unsloth
from recipes.common.stand_ins.nano import Nano, random_digits

GROUP, MAX_LENGTH, EPOCHS, KL_COEFFICIENT, MISSING_END_PENALTY = 8, 96, 4, 0.05, 1.0
SEEDS, RATES, VALUE_RATE = (1, 2, 3), (5e-3, 2e-3, 1e-3), 5
PARTS = ("cost", "learning")
TURNS = ("ours", "trl", "grpo", "trl", "ours")
LESSON = {"updates": 15, "micro_batch": 80, "tokens": 4}  # of the nano model
BARS: list[gauge.Bar] = [
    ("right answers", "trl", "ours", 1.0),
    ("peak memory", "ours", "trl", 0.5),
    ("seconds an update", "ours", "trl", 1.0),
    ("peak memory", "ours", "grpo", 1.25),
]
Rows = list[dict[str, Any]]  # `prompt`, messages, and what the reward reads
Reward = Callable[..., Any]


@dataclass(frozen=True)
class Job:
    """What one process is to do: make `updates` of the model in folder `model`, each of `rows` (a file) completions,
    and save the adapter in folder `out`. Without answers, the reward of rows is `distinct_words_reward`."""

    contender: str
    model: str
    rows: str
    out: str
    updates: int = 3
    micro_batch: int = 8
    tokens: int = 48
    learning_rate: float = 1e-5
    seed: int = 1

    def shared(self, output: str) -> dict[str, Any]:
        """What the configs of all trainers have."""
        return {
            **settings(output, self.seed),
            "learning_rate": self.learning_rate,
            "temperature": 1.0,
            "lr_scheduler_type": "constant",
            "optim": "adamw_torch_fused",
            "bf16": True,
            "use_cpu": True,
            "dataloader_pin_memory": False,
        }


Cost = dict[str, Any]
"""What a process took, see `gauge.memory`, from before it loaded a model; and "seconds", of each update"""


def median(turns: Sequence[Cost]) -> float:
    """Seconds of an update over all turns, without the first of each, which warms up."""
    return statistics.median(value for cost in turns for value in cost["seconds"][1:])


def contend(work: dict[str, Any]) -> Cost:
    """Do a `Job`, of these fields.

    Raises RuntimeError where an endless model wrote other than was asked.
    """
    job = Job(**work)
    rows = read_json(Path(job.rows))
    endless = "answer" not in rows[0]
    reward = distinct_words_reward if endless else Nano.successor_reward
    written = 0
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as output:
        build = trl_ppo if job.contender.startswith("trl") else ours
        start, trainer, model = build(job, rows, reward, output)
        generate = model.generate

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal written
            found = generate(*args, **kwargs)
            written += getattr(found, "sequences", found)[:, kwargs["input_ids"].shape[1] :].numel()
            return found

        model.generate = counted
        trainer.add_callback(clock(seconds))
        trainer.train()
        cost = {**gauge.memory(start), "seconds": seconds}
    if endless and written != (asked := job.updates * len(rows) * job.tokens):
        raise RuntimeError(f"{job.contender} wrote {written:,} tokens, and all contenders must write {asked:,}")
    model.save_pretrained(job.out, selected_adapters=["default"])
    return cost


def right_answers(model: str, adapter: str) -> int:
    """Of the nano model in folder `model` with the adapter in folder `adapter`."""
    return Nano(Path(model)).solved_with(adapter)[0]


def prepare(folder: str) -> dict[str, Rows]:
    """Train a nano model into `folder`. Returns the rows of an update of either model, "endless" and "nano"."""
    problems = random_digits(Path(folder)).dataset()
    from data import ultrafeedback

    sample = ultrafeedback.load("train", limit=32, source="sample")
    return {"endless": sample.select_columns(["prompt"]).to_list(), "nano": problems.to_list() * 8}


def distinct_words_reward(completions: Sequence[Any], **_: Any) -> list[float | None]:
    """Distinct words of each completion, in units of 48."""
    return [len(set(completion[0]["content"].split())) / 48 for completion in completions]


def ours(job: Job, rows: Rows, reward: Reward, output: str) -> tuple[int, Any, Any]:
    """Resident MiB before the model is loaded, the trainer of "ours" or "grpo", and the model with its adapter."""
    import unsloth  # noqa: F401, I001  it must come before trl
    import trl
    from datasets import Dataset

    from recipes.common.ppo import PPOConfig, PPOTrainer
    from recipes.common.rollouts import Rollouts

    data, start = {"train_dataset": Dataset.from_list(rows)}, gauge.reset_peak()
    model, tokenizer = with_unsloth(job.model, MAX_LENGTH, job.seed)
    engine = Rollouts("model", model, tokenizer, MAX_LENGTH)
    shared = {**job.shared(output), "max_steps": job.updates, "max_completion_length": job.tokens}
    if job.contender == "grpo":
        config = trl.GRPOConfig(
            **shared,
            per_device_train_batch_size=job.micro_batch,
            gradient_accumulation_steps=len(rows) // job.micro_batch,
            num_generations=GROUP,
            top_p=1.0,
            beta=0.0,
        )
        trainer = trl.GRPOTrainer(model, reward, config, **data, processing_class=tokenizer)
        engine.attach(trainer)
        return start, trainer, model
    config = PPOConfig(
        **shared,
        value_learning_rate=VALUE_RATE * job.learning_rate,
        per_device_train_batch_size=len(rows),
        minibatch_size=len(rows),
        micro_batch_size=job.micro_batch,
        ppo_epochs=EPOCHS,
        kl_coefficient=KL_COEFFICIENT,
        missing_end_penalty=MISSING_END_PENALTY,
    )
    return start, PPOTrainer(model, reward, config, engine.sampler, **data, processing_class=tokenizer), model


def trl_ppo(job: Job, rows: Rows, reward: Reward, output: str) -> tuple[int, Any, Any]:
    """The same of TRL's PPO."""
    import peft  # noqa: F401  libraries belong to the start
    import trl.experimental.ppo  # noqa: F401
    from transformers import AutoModelForSequenceClassification

    start = gauge.reset_peak()
    policy, tokenizer = with_peft(job.model, seed=job.seed)
    if job.contender == "trl whole":
        critic = AutoModelForSequenceClassification.from_pretrained(job.model, num_labels=1, dtype="auto")
    else:
        critic = with_peft(job.model, seed=job.seed, classify=True)[0].get_base_model()
    config = {
        **job.shared(output),
        "total_episodes": job.updates * len(rows),
        "response_length": job.tokens,
        "per_device_train_batch_size": job.micro_batch,
        "gradient_accumulation_steps": len(rows) // job.micro_batch,
        "num_ppo_epochs": EPOCHS,
        "kl_coef": KL_COEFFICIENT,
        "missing_eos_penalty": MISSING_END_PENALTY,
    }
    return start, plain_ppo(policy, critic, tokenizer, rows, reward, **config), policy


def plain_ppo(policy: Any, critic: Any, tokenizer: Any, rows: Rows, reward: Reward, **config: Any) -> Any:
    """The trainer of TRL 1.12.0, whose updates are of all `rows` at once."""
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer.padding_side = "left"
    asked = [row["prompt"] for row in rows]
    prompts = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    judge = programmatic(tokenizer, prompts, rows, reward)
    made = PPOConfig(
        **{"lr_scheduler_type": "constant", "temperature": 1.0, "stop_token": "eos", **config},
        local_rollout_forward_batch_size=len(rows),
        num_sample_generations=0,
    )
    return PPOTrainer(made, tokenizer, policy, None, judge, Dataset.from_dict({"input_ids": prompts}), critic)


def programmatic(tokenizer: Any, prompts: list[list[int]], rows: Rows, reward: Reward) -> Any:
    """`reward` as a reward model of TRL's kind: the backbone keeps the ids that it reads, [b, length], and `score`
    gives [b, length, 1], at each position what the whole text earns: one of `prompts`, those of `rows`, and more."""
    import torch

    class Judge(torch.nn.Module):
        base_model_prefix = "backbone"

        def backbone(self, input_ids: Any, attention_mask: Any, **_: Any) -> Any:
            self.read, self.shape = zip(input_ids, attention_mask, strict=True), input_ids.shape
            return SimpleNamespace(hidden_states=[None])

        def score(self, _: None) -> torch.Tensor:
            earned: list[float | None] = []
            for text in (ids[mask].tolist() for ids, mask in self.read):
                row, asked = next((r, p) for r, p in zip(rows, prompts, strict=True) if text[: len(p)] == p)
                written = tokenizer.decode(text[len(asked) :], skip_special_tokens=True)
                columns = {name: [value] for name, value in row.items() if name != "prompt"}
                earned += reward(completions=[[{"role": "assistant", "content": written}]], **columns)
            return torch.tensor(earned)[:, None, None].expand(*self.shape, 1)

    return Judge()


def measure(peer_python: str, parts: Sequence[str]) -> dict[str, Any]:
    """Run every contender in `parts`, of `PARTS`.

    Returns "cost" ({contender: `Cost` of each turn}), "right" ({contender at a learning rate: right answers of each
    seed}) and "failed".
    """
    cost: dict[str, list[Cost]] = defaultdict(list)
    right: dict[str, list[int]] = defaultdict(list)
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="bench-ppo-") as work:
        folder = Path(work)
        (folder / "endless").mkdir()
        endless_model(folder / "endless")
        for model, rows in process.call(prepare, str(folder / "nano")).items():
            write_json_atomic(folder / f"{model}.json", rows)

        def turn(name: str, contender: str, model: str, **changes: Any) -> tuple[str, Callable[[], Any]]:
            job = Job(contender, str(folder / model), str(folder / f"{model}.json"), f"{folder}/{name}", **changes)
            python = peer_python if contender.startswith("trl") else sys.executable

            def run() -> Any:
                took = process.call(contend, asdict(job), python=python, ACCELERATE_MIXED_PRECISION="bf16")
                return took if model == "endless" else process.call(right_answers, job.model, job.out)

            return name, run

        turns = [turn(name, name, "endless") for name in TURNS if "cost" in parts]
        for seed, rate in product(SEEDS, RATES) if "learning" in parts else ():
            lesson = {**LESSON, "learning_rate": rate, "seed": seed}
            turns += [turn(f"{who.split()[0]} at {rate}", who, "nano", **lesson) for who in ("ours", "trl whole")]
        for name, found in gauge.in_turn(turns):
            if found is None:
                failed.append(name)
            elif isinstance(found, dict):
                cost[name].append(found)
            else:
                right[name].append(found)
    return {"cost": cost, "right": right, "failed": failed}


def judge(right: Mapping[str, Sequence[int]], cost: Mapping[str, Sequence[Cost]]) -> list[dict[str, Any]]:
    """`gauge.judged` of every bar whose two contenders were measured.

    The memory of a contender is the mean over its turns; its right answers are the mean over its seeds, at the learning
    rate where that is largest.
    """
    best: dict[str, float] = defaultdict(float)
    for name, counts in right.items():
        who = name.split()[0]
        best[who] = max(best[who], statistics.fmean(counts))
    memory = {name: statistics.fmean(own["above_mib"] for own in turns) for name, turns in cost.items()}
    seconds = {name: median(turns) for name, turns in cost.items()}
    return gauge.judged(BARS, {"right answers": best, "peak memory": memory, "seconds an update": seconds})


def table(
    right: Mapping[str, Sequence[int]], cost: Mapping[str, Sequence[Cost]], judged: Sequence[Mapping[str, Any]]
) -> str:
    """What each contender took in each turn, then what each learned, mean and every seed, then the bars."""
    head = ("start_mib", "peak_mib", "above_mib")
    costs = [
        [name, *(f"{own[what]:,}" for what in head), f"{median([own]):.2f}"]
        for name, turns in cost.items()
        for own in turns
    ]
    rights = [[name, f"{statistics.fmean(n):.1f}", ", ".join(map(str, n))] for name, n in right.items()]
    lines = gauge.aligned([["", *head, "s/update"], *costs])
    lines += ["", *gauge.aligned([["right of 250", "mean", "by seed"], *rights]), "", *gauge.verdicts(judged)]
    return "\n".join(lines)


def main() -> int:
    """Print the table and write it to eval/results/; 0 where every bar is met, else 1."""
    parser = gauge.command_line(__doc__, peer=True)
    parser.add_argument("--only", choices=PARTS, help="measure one part, kept in a file of its own")
    args = parser.parse_args()
    gauge.need_proc(parser)
    python = gauge.need_peer(parser, args.peer_python)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    found, about = measure(python, [args.only] if args.only else PARTS), gauge.about()
    judged = judge(found["right"], found["cost"])
    print(f"\n{about['machine']}; resident memory in MiB, medians in seconds")
    print(table(found["right"], found["cost"], judged))
    gauge.keep(f"ppo-{args.only}" if args.only else "ppo", {**about, **found, "bars": judged})
    return 0 if all(row["met"] for row in judged) and not found["failed"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
