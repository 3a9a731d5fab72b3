"""Runs the recipe many times over, killed and resumed in different ways: `python resume_driver.py MODEL OUTPUT`.

Not a test: tests/test_gsm8k_grpo.py starts it and compares what it leaves in OUTPUT/<scenario>. Every session
is a process of its own that a real SIGKILL can end, forked from this one so that Unsloth is imported once.
The recipe's own rewards are all 0 for a nano model, and without a difference there is no loss to compare, so
one more reward is added that it does earn.
"""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import unsloth  # noqa: F401  before trl
from trl import GRPOTrainer, SFTTrainer  # noqa: F401  imported once, here

from recipes import gsm8k_grpo

ARGS = replace(
    gsm8k_grpo.ON_CPU,
    model=sys.argv[1],
    max_steps=4,
    warmup_steps=2,
    prompts_per_step=2,
    num_generations=4,
    max_completion_length=24,
    eval_problems=8,
    learning_rate=1e-3,
)


def digit_reward(completions: list[list[dict[str, str]]], **kwargs: object) -> list[float]:
    return [min(1.0, sum(c in "13579" for c in completion[0]["content"]) / 4) for completion in completions]


gsm8k_grpo.REWARDS = [*gsm8k_grpo.REWARDS, digit_reward]
gsm8k_grpo.WEIGHTS = [*gsm8k_grpo.WEIGHTS, 1.0]


def session(output: Path, *, until: Callable[[], object] | None = None, **changes: object) -> None:
    """One process of the recipe, to its end or until `until()` is true, which kills it on the spot."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            gsm8k_grpo.main(replace(ARGS, output_dir=str(output), **changes))
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    done, status = 0, 0
    while not done:
        if until and until():
            os.kill(child, signal.SIGKILL)
            until = None
            _, status = os.waitpid(child, 0)
            assert os.WIFSIGNALED(status), f"{output.name}: the session had already ended"
            return
        done, status = os.waitpid(child, os.WNOHANG if until else 0)
        time.sleep(0.0005)
    assert status == 0 and until is None, f"{output.name}: status {status}"


def only_run(output: Path) -> Path:
    (folder,) = output.glob("gsm8k_grpo/*/*")
    return folder


def seen(output: Path, pattern: str) -> list[Path]:
    return list(output.glob(f"gsm8k_grpo/*/*/{pattern}"))


def main(output: Path) -> None:
    unbroken = output / "unbroken"
    session(unbroken)

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

    trained = output / "all_steps_made"
    session(trained, until=lambda: seen(trained, "adapter"))
    session(trained, resume=True)

    # Stopped by --max-hours after a step of each phase; then its results are lost, as by a kill while writing.
    stopped = output / "out_of_time"
    session(stopped, max_hours=0.0)
    session(stopped, max_hours=0.0, resume=True)
    shutil.copytree(only_run(stopped), output / "incomplete")
    (only_run(stopped) / "results.json").unlink()
    session(stopped, resume=True)


if __name__ == "__main__":
    main(Path(sys.argv[2]))
