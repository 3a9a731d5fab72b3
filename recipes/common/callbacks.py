"""Trainer callbacks: a readable line a step, checkpoints that say when they are whole, the time budget, and what
preference recipes watch.

A recipe adds `LikelihoodWatch` and `KLProbe` to its trainer before `Run.train`, which attaches the others: what they
put into a step's `logs` then reaches metrics.jsonl. Trackers (`report_to`) come before both and do not see it.

Imports transformers, so recipes import this module inside functions, after unsloth.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from eval.displacement import Fall, describe_fall, find_fall
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
            **_cells(logs),
            "s/step": f"{self.seconds:.1f}",
            "left": f"{left // 60}:{left % 60:02d}",
        }
        widths = [max(len(name), len(cell), 6) for name, cell in cells.items()]
        if self.rows % HEADER_EVERY == 0:
            print("  ".join(name.rjust(width) for name, width in zip(cells, widths, strict=True)))
        print("  ".join(cell.rjust(w) for cell, w in zip(cells.values(), widths, strict=True)), flush=True)
        self.rows += 1


def _cells(logs: dict[str, Any]) -> dict[str, str]:
    if "reward" in logs:
        return _grpo_cells(logs)
    if "explained_variance" in logs:
        return _ppo_cells(logs)
    loss = {"loss": f"{logs['loss']:.3f}"}
    if "margin" in logs:
        return loss | _preference_cells(logs, "accuracy", "margin")
    if "logps/chosen" in logs or "logps/rejected" in logs:  # KTO's line lacks the one that its batch lacks
        return loss | _preference_cells(logs, "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected")
    return loss


def _preference_cells(logs: dict[str, Any], accuracy: str, margin: str, *logps: str) -> dict[str, str]:
    def cell(key: str, number: str) -> str:
        return "-" if logs.get(key) is None else f"{logs[key]:{number}}"

    return {
        **({"accuracy": cell(accuracy, ".0%")} if accuracy in logs else {}),  # KTO knows no pairs
        "margin": cell(margin, ".3f"),
        **{f"{key.removeprefix('logps/')} logp": cell(key, ".2f") for key in logps},
    }


def _grpo_cells(logs: dict[str, Any]) -> dict[str, str]:
    parts = {
        key.split("/")[1].removesuffix("_reward"): "-" if value is None else f"{value:.2f}"
        for key, value in logs.items()
        if key.startswith("rewards/") and key.endswith("/mean")
    }
    return {
        "reward": f"{logs['reward']:.3f}",
        **parts,
        # Completions without a verdict, a mean over the judged rewards.
        **({"unjudged": f"{logs['judge/unjudged']:.0%}"} if "judge/unjudged" in logs else {}),
        # Groups whose completions all score the same: they teach nothing.
        "flat": f"{logs['frac_reward_zero_std']:.0%}",
        "cut off": f"{logs['completions/clipped_ratio']:.0%}",
        "tokens": f"{logs['completions/mean_length']:.0f}",
    }


def _ppo_cells(logs: dict[str, Any]) -> dict[str, str]:
    return {
        "score": f"{logs['score']:.3f}",
        "kl": f"{logs['kl']:.3f}",  # nats a token, from the reference
        "entropy": f"{logs['entropy']:.2f}",
        "explained": f"{logs['explained_variance']:.2f}",  # share of the returns' variance that the values foretell
        "clipped": f"{logs['clip_fraction']:.0%}",
        "cut off": f"{logs['truncated']:.0%}",
        "tokens": f"{logs['length']:.0f}",
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


class LikelihoodWatch(TrainerCallback):
    """Warns, once a run, when the log-probabilities of chosen and rejected responses have both fallen.

    See `eval.displacement.find_fall` for `threshold`, a share of their first magnitude; `remedy` is what the user can
    try, such as a flag of the recipe. The sentence is printed, and is the "warning" of that step's line in
    metrics.jsonl, where the report finds it.
    """

    def __init__(
        self, threshold: float, *, remedy: str = "--sft-weight 0.1, an SFT term on the chosen responses"
    ) -> None:
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
