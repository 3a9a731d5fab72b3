"""Run by test_unsloth_gpu_path.py in a process of its own: every config as on a GPU, where Unsloth rewrites TRL's.

python tests/gpu_path_driver.py RECIPES

RECIPES is JSON, of each recipe its name, its config, where that is imported from, the function that makes it, and what
this needs beside arguments and run. Prints, as the last line, what was written into each config and what its fields
then are, in TRL's class and in Unsloth's; and two updates of PPO, before and after Unsloth replaced its trainer's
methods.
"""

import functools
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import unsloth  # isort: skip  # noqa: F401
from unsloth.models.rl import patch_trl_rl_trainers  # isort: skip

patch_trl_rl_trainers()
import datasets  # noqa: E402
import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
import trl  # noqa: E402
from unsloth.models._utils import patch_gradient_accumulation_fix  # noqa: E402  called where it loads a model

from eval.sampling import Completion  # noqa: E402
from recipes import arc_sft, gsm8k_grpo  # noqa: E402
from recipes.common import adapters, grpo, machine, models  # noqa: E402
from recipes.common.model_table import MODELS  # noqa: E402
from recipes.common.ppo import PPOConfig, PPOTrainer  # noqa: E402
from recipes.common.run import Run  # noqa: E402
from recipes.common.stand_ins.tiny import tiny_folder  # noqa: E402

# What a card with bfloat16 says of itself.
machine.has_gpu = lambda: True
torch.cuda.is_bf16_supported = lambda *args, **kwargs: True
transformers.training_args.is_torch_bf16_gpu_available = lambda: True

Build = Callable[[], Any]


class WarmStart(Exception):
    """The config of a warm start, which is built where it is trained."""


class Stop:
    def __init__(self, model: Any, config: Any, **_: Any) -> None:
        raise WarmStart(config)


def plain(value: Any) -> Any:
    value = getattr(value, "value", value)  # of an enumeration
    return value if value is None or isinstance(value, bool | int | float | list | dict) else str(value)


def plain_fields(config: Any) -> dict[str, Any]:
    return {field.name: plain(getattr(config, field.name, None)) for field in fields(config)}


def warm_start_config(args: Any, run: Run) -> Any:
    trainer, trl.SFTTrainer = trl.SFTTrainer, Stop
    rollouts = SimpleNamespace(max_length=512)
    policy = SimpleNamespace(model=None, tokenizer=None, rollouts=rollouts, fitting=lambda rows: rows)
    try:
        grpo.warm_start(args, run, policy, lambda limit: None, lambda stage: [])
    except WarmStart as built:
        return built.args[0]
    finally:
        trl.SFTTrainer = trainer
    raise AssertionError("the warm start built no trainer")


def configs(recipes: list[Any]) -> Iterator[tuple[str, str, Build]]:
    """Of each config: a name, where its class is imported from, and what builds it."""
    args = replace(gsm8k_grpo.Args(), output_dir="runs", sft_steps=2)
    run = Run.open("gsm8k_grpo", args, correct="correctness_reward", format="structure_reward")
    run.stages["before"] = [{"tokens": 200}]  # type: ignore[typeddict-item]
    yield "SFTConfig", "trl", functools.partial(warm_start_config, args, run)
    yield "GRPOConfig", "trl", functools.partial(gsm8k_grpo.grpo_config, args, run, "model")
    yield "GRPOConfig with vLLM", "trl", functools.partial(gsm8k_grpo.grpo_config, args, run, "vllm")
    for name, config, where, function, more in recipes:
        recipe = importlib.import_module(f"recipes.{name}")
        yield f"{config} of {name}", where, functools.partial(getattr(recipe, function), recipe.Args(), run, *more)


def compare(name: str, where: str, build: Build) -> dict[str, dict[str, Any]]:
    home, config = importlib.import_module(where), name.split()[0]
    rewritten = getattr(home, config)
    ours = where.startswith("recipes.")
    stock = rewritten if ours else rewritten.__mro__[1]  # which the generated one, of the same name, was made from
    assert stock.__name__ == rewritten.__name__, f"Unsloth did not rewrite {name}"
    written: dict[str, Any] = {}

    def recorded(**kwargs: Any) -> Any:
        written.update(kwargs)
        return rewritten(**kwargs)

    setattr(home, config, recorded)
    theirs = plain_fields(build())
    setattr(home, config, rewritten)
    return {
        "written": {key: plain(value) for key, value in written.items()},
        "rewritten": theirs,
        "stock": plain_fields(stock(**written)),
    }


class Sampler:
    name, batch_size = "scripted", 4

    def sample(self, prompts: list[Any], **settings: Any) -> list[Completion]:
        lengths = [len(prompt[0]["content"]) for prompt in prompts]
        return [Completion("", tuple(range(300, 300 + length)), False) for length in lengths]


def reward(prompts: list[Any], **kwargs: Any) -> list[float]:
    return [len(prompt[0]["content"]) % 3 - 1.0 for prompt in prompts]


def updates() -> list[dict[str, Any]]:
    """What PPO logs of two updates."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder(), dtype=torch.float32)
    config = PPOConfig(
        "ppo",
        max_steps=2,
        learning_rate=1e-2,
        per_device_train_batch_size=6,
        minibatch_size=2,
        micro_batch_size=2,
        ppo_epochs=2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )
    trainer = PPOTrainer(
        peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"])),
        reward,
        config,
        Sampler(),
        train_dataset=datasets.Dataset.from_list(
            [{"prompt": [{"role": "user", "content": "a" * length}]} for length in range(1, 7)]
        ),
        processing_class=transformers.AutoTokenizer.from_pretrained(tiny_folder()),
    )
    trainer.train()
    return trainer.state.log_history[:2]


def prompt_learning(adapter: Any) -> list[float]:
    """Losses of three steps of SFT with the settings that a recipe has on a GPU, but for its precision and its
    optimiser."""
    args = replace(
        arc_sft.Args(), model=str(tiny_folder()), adapter=adapter, output_dir="runs", max_steps=3, virtual_tokens=4
    )
    run = Run.open(f"{adapter}_sft", args, correct=None, format=None)
    machine.has_gpu = lambda: False  # where weights are put
    model, tokenizer = adapters.load(args, run.spec)
    machine.has_gpu = lambda: True
    rows = [
        {
            "prompt": [{"role": "user", "content": "How many? " * length}],
            "completion": [{"role": "assistant", "content": "B"}],
        }
        for length in (1, 9, 3, 7)
    ]
    config = trl.SFTConfig(
        **run.trainer_settings("sft") | {"bf16": False, "save_strategy": "no"},
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        warmup_steps=0,
        completion_only_loss=True,
    )
    trainer = adapters.trainer(args, model, tokenizer, datasets.Dataset.from_list(rows), config)
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


if __name__ == "__main__":
    found: dict[str, Any] = {
        name: compare(name, where, build) for name, where, build in configs(json.loads(sys.argv[1]))
    }
    stock = updates()
    patch_gradient_accumulation_fix(transformers.Trainer)
    replaced = [name for name, value in vars(transformers.Trainer).items() if "_unsloth" in str(value)]
    found["sources"] = {alias: models.open_source(spec, load_in_4bit=False) for alias, spec in MODELS.items()}
    found["prompt learning"] = {adapter: prompt_learning(adapter) for adapter in adapters.PROMPT_LEARNING}
    found["PPOTrainer"] = {"replaced": replaced, "stock": stock, "rewritten": updates()}
    print("\n" + json.dumps(found))
