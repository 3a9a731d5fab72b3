"""Runs a recipe many times over, killed and resumed in different ways: `python resume_driver.py RECIPE MODEL OUTPUT`.

Not a test: tests/test_gsm8k_grpo.py and tests/test_ppo_recipes.py start it and compare what it leaves in
OUTPUT/<scenario>. Every session is a process of its own that a real SIGKILL ends, forked from this one so that Unsloth
is imported once.
"""

import gc
import importlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import unsloth  # noqa: F401  before trl
from torch.optim.optimizer import register_optimizer_step_pre_hook
from trl import GRPOTrainer, SFTTrainer  # noqa: F401  imported once, here

from recipes.common import ppo  # noqa: F401  so is this
from recipes.common.tiny import tiny_pairrm_folder

NAME, MODEL = sys.argv[1:3]
RECIPE = importlib.import_module(f"recipes.{NAME}")
METHOD = NAME.rpartition("_")[2]
SIZES = {
    "grpo": {"warmup_steps": 2, "prompts_per_step": 2, "num_generations": 4, "eval_problems": 8},
    "ppo": {
        "source": "sample",
        "reward": str(tiny_pairrm_folder()),
        "batch_size": 8,
        "minibatch_size": 4,
        "ppo_epochs": 2,
        "target_kl": 0.05,
        "max_update_kl": None,
        "eval_prompts": 4,
    },
}
OPTIMISER_STEPS = 4  # of an update of PPO: 2 minibatches, twice
ARGS = replace(
    RECIPE.ON_CPU,
    model=MODEL,
    rollouts="model",  # whatever is installed
    max_steps=4,
    max_completion_length=24,
    learning_rate=1e-3,
    **SIZES[METHOD],
)


def digit_reward(completions: list[list[dict[str, str]]], **kwargs: object) -> list[float]:
    return [min(1.0, sum(c in "13579" for c in completion[0]["content"]) / 4) for completion in completions]


if METHOD == "grpo":  # its own rewards are all 0 for a nano model, and without a difference there is no loss to compare
    RECIPE.REWARDS = [*RECIPE.REWARDS, digit_reward]
    RECIPE.WEIGHTS = [*RECIPE.WEIGHTS, 1.0]


def die_before(step: int) -> None:
    """A SIGKILL from this process to itself in place of this many-th step of its optimiser."""
    steps = count(1)

    def hook(*_: object) -> None:
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_pre_hook(hook)


def session(
    output: Path, *, until: Callable[[], object] | None = None, dies_before: int | None = None, **changes: object
) -> None:
    """One process of the recipe: to its end, until `until()` is true, which kills it on the spot, or to a step."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if dies_before:
                die_before(dies_before)
            RECIPE.main(replace(ARGS, output_dir=str(output), **changes))
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    done, status = 0, 0
    while not done:
        if until and until():
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            break
        done, status = os.waitpid(child, os.WNOHANG if until else 0)
        time.sleep(0.0005)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert killed if until or dies_before else status == 0, f"{output.name}: status {status}"


def only_run(output: Path) -> Path:
    (folder,) = output.glob(f"{NAME}/*/*")
    return folder


def seen(output: Path, pattern: str) -> list[Path]:
    return list(output.glob(f"{NAME}/*/*/{pattern}"))


def of_both(output: Path) -> None:
    session(output / "unbroken")

    trained = output / "all_steps_made"
    session(trained, until=lambda: seen(trained, "adapter"))
    session(trained, resume=True)

    # Stopped by --max-hours after a step of each phase; then its results are lost, as by a kill while writing.
    stopped = output / "out_of_time"
    session(stopped, max_hours=0.0)
    if METHOD == "grpo":
        session(stopped, max_hours=0.0, resume=True)
    shutil.copytree(only_run(stopped), output / "incomplete")
    (only_run(stopped) / "results.json").unlink()
    session(stopped, resume=True)


def of_grpo(output: Path) -> None:
    between = output / "between_saves"
    session(between, until=lambda: seen(between, "checkpoints/grpo/checkpoint-2/complete.json"))
    truncated = output / "truncated_checkpoint"
    shutil.copytree(between, truncated)
    session(between, resume=True)

    # What a kill in the middle of a save leaves: no mark of completeness, and half a file.
    newest = max(seen(truncated, "checkpoints/grpo/checkpoint-*"), key=lambda path: path.name)
    (newest / "complete.json").unlink(missing_ok=True)
    weights = newest / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    session(truncated, resume=True)

    during = output / "during_save"

    def saving() -> bool:
        folders = seen(during, "checkpoints/grpo/checkpoint-2")
        return bool(folders) and not (folders[0] / "complete.json").exists()

    session(during, until=saving)
    session(during, resume=True)

    warming = output / "warming_up"
    session(warming, until=lambda: seen(warming, "checkpoints/warm_start/checkpoint-1/complete.json"))
    session(warming, resume=True)


def of_ppo(output: Path) -> None:
    """Killed inside an update three times over: before a step of its first epoch, of its second, and its last one."""
    inside = output / "inside_updates"
    session(inside, dies_before=OPTIMISER_STEPS + 2)
    assert [path.name for path in seen(inside, "checkpoints/ppo/checkpoint-*")] == ["checkpoint-1"]
    session(inside, dies_before=OPTIMISER_STEPS + 3, resume=True)
    session(inside, dies_before=OPTIMISER_STEPS, resume=True)
    session(inside, resume=True)


if __name__ == "__main__":
    gc.freeze()  # `Trainer.train` collects garbage, which takes a second once Unsloth is imported
    of_both(Path(sys.argv[3]))
    {"grpo": of_grpo, "ppo": of_ppo}[METHOD](Path(sys.argv[3]))
