"""Runs recipes many times over, killed and resumed in different ways: `python resume_driver.py MODEL OUTPUT RECIPE...`.

Not a test: test_resume.py starts it and compares what it leaves in OUTPUT/<scenario>/<recipe>. Every session is a
process of its own that a real SIGKILL ends, forked from this one so that Unsloth is imported once.
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

import unsloth  # noqa: F401  before trl; imported once, here
from torch.optim.optimizer import register_optimizer_step_pre_hook
from trl import GRPOTrainer, SFTTrainer  # noqa: F401  once, as are the next two

from eval import report
from recipes.common import callbacks, ppo  # noqa: F401
from recipes.common.clock import Terminated, ends_on_signals
from recipes.common.stand_ins.tiny import tiny_pairrm_folder

report._charts = lambda *_: []  # a third of a session, of a page that is not compared
MODEL, OUTPUT = sys.argv[1], Path(sys.argv[2])
SIZES = {
    "grpo": {"sft_steps": 2, "prompts_per_step": 2, "num_generations": 4, "eval_problems": 8},
    "ppo": {
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


def digit_reward(completions: list[list[dict[str, str]]], **kwargs: object) -> list[float]:
    return [min(1.0, sum(c in "13579" for c in completion[0]["content"]) / 4) for completion in completions]


def signal_before(step: int, number: int) -> None:
    """A signal from this process to itself, of a SIGKILL in place of this many-th step of its optimiser."""
    steps = count(1)

    def hook(*_: object) -> None:
        if next(steps) == step:
            os.kill(os.getpid(), number)

    register_optimizer_step_pre_hook(hook)


class Sessions:
    """Of one recipe, each in OUTPUT/<scenario>."""

    def __init__(self, recipe: str) -> None:
        self.recipe, self.method = recipe, recipe.rpartition("_")[2]
        self.module = importlib.import_module(f"recipes.{recipe}")
        self.args = replace(
            self.module.ON_CPU,
            model=MODEL,
            rollouts="model",  # whatever is installed
            max_steps=4,
            max_completion_length=24,
            learning_rate=1e-3,
            **SIZES[self.method],
        )
        if self.method == "grpo":
            # Its own rewards are all 0 for a nano model, and without a difference there is no loss to compare.
            self.module.REWARDS = {**self.module.REWARDS, digit_reward: 1.0}

    def run(
        self,
        scenario: str,
        *,
        until: Callable[[], object] | None = None,
        dies_before: int | None = None,
        asked: tuple[int, int] | None = None,
        **changes: object,
    ) -> None:
        """One process of the recipe: to its end, until `until()` is true, which kills it on the spot, or to a step.
        `asked` is a step and the signal that it gets there, whose number it is to end with."""
        child = os.fork()
        if child == 0:
            code = 1
            try:
                if dies_before:
                    signal_before(dies_before, signal.SIGKILL)
                if asked:
                    signal_before(*asked)
                with ends_on_signals():
                    self.module.main(replace(self.args, output_dir=str(OUTPUT / scenario), **changes))
                code = 0
            except Terminated as end:
                code = end.args[0]
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
        ended = os.WEXITSTATUS(status) == (asked[1] if asked else 0)
        assert killed if until or dies_before else ended, f"{self.recipe}, {scenario}: status {status}"

    def seen(self, scenario: str, pattern: str) -> list[Path]:
        return list((OUTPUT / scenario).glob(f"{self.recipe}/*/*/{pattern}"))

    def copy(self, scenario: str, other: str) -> None:
        """Leave the same in scenario `other`."""
        shutil.copytree(OUTPUT / scenario / self.recipe, OUTPUT / other / self.recipe)


def of_both(sessions: Sessions) -> None:
    sessions.run("unbroken")

    sessions.run("all_steps_made", until=lambda: sessions.seen("all_steps_made", "adapter"))
    sessions.run("all_steps_made", resume=True)

    # Stopped by --max-hours after a step of each phase; then its results are lost, as by a kill while writing.
    sessions.run("out_of_time", max_hours=0.0)
    if sessions.method == "grpo":
        sessions.run("out_of_time", max_hours=0.0, resume=True)
    sessions.copy("out_of_time", "incomplete")
    (results,) = sessions.seen("out_of_time", "results.json")
    results.unlink()
    sessions.run("out_of_time", resume=True)

    # Asked to end within a step of the last phase, where no checkpoint is due: there is one of that step then.
    step, number = {"grpo": (4, signal.SIGTERM), "ppo": (OPTIMISER_STEPS + 1, signal.SIGHUP)}[sessions.method]
    sessions.run("asked_to_end", asked=(step, number), save_steps=50)
    (last,) = sessions.seen("asked_to_end", f"checkpoints/{sessions.method}/checkpoint-*")
    assert last.name == "checkpoint-2" and (last / "complete.json").exists()
    assert not sessions.seen("asked_to_end", "adapter")
    sessions.run("asked_to_end", resume=True)


def of_grpo(sessions: Sessions) -> None:
    checkpoint = "checkpoints/grpo/checkpoint-2"
    sessions.run("between_saves", until=lambda: sessions.seen("between_saves", f"{checkpoint}/complete.json"))
    sessions.copy("between_saves", "truncated_checkpoint")
    sessions.run("between_saves", resume=True)

    # What a kill in the middle of a save leaves: no mark of completeness, and half a file.
    newest = max(sessions.seen("truncated_checkpoint", "checkpoints/grpo/checkpoint-*"), key=lambda path: path.name)
    (newest / "complete.json").unlink(missing_ok=True)
    weights = newest / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    sessions.run("truncated_checkpoint", resume=True)

    def saving() -> bool:
        folders = sessions.seen("during_save", checkpoint)
        return bool(folders) and not (folders[0] / "complete.json").exists()

    sessions.run("during_save", until=saving)
    sessions.run("during_save", resume=True)

    warm = "checkpoints/warm_start/checkpoint-1/complete.json"
    sessions.run("warming_up", until=lambda: sessions.seen("warming_up", warm))
    sessions.run("warming_up", resume=True)


def of_ppo(sessions: Sessions) -> None:
    """Killed inside an update three times over: before a step of its first epoch, of its second, and its last one."""
    sessions.run("inside_updates", dies_before=OPTIMISER_STEPS + 2)
    checkpoints = sessions.seen("inside_updates", "checkpoints/ppo/checkpoint-*")
    assert [path.name for path in checkpoints] == ["checkpoint-1"]
    sessions.run("inside_updates", dies_before=OPTIMISER_STEPS + 3, resume=True)
    sessions.run("inside_updates", dies_before=OPTIMISER_STEPS, resume=True)
    sessions.run("inside_updates", resume=True)


if __name__ == "__main__":
    gc.freeze()  # `Trainer.train` collects garbage, which takes a second once Unsloth is imported
    for name in sys.argv[3:]:
        sessions = Sessions(name)
        of_both(sessions)
        {"grpo": of_grpo, "ppo": of_ppo}[sessions.method](sessions)
