"""Every recipe and every adapter once, sample to report, as users start them on the tiny random model."""

import json
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import get_args

import pytest

from recipes.common.adapters import LEARNING_RATES, PROMPT_LEARNING, Adapter

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*_sft.py"))
# Virtual tokens first: ARC, the first recipe, asks most of a model's logits.
ADAPTERS: list[Adapter] = sorted(get_args(Adapter), key=lambda adapter: adapter not in PROMPT_LEARNING)
WALKS = list(islice(zip(cycle(RECIPES), cycle(ADAPTERS), strict=False), max(len(RECIPES), len(ADAPTERS))))


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 5


def test_every_adapter_has_a_learning_rate_that_suits_it() -> None:
    assert LEARNING_RATES.keys() == set(ADAPTERS)
    # At LoRA's rate they do not learn, and a comparison would say so of the method.
    assert min(LEARNING_RATES[adapter] for adapter in PROMPT_LEARNING) > LEARNING_RATES["lora"] > LEARNING_RATES["full"]


@pytest.mark.parametrize(("name", "adapter"), WALKS)
def test_smoke(name: str, adapter: Adapter, run_script: Callable[..., str], tmp_path: Path) -> None:
    """Starts, stops, resumes and ends."""
    printed = run_script(name, "--smoke", "--adapter", adapter, "--output-dir", tmp_path)
    assert printed.count("goes on") >= 1 and "Report:" in printed and "Supervision of" in printed
    (folder,) = tmp_path.glob(f"{name}/*/*")
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
