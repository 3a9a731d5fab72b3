"""What on-policy recipes share: the policy with the engine that writes for it, the warm start, the assessment."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from data.prompts import leave_out_long
from eval.sampling import evaluate
from recipes.common import machine
from recipes.common.args import GRPOArgs, PPOArgs
from recipes.common.model_table import ModelSpec
from recipes.common.models import load
from recipes.common.rollouts import Rollouts, choose
from recipes.common.run import Run
from recipes.common.supervision import audit
from rewards.contract import Reward

if TYPE_CHECKING:
    from datasets import Dataset

ROWS = 8  # of a step of the warm start
ROOM_FOR_PROMPTS = ("passage_tokens", "max_prompt_length")  # flags, of which a recipe has the one or none


class Policy(NamedTuple):
    """A model with a new adapter, its tokenizer, and the engine that rolls out and evaluates.

    The engine has room for prompts of `max_prompt_length` tokens; `prompt_flag` is what gives it more.
    """

    model: Any
    tokenizer: Any
    rollouts: Rollouts
    max_prompt_length: int
    prompt_flag: str

    @property
    def engine(self) -> str:
        """What rolls out: "vllm" or "model"."""
        return self.rollouts.engine

    def fitting(self, rows: "Dataset") -> "Dataset":
        """The rows whose prompts have room in the engine, as by `data.prompts.leave_out_long`."""
        return leave_out_long(rows, self.tokenizer, self.max_prompt_length, flag=self.prompt_flag)

    def trainer(self, rewards: Iterable[Reward], config: Any, train: "Dataset") -> Any:
        """TRL's `GRPOTrainer`, which rolls out through this policy's engine, on the prompts that fit."""
        from trl import GRPOTrainer

        rows = self.fitting(train)
        trainer = GRPOTrainer(self.model, [*rewards], config, train_dataset=rows, processing_class=self.tokenizer)
        self.rollouts.attach(trainer)
        return trainer


def load_policy(args: GRPOArgs | PPOArgs, spec: ModelSpec, *, max_prompt_length: int) -> Policy:
    """The policy, with room for prompts of `max_prompt_length` tokens and completions of `--max-completion-length`."""
    engine, longest = choose(args.rollouts, args.load_in_4bit), max_prompt_length + args.max_completion_length
    model, tokenizer = load(args, spec, max_seq_length=longest, engine=engine)
    named = [f"--{name.replace('_', '-')}" for name in ROOM_FOR_PROMPTS if hasattr(args, name)]
    flag = named[0] if named else "the room that the recipe gives prompts"
    return Policy(model, tokenizer, Rollouts(engine, model, tokenizer, longest), max_prompt_length, flag)


def assessment(
    args: GRPOArgs | PPOArgs,
    policy: Policy,
    test: "Dataset",
    rewards: Mapping[Reward, float],
    *,
    samples: int,
    temperature: float,
) -> Callable[..., Any]:
    """`evaluate` of these held-out problems, but for its stage: greedily once and `samples` times at `temperature`.

    Problems whose prompt does not fit are left out of every stage.
    """
    return partial(
        evaluate,
        policy.rollouts.sampler,
        policy.fitting(test),
        [*rewards],
        [*rewards.values()],
        samples=samples,
        temperature=temperature,
        max_tokens=args.max_completion_length,
        seed=args.seed,
    )


def warm_start(
    args: GRPOArgs, run: Run, policy: Policy, worked: Callable[..., "Dataset"], assess: Callable[..., Any]
) -> None:
    """`--sft-steps` of SFT on worked examples, and stage "warm start"; none of it with 0 steps.

    The learning rate falls to 0 and the loss is of the answers alone. `worked(limit=n)` gives n examples, `prompt` and
    `completion`. A resumed run loads what an earlier session trained.
    """
    from trl import SFTConfig, SFTTrainer

    if not args.sft_steps:
        return
    if not run.training.load_adapter("warm_start", policy.model):
        config = SFTConfig(
            **run.trainer_settings("warm start") | {"max_steps": args.sft_steps},
            learning_rate=args.sft_learning_rate,
            lr_scheduler_type="linear",
            weight_decay=args.weight_decay,
            optim=machine.on_gpu("adamw_8bit", otherwise="adamw_torch_fused"),
            max_grad_norm=1.0,
            warmup_steps=0,
            per_device_train_batch_size=ROWS,
            gradient_accumulation_steps=1,
            max_length=policy.rollouts.max_length,
            completion_only_loss=True,
        )
        rows = policy.fitting(worked(limit=ROWS * args.sft_steps))
        trainer = SFTTrainer(policy.model, config, train_dataset=rows, processing_class=policy.tokenizer)
        audit(trainer, allow_unsupervised=args.allow_unsupervised, show_tokens=args.show_tokens)
        if not run.warm_up(trainer):
            return
    run.stage("warm start", assess)
