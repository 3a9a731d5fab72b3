"""The flags that recipes share: how a batch is split, what a machine without a GPU gets, and what `--help` tells."""

import importlib
import inspect
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from recipes.common.args import (
    CompareArgs,
    GRPOArgs,
    JudgeArgs,
    PreferenceArgs,
    RewardArgs,
    RunArgs,
    SFTArgs,
    check_flags,
    split_batch,
)
from recipes.common.cli import explain
from recipes.common.run import Run

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*_*.py") if not path.stem.startswith("_"))


def recipe(name: str) -> ModuleType:
    return importlib.import_module(f"recipes.{name}")


# A batch


@dataclass(frozen=True)
class Batch:
    batch_size: int
    per_device_train_batch_size: int | None = None
    gradient_accumulation_steps: int | None = None


@pytest.mark.parametrize(
    ("batch", "at_once", "expected"),
    [
        (Batch(16), 8, (8, 2)),
        (Batch(16), 32, (16, 1)),
        (Batch(12), 8, (4, 3)),  # what divides both
        (Batch(7), 4, (1, 7)),
        (Batch(16, per_device_train_batch_size=2), 8, (2, 8)),
        (Batch(16, gradient_accumulation_steps=4), 8, (4, 4)),
        (Batch(16, per_device_train_batch_size=16, gradient_accumulation_steps=1), 8, (16, 1)),
    ],
)
def test_a_batch_is_split(batch: Batch, at_once: int, expected: tuple[int, int]) -> None:
    assert tuple(split_batch(batch, at_once=at_once).values()) == expected


@pytest.mark.parametrize(
    ("batch", "numbers"),
    [
        (Batch(16, per_device_train_batch_size=3), "3 x --gradient-accumulation-steps 5 are 15 rows"),
        (Batch(16, per_device_train_batch_size=32), "32 x --gradient-accumulation-steps 1 are 32 rows"),
        (Batch(16, gradient_accumulation_steps=3), "5 x --gradient-accumulation-steps 3 are 15 rows"),
        (Batch(16, 4, 2), "4 x --gradient-accumulation-steps 2 are 8 rows"),
    ],
)
def test_numbers_that_do_not_multiply_are_refused_in_one_sentence(batch: Batch, numbers: str) -> None:
    with pytest.raises(ValueError) as refused:
        split_batch(batch, at_once=8)
    sentence = str(refused.value)
    assert sentence.startswith(f"--per-device-train-batch-size {numbers} per update, where 16 are asked for: give ")
    assert explain(refused.value) == sentence and "\n" not in sentence


# Every recipe


@pytest.mark.parametrize("name", RECIPES)
def test_without_a_gpu_a_recipe_runs_as_it_is(name: str) -> None:
    """The embedded model, our own rows, and nothing in 4 bits, which two cores would wait for."""
    args = recipe(name).ON_CPU
    assert args.model == "smollm2-135m" and args.source == "sample"
    assert args.load_in_4bit is False and getattr(args, "adapter", "lora") == "lora"
    assert not args.smoke and args.push_to_hub is None


def test_what_a_recipe_changes_comes_last() -> None:
    args = recipe("arc_sft").Args()
    assert args.on_cpu().adapter == "lora" and args.on_cpu(adapter="dora", source="mine.jsonl").adapter == "dora"
    assert args.on_cpu(source="mine.jsonl").source == "mine.jsonl" and args.on_cpu().max_steps == args.max_steps


ENGINE = {"engine": "model", "weights": [1.0] * 16}  # of GRPO's and KTO's configs, what is no flag
CHOSEN = {
    "lr_scheduler_type": "cosine",
    "weight_decay": 0.3,
    "num_train_epochs": 2.0,
    "save_steps": 7.0,
    "run_name": "x",
}
SPLIT = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}


@pytest.mark.usefixtures("unsloth")  # before trl
@pytest.mark.parametrize("name", RECIPES)
def test_flags_reach_the_trainer_of_every_recipe(name: str, tmp_path: Path) -> None:
    module, method = recipe(name), name.rpartition("_")[2]
    args = replace(module.ON_CPU, output_dir=str(tmp_path), **CHOSEN | {"learning_rate": 0.25})
    if hasattr(args, "gradient_accumulation_steps"):
        eight = {"prompts_per_step": 2, "num_generations": 4} if method == "grpo" else {"batch_size": 8}
        args = replace(args, **SPLIT | eight)
    run = Run.open(name, args, correct=None, format=None)
    build = getattr(module, f"{method}_config")
    asked = [parameter for parameter in inspect.signature(build).parameters if parameter in ENGINE]
    config = build(args, run, *(ENGINE[parameter] for parameter in asked))
    expected = CHOSEN | {"max_steps": -1, "learning_rate": 0.25, "seed": args.seed}
    if hasattr(args, "gradient_accumulation_steps"):
        expected |= SPLIT
    assert {field: getattr(config, field) for field in expected} == expected
    assert config.optim == "adamw_torch_fused" and config.max_grad_norm == 1.0


FAMILIES = {"sft": SFTArgs, "grpo": GRPOArgs, "reward": RewardArgs, "ppo": CompareArgs}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_every_flag_of_its_family(name: str) -> None:
    module = recipe(name)
    family = FAMILIES.get(name.rpartition("_")[2], PreferenceArgs)
    assert issubclass(module.Args, family) and issubclass(module.Args, RunArgs)
    assert issubclass(module.Args, JudgeArgs) == hasattr(module, "JUDGED")
    assert {field.name for field in fields(module.Args)} >= module.SMOKE.keys()


@pytest.mark.filterwarnings("ignore:get_parser")
@pytest.mark.parametrize("name", RECIPES)
def test_help_explains_every_flag(name: str) -> None:
    """Inherited ones too, whether a recipe states their default or not."""
    import tyro

    parser = tyro.extras.get_parser(recipe(name).Args, default=recipe(name).ON_CPU)
    bare = [action.dest for action in parser._actions if not (action.help or "").partition("(default")[0].strip()]
    assert bare == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"max_steps": 0}, "--max-steps 0: expected 1 or more"),
        ({"lora_rank": -1}, "--lora-rank -1: expected 1 or more"),
        ({"num_train_epochs": 0.0}, "--num-train-epochs 0.0: expected a number above 0"),
        ({"num_train_epochs": -1.0}, "--num-train-epochs -1.0: expected a number above 0"),
        ({"learning_rate": float("nan")}, "--learning-rate nan: expected a number above 0"),
        ({"weight_decay": -1.0}, "--weight-decay -1.0: expected 0 or more"),
        ({"num_generations": 1}, "--num-generations 1: expected 2 or more"),
        ({"max_completion_length": 0}, "--max-completion-length 0: expected 1 or more"),
        ({"sft_steps": -1}, "--sft-steps -1: expected 0 or more"),
        ({"gradient_accumulation_steps": 0}, "--gradient-accumulation-steps 0: expected 1 or more"),
        ({"max_hours": 0.0}, "--max-hours 0.0: expected a number above 0"),
        ({"lora_dropout": 2.0}, "--lora-dropout 2.0: expected a share below 1"),
        ({"save_steps": 2.5}, "--save-steps 2.5: expected a whole number, or a share of the run below 1"),
        ({"save_steps": 0.0}, "--save-steps 0.0: expected a number above 0"),
        ({"report_to": "nonsense"}, "--report-to nonsense: expected one of none, wandb, trackio, tensorboard"),
        (
            {"report_to": "wandb"},
            "--report-to wandb needs that package: run `.venv/bin/python -m pip install wandb`, or leave it out",
        ),
        (
            {"per_device_train_batch_size": 3},
            "--per-device-train-batch-size 3 x --gradient-accumulation-steps 10 are 30 rows per update, where 32 are "
            "asked for: give numbers that make 32, or another number of rows",
        ),
    ],
)
def test_a_number_that_no_flag_takes_is_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    from recipes import gsm8k_grpo

    check_flags(gsm8k_grpo.ON_CPU)
    with pytest.raises(ValueError) as refused:
        check_flags(replace(gsm8k_grpo.ON_CPU, **changes))
    assert str(refused.value) == sentence


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipes_own_defaults_pass(name: str) -> None:
    check_flags(recipe(name).Args())
    check_flags(recipe(name).ON_CPU)
