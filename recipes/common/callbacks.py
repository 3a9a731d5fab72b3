"""Trainer callbacks: a readable line a step, checkpoints that say when they are whole, the time budget, and what
preference recipes watch.

A recipe adds `LikelihoodWatch` and `KLProbe` to its trainer before `Run.train`, which attaches the others: what they
put into a step's `logs` then reaches metrics.jsonl. Trackers (`report_to`) come before both and do not see it.

Imports transformers, so recipes import this module inside functions, after unsloth.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from eval.displacement import Fall, describe_fall, find_fall
from eval.files import write_json_atomic
from eval.methods import Column, method_of, spelled_out

COMPLETE = "complete.json"  # written into a checkpoint last: without it the checkpoint was cut off
HEADER_EVERY = 20
# Of what every row ends with.
CLOCK = {"s/step": "seconds that this step took", "left": "minutes and seconds that are still needed"}

Log = Callable[[str, int, dict[str, Any]], None]
"""`log(phase, step, values)` keeps the figures of a step."""


def attach(trainer: Trainer, phase: str, *, log: Log, time_left: Callable[[], float]) -> None:
    """Give `trainer` the callbacks of this module in place of transformers' printed dictionaries.

    `time_left` says how many seconds training may still take. Also undoes TRL's cast of a 4-bit model's adapter to
    bfloat16 (8 bits of precision): an update of 5e-5 on a weight of 0.03 is less than half a unit in the last place
    there, and would be rounded away. A model that is trained whole keeps its precision: in float32 it would take twice
    the memory.
    """
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    if len(trained) < len(list(trainer.model.parameters())):
        for parameter in trained:
            parameter.data = parameter.data.float()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StepTable(phase, log))
    trainer.add_callback(WholeCheckpoints())
    trainer.add_callback(TimeBudget(time_left))


class StepTable(TrainerCallback):
    """Prints one row a step with the time still needed, under names explained once, and logs every figure."""

    def __init__(self, phase: str, log: Log) -> None:
        self.phase, self.log = phase, log
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
        self.log(self.phase, state.global_step, {**logs, "seconds": round(self.seconds, 3)})
        made = state.global_step - self.first_step
        per_step = (time.monotonic() - self.began) / max(made, 1)
        left = round((state.max_steps - state.global_step) * per_step)
        columns = list(_columns(self.phase, logs))
        cells = {
            self.phase: f"{state.global_step}/{state.max_steps}",
            **{column.heading: _cell(logs.get(column.key), column.number) for column in columns},
            "s/step": f"{self.seconds:.1f}",
            "left": f"{left // 60}:{left % 60:02d}",
        }
        widths = [max(len(name), len(cell), 6) for name, cell in cells.items()]
        if self.rows == 0:
            legends: dict[str, list[str]] = {}
            for heading, legend in ({column.heading: column.legend for column in columns} | CLOCK).items():
                legends.setdefault(legend, []).append(heading)
            for legend, headings in legends.items():
                print(f"  {', '.join(headings)}: {legend}")
        if self.rows % HEADER_EVERY == 0:
            print("  ".join(name.rjust(width) for name, width in zip(cells, widths, strict=True)))
        print("  ".join(cell.rjust(w) for cell, w in zip(cells.values(), widths, strict=True)), flush=True)
        self.rows += 1


def _columns(phase: str, logs: Mapping[str, Any]) -> Iterator[Column]:
    """The columns of a phase whose step logged this."""
    for column in method_of(phase).columns:
        for name, key in spelled_out(column.key, logs).items():
            if column.always or key in logs:
                yield column._replace(heading=column.heading.replace("*", name.removesuffix("_reward")), key=key)


def _cell(value: float | None, number: str) -> str:
    return "-" if value is None else f"{value:{number}}"


class WholeCheckpoints(TrainerCallback):
    """Marks a checkpoint once all of it is on disk, so that one cut off by a kill is never resumed from."""

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        write_json_atomic(folder / COMPLETE, {"step": state.global_step})


class TimeBudget(TrainerCallback):
    """Saves and stops while the time of `--max-hours` still holds one more step and the last evaluation."""

    def __init__(self, time_left: Callable[[], float]) -> None:
        self.time_left, self.slowest = time_left, 0.0

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.step_began = time.monotonic()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.slowest = max(self.slowest, time.monotonic() - self.step_began)
        if self.time_left() < self.slowest and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True


class LikelihoodWatch(TrainerCallback):
    """Warns, once a run, when the log-probabilities of chosen and rejected responses have both fallen.

    See `eval.displacement.find_fall` for `threshold`, a share of their first magnitude; `remedy` is what the user can
    try, such as a flag of the recipe. The sentence is printed, and is the "warning" of that step's line in
    metrics.jsonl, where the report finds it.
    """

    def __init__(self, threshold: float, *, remedy: str) -> None:
        self.threshold, self.remedy, self.warned = threshold, remedy, False

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        ends = range(len(state.log_history) + 1)  # of what an earlier session logged
        self.warned = any(self._fall(state, end) for end in ends)

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        if not self.warned and (fall := self._fall(state, len(state.log_history))):
            self.warned = True
            logs["warning"] = describe_fall(fall, remedy=self.remedy)
            print(f"Warning: {logs['warning']}", flush=True)

    def _fall(self, state: TrainerState, end: int) -> Fall | None:
        return find_fall(state.log_history[:end], threshold=self.threshold, planned=state.max_steps)


class KLProbe(TrainerCallback):
    """Logs `measure()` as "kl" every `every` steps and at the last one.

    The step's seconds do not include it: it is called between steps.
    """

    def __init__(self, measure: Callable[[], float], every: int) -> None:
        self.measure, self.every = measure, every

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        if "train_runtime" in logs:  # the trainer's closing summary, not a step
            return
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            logs["kl"] = self.measure()
