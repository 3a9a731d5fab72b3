"""What a run prints and keeps of every step, and what it watches: real trainers, whose figures follow a script."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from eval.files import read_json
from recipes.common.run import Run

pytestmark = pytest.mark.usefixtures("unsloth")  # before transformers, which the callbacks import
STEPS = 40


@dataclass(frozen=True)
class Args:
    output_dir: str
    model: str = "smollm2-135m"
    resume: bool = False
    max_hours: float | None = None
    max_steps: int = STEPS
    num_train_epochs: float | None = None
    save_steps: float = 0.1
    seed: int = 1
    report_to: str = "none"
    run_name: str | None = None
    learning_rate: float = 1e-3
    push_to_hub: str | None = None


def open_run(recipe: str, *args: Any, **kwargs: Any) -> Run:
    return Run.open(recipe, Args(*args, **kwargs), correct=None, format=None)


def falling(step: int) -> dict[str, float]:
    """A line of DPO in which both log-probabilities fall from step 16 on."""
    fallen = max(0, step - 15) * 10.0
    return {
        "rewards/accuracies": 0.75,
        "rewards/margins": step / 10,
        "logps/chosen": -200 - fallen,
        "logps/rejected": -220 - 2 * fallen,
    }


def trainer(run: Run, script: Callable[[int], dict[str, float]], callbacks: Iterable[Any] = ()) -> Any:
    """A trainer of one weight. It adds the figures of `script` where TRL's trainers add theirs."""
    import torch
    from transformers import Trainer, TrainingArguments

    class Weight(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x: Any) -> dict[str, Any]:
            return {"loss": (self.weight * x).square().mean()}

    class Scripted(Trainer):
        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            super().log(logs | (script(self.state.global_step) if "loss" in logs else {}), start_time)

    rate = run.args.learning_rate
    settings = TrainingArguments(**run.trainer_settings("dpo"), learning_rate=rate, remove_unused_columns=False)
    rows = [{"x": torch.ones(1)}] * 8
    return Scripted(Weight(), settings, train_dataset=rows, callbacks=list(callbacks))


def test_what_is_watched_reaches_the_lines_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from recipes.common.callbacks import KLProbe, LikelihoodWatch

    run = open_run("toy_dpo", str(tmp_path))
    divergences = iter([0.1, 0.2, 0.3, 0.4])
    watched = trainer(
        run, falling, [KLProbe(lambda: next(divergences), every=12), LikelihoodWatch(0.2, remedy="--sft-weight 0.1")]
    )
    assert run.training.train(watched)

    assert {line["step"]: line["kl"] for line in run.training.metrics() if "kl" in line} == {
        12: 0.1,
        24: 0.2,
        36: 0.3,
        40: 0.4,
    }
    (warned,) = [line for line in run.training.metrics() if "warning" in line]
    # Means of five: from -200 to -250 at step 22; the rejected ones fall twice as fast.
    assert warned["step"] == 22
    assert "chosen -200 to -250 (25 % lower) and rejected -220 to -320 (45 % lower)" in warned["warning"]
    assert warned["warning"].endswith("try --sft-weight 0.1.")
    out = capsys.readouterr().out
    assert out.count("Warning: ") == 1
    assert f"Warning: {warned['warning']}\n" in out
    assert re.search(r"^ +dpo +loss +accuracy +margin +chosen logp +rejected logp +s/step +left$", out, re.MULTILINE)
    assert re.search(r"^ *16/40 +[\d.]+ +75% +1\.600 +-210\.00 +-240\.00 +\d+\.\d +0:\d\d$", out, re.MULTILINE)


def test_a_resumed_run_does_not_warn_again(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from recipes.common.callbacks import LikelihoodWatch

    def cut_off(step: int) -> dict[str, float]:
        if step == 30:
            raise KeyboardInterrupt
        return falling(step)

    run = open_run("toy_dpo", str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        run.training.train(trainer(run, cut_off, [LikelihoodWatch(0.2, remedy="--sft-weight 0.1")]))
    resumed = open_run("toy_dpo", str(tmp_path), resume=True)
    assert resumed.training.train(trainer(resumed, falling, [LikelihoodWatch(0.2, remedy="--sft-weight 0.1")]))
    assert [line["step"] for line in resumed.training.metrics()] == list(range(1, STEPS + 1))
    assert [line["step"] for line in resumed.training.metrics() if "warning" in line] == [22]
    assert capsys.readouterr().out.count("Warning: ") == 1


def test_the_remedy_is_the_recipes_own_and_growing_margins_alone_are_no_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from recipes.common.callbacks import LikelihoodWatch

    run = open_run("toy_kto", str(tmp_path))
    healthy = trainer(
        run,
        lambda step: falling(step) | {"logps/chosen": -200.0 + step},
        [LikelihoodWatch(0.2, remedy="--sft-weight 0.1")],
    )
    assert run.training.train(healthy)
    assert "Warning" not in capsys.readouterr().out
    run = open_run("toy_kto", str(tmp_path))
    run.training.train(trainer(run, falling, [LikelihoodWatch(0.2, remedy="a higher --beta")]))
    assert "try a higher --beta.\n" in capsys.readouterr().out


ROWS: dict[str, tuple[dict[str, Any], str, str]] = {
    "sft": ({"loss": 1.25, "mean_token_accuracy": 0.5}, "loss", "1.250"),
    "kto": (
        {"loss": 0.5, "rewards/chosen": 0.1, "logps/chosen": -10.0, "kl": 0.0},  # a batch without undesirable rows
        "loss margin chosen logp rejected logp",
        "0.500 - -10.00 -",
    ),
    "dpo": (
        {"loss": 0.5, "rewards/margins": None, "rewards/accuracies": None, "logps/rejected": -1.234},
        "loss accuracy margin chosen logp rejected logp",
        "0.500 - - - -1.23",
    ),
    "reward": (
        {"loss": 0.6931, "accuracy": 0.625, "margin": 0.01234, "mean_reward": 0.1},
        "loss accuracy margin",
        "0.693 62% 0.012",
    ),
    "grpo": (
        {
            "loss": 0.0,
            "reward": 1.5,
            "rewards/tags_reward/mean": 0.75,
            "rewards/tags_reward/std": 0.1,
            "rewards/answer_reward/mean": None,
            "frac_reward_zero_std": 0.25,
            "completions/clipped_ratio": 0.5,
            "completions/mean_length": 90.4,
        },
        "reward tags answer flat cut off tokens",
        "1.500 0.75 - 25% 50% 90",
    ),
    "ppo": (
        {
            **{"loss": 0.1, "score": -0.5, "kl": 0.0123, "entropy": 1.234, "explained_variance": 0.5},
            **{"clip_fraction": 0.125, "truncated": 0.25, "length": 61.2},
        },
        "score kl entropy explained clipped cut off tokens",
        "-0.500 0.012 1.23 0.50 12% 25% 61",
    ),
    "a method of one's own": ({"loss": 0.5, "reward": 1.0, "margin": 2.0}, "loss", "0.500"),
    "not even a loss": ({"reward": 1.0}, "loss", "-"),
}


def print_step(phase: str, logs: dict[str, Any], steps: int = 1) -> list[dict[str, Any]]:
    """Let the table see these logs at step 3 and after; what it hands on."""
    from transformers import TrainerControl, TrainerState

    from recipes.common.callbacks import StepTable

    kept: list[dict[str, Any]] = []
    table = StepTable(phase, lambda phase, step, values: kept.append({"phase": phase, "step": step, **values}))
    for step in range(3, 3 + steps):
        table.on_log(None, TrainerState(global_step=step, max_steps=60), TrainerControl(), logs=logs)
    return kept


@pytest.mark.parametrize(("phase", "row"), ROWS.items(), ids=ROWS)
def test_a_step_is_a_row_of_what_its_method_has(phase: str, row: Any, capsys: pytest.CaptureFixture) -> None:
    logs, names, cells = row
    assert print_step(phase, logs) == [{"phase": phase, "step": 3, **logs, "seconds": 0.0}]
    *legend, header, line = capsys.readouterr().out.splitlines()
    assert " ".join(header.split()) == f"{phase} {names} s/step left"
    assert re.fullmatch(rf"3/60 {re.escape(cells)} 0\.0 \d+:\d\d", " ".join(line.split()))
    explained = [name for line in legend for name in line.partition(":")[0].strip().split(", ")]
    assert " ".join(explained) == f"{names} s/step left"


def test_the_columns_are_explained_once(capsys: pytest.CaptureFixture) -> None:
    print_step("grpo", ROWS["grpo"][0] | {"judge/unjudged": 0.5}, steps=25)
    lines = capsys.readouterr().out.splitlines()
    assert [index for index, line in enumerate(lines) if "grpo" in line] == [8, 29]  # 20 rows under each header
    assert lines[1] == "  tags, answer: one reward alone, mean"
    assert "  unjudged: share of completions without a verdict" in lines[:8]
    assert "  flat: share of groups whose completions all score alike and so teach nothing" in lines[:8]
    assert not any("share" in line for line in lines[8:])


def infinite(when: str, step: int) -> Any:
    """What makes the trainer's gradient infinite in every step from this one on, or its weights after it."""
    import torch
    from transformers import TrainerCallback

    class Infinite(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
            if "gradient" in when and state.global_step == step - 1:
                self.hook = model.weight.register_hook(lambda gradient: gradient * torch.inf)
            if when == "one gradient" and state.global_step == step:
                self.hook.remove()

        def on_optimizer_step(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
            if when == "weights" and state.global_step == step - 1:
                model.weight.data.fill_(torch.inf)

    return Infinite()


@pytest.mark.parametrize("what", ["gradient", "weights"])
def test_a_gradient_or_weight_that_is_not_finite_stops_training(what: str, tmp_path: Path) -> None:
    from recipes.common.callbacks import find_fault

    run = open_run("toy_dpo", str(tmp_path))
    with pytest.raises(ValueError, match=rf"^{what} not finite in step 8 of 40 \(dpo\) .* goes on from step 4$"):
        run.training.train(trainer(run, falling, [infinite(what, step=8)]))
    (kept,) = run.training.checkpoints("dpo").iterdir()
    assert kept.name == "checkpoint-4" and find_fault(kept) is None


def test_a_step_that_a_scaler_leaves_out_is_no_fault_unless_no_scale_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with float16 on a card without bfloat16: accelerate's own path, with torch's scaler for a CPU."""
    import torch

    def scaled(run: Run, spoilt: Any) -> Any:
        made = trainer(run, falling, [spoilt])
        made.accelerator.scaler = torch.amp.GradScaler("cpu")
        made.accelerator.native_amp = True
        monkeypatch.setattr(made.accelerator.state, "_mixed_precision", "fp16")
        return made

    run = open_run("toy_dpo", str(tmp_path))
    assert run.training.train(scaled(run, infinite("one gradient", step=2)))
    lines = run.training.metrics()
    assert [line["step"] for line in lines if line["grad_norm"] is None] == [2] and len(lines) == STEPS
    run = open_run("toy_kto", str(tmp_path))
    # From 2**16 to 2**-10.
    with pytest.raises(ValueError, match=r"^gradient not finite in step 27 of 40 "):
        run.training.train(scaled(run, infinite("gradient", step=2)))


def test_a_resume_takes_another_learning_rate_after_such_a_stop_alone(tmp_path: Path) -> None:
    lower = {"resume": True, "learning_rate": 1e-4}
    refused = r"another configuration \(--learning-rate 0\.001 -> 0\.0001\)"
    run = open_run("toy_dpo", str(tmp_path))
    with pytest.raises(ValueError, match=refused):
        open_run("toy_dpo", str(tmp_path), **lower)
    with pytest.raises(ValueError, match="not finite in step 6 of 40"):
        run.training.train(trainer(run, falling, [infinite("gradient", step=6)]))
    with pytest.raises(ValueError, match=r"another configuration \(--seed 1 -> 2\)"):
        open_run("toy_dpo", str(tmp_path), **lower, seed=2)
    resumed = open_run("toy_dpo", str(tmp_path), **lower)
    assert read_json(resumed.folder / "config.json")["learning_rate"] == 1e-4
    assert resumed.training.train(trainer(resumed, falling))
    assert [line["learning_rate"] for line in resumed.training.metrics()] == pytest.approx(
        [(1e-3 if step < 4 else 1e-4) * (1 - step / STEPS) for step in range(STEPS)]
    )
    with pytest.raises(ValueError, match=r"--learning-rate 0\.0001 -> 0\.001"):
        open_run("toy_dpo", str(tmp_path), resume=True)


def test_a_trainer_is_given_functions_and_no_run() -> None:
    """What a recipe's figures are handed to, and what says how long it may go on."""
    from recipes.common.callbacks import FiniteSteps, StepTable, TimeBudget, WholeCheckpoints, attach

    class Trained:
        model = type("Model", (), {"parameters": list})

        def __init__(self) -> None:
            self.callbacks: list[Any] = []

        def remove_callback(self, callback: Any) -> None: ...

        def add_callback(self, callback: Any) -> None:
            self.callbacks.append(callback)

    trained, kept = Trained(), []
    attach(trained, "sft", log=lambda *step: kept.append(step), time_left=lambda: 7.0)  # type: ignore[arg-type]
    kinds = [type(callback) for callback in trained.callbacks]
    assert kinds.index(FiniteSteps) < kinds.index(StepTable)  # no row is written of a step that is not finite
    table, budget = (trained.callbacks[kinds.index(kind)] for kind in (StepTable, TimeBudget))
    assert WholeCheckpoints in kinds and budget.time_left() == 7.0
    table.log("sft", 1, {"loss": 0.5})
    assert kept == [("sft", 1, {"loss": 0.5})]
