"""Every recipe with every adapter, sample to report, on the tiny random model; with one of them as a user starts it."""

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest

from recipes.common.adapters import PROMPT_LEARNING, Adapter

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*_sft.py"))
ADAPTERS: tuple[Adapter, ...] = get_args(Adapter)
SMOKED = list(zip(RECIPES, ADAPTERS, strict=False))


def recipe(name: str) -> ModuleType:
    return importlib.import_module(f"recipes.{name}")


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 5


@pytest.mark.parametrize("name", RECIPES)
def test_every_adapter_has_a_learning_rate_that_suits_it(name: str) -> None:
    rates = recipe(name).LEARNING_RATES
    assert rates.keys() == set(ADAPTERS)
    # At LoRA's rate they do not learn, and a comparison would say so of the method.
    assert min(rates[adapter] for adapter in PROMPT_LEARNING) > rates["lora"] > rates["full"]


def assert_ran_whole(name: str, adapter: Adapter, output: Path, printed: str) -> None:
    (folder,) = output.glob(f"{name}/*/*")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert results["complete"] and [stage["name"] for stage in results["stages"]] == ["before", "after"]
    before, after = results["stages"]
    assert before["loss"] > 0 and before["loss"] != after["loss"]
    training = results["training"]
    assert 0 < training["trainable_parameters"] <= training["parameters"]
    assert (training["trainable_parameters"] == training["parameters"]) == (adapter == "full")
    weights = "model.safetensors" if adapter == "full" else "adapter_model.safetensors"
    assert (folder / "adapter" / weights).stat().st_size == training["adapter_bytes"]
    assert (folder / "report.html").exists() and (folder / "adapter" / "README.md").exists()
    assert "Supervision of" in printed


@pytest.mark.parametrize(("name", "adapter"), SMOKED)
def test_smoke(name: str, adapter: Adapter, run_script: Callable[..., str], tmp_path: Path) -> None:
    """Starts, stops, resumes and ends."""
    printed = run_script(name, "--smoke", "--adapter", adapter, "--output-dir", tmp_path)
    assert printed.count("goes on") >= 1 and "Report:" in printed
    assert_ran_whole(name, adapter, tmp_path, printed)


@pytest.mark.parametrize(("name", "adapter"), [cell for cell in product(RECIPES, ADAPTERS) if cell not in SMOKED])
def test_a_recipe_runs_whole_with_an_adapter(
    name: str, adapter: Adapter, unsloth: ModuleType, tiny: Path, tmp_path: Path, capsys: Any
) -> None:
    module = recipe(name)
    args = replace(module.ON_CPU, **module.SMOKE)
    module.main(replace(args, model=str(tiny), adapter=adapter, max_steps=2, output_dir=str(tmp_path)))
    assert_ran_whole(name, adapter, tmp_path, capsys.readouterr().out)
