"""Trainer callbacks: a readable line a step, checkpoints that say when they are whole, and the time budget.

Imports transformers, so recipes import this module inside functions, after unsloth.
"""

import time
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from eval.files import write_json_atomic
from recipes.common.run import COMPLETE, Run

HEADER_EVERY = 20


def attach(trainer: Trainer, run: Run, phase: str) -> None:
    """Give `trainer` the callbacks of this module in place of transformers' printed dictionaries.

    Also undoes TRL's cast of a 4-bit model's adapter to bfloat16 (8 bits of precision): an update of 5e-5 on
    a weight of 0.03 is less than half a unit in the last place there, and would be rounded away. A model that is
    trained whole keeps its precision: in float32 it would take twice the memory.
    """
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    if len(trained) < len(list(trainer.model.parameters())):
        for parameter in trained:
            parameter.data = parameter.data.float()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StepTable(run, phase))
    trainer.add_callback(WholeCheckpoints())
    trainer.add_callback(TimeBudget(run))


class StepTable(TrainerCallback):
    """Prints one row a step with the time still needed, and keeps every metric in metrics.jsonl."""

    def __init__(self, run: Run, phase: str) -> None:
        self.run, self.phase = run, phase
        self.rows, self.first_step, self.began, self.seconds = 0, 0, 0.0, 0.0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.first_step, self.began = state.global_step, time.monotonic()

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.step_began = time.monotonic()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.seconds = time.monotonic() - self.step_began

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        if "train_runtime" in logs:  # the trainer's closing summary, not a step
            return
        self.run.log_metrics(self.phase, state.global_step, {**logs, "seconds": round(self.seconds, 3)})
        made = state.global_step - self.first_step
        per_step = (time.monotonic() - self.began) / max(made, 1)
        left = round((state.max_steps - state.global_step) * per_step)
        cells = {
            self.phase: f"{state.global_step}/{state.max_steps}",
            **(_grpo_cells(logs) if "reward" in logs else {"loss": f"{logs['loss']:.3f}"}),
            "s/step": f"{self.seconds:.1f}",
            "left": f"{left // 60}:{left % 60:02d}",
        }
        widths = [max(len(name), len(cell), 6) for name, cell in cells.items()]
        if self.rows % HEADER_EVERY == 0:
            print("  ".join(name.rjust(width) for name, width in zip(cells, widths, strict=True)))
        print("  ".join(cell.rjust(w) for cell, w in zip(cells.values(), widths, strict=True)), flush=True)
        self.rows += 1


def _grpo_cells(logs: dict[str, Any]) -> dict[str, str]:
    parts = {
        key.split("/")[1].removesuffix("_reward"): "-" if value is None else f"{value:.2f}"
        for key, value in logs.items()
        if key.startswith("rewards/") and key.endswith("/mean")
    }
    return {
        "reward": f"{logs['reward']:.3f}",
        **parts,
        # Groups whose completions all score the same: they teach nothing.
        "flat": f"{logs['frac_reward_zero_std']:.0%}",
        "cut off": f"{logs['completions/clipped_ratio']:.0%}",
        "tokens": f"{logs['completions/mean_length']:.0f}",
    }


class WholeCheckpoints(TrainerCallback):
    """Marks a checkpoint once all of it is on disk, so that one cut off by a kill is never resumed from."""

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        write_json_atomic(folder / COMPLETE, {"step": state.global_step})


class TimeBudget(TrainerCallback):
    """Saves and stops while the time of `--max-hours` still holds one more step and the last evaluation."""

    def __init__(self, run: Run) -> None:
        self.run, self.slowest = run, 0.0

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.step_began = time.monotonic()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.slowest = max(self.slowest, time.monotonic() - self.step_began)
        if self.run.time_left() < self.slowest and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
