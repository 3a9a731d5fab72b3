"""One row of the cost card, `recipes/bench/card.py`: a method's own trainer on a random model, in a process of its own.

Ours is the recipe: its model loading, its trainer config and `Run.train`. The peer is plain TRL and PEFT, on a GPU with
bitsandbytes, given the same config, model and rows; where that is no trainer of TRL any more, TRL 1.12.0's PPO, in a
Python that has no Unsloth.

What differs from the recipe as a user runs it, for either contender:
- every row is exactly as long as the recipe allows, and prompts of GRPO and PPO are half as long as it allows: no
  padding, and lengths known beforehand. Completions end at the length limit but where an untrained model happens to
  write its end token; tokens are counted as written
- GRPO learns from completions that were cut off, all of them, and both get a reward of more values than a random
  model's answers earn: without either there would be no gradient
- PPO's reward is a program. What PairRM takes is in recipes/bench/pairrm_memory.py
- no checkpoints, and nothing is evaluated
- the peer's adapter is in float32 where training is in fp16: TRL makes it bfloat16, whose gradients cannot be scaled

Without a GPU the recipe also keeps what a step frees (`machine.keep_freed_memory`), and plain TRL does not.

Phases are told apart by who calls: what Unsloth differentiates within its loss counts as "log-probabilities", which is
the whole forward pass and loss, and not as "backward".
"""

import functools
import gc
import importlib
import math
import os
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
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
from recipes.bench.training_speed import settings
from recipes.common import adapters, models
from recipes.common.preference import rendered, switch_off_reference
from recipes.common.rollouts import Choice, Rollouts, choose
from recipes.common.run import Run
from rewards.format import multiline_reward, steps_reward, structure_reward, tags_reward
from rewards.numeric import correctness_reward

WARM_UP, TIMED, GROWTH = 2, 4, 2  # steps that are not timed, that are, and that are of each doubling
ENOUGH = 120  # seconds of training after which a process makes no further step, once one has been timed
SLOW = 15  # seconds of a step from which on doubled ones are not warmed up, and one is timed
SKIPPED = 12  # more steps of fp16, whose scale falls until no gradient overflows; those that overflow are not timed
GRPO_PROMPT, TINY_PROMPT = 208, 64  # tokens: half of what gsm8k_grpo has room for, and those for shape "tiny"
MIB, GIB = 2**20, 2**30
LOGITS = "logits.safetensors"
VALUE = "value"  # the adapter of our PPO's value function
ADDED = ("lora_", "modules_to_save", "value_head")  # what names of trained weights contain
LOGP = "log-probabilities"
PHASES = ("rollout", "reward", LOGP, "backward", "optimiser", "other")
# Of TRL's GRPO, ours of PPO and every trainer: where a step's time goes. What one calls is not counted twice.
METHODS_OF_TRAINERS = {
    "_generate": "rollout", "_roll_out": "rollout", "_calculate_rewards": "reward", "_score": "reward",
    "_generate_and_score_completions": LOGP, "_stack": LOGP, "_differentiate": LOGP, "compute_loss": LOGP,
}  # fmt: skip
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
    """What one process is to do, with its run in `folder`."""

    method: str
    shape: str
    model: str
    """Folder of the model"""
    folder: str
    in_4bit: bool
    gpu: bool = False
    half: str = "bf16"
    """Or fp16, as on a card that has no bfloat16"""
    engine: Choice = "model"
    """Of rollouts, or vllm"""
    trl: bool = False
    """The peer"""
    reload: bool = False
    """Load the adapter that another process has saved, and compare its logits, before training"""
    train: bool = True
    grow: bool = False
    """Double the work, once for each kind of it, after the timed steps"""


@dataclass
class Found:
    """What one process measured. Seconds are of each timed step, MiB are peaks until the last of them."""

    seconds: list[float] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)
    """Mean seconds a step, which together are its own"""
    tokens: float = 0.0
    """A step's, prompts and completions"""
    completions: int = 0
    written: float = 0.0
    """Tokens of a step's completions"""
    start_mib: int = 0
    """Resident after imports, when no model is loaded"""
    resident_mib: int = 0
    """Most since the process began"""
    allocated_mib: int | None = None
    reserved_mib: int | None = None
    loss_finite: bool | None = None
    gradients_on_adapters_only: bool | None = None
    logits_difference: float | None = None
    """The largest between the model that was trained and the one that was loaded"""
    growth: dict[str, Any] = field(default_factory=dict)
    """By what was doubled: what `Row.doubled` returns"""
    work: dict[str, int] = field(default_factory=dict)
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

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.turn()
        self.open.append(name)
        try:
            yield
        finally:
            self.turn()
            self.open.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return function(*args, **kwargs)

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

        self.job, self.method, self.gpu, self.rolls_out = job, METHODS[job.method], job.gpu, job.method in ROLLS_OUT
        self.found = Found(versions={module.__name__: module.__version__ for module in (torch, transformers, trl)})
        args = self.method.recipe.Args() if self.gpu else self.method.recipe.ON_CPU
        fixed: dict[str, Any] = {"model": job.model, "max_steps": WARM_UP + TIMED, "report_to": "none"}
        if hasattr(args, "adapter"):
            fixed["adapter"] = "qlora" if job.in_4bit else "lora"
        else:
            fixed["load_in_4bit"] = job.in_4bit
        self.args = replace(args, **fixed, **(self.method.tiny if job.shape == "tiny" else {}))
        self.spec = models.resolve(job.model)
        Path(job.folder).mkdir(exist_ok=True)
        self.run = self.run_of(self.args)

    def wait(self) -> None:
        """Until the GPU is done, where there is one."""
        if self.gpu:
            import torch

            torch.cuda.synchronize()

    def do(self) -> None:
        job, found = self.job, self.found
        self.release()
        found.start_mib = resident_mib("VmRSS")
        self.model, self.tokenizer = self.load_plain(job.method == "reward") if job.trl else self.load()
        if job.reload:
            self.run.training.load_adapter("adapter", self.model)
            found.logits_difference = self.logits_differ()
        if job.train:
            clock = self.train(self.args, found)
            self.peaks(found)
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
        engine = choose(self.job.engine, self.job.in_4bit)  # which also prepares for it
        longest = self.prompt_tokens() + args.max_completion_length
        model, tokenizer = models.load(args, self.spec, max_seq_length=longest, engine=engine)
        self.rollouts = Rollouts(engine, model, tokenizer, longest)
        return model, tokenizer

    # The peer's loading

    def load_plain(self, classify: bool = False) -> tuple[Any, Any]:
        """By transformers and PEFT; to `classify`, with a head that writes one number."""
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

        torch.manual_seed(self.args.seed)
        half = torch.bfloat16 if self.job.half == "bf16" else torch.float16
        config = AutoConfig.from_pretrained(self.job.model, **({"num_labels": 1} if classify else {}))
        if self.job.in_4bit:
            config.quantization_config["bnb_4bit_compute_dtype"] = str(half).removeprefix("torch.")
        model = (AutoModelForSequenceClassification if classify else AutoModelForCausalLM).from_pretrained(
            self.job.model, config=config, dtype=half, device_map="cuda" if self.gpu else None
        )
        tokenizer = AutoTokenizer.from_pretrained(self.job.model, padding_side="left" if self.rolls_out else "right")
        model.config.pad_token_id = tokenizer.pad_token_id
        if self.gpu:  # whose trainers recompute activations; not all of TRL's see to this
            model.enable_input_require_grads()
        lora = LoraConfig(
            task_type="SEQ_CLS" if classify else "CAUSAL_LM", r=self.args.lora_rank, lora_alpha=self.args.lora_rank,
            lora_dropout=0.0, target_modules=list(self.spec.lora_targets),
        )  # fmt: skip
        return get_peft_model(model, lora), tokenizer

    # Training

    def train(self, args: Any, found: Found, *, warm_up: int = WARM_UP, steps: int = TIMED) -> Any:
        """Build the trainer of `args`, make its steps and put what they took into `found`. Returns the clock."""
        phases = Phases(self.wait)
        planned = warm_up + steps + (SKIPPED if self.job.half == "fp16" else 0)
        trainer = self.trainer(replace(args, max_steps=planned))
        clock = self.clock(phases, trainer.accelerator, warm_up, steps)
        trainer.add_callback(clock)
        for name, phase in METHODS_OF_TRAINERS.items():
            if hasattr(trainer, name):
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
        method = self.job.method
        if self.rolls_out:
            rows = self.prompts(args)
            return self.grpo(args, rows) if method == "grpo" else self.ppo(args, rows)
        rows, more = self.pairs(args), []
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
        from trl import GRPOTrainer

        config = self.config(args, self.job.engine)
        config.mask_truncated_completions = False
        config.reward_weights = [*config.reward_weights, 1.0]
        own = [correctness_reward, tags_reward, structure_reward, multiline_reward, steps_reward]
        rewards = [*own, distinct_words_reward]
        trainer = GRPOTrainer(self.model, rewards, config, train_dataset=rows, processing_class=self.tokenizer)
        if not self.job.trl:
            self.rollouts.attach(trainer)
        return trainer

    def ppo(self, args: Any, rows: Any) -> Any:
        if self.job.trl:
            return self.trl_ppo(args, rows)
        from recipes.common.ppo import PPOTrainer

        if VALUE in self.model.peft_config:  # of a trainer before this one
            self.model.delete_adapter(VALUE)
        data = {"train_dataset": rows, "processing_class": self.tokenizer}
        return PPOTrainer(self.model, distinct_words_reward, self.config(args), self.rollouts.sampler, **data)

    def trl_ppo(self, args: Any, rows: Any) -> Any:
        """PPO of TRL 1.12.0. Its value model is a second copy of the model with an adapter, as in ppo_cost.py."""
        micro = math.gcd(8, args.minibatch_size)
        as_ours = {
            "bf16": self.job.half == "bf16",
            "fp16": self.job.half == "fp16" and not self.spec.fp16_unsafe,
            "use_cpu": not self.gpu,
            "gradient_checkpointing": self.gpu,
            "optim": "adamw_8bit" if self.gpu else "adamw_torch_fused",
            "dataloader_pin_memory": self.gpu,
        }
        return plain_ppo(
            self.model,
            self.load_plain(classify=True)[0].get_base_model(),
            self.tokenizer,
            rows.to_list(),
            distinct_words_reward,
            **settings(self.job.folder, args.seed) | as_ours,
            learning_rate=args.learning_rate,
            total_episodes=args.max_steps * args.batch_size,
            response_length=args.max_completion_length,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=args.batch_size // micro,
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

    def prompts(self, args: Any) -> Any:
        """As many prompts as a step has, of exactly `prompt_tokens`."""
        from datasets import Dataset

        number = args.batch_size if self.job.method == "ppo" else args.prompts_per_step
        rows = [{"prompt": self.asked(self.prompt_tokens(), row), "answer": "1"} for row in range(number)]
        return Dataset.from_list(rows)

    def pairs(self, args: Any) -> Any:
        """As many pairs as a step has: a prompt of a quarter of the length, and answers of the rest."""
        from datasets import Dataset

        def answer(prompt: list[dict[str, str]], start: int) -> list[dict[str, str]]:
            return self.fitted(lambda words: [*prompt, _said("assistant", words, start)], args.max_length)[-1:]

        def pair(row: int) -> dict[str, Any]:
            prompt = self.asked(args.max_length // 4, row)
            return {"prompt": prompt, "chosen": answer(prompt, row), "rejected": answer(prompt, row + 3)}

        return Dataset.from_list([pair(row) for row in range(args.batch_size)])

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
            return {"failed": reason(error)}
        self.peaks(found)
        times = {"seconds": round(statistics.median(found.seconds) / own, 2)}
        if self.gpu:  # resident memory of a process that has trained before tells nothing
            times["memory"] = round((found.allocated_mib or 0) / (self.found.allocated_mib or 1), 2)
        return times

    def release(self) -> None:
        """Forget a trainer that is done with and, on a GPU, the peaks of its memory."""
        gc.collect()
        if self.gpu:
            import torch

            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peaks(self, found: Found) -> None:
        found.resident_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # KiB on Linux
        if self.gpu:
            import torch

            found.allocated_mib = torch.cuda.max_memory_allocated() // MIB
            found.reserved_mib = torch.cuda.max_memory_reserved() // MIB

    def count_work(self, clock: Any) -> None:
        """What a step does: tokens, and what the machine must multiply and read for them."""
        args, found, method = self.args, self.found, self.method
        found.work = {what: getattr(args, name) for what, name in method.work.items()}
        weights, read, passes = 0, 0.0, method.passes
        if shape := self.spec.shape:
            weights = shape.linear_weights() + (0 if self.job.method == "reward" else shape.vocab * shape.hidden)
            read = self.spec.weight_gib(self.job.in_4bit) * GIB
        if self.rolls_out:
            per_prompt = 1 if self.job.method == "ppo" else args.num_generations
            number = args.batch_size if self.job.method == "ppo" else args.prompts_per_step
            found.completions = number * per_prompt
            longest = args.max_completion_length
            mean = statistics.mean(clock.lengths[-len(clock.laps) :]) if clock.lengths else longest
            found.written = round(found.completions * mean, 1)
            found.tokens = found.completions * self.prompt_tokens() + found.written
            found.rollout_bytes = read * longest
            passes += 1 + (4 * args.ppo_epochs if self.job.method == "ppo" else 0)
        else:
            found.tokens = args.batch_size * args.max_length * (1 if self.job.method in ("sft", "kto") else 2)
        found.flops = 2 * weights * found.tokens * passes

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


def reason(error: BaseException) -> str:
    """Why a row has failed, on a line."""
    kind, text = type(error).__name__, " ".join(str(error).split())
    return f"{kind}: {text[:200]}"


def _said(role: str, words: int, start: int) -> dict[str, str]:
    return {"role": role, "content": " ".join(WORDS[(start + n) % len(WORDS)] for n in range(words))}


def ceilings() -> dict[str, float]:
    """What this machine reaches: FLOP/s of a large 16-bit matrix product, and bytes/s of a large copy, those read
    and those written."""
    import torch

    gpu = torch.cuda.is_available()
    device, size, elements = ("cuda", 8192, 2**31) if gpu else ("cpu", 2048, 2**28)
    half = torch.float16 if gpu and torch.cuda.get_device_capability()[0] < 8 else torch.bfloat16
    left, right = (torch.randn(size, size, device=device, dtype=half) for _ in range(2))
    source = torch.ones(elements, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)

    def fastest(work: Callable[[], Any]) -> float:
        times: list[float] = []
        while len(times) < 6 or sum(times) < 1.5:  # a machine that is shared is at its best now and then
            began = time.perf_counter()
            work()
            if gpu:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        return min(times)

    return {
        "matmul_flops": 2 * size**3 / fastest(lambda: left @ right),
        "copy_bytes": 2 * elements / fastest(lambda: target.copy_(source)),
    }
