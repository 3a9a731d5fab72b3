"""One row of the cost card, `recipes/bench/card.py`: a method's own trainer on a random model, in a process of its own.

What differs from the recipe as a user runs it, for either contender:
- every row is exactly as long as the recipe allows, and prompts of GRPO and PPO are half as long as it allows: no
  padding, and lengths known beforehand. Completions end at the length limit but where an untrained model happens to
  write its end token; tokens are counted as written
- GRPO learns from completions that were cut off, all of them, and both get a reward of more values than a random
  model's answers earn: without either there would be no gradient
- PPO's reward is a program. What PairRM takes is in recipes/bench/pairrm_memory.py
- no checkpoints, and nothing is evaluated
- the peer's adapter is in float32 where training is in fp16: TRL makes it bfloat16, whose gradients cannot be scaled
- without a GPU the recipe keeps what a step frees (`machine.keep_freed_memory`), and plain TRL does not

Phases are told apart by who calls: what Unsloth differentiates within its loss counts as "log-probabilities", which is
the whole forward pass and loss, and not as "backward".
"""

import functools
import gc
import importlib
import math
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from data.preferences import label_weights, unpaired
from recipes import (
    arc_sft,
    gsm8k_grpo,
    ultrafeedback_dpo,
    ultrafeedback_kto,
    ultrafeedback_orpo,
    ultrafeedback_ppo,
    ultrafeedback_reward,
)
from recipes.bench.gauge import resident_mib
from recipes.bench.ppo_cost import distinct_words_reward, plain_ppo
from recipes.bench.training_speed import with_peft
from recipes.common import adapters, models
from recipes.common.grpo import load_policy
from recipes.common.preference import rendered, switch_off_reference
from recipes.common.rollouts import Choice
from recipes.common.run import Run

WARM_UP, TIMED, GROWTH = 2, 4, 2  # steps that are not timed, that are, and that are of each doubling
ENOUGH = 120  # seconds of training after which a process makes no further step, once one has been timed
SLOW = 15  # seconds of a step from which on doubled ones are not warmed up, and one is timed
SKIPPED = 12  # more steps of fp16, whose scale falls until no gradient overflows; those that overflow are not timed
GRPO_PROMPT, TINY_PROMPT = 208, 64  # tokens: half of what gsm8k_grpo has room for, and those for shape "tiny"
GIB = 2**30
LOGITS = "logits.safetensors"
ADDED = ("lora_", "modules_to_save", "value_head")  # what names of trained weights contain
LOGP = "log-probabilities"
PHASES = ("rollout", "reward", LOGP, "backward", "optimiser", "other")
# Of TRL's GRPO, our PPO and every trainer: where a step's time goes. What one calls is not counted twice.
METHODS_OF_TRAINERS = {
    "rollout": ("_generate", "_roll_out"),
    "reward": ("_calculate_rewards", "_score"),
    LOGP: ("_generate_and_score_completions", "_stack", "_differentiate", "compute_loss"),
}
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight")


@dataclass(frozen=True)
class Method:
    """A method of the card: its recipe, and what of its arguments is work."""

    recipe: ModuleType
    work: dict[str, str]
    """What can be doubled, and the argument that says how much of it there is"""
    tiny: dict[str, int]
    """Those and others, for shape "tiny\""""
    passes: float
    """Products with every weight for each token of a step's rows, without the rollout: 1 of a pass without a gradient,
    2 of one that is differentiated, since frozen weights need no gradient of their own"""

    @property
    def name(self) -> str:
        """The recipe's"""
        return self.recipe.__name__.removeprefix("recipes.")


PAIRS = {"length": "max_length", "batch": "batch_size"}
METHODS = {
    "sft": Method(arc_sft, PAIRS, {"max_length": 128, "batch_size": 8}, 2),
    "dpo": Method(ultrafeedback_dpo, PAIRS, {"max_length": 128, "batch_size": 4}, 3),
    "kto": Method(ultrafeedback_kto, PAIRS, {"max_length": 128, "batch_size": 8}, 5),
    "orpo": Method(ultrafeedback_orpo, PAIRS, {"max_length": 128, "batch_size": 4}, 2),
    "grpo": Method(
        gsm8k_grpo,
        {"completions": "num_generations", "length": "max_completion_length", "batch": "prompts_per_step"},
        {"num_generations": 4, "max_completion_length": 32, "prompts_per_step": 2},
        2,
    ),
    "ppo": Method(
        ultrafeedback_ppo,
        {"length": "max_completion_length", "batch": "batch_size"},
        {"max_completion_length": 32, "max_prompt_length": 128, "batch_size": 8, "minibatch_size": 4},
        3,
    ),
    "reward": Method(ultrafeedback_reward, PAIRS, {"max_length": 128, "batch_size": 4}, 2),
}
ROLLS_OUT = ("grpo", "ppo")


@dataclass(frozen=True)
class Job:
    """What one process is to do for a row of the card, with the model in folder `model` and its run in `folder`."""

    method: str
    shape: str
    bits: int
    """Of the frozen weights, 4 or 16"""
    half: str
    """bf16, or fp16 as on a card that has no bfloat16"""
    rollouts: Choice | None
    """The engine, "model" or "vllm"; None where a method has no rollouts"""
    model: str
    folder: str
    gpu: bool
    trl: bool = False
    """The peer"""
    reload: bool = False
    """Load the adapter that another process has saved, and compare its logits, before training"""
    train: bool = True
    grow: bool = False
    """Double the work, once for each kind of it, after the timed steps"""


@dataclass
class Found:
    """What one process measured: seconds of each timed step; mean seconds of a step by phase; whether losses are finite
    and gradients where they belong; by how much, at most, the logits of the model that was loaded differ from those of
    the one that was saved; and what `Row.doubled` returns of each kind of work."""

    seconds: list[float] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)
    loss_finite: bool | None = None
    gradients_on_adapters_only: bool | None = None
    logits_difference: float | None = None
    growth: dict[str, Any] = field(default_factory=dict)
    memory_gib: dict[str, float | None] = field(default_factory=dict)
    """Peaks until the last timed step; "above_start" is what was resident beyond the libraries"""
    work: dict[str, int] = field(default_factory=dict)
    tokens: float = 0.0
    """A step's: those written where completions are, else all"""
    completions: int = 0
    flops: float = 0.0
    """Of a step: two for each multiplication by a weight. Attention's own products are left out"""
    rollout_bytes: float = 0.0
    """Of weights that a step's rollouts read: all of them for each token in turn"""
    versions: dict[str, str] = field(default_factory=dict)


class Phases:
    """Where time goes. A phase inside another one is taken out of it; on a GPU both ends wait for its work."""

    def __init__(self, wait: Callable[[], None]) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.open, self.since, self.wait = ["other"], time.monotonic(), wait

    def turn(self) -> None:
        """Charge the time since the last turn to the phase that is open."""
        self.wait()
        now = time.monotonic()
        self.seconds[self.open[-1]] += now - self.since
        self.since = now

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self.turn()
            self.open.append(name)
            try:
                return function(*args, **kwargs)
            finally:
                self.turn()
                self.open.pop()

        return wrapper

    def lap(self) -> dict[str, float]:
        """Seconds by phase since the last lap."""
        self.turn()
        lap, self.seconds = dict(self.seconds), defaultdict(float)
        return lap


def measure(work: dict[str, Any]) -> dict[str, Any]:
    """Do a `Job`, of these fields. Returns the fields of what it has `Found`."""
    job = Job(**work)
    if not job.trl:
        import unsloth
    import torch

    if torch.cuda.is_available() != job.gpu:
        raise RuntimeError(f"this Python's torch {torch.__version__} sees {'no' if job.gpu else 'a'} GPU")
    if job.half == "fp16":  # then this is a card without bfloat16, for the recipes, for Unsloth and for TRL
        torch.cuda.is_bf16_supported = lambda *_, **__: False
        if not job.trl:
            unsloth.models._utils.SUPPORTS_BFLOAT16, unsloth.models._utils._BF16_BY_DEVICE = False, None
    row = Row(job)
    row.do()
    return asdict(row.found)


class Row:
    """The process of a `Job`: loads, trains, checks."""

    def __init__(self, job: Job) -> None:
        import torch
        import transformers
        import trl

        self.job, self.method, self.rolls_out = job, METHODS[job.method], job.method in ROLLS_OUT
        self.cuda = torch.cuda if job.gpu else None
        self.found = Found(versions={module.__name__: module.__version__ for module in (torch, transformers, trl)})
        args = self.method.recipe.Args() if job.gpu else self.method.recipe.ON_CPU
        fixed: dict[str, Any] = {"model": job.model, "max_steps": WARM_UP + TIMED, "report_to": "none"}
        if hasattr(args, "adapter"):
            fixed["adapter"] = "qlora" if job.bits == 4 else "lora"
        else:
            fixed["load_in_4bit"] = job.bits == 4
        self.args = replace(args, **fixed, **(self.method.tiny if job.shape == "tiny" else {}))
        self.spec = models.resolve(job.model)
        Path(job.folder).mkdir(exist_ok=True)
        self.run = self.run_of(self.args)

    def do(self) -> None:
        job, found = self.job, self.found
        self.release()
        self.start_mib = resident_mib("VmRSS")
        self.model, self.tokenizer = self.load_plain(job.method == "reward") if job.trl else self.load()
        if job.reload:
            self.run.training.load_adapter("adapter", self.model)
            found.logits_difference = self.logits_differ()
        if job.train:
            clock = self.train(self.args, found)
            found.memory_gib = self.memory()
            self.count_work(clock)
        if not job.trl and not job.reload:
            self.run.training.save_adapter("adapter", self.model, self.tokenizer)
            self.keep_logits()
        if job.grow:
            for what, name in self.method.work.items():
                found.growth[what] = self.doubled({name: 2 * getattr(self.args, name)})

    # What the card uses of a recipe, beside its Args and ON_CPU: a run without stages, the configs, the loading

    def run_of(self, args: Any) -> Run:
        return Run(Path(self.job.folder), self.method.name, self.spec, args)

    def config(self, args: Any, *more: Any) -> Any:
        """The recipe's, of a trainer that keeps no checkpoints."""
        config = getattr(self.method.recipe, f"{self.job.method}_config")(args, self.run_of(args), *more)
        config.save_strategy = "no"
        return config

    def load(self) -> tuple[Any, Any]:
        """As the recipe loads, with room for twice the length."""
        recipe, length = self.method.recipe, self.method.work["length"]
        args = replace(self.args, **{length: 2 * getattr(self.args, length)})
        if self.job.method == "sft":
            return adapters.load(args, self.spec)
        if self.job.method == "reward":
            return recipe.load_model(args, self.spec)
        if not self.rolls_out:
            return models.load(args, self.spec, max_seq_length=args.max_length)
        args = replace(args, rollouts=self.job.rollouts or "model")
        self.policy = load_policy(args, self.spec, max_prompt_length=self.prompt_tokens())
        return self.policy.model, self.policy.tokenizer

    def load_plain(self, classify: bool = False) -> tuple[Any, Any]:
        """The peer's, by transformers and PEFT; to `classify`, with a head that writes one number."""
        import torch
        from transformers import AutoConfig

        half = torch.bfloat16 if self.job.half == "bf16" else torch.float16
        config = AutoConfig.from_pretrained(self.job.model)
        if self.job.bits == 4:
            config.quantization_config["bnb_4bit_compute_dtype"] = str(half).removeprefix("torch.")
        rank = self.args.lora_rank
        model, tokenizer = with_peft(
            self.job.model,
            lora={"r": rank, "lora_alpha": rank, "target_modules": list(self.spec.lora_targets)},
            seed=self.args.seed,
            classify=classify,
            config=config,
            dtype=half,
            device_map="cuda" if self.cuda else None,
        )
        tokenizer.padding_side = "left" if self.rolls_out else "right"
        model.config.pad_token_id = tokenizer.pad_token_id
        if self.cuda:  # whose trainers recompute activations; not all of TRL's see to this
            model.enable_input_require_grads()
        return model, tokenizer

    # Training

    def train(self, args: Any, found: Found, *, warm_up: int = WARM_UP, steps: int = TIMED) -> Any:
        """Build the trainer of `args`, make its steps and put what they took into `found`. Returns the clock."""
        phases = Phases(self.cuda.synchronize if self.cuda else lambda: None)
        planned = warm_up + steps + (SKIPPED if self.job.half == "fp16" else 0)
        trainer = self.trainer(replace(args, max_steps=planned))
        clock = self.clock(phases, trainer.accelerator, warm_up, steps)
        trainer.add_callback(clock)
        for phase, names in METHODS_OF_TRAINERS.items():
            for name in filter(partial(hasattr, trainer), names):
                setattr(trainer, name, phases.timed(phase, getattr(trainer, name)))
        trainer.accelerator.backward = phases.timed("backward", trainer.accelerator.backward)
        if self.job.trl:
            if self.job.half == "fp16":
                for parameter in filter(lambda one: one.requires_grad, self.model.parameters()):
                    parameter.data = parameter.data.float()
            trainer.train()
        else:
            self.run.training.train(trainer)
        if not clock.laps:
            raise RuntimeError(f"each of {planned} steps overflowed in fp16")
        found.seconds = [round(sum(lap.values()), 4) for lap in clock.laps]
        found.phases = {name: round(statistics.mean(lap.get(name, 0.0) for lap in clock.laps), 4) for name in PHASES}
        found.loss_finite = all(map(math.isfinite, clock.losses)) if clock.losses else None
        found.gradients_on_adapters_only = all(clock.on_adapters) if clock.on_adapters else None
        return clock

    def trainer(self, args: Any) -> Any:
        """The trainer of the recipe, or TRL's for the peer, with rows of exactly the lengths that `args` allow."""
        from datasets import Dataset

        method = self.job.method
        rows, more = Dataset.from_list(self.prompts(args) if self.rolls_out else self.pairs(args)), []
        if self.rolls_out:
            return self.grpo(args, rows) if method == "grpo" else self.ppo(args, rows)
        if method == "sft":
            rows = rows.rename_column("chosen", "completion").remove_columns("rejected")
        elif method == "kto":
            rows = unpaired(rows)
            more = [label_weights(rows["label"])]
        elif method == "orpo":
            rows = rendered(rows, self.tokenizer, args.max_length)
        trl = importlib.import_module("trl.experimental.orpo" if method == "orpo" else "trl")
        build = getattr(trl, "RewardTrainer" if method == "reward" else f"{method.upper()}Trainer")
        trainer = build(self.model, args=self.config(args, *more), train_dataset=rows, processing_class=self.tokenizer)
        if method in ("dpo", "kto") and not self.job.trl:
            switch_off_reference(trainer)
        return trainer

    def grpo(self, args: Any, rows: Any) -> Any:
        config = self.config(args, self.job.rollouts)
        config.mask_truncated_completions = False
        config.reward_weights = [*config.reward_weights, 1.0]
        rewards = [*self.method.recipe.REWARDS, distinct_words_reward]
        if not self.job.trl:
            return self.policy.trainer(rewards, config, rows)
        from trl import GRPOTrainer

        return GRPOTrainer(self.model, rewards, config, train_dataset=rows, processing_class=self.tokenizer)

    def ppo(self, args: Any, rows: Any) -> Any:
        if self.job.trl:
            return self.trl_ppo(args, rows)
        from recipes.common import ppo

        if ppo.VALUE in self.model.peft_config:  # of a trainer before this one
            self.model.delete_adapter(ppo.VALUE)
        return ppo.trainer(self.policy, distinct_words_reward, self.config(args), rows)

    def trl_ppo(self, args: Any, rows: Any) -> Any:
        """PPO of TRL 1.12.0. Its value model is a second copy of the model with an adapter, as in ppo_cost.py."""
        config = self.config(args)
        return plain_ppo(
            self.model,
            self.load_plain(classify=True)[0].get_base_model(),
            self.tokenizer,
            rows.to_list(),
            distinct_words_reward,
            **self.run_of(args).trainer_settings("ppo") | {"save_strategy": "no"},
            learning_rate=args.learning_rate,
            optim=config.optim,
            total_episodes=args.max_steps * args.batch_size,
            response_length=args.max_completion_length,
            per_device_train_batch_size=config.micro_batch_size,
            gradient_accumulation_steps=args.batch_size // config.micro_batch_size,
            num_mini_batches=args.batch_size // args.minibatch_size,
            num_ppo_epochs=args.ppo_epochs,
            kl_coef=args.kl_coefficient,
            missing_eos_penalty=args.missing_end_penalty,
        )

    def clock(self, phases: Phases, accelerator: Any, warm_up: int, steps: int) -> Any:
        """A callback that takes a lap for each step after those that warm up, and looks at lengths, losses and, in
        those, gradients."""
        import transformers

        row, parent = self, os.getppid()

        class Clock(transformers.TrainerCallback):
            def on_train_begin(self, *_: Any, optimizer: Any = None, **__: Any) -> None:
                self.made, self.began = 0, time.monotonic()
                self.laps: list[dict[str, float]] = []
                self.lengths: list[float] = []
                self.losses: list[float] = []
                self.on_adapters: list[bool] = []
                if optimizer is not None:  # TRL's PPO shows none
                    optimizer.step = phases.timed("optimiser", optimizer.step)
                phases.lap()

            def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
                if self.made < warm_up:
                    self.on_adapters.append(gradients_on_adapters_only(row.model))

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                lap, self.made = phases.lap(), self.made + 1
                if self.made > warm_up and not accelerator.optimizer_step_was_skipped:
                    self.laps.append(lap)
                    if len(self.laps) == steps or time.monotonic() - self.began > ENOUGH:
                        control.should_training_stop = True
                if os.getppid() != parent:  # killed: nobody waits for the figures of this process
                    os._exit(1)

            def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
                length = logs.get("completions/mean_length", logs.get("length"))
                if length is not None:
                    self.lengths.append(length)
                if "loss" in logs:
                    self.losses.append(logs["loss"])
                    if not accelerator.optimizer_step_was_skipped:
                        self.losses.append(logs.get("grad_norm", 0.0))

        return Clock()

    # Rows

    def prompt_tokens(self) -> int:
        """Of GRPO and PPO: half of the longest that the recipe allows."""
        if self.job.method == "ppo":
            return self.args.max_prompt_length // 2
        return TINY_PROMPT if self.job.shape == "tiny" else GRPO_PROMPT

    def prompts(self, args: Any) -> list[dict[str, Any]]:
        """As many prompts as a step has, of exactly `prompt_tokens`."""
        number = args.batch_size if self.job.method == "ppo" else args.prompts_per_step
        return [{"prompt": self.asked(self.prompt_tokens(), row), "answer": "1"} for row in range(number)]

    def pairs(self, args: Any) -> list[dict[str, Any]]:
        """As many pairs as a step has: a prompt of a quarter of the length, and answers of the rest."""

        def answer(prompt: list[dict[str, str]], start: int) -> list[dict[str, str]]:
            return self.fitted(lambda words: [*prompt, _said("assistant", words, start)], args.max_length)[-1:]

        prompts = [self.asked(args.max_length // 4, row) for row in range(args.batch_size)]
        return [
            {"prompt": prompt, "chosen": answer(prompt, row), "rejected": answer(prompt, row + 3)}
            for row, prompt in enumerate(prompts)
        ]

    def asked(self, tokens: int, row: int) -> list[dict[str, str]]:
        """A prompt of exactly so many tokens."""
        system = {"role": "system", "content": "Count."}  # a template's own would be longer
        return self.fitted(lambda n: [system, _said("user", n, row)], tokens, add_generation_prompt=True)

    def fitted(self, messages: Callable[[int], list], tokens: int, **template: Any) -> list[dict[str, str]]:
        """`messages(n)` with the n that makes them exactly `tokens` long."""
        words = 1
        for _ in range(5):
            ids = self.tokenizer.apply_chat_template(messages(words), return_dict=False, **template)
            if len(ids) == tokens:
                return messages(words)
            words += tokens - len(ids)
            if words < 1:
                break
        raise ValueError(f"no row of {tokens} tokens can be made for {self.job.shape}: its template takes more")

    # Checks and sums

    def doubled(self, changes: dict[str, int]) -> dict[str, Any]:
        """How many times as many seconds a step takes with `changes`, and on a GPU memory; or "failed" and why."""
        own, found = statistics.median(self.found.seconds), Found()
        if own * 2 > ENOUGH:
            return {"failed": f"a step takes {own:.0f} s"}
        warm_up, steps = (0, 1) if own > SLOW else (1, GROWTH)
        self.release()
        try:
            self.train(replace(self.args, **changes), found, warm_up=warm_up, steps=steps)
        except Exception as error:  # of memory, most likely, and no reason to lose the rest
            return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        times = {"seconds": round(statistics.median(found.seconds) / own, 2)}
        if self.cuda:  # resident memory of a process that has trained before tells nothing
            times["memory"] = round((self.memory()["allocated"] or 0) / (self.found.memory_gib["allocated"] or 1), 2)
        return times

    def release(self) -> None:
        """Forget a trainer that is done with and, on a GPU, the peaks of its memory."""
        gc.collect()
        if self.cuda:
            self.cuda.empty_cache()
            self.cuda.reset_peak_memory_stats()

    def memory(self) -> dict[str, float | None]:
        """Peaks in GiB."""
        resident = resident_mib("VmHWM")
        return {
            "allocated": round(self.cuda.max_memory_allocated() / GIB, 3) if self.cuda else None,
            "reserved": round(self.cuda.max_memory_reserved() / GIB, 3) if self.cuda else None,
            "resident": round(resident / 1024, 3),
            "above_start": round((resident - self.start_mib) / 1024, 3),
        }

    def count_work(self, clock: Any) -> None:
        """What a step does: tokens, and what the machine must multiply and read for them."""
        args, found, shape, method = self.args, self.found, self.spec.shape, self.job.method
        assert shape  # of every model that the card makes
        found.work = {what: getattr(args, name) for what, name in self.method.work.items()}
        weights, passes = shape.linear_weights(), self.method.passes
        if method != "reward":
            weights += shape.vocab * shape.hidden
        if self.rolls_out:
            found.completions = args.batch_size if method == "ppo" else args.prompts_per_step * args.num_generations
            longest = args.max_completion_length
            mean = statistics.mean(clock.lengths[-len(clock.laps) :]) if clock.lengths else longest
            found.tokens = round(found.completions * mean, 1)
            tokens = found.completions * self.prompt_tokens() + found.tokens
            found.rollout_bytes = self.spec.weight_gib(self.job.bits == 4) * GIB * longest
            passes += 1 + (4 * args.ppo_epochs if method == "ppo" else 0)
        else:
            found.tokens = tokens = args.batch_size * args.max_length * (1 if method in ("sft", "kto") else 2)
        found.flops = 2 * weights * tokens * passes

    def logits(self) -> Any:
        """Of the last positions of two fixed texts, [2, 4, vocab] in float32, or a reward model's scores, [2, 1]."""
        import torch

        vocab = self.model.get_input_embeddings().weight.shape[0]
        ids = (torch.arange(64, device=self.model.device) * 37 % vocab).reshape(2, 32)
        self.model.eval()
        with torch.no_grad():
            # Without a cache, for which Unsloth has other kernels: a trained model uses one, a loaded one does not.
            found = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        return (found if self.job.method == "reward" else found[:, -4:]).float().cpu().contiguous()

    def keep_logits(self) -> None:
        from safetensors.torch import save_file

        save_file({"logits": self.logits()}, self.run.folder / LOGITS)

    def logits_differ(self) -> float:
        """How far this model's logits are from those that were kept."""
        from safetensors.torch import load_file

        return float((self.logits() - load_file(self.run.folder / LOGITS)["logits"]).abs().max())


def gradients_on_adapters_only(model: Any) -> bool:
    """Whether there are gradients, some of which are not 0, and all of weights that an adapter brought."""
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return all(any(part in name for part in ADDED) for name in found) and any(
        bool(grad.any()) for grad in found.values()
    )


def _said(role: str, words: int, start: int) -> dict[str, str]:
    return {"role": role, "content": " ".join(WORDS[(start + n) % len(WORDS)] for n in range(words))}


def ceilings() -> dict[str, float]:
    """What this machine reaches: FLOP/s of a large 16-bit matrix product, and bytes/s of a large copy, those read
    and those written."""
    import torch
    from torch.utils.benchmark import Timer

    gpu = torch.cuda.is_available()
    device, size, elements = ("cuda", 8192, 2**31) if gpu else ("cpu", 2048, 2**28)
    half = torch.float16 if gpu and torch.cuda.get_device_capability()[0] < 8 else torch.bfloat16
    left, right = (torch.randn(size, size, device=device, dtype=half) for _ in range(2))
    source = torch.ones(elements, device=device, dtype=torch.uint8)
    tensors = {"left": left, "right": right, "source": source, "target": torch.empty_like(source)}

    def fastest(statement: str) -> float:
        timer = Timer(statement, globals=tensors, num_threads=torch.get_num_threads())
        return min(timer.blocked_autorange(min_run_time=1.5).times)  # a shared machine is at its best now and then

    return {
        "matmul_flops": 2 * size**3 / fastest("left @ right"),
        "copy_bytes": 2 * elements / fastest("target.copy_(source)"),
    }
