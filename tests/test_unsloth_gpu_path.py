"""The recipes' configs and PPO's trainer against what Unsloth rewrites on a GPU, without a GPU.

On a GPU Unsloth replaces TRL's configs by generated subclasses with defaults of its own. A field that the
recipe writes must arrive; a field it does not write must mean the same on both, or stand below with the reason
why it may differ. A renamed field and a changed default are found here and not in somebody's GPU hours. PPO's config
is our own and nobody rewrites it, but its trainer inherits methods that Unsloth replaces in transformers' Trainer.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from recipes.common.adapters import PROMPT_LEARNING

ROOT = Path(__file__).resolve().parents[1]

# Fields that differ although both configs were given the same, and why the recipe leaves them be.
HARMLESS = {
    "context_parallel_backend": "one card",
    "context_parallel_rotate_method": "one card",
    "context_parallel_size": "one card",
    "dataset_num_proc": "how fast rows are tokenised",
    "eval_accumulation_steps": "the trainers evaluate nothing",
    "generation_kwargs": "none, or an empty dictionary",
    "gradient_checkpointing_kwargs": "Unsloth checkpoints in a way of its own",
    "logging_nan_inf_filter": "a nan shows, where TRL would show the step before it",
    "max_seq_length": "Unsloth's knob, unset",
    "padding_free": "off, or on where Unsloth finds that it gives the same loss",
    "per_device_eval_batch_size": "the trainers evaluate nothing",
    "router_aux_loss_coef": "mixtures of experts only, and off",
    "top_k": "off in the words of the model's generate, or of vLLM",
    "torch_empty_cache_steps": "memory, not results",
    "unsloth_grpo_mini_batch": "Unsloth's knob, at its default",
    "unsloth_logit_chunk_multiplier": "Unsloth's knob, at its default",
    "unsloth_num_chunks": "Unsloth's knob, at its default",
    "vllm_sampling_params": "Unsloth's knob, unset",
}
# Method: its config, where that is imported from, the recipe's function, and what this needs beside arguments and run.
METHODS: dict[str, tuple[str, str, str, list[Any]]] = {
    "sft": ("SFTConfig", "trl", "sft_config", []),
    "dpo": ("DPOConfig", "trl", "dpo_config", []),
    "kto": ("KTOConfig", "trl", "kto_config", [[1.0, 1.0]]),
    "orpo": ("ORPOConfig", "trl.experimental.orpo", "orpo_config", []),
    "simpo": ("CPOConfig", "trl.experimental.cpo", "simpo_config", []),
    "reward": ("RewardConfig", "trl", "reward_config", []),
    "ppo": ("PPOConfig", "recipes.common.ppo", "ppo_config", []),
    "grpo": ("GRPOConfig", "trl", "grpo_config", ["model", [2.0, 0.5]]),
}
RECIPES = [
    (path.stem, *METHODS[method])
    for path in sorted((ROOT / "recipes").glob("*_*.py"))
    if (method := path.stem.rpartition("_")[2]) in METHODS and path.stem != "gsm8k_grpo"  # its own stand first
]
NAMES = ("SFTConfig", "GRPOConfig", "GRPOConfig with vLLM", *(f"{config} of {name}" for name, config, *_ in RECIPES))


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict[str, Any]]]:
    """By config: the fields that the recipe wrote, and the values of all fields, rewritten and stock."""
    folder = tmp_path_factory.mktemp("gpu_path")  # Unsloth writes the rewritten trainers into it
    eager = {"TORCHDYNAMO_DISABLE": "1"}  # four updates repay no compilation
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "gpu_path_driver.py", json.dumps(RECIPES)],
        cwd=folder,
        env=os.environ | {"UNSLOTH_ALLOW_CPU": "1", "PYTHONPATH": str(ROOT)} | eager,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", NAMES)
def test_what_the_recipe_writes_arrives(configs: Any, name: str) -> None:
    written, rewritten = configs[name]["written"], configs[name]["rewritten"]
    assert len(written) > 15
    expected = written | {"report_to": []}  # what the trainers make of "none"
    assert {key: rewritten.get(key, "no such field") for key in written} == expected


@pytest.mark.parametrize("name", NAMES)
def test_what_it_leaves_out_means_the_same(configs: Any, name: str) -> None:
    rewritten, stock = configs[name]["rewritten"], configs[name]["stock"]
    unexpected = {
        key: (stock.get(key), rewritten.get(key))
        for key in sorted(rewritten.keys() | stock.keys())
        if stock.get(key) != rewritten.get(key) and key not in HARMLESS
    }
    assert unexpected == {}, f"{name} differs (TRL's, Unsloth's): write it out in the recipe, or add a reason"


def test_ppo_makes_the_same_updates_on_what_unsloth_makes_of_the_trainer(configs: Any) -> None:
    found = configs["PPOTrainer"]
    assert {"get_batch_samples", "training_step"} <= set(found["replaced"])
    assert [(line["step"], line["minibatches"]) for line in found["stock"]] == [(1, 6), (2, 6)]
    assert found["rewritten"] == found["stock"]


def test_prompt_learning_trains_with_the_settings_of_a_gpu(configs: Any) -> None:
    """Gradient checkpointing, which is on there, drops the past key values that prefix tuning trains: its first step
    raised "The size of tensor a (165) must match the size of tensor b (169)"."""
    assert {adapter: len(losses) for adapter, losses in configs["prompt learning"].items()} == {
        adapter: 3 for adapter in PROMPT_LEARNING
    }
    for losses in configs["prompt learning"].values():
        assert all(map(math.isfinite, losses)) and losses[2] < losses[1] < losses[0]


def test_what_is_loaded_without_unsloth_asks_for_no_account(configs: Any) -> None:
    """Unsloth 2026.10.9 has open copies in 16 bits of all that is gated, and loads these instead of the originals."""
    sources = {alias: source for alias, (source, _) in configs["sources"].items()}
    assert sources["llama-3.2-3b"] == "unsloth/Llama-3.2-3B-Instruct"
    own = {alias for alias, source in sources.items() if not source.startswith("unsloth/")}
    assert own == {"opt-1.3b", "smollm2-135m"}
