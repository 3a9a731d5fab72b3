"""Flags that mean the same in every recipe that has them.

A recipe's `Args` inherits the flags of its family and states its own choices: a field without a default here has to
have one there, where it is read. Docstrings become `--help`, are true on every machine, and are inherited too, so that
a recipe that only chooses another default says why in a comment.
"""

import math
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Literal, Self, get_args

from eval.methods import Adapter
from recipes.common.model_table import default_alias
from recipes.common.rollouts import Choice

Schedule = Literal["constant", "constant_with_warmup", "linear", "cosine", "polynomial", "inverse_sqrt"]
TRACKERS = ("none", "wandb", "trackio", "tensorboard")
# The least that a flag takes, and those that take any number above 0.
AT_LEAST = {
    **dict.fromkeys(("lora_rank", "lora_alpha", "virtual_tokens", "max_steps", "max_length"), 1),
    **dict.fromkeys(("batch_size", "per_device_train_batch_size", "gradient_accumulation_steps"), 1),
    **dict.fromkeys(("prompts_per_step", "minibatch_size", "ppo_epochs", "max_completion_length"), 1),
    **dict.fromkeys(("max_prompt_length", "eval_problems", "eval_pairs", "eval_prompts"), 1),
    **dict.fromkeys(("seed", "show_tokens", "sft_steps", "weight_decay", "beta", "lora_dropout"), 0),
    "num_generations": 2,
}
ABOVE_ZERO = {
    *("learning_rate", "value_learning_rate", "sft_learning_rate"),
    *("num_train_epochs", "save_steps", "max_hours"),
}


@dataclass(frozen=True, kw_only=True)
class RunArgs:
    output_dir: str = "outputs"
    """Where runs go: <output-dir>/<recipe>/<model>/<time>/"""
    max_hours: float | None = None
    """Stop in time for the last evaluation to end within so many hours"""
    resume: bool | str = False
    """Continue the newest unfinished run of this model with these settings, or the run in the folder that is named"""
    save_steps: float = 0.1
    """Steps between checkpoints, or below 1 their share of the run; one more where ten minutes go by without"""
    seed: int = 3407
    """Seed of data order, adapter and sampling"""
    report_to: str = "none"
    """Tracker beside the run folder: none, wandb, trackio, tensorboard"""
    run_name: str | None = None
    """What the tracker calls the run; None: recipe, model and time"""
    push_to_hub: str | None = None
    """Repository (name or org/name) to upload the adapter of the complete run to, private where it is new"""
    smoke: bool = False
    """Walk the whole path in a minute, with tiny random models; its figures mean nothing"""

    def on_cpu(self, **changes: Any) -> Self:
        """These arguments without a GPU: the embedded model, in 16 bits, on our own rows, and `changes`."""
        given: dict[str, Any] = {
            "model": default_alias(gpu=False),
            "source": "sample",
            "load_in_4bit": False,
            "adapter": "lora",
        }
        return replace(self, **{name: value for name, value in given.items() if name in vars(self)} | changes)


@dataclass(frozen=True, kw_only=True)
class LoraArgs:
    model: str = default_alias(gpu=True)
    """phi-4, llama-3.2-3b or any alias of recipes/common/model_table.py, a hub id or a local folder"""
    source: str = "hub"
    """Where rows come from: the hub, our own sample, or a file in the data set's schema"""
    lora_rank: int
    """Rank of the adapter"""
    lora_alpha: int | None = None
    """Scale of its update times the rank; None: the rank, so that it is not scaled"""
    lora_dropout: float = 0.0
    """Share of the adapter's inputs that is dropped in training"""
    lora_target_modules: tuple[str, ...] | None = None
    """Names of the layers that it adapts; None: every projection of the model"""


@dataclass(frozen=True, kw_only=True)
class ModelArgs(LoraArgs):
    load_in_4bit: bool = True
    """Quantise the frozen weights to NF4 (QLoRA)"""


@dataclass(frozen=True, kw_only=True)
class StartArgs(ModelArgs):
    start_from: str | None = None
    """Folder of a LoRA adapter (SFT's) to go on from; where there is a reference policy, it is that"""


@dataclass(frozen=True, kw_only=True)
class TrainArgs:
    max_steps: int
    """Updates"""
    num_train_epochs: float | None = None
    """Passes over the training rows, in place of --max-steps"""
    lr_scheduler_type: Schedule
    """How the learning rate goes on; linear and cosine fall to 0"""
    weight_decay: float
    """Of AdamW"""


@dataclass(frozen=True, kw_only=True)
class BatchArgs(TrainArgs):
    batch_size: int
    """Rows per update"""
    per_device_train_batch_size: int | None = None
    """Rows that are differentiated at once; None: as many as the recipe's config says"""
    gradient_accumulation_steps: int | None = None
    """Their batches per update; None: as many as make --batch-size"""


@dataclass(frozen=True, kw_only=True)
class AuditArgs:
    show_tokens: int = 0
    """Print so many rows with their supervised tokens marked, before training"""
    allow_unsupervised: bool = False
    """Train even where the audit finds rows that teach nothing or teach a fault"""


@dataclass(frozen=True, kw_only=True)
class RolloutArgs:
    max_completion_length: int
    """Limit in tokens of what the model writes"""
    rollouts: Choice = "auto"
    """vllm: the engine in this process; model: the model's own generate; auto: vllm where it can"""


JudgeReward = Literal["rag_correctness", "evidently_correctness", "answer_relevancy", "summarization"]


@dataclass(frozen=True, kw_only=True)
class JudgeArgs:
    judge: str = "local"
    """Who grades: none, local (a small model in this process), or the http address of a server (OPENAI_API_KEY)"""
    judge_model: str | None = None
    """Local: as --model; of a server: one of its models, else its first"""
    judge_rewards: tuple[JudgeReward, ...] = get_args(JudgeReward)
    """What the judge is asked; the last two take several calls each"""
    judge_max_calls: int | None = None
    """Calls of a session after which the rules reward alone; what is cached stays free"""


@dataclass(frozen=True, kw_only=True)
class CompareArgs:
    compare_with: str = "none"
    """Who compares before with after: none, a reward model's adapter folder, pairrm, local or a server's address"""
    judge_model: str | None = None
    """Of local: as --model; of a server: one of its models, else its first"""
    judge_max_calls: int | None = None
    """Calls of a session after which local or a server compares no more; what is cached stays free"""


@dataclass(frozen=True, kw_only=True)
class GRPOArgs(RunArgs, RolloutArgs, AuditArgs, TrainArgs, StartArgs):
    learning_rate: float
    """Of GRPO"""
    beta: float = 0.0
    """Weight of the KL penalty against the reference policy: the model as GRPO begins, after the warm start"""
    sft_steps: int
    """Steps of a warm start before GRPO: SFT on worked examples, for a model that does not write the format"""
    sft_learning_rate: float
    """Of the warm start, falling to 0"""
    prompts_per_step: int
    """Prompts per update"""
    num_generations: int
    """Completions per prompt (the group)"""
    per_device_train_batch_size: int | None = None
    """Completions that are differentiated at once; None: a group"""
    gradient_accumulation_steps: int | None = None
    """Their batches per update; None: as many as make --prompts-per-step x --num-generations"""
    eval_problems: int
    """Held-out problems, the same at every stage"""

    @property
    def batch_size(self) -> int:
        """Completions per update."""
        return self.prompts_per_step * self.num_generations


@dataclass(frozen=True, kw_only=True)
class PairArgs(RunArgs, AuditArgs, BatchArgs):
    """Of what learns from pairs."""

    learning_rate: float
    """The highest"""
    max_length: int
    """Longest prompt and answer together, in tokens"""
    eval_pairs: int
    """Held-out pairs, the same before and after"""


@dataclass(frozen=True, kw_only=True)
class RewardArgs(PairArgs, ModelArgs):
    """A reward model's."""


@dataclass(frozen=True, kw_only=True)
class PreferenceArgs(PairArgs, CompareArgs, StartArgs):
    max_completion_length: int
    """Limit in tokens of the answers written for reading and comparing"""


@dataclass(frozen=True, kw_only=True)
class PPOArgs(RunArgs, CompareArgs, RolloutArgs, TrainArgs, StartArgs):
    reward: str
    """Folder of a reward model's adapter (recipes/ultrafeedback_reward.py), trained (its newest run), or pairrm"""
    pairrm_reference: Literal["dataset", "greedy"] = "dataset"
    """What PairRM compares with: the data set's chosen answer, or the model's greedy one before training"""
    learning_rate: float
    """Of the policy"""
    value_learning_rate: float
    """Of the value function, which starts at zero"""
    batch_size: int
    """Completions per update, one for each prompt"""
    minibatch_size: int
    """Completions per optimiser step"""
    ppo_epochs: int
    """Passes over the completions of an update"""
    kl_coefficient: float
    """Weight of the KL penalty against the reference policy"""
    target_kl: float | None = None
    """Nats a completion; with it the coefficient adapts"""
    max_update_kl: float | None
    """Nats a token that the policy may move in one update; the rest of the update is then left out"""
    score_clip: float | None
    """Largest magnitude of a completion's score"""
    whiten_rewards: bool
    """Scale rewards to variance 1 before advantages are estimated; these are whitened anyway"""
    missing_end_penalty: float
    """Taken off the score of a completion that the length limit cut off"""
    max_prompt_length: int
    """Tokens; longer prompts are left out, and a line says how many"""
    eval_prompts: int
    """Held-out prompts, the same before and after"""


@dataclass(frozen=True, kw_only=True)
class SFTArgs(RunArgs, AuditArgs, BatchArgs, LoraArgs):
    adapter: Adapter = "qlora"
    """What is trained; see recipes/common/adapters.py"""
    virtual_tokens: int = 20
    """Of p-tuning, prefix and prompt tuning"""
    learning_rate: float | None = None
    """The highest; None: the adapter's own (recipes/common/adapters.py)"""
    max_length: int
    """Longest row in tokens"""
    eval_problems: int
    """Held-out rows, the same before and after"""

    @property
    def load_in_4bit(self) -> bool:
        return self.adapter == "qlora"


def check_flags(args: Any) -> None:
    """Raise ValueError, in one sentence, before anything is loaded: for a number that a flag does not take, a tracker
    that is not there, or batches that do not make an update."""
    for name, value in vars(args).items():
        flag, least = f"--{name.replace('_', '-')} {value}", AT_LEAST.get(name)
        if value is None:
            continue
        if least is not None and not least <= value < math.inf:
            raise ValueError(f"{flag}: expected {least} or more")
        if name in ABOVE_ZERO and not 0 < value < math.inf:
            raise ValueError(f"{flag}: expected a number above 0")
        if name == "lora_dropout" and value >= 1:
            raise ValueError(f"{flag}: expected a share below 1")
        if name == "save_steps" and value > 1 and value != int(value):
            raise ValueError(f"{flag}: expected a whole number, or a share of the run below 1")
        if name == "report_to" and value not in TRACKERS:
            raise ValueError(f"{flag}: expected one of {', '.join(TRACKERS)}")
        if name == "report_to" and value != "none" and find_spec(value) is None:
            raise ValueError(
                f"{flag} needs that package: run `.venv/bin/python -m pip install {value}`, or leave it out"
            )
    if hasattr(args, "per_device_train_batch_size"):
        split_batch(args, at_once=1)


def split_batch(args: Any, *, at_once: int) -> dict[str, int]:
    """How `args.batch_size` rows of an update are differentiated: `at_once` or what divides both, unless flags say.

    Raises:
        ValueError: --per-device-train-batch-size and --gradient-accumulation-steps do not make that many rows.
    """
    rows, given, batches = args.batch_size, args.per_device_train_batch_size, args.gradient_accumulation_steps
    size = given or (rows // batches if batches else math.gcd(at_once, rows))
    batches = batches or max(1, rows // max(1, size))
    if size * batches != rows:
        raise ValueError(
            f"--per-device-train-batch-size {size} x --gradient-accumulation-steps {batches} are {size * batches} rows "
            f"per update, where {rows} are asked for: give numbers that make {rows}, or another number of rows"
        )
    return {"per_device_train_batch_size": size, "gradient_accumulation_steps": batches}
