"""Trainer callbacks: a readable line a step, a stop where numbers are no longer finite, checkpoints that say when they
are whole and of what, the time budget, and what preference recipes watch.

A recipe adds `LikelihoodWatch` and `KLProbe` to its trainer before `Run.train`, which attaches the others: what they
put into a step's `logs` then reaches metrics.jsonl. Trackers (`report_to`) come before both and do not see it.

Imports transformers, so recipes import this module inside functions, after unsloth.
"""

import math
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from eval.displacement import Fall, describe_fall, find_fall
from eval.files import fsync_tree, read_json, write_json_atomic
from eval.likelihood import forward
from eval.methods import Column, method_of, spelled_out
from recipes.common.resuming import COMPLETE

HEADER_EVERY = 20
SAVE_EVERY = 600.0  # seconds of work that a kill may cost, however slow a step is
# A scale that a GradScaler has halved to this, from 65,536: it is not the scaling that makes the gradient overflow.
LEAST_SCALE = 2.0**-10
LARGE = 100.0  # of a trained weight: those of adapters are below 1
# Of what every row ends with.
CLOCK = {"s/step": "seconds that this step took", "left": "minutes and seconds that are still needed"}

Log = Callable[[str, int, dict[str, Any]], None]
"""`log(phase, step, values)` keeps the figures of a step."""


class NotFinite(ArithmeticError):
    """In step `step`, `what` (a loss, a gradient, the weights) was no finite number.

    `before_update` is whether the weights were still those of the step before, which then bring it about whatever the
    learning rate.
    """

    def __init__(self, what: str, step: int, *, before_update: bool) -> None:
        super().__init__(what, step, before_update)
        self.what, self.step, self.before_update = what, step, before_update


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
    trainer.add_callback(FiniteSteps(trainer))  # before the row of such a step is written
    trainer.add_callback(GivenRates())
    trainer.add_callback(StepTable(phase, log))
    trainer.add_callback(WholeCheckpoints())
    trainer.add_callback(TimeBudget(time_left))
    trainer.add_callback(TimedSaves(SAVE_EVERY))


class FiniteSteps(TrainerCallback):
    """Stops at the first step whose loss or gradient is not finite, before anything of it is saved.

    Trainers would go on: their own filter puts an average in place of such a loss.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.scale = trainer, math.inf

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if scaler := self.trainer.accelerator.scaler:
            self.scale = scaler.get_scale()

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        if not math.isfinite(logs.get("loss", 0.0)):
            raise NotFinite("loss", state.global_step, before_update=True)
        if not math.isfinite(logs.get("grad_norm", 0.0)) and not self._is_rescaled():
            raise NotFinite("gradient", state.global_step, before_update=True)

    def _is_rescaled(self) -> bool:
        """Whether a GradScaler left this step out and tries the next one at half the scale.

        That is no fault: float16 begins at a scale that is too high, and finds its own in this way. (Accelerate's
        `optimizer_step_was_skipped` is False for a fused optimiser, which leaves its steps out by itself.)
        """
        scaler = self.trainer.accelerator.scaler
        return scaler is not None and LEAST_SCALE < scaler.get_scale() < self.scale


class GivenRates(TrainerCallback):
    """Goes on at the learning rates that flags give, where a checkpoint brings back those that it was trained at.

    The change is the "warning" of its first step's line in metrics.jsonl, where the report finds it.
    """

    def __init__(self) -> None:
        self.change = ""

    def on_train_begin(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        *,
        optimizer: Any,
        lr_scheduler: Any,
        **kwargs: Any,
    ) -> None:
        groups = optimizer.param_groups
        # PPO's second group is its value function; those of other trainers differ in weight decay alone.
        others = getattr(args, "value_learning_rate", args.learning_rate)
        given = [args.learning_rate, *[others] * (len(groups) - 1)]
        if state.global_step == 0 or lr_scheduler.base_lrs == given:
            return
        changes = dict.fromkeys(zip(lr_scheduler.base_lrs, given, strict=True))
        self.change = ", ".join(f"{old:g} -> {new:g}" for old, new in changes if old != new)
        for group, old, new in zip(groups, lr_scheduler.base_lrs, given, strict=True):
            group["initial_lr"], group["lr"] = new, group["lr"] / old * new
        lr_scheduler.base_lrs = given
        lr_scheduler._last_lr = [group["lr"] for group in groups]

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        if self.change:
            logs["warning"] = f"The learning rate was changed before this step: {self.change}."
            print(logs["warning"])
            self.change = ""


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
    """Marks a checkpoint once all of it is on disk, and deletes it where its weights are of no use: no other than a
    marked one is ever resumed from."""

    def on_save(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: Any,
        optimizer: Any,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        weights = (weight.detach() for group in optimizer.param_groups for weight in group["params"])
        # Without a copy of any weight: the ends are nan where one is.
        ends = [abs(float(end)) for weight in weights for end in torch.aminmax(weight)]
        fault = None
        if not all(map(math.isfinite, ends)):
            fault = "weights"
        elif max(ends) > LARGE and not _computes(model, processing_class):
            fault = "outputs"
        if fault:
            shutil.rmtree(folder)
            raise NotFinite(fault, state.global_step, before_update=False)
        mark_whole(folder, state.global_step)


def _computes(model: Any, tokenizer: Any) -> bool:
    """Whether weights that are finite are not too large to compute with; without a tokenizer there is no saying."""
    end = getattr(tokenizer, "eos_token_id", None)
    return end is None or bool(torch.isfinite(forward(model, tokenizer, [[end] * 4])).all())


def mark_whole(checkpoint: Path, step: int) -> None:
    """Write the mark that vouches for every file of a checkpoint, by its size and checksum, once all are on disk."""
    fsync_tree(checkpoint)
    paths = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != COMPLETE)
    files = {path.relative_to(checkpoint).as_posix(): _fingerprint(path) for path in paths}
    write_json_atomic(checkpoint / COMPLETE, {"step": step, "files": files})


def find_fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None where every file is as it was when it was marked."""
    if not (checkpoint / COMPLETE).exists():
        return f"{COMPLETE} is missing: its save was cut off"
    try:
        files = read_json(checkpoint / COMPLETE)["files"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{COMPLETE} is damaged"
    for name, fingerprint in files:
        try:
            if _fingerprint(checkpoint / name) != fingerprint:
                return f"{name} is damaged"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def _fingerprint(path: Path) -> dict[str, int]:
    size = checksum = 0
    with open(path, "rb") as file:
        while block := file.read(2**20):
            size, checksum = size + len(block), zlib.crc32(block, checksum)
    return {"bytes": size, "crc32": checksum}


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


class TimedSaves(TrainerCallback):
    """Saves, beside --save-steps, where `every` seconds will have passed since the last save when a next step ends."""

    def __init__(self, every: float) -> None:
        self.every, self.saved, self.step_began = every, 0.0, 0.0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.saved = time.monotonic()

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.step_began = time.monotonic()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        now = time.monotonic()
        if now - self.saved + (now - self.step_began) >= self.every:
            control.should_save = True

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.saved = time.monotonic()


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
