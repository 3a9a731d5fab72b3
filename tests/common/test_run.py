"""The run folder: what a new run, a resumed one and a killed one find in it, and how any story ends."""

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from recipes.common.args import GRPOArgs, RunArgs, TrainArgs
from recipes.common.cli import explain
from recipes.common.run import Run

pytestmark = pytest.mark.usefixtures("unsloth")  # before transformers, which the trainer's callbacks import


@dataclass(frozen=True, kw_only=True)
class Untrained(RunArgs):
    """Of a recipe that trains nothing, as a few-shot one does."""

    model: str = "smollm2-135m"


@dataclass(frozen=True, kw_only=True)
class Args(TrainArgs, Untrained):
    learning_rate: float = 1e-4
    lr_scheduler_type: str = "constant"
    weight_decay: float = 0.0
    max_steps: int = 4


JUDGED = {"correct": "correctness_reward", "format": "structure_reward"}


def open_run(folder: Path, *, args: type[Untrained] = Args, **changes: Any) -> Run:
    return Run.open("toy", args(output_dir=str(folder), **changes), **JUDGED)


def records(stage: str, solved: int, text: str = "x") -> list[dict[str, Any]]:
    """Eight problems, of which the first `solved` are right, greedily and sampled."""
    return [
        {
            "stage": stage,
            "kind": kind,
            "index": i,
            "sample": 0,
            "question": f"question {i}",
            "gold": "4",
            "completion": text,
            "tokens": 10 + i,
            "truncated": False,
            "scores": {"correctness_reward": float(i < solved), "structure_reward": 1.0},
            "reward": 1.0 + (i < solved),
        }
        for i in range(8)
        for kind in ("greedy", "sampled")
    ]


def supervised(stage: str, solved: int, nats: float) -> list[dict[str, Any]]:
    """Eight problems as supervised training has them: greedy alone, a second score, a loss over four tokens each."""
    return [
        record
        | {
            "scores": {"choice_reward": float(record["index"] < solved), "likeliest_option": 0.25},
            "reward": float(record["index"] < solved),
            "nll": nats,
            "nll_tokens": 4,
        }
        for record in records(stage, solved)[::2]
    ]


def rewarded(stage: str, reward: float) -> list[dict[str, Any]]:
    """Eight problems that only a reward judges, as PPO has them."""
    return [
        record | {"scores": {"pairrm_reward": earned}, "reward": earned}
        for record in records(stage, 0)
        for earned in [reward + record["index"] % 2 - (record["kind"] == "greedy")]
    ]


def never(stage: str) -> Any:
    raise AssertionError(f"{stage} was evaluated again")


class Saves:
    """A model or tokenizer that writes one file, and has no parameters."""

    parameters = named_parameters = list

    def __init__(self, name: str) -> None:
        self.name = name

    def save_pretrained(self, folder: str, **kwargs: Any) -> None:
        Path(folder).mkdir(exist_ok=True)
        (Path(folder) / self.name).write_text("x" * 10)


class ScriptedTrainer:
    """The part of a trainer that `Run.train` speaks to: it logs and saves as told, and says where it began."""

    def __init__(
        self, run: Run, steps: int = 4, stop_at: int | None = None, weights: str = "adapter_model.safetensors"
    ) -> None:
        self.args = SimpleNamespace(output_dir=str(run.training.checkpoints("grpo")), max_steps=steps)
        self.state = SimpleNamespace(global_step=0, max_steps=steps)
        self.model, self.processing_class = Saves(weights), Saves("tokenizer.json")
        self.accelerator = SimpleNamespace(unwrap_model=lambda model, keep_fp32_wrapper: model)
        self.training, self.stop_at, self.began_from = run.training, stop_at or steps, "nowhere"

    def remove_callback(self, callback: Any) -> None: ...

    def add_callback(self, callback: Any) -> None: ...

    def train(self, resume_from_checkpoint: str | None) -> None:
        self.began_from = resume_from_checkpoint
        first = int(resume_from_checkpoint.rpartition("-")[2]) if resume_from_checkpoint else 0
        for step in range(first + 1, self.stop_at + 1):
            self.training.log_metrics("grpo", step, {"reward": float(step)})
        self.state.global_step = self.stop_at


def save_checkpoint(run: Run, step: int) -> None:
    from recipes.common.callbacks import mark_whole

    folder = run.training.checkpoints("grpo") / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    mark_whole(folder, step)


# Opening


def test_a_new_run_keeps_its_configuration(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    assert run.folder.parent == tmp_path / "toy" / "smollm2-135m"
    # Where and how long to run, and who is told, is no configuration.
    assert json.loads((run.folder / "config.json").read_text()) == {
        "flags": 3,
        "recipe": "toy",
        "model": "smollm2-135m",
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_steps": 4,
        "num_train_epochs": None,
        "seed": 3407,
        "smoke": False,
        "rows": {},
        "weights": {"SmolLM2": "b179c9523d0e6a0f, converter 1"},
    }
    assert open_run(tmp_path).folder != run.folder  # within the same second


def test_resume_finds_the_newest_run(tmp_path: Path) -> None:
    open_run(tmp_path)
    newest = open_run(tmp_path)
    elsewhere: dict[str, Any] = {"max_hours": 1.0, "report_to": "tensorboard", "run_name": "again", "save_steps": 7}
    resumed = open_run(tmp_path, resume=True, **elsewhere)
    assert resumed.folder == newest.folder and resumed.training.resumed


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found no run of toy with smollm2-135m in .*; start one without"):
        open_run(tmp_path, resume=True)


def test_a_complete_run_is_not_resumed(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    (run.folder / "results.json").write_text('{"complete": true}')
    with pytest.raises(ValueError, match=r"is complete; start a new one without --resume"):
        open_run(tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"that run is complete.*; start a new run without --resume"):
        open_run(tmp_path, resume=str(run.folder))


def test_results_of_an_incomplete_run_go_when_it_is_resumed(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    (run.folder / "results.json").write_text('{"complete": false}')
    assert not (open_run(tmp_path, resume=True).folder / "results.json").exists()


def test_a_changed_configuration_is_refused_with_every_difference(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    with pytest.raises(ValueError) as refusal:
        open_run(tmp_path, resume=True, learning_rate=0.5, seed=2)
    assert "(--learning-rate 0.0001 -> 0.5, --seed 3407 -> 2)" in str(refusal.value)
    assert str(run.folder) in str(refusal.value) and "max" not in str(refusal.value)


def test_a_run_goes_on_with_fewer_rows_at_once(tmp_path: Path) -> None:
    """What the sentence of a full memory advises: the update is the same."""

    @dataclass(frozen=True, kw_only=True)
    class Batched(Args):
        batch_size: int = 8
        per_device_train_batch_size: int | None = None
        gradient_accumulation_steps: int | None = None

    folder = open_run(tmp_path, args=Batched).folder
    resumed = open_run(tmp_path, args=Batched, resume=True, per_device_train_batch_size=1)
    assert resumed.folder == folder
    with pytest.raises(ValueError, match="--batch-size 8 -> 4"):
        open_run(tmp_path, args=Batched, resume=True, batch_size=4)


def test_a_run_of_other_flags_is_not_resumed(tmp_path: Path) -> None:
    """Folders of before December 2026 do not say of which flags they are, and their --warmup-steps meant others."""
    run = open_run(tmp_path)
    config = json.loads((run.folder / "config.json").read_text())
    for flags in ({}, {"flags": 1}, {"flags": 2}):
        old = {name: value for name, value in config.items() if name != "flags"} | flags
        (run.folder / "config.json").write_text(json.dumps(old | {"warmup_steps": 13}))
        with pytest.raises(
            ValueError, match=r"an older version of Tunebook began it, .* or start a new run"
        ) as refusal:
            open_run(tmp_path, resume=True)
        assert str(refusal.value).startswith(f"--resume cannot continue {run.folder}: ")
        assert "\n" not in str(refusal.value) and "--warmup-steps" not in str(refusal.value)


def test_an_unwritable_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "runs", Path("/proc/runs")):
        with pytest.raises(ValueError, match=r"^cannot write .* \(.+\): name another --output-dir$"):
            open_run(place)


# What is to come


@dataclass(frozen=True, kw_only=True)
class OnPolicy(GRPOArgs):
    model: str = "smollm2-135m"
    lora_rank: int = 16
    learning_rate: float = 1e-5
    lr_scheduler_type: str = "constant"
    weight_decay: float = 0.0
    max_steps: int = 2500
    sft_steps: int = 0
    sft_learning_rate: float = 2e-4
    prompts_per_step: int = 8
    num_generations: int = 8
    max_completion_length: int = 64
    eval_problems: int = 256


def announced(folder: Path, args: Any, capsys: pytest.CaptureFixture[str], recipe: str = "toy_grpo") -> str:
    """The line on the phases, of a run that is opened."""
    capsys.readouterr()
    Run.open(recipe, replace(args, output_dir=str(folder)), **JUDGED)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Phases: ")]
    return line


@pytest.mark.parametrize(
    ("args", "phases"),
    [
        (OnPolicy(), "evaluate before (256 held out), grpo (2,500 steps), evaluate after (256 held out)"),
        (
            OnPolicy(sft_steps=13),
            "evaluate before (256 held out), warm start (13 steps), evaluate warm start (256 held out), "
            "grpo (2,500 steps), evaluate after (256 held out)",
        ),
        # How many steps these are, the trainer knows, which is not built yet.
        (OnPolicy(num_train_epochs=2), "evaluate before (256 held out), grpo, evaluate after (256 held out)"),
        (Args(), "evaluate before, grpo (4 steps), evaluate after"),
    ],
)
def test_a_run_says_what_is_to_come(args: Any, phases: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert announced(tmp_path, args, capsys) == f"Phases: {phases}; the table of steps tells the time left"


def test_minutes_are_those_of_the_newest_complete_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "toy_grpo" / "smollm2-135m"
    took = {"evaluate before": 60.0, "warm start": 120.0, "evaluate warm start": 60.0, "grpo": 300.0}

    def leave(time: str, seconds: dict[str, float], args: Any = None, **results: Any) -> None:
        """An earlier run of 250 steps, by default complete."""
        args = args or OnPolicy(sft_steps=10, max_steps=250)
        (runs / time).mkdir(parents=True)
        known = {"complete": True, "seconds": seconds, "date": time, "args": vars(args), "steps": {"planned": 250}}
        (runs / time / "results.json").write_text(json.dumps(known | results))

    leave("20261101", took | {"evaluate after": 60.0})
    leave("20261102", took | {"evaluate after": 6000.0})
    leave("20261103", took | {"evaluate after": 60_000.0}, complete=False)
    leave("20261104", {"evaluate before": 60.0, "grpo": 600.0, "evaluate after": 60.0}, OnPolicy(max_steps=250))
    # As an older version wrote it: how long its warm start was, it says by another name.
    old = SimpleNamespace(warmup_steps=10, max_steps=250, eval_problems=256)
    leave("20261105", took | {"evaluate after": 6.0}, old)

    def minutes(**changes: Any) -> str:
        line = announced(tmp_path, replace(OnPolicy(sft_steps=10, max_steps=250), **changes), capsys)
        return line.rpartition("; ")[2]

    assert minutes() == "about 109 min, going by the run of 20261102"  # 60 + 120 + 60 + 300 + 6000 seconds
    assert minutes(sft_steps=20, max_steps=500) == "about 116 min, going by the run of 20261102"  # 420 seconds more
    assert minutes(eval_problems=128) == "about 58 min, going by the run of 20261102"  # 30 + 120 + 30 + 300 + 3000
    assert minutes(sft_steps=0) == "about 6 min, going by the run of 20261105"
    assert minutes(model="phi-4") == "the table of steps tells the time left"
    # How many steps were in an epoch, its trainer counted; --max-steps does not say.
    leave("20261106", took | {"evaluate after": 60.0}, OnPolicy(sft_steps=10, max_steps=7, num_train_epochs=1.0))
    assert minutes(max_steps=500) == "about 15 min, going by the run of 20261106"


# The hub


@pytest.mark.parametrize("token", [None, "hf_nobodys"])
def test_without_a_login_nothing_is_begun(token: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither without a token, which no hub is asked about, nor where no hub answers."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.utils._auth._get_token_from_environment", lambda: token)
    monkeypatch.setattr("huggingface_hub.utils._auth._get_token_from_file", lambda: None)
    with pytest.raises(Exception) as refused:
        open_run(tmp_path, push_to_hub="mine")
    sentence = explain(refused.value)
    assert sentence is not None and "\n" not in sentence
    assert sentence.endswith("connect and run `hf auth login`, or leave it out")
    assert not list(tmp_path.iterdir())


# Stages


def test_stages_are_read_back_and_not_evaluated_again(tmp_path: Path) -> None:
    strange = 'line\u2028separator \u0085 "quote" \ud800 🙂'  # what a model may write, and splitlines cuts at
    run = open_run(tmp_path)
    summary = run.stage("before", lambda stage: records(stage, 2, strange))
    run.stage("warm start", lambda stage: records(stage, 4))
    assert summary["accuracy"] == 0.25

    resumed = open_run(tmp_path, resume=True)
    assert resumed.stage("before", never) == summary
    assert resumed.stages["before"] == records("before", 2, strange)
    assert resumed.stage("warm start", never)["accuracy"] == 0.5
    assert [*resumed.stages] == ["before", "warm start"]


@pytest.mark.parametrize(
    ("judge", "stage", "line"),
    [
        (
            {},
            records("before", 2),
            "before: n = 8, accuracy 25.0% (95 % CI 7.1% to 59.1%), format 100.0%, sampled reward 1.250, 14 tokens, "
            "0.0% truncated\n",
        ),
        (
            {"correct": "choice_reward", "format": None},
            supervised("before", 2, 6.0),
            "before: n = 8, accuracy 25.0% (95 % CI 7.1% to 59.1%), loss 1.500 nats/token (perplexity 4.48), likeliest "
            "option 0.250, 14 tokens, 0.0% truncated\n",
        ),
        (
            {"correct": None, "format": None},
            [record | {"scores": {"rouge_reward": None}} for record in supervised("before", 0, 6.0)],
            "before: n = 8, loss 1.500 nats/token (perplexity 4.48), 14 tokens, 0.0% truncated\n",
        ),
        (
            {"correct": None, "format": None},
            rewarded("before", -2.5),
            "before: n = 8, sampled reward -2.000 (95 % CI -2.375 to -1.625), greedy reward -3.000, 14 tokens, "
            "0.0% truncated\n",
        ),
        (  # a reward model writes nothing
            {"correct": "choice_reward", "format": None},
            [record | {"completion": "", "tokens": 0, "nll": None} for record in supervised("before", 2, 0.0)],
            "before: n = 8, accuracy 25.0% (95 % CI 7.1% to 59.1%), likeliest option 0.250\n",
        ),
    ],
)
def test_a_stage_prints_one_line_of_what_it_measured(
    judge: dict[str, Any], stage: Any, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.open("toy", Args(output_dir=str(tmp_path)), **(JUDGED | judge))
    capsys.readouterr()
    run.stage("before", lambda **_: stage)
    assert capsys.readouterr().out == line


def test_a_stage_of_a_model_that_trains_on_is_evaluated_again(tmp_path: Path) -> None:
    """A session that ran out of time was evaluated, and may have been killed before or after its results."""
    run = open_run(tmp_path)
    run.stage("before", lambda stage: records(stage, 2))
    run.stage("after", lambda stage: records(stage, 3))

    resumed = open_run(tmp_path, resume=True)
    resumed.stage("before", never)
    assert resumed.length_quantile(1.0) == 17  # of "before": the later stage is none of this story yet
    resumed.train(ScriptedTrainer(resumed), then=lambda stage: records(stage, 6))
    assert resumed.stages["after"] == records("after", 6)
    save_checkpoint(resumed, 4)
    again = open_run(tmp_path, resume=True)
    again.stage("before", never)
    assert again.stage("after", never)["accuracy"] == 0.75


def test_length_quantile_is_of_the_latest_stage(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    run.stage("before", lambda stage: [record | {"tokens": 99} for record in records(stage, 2)])
    run.stage("warm start", lambda stage: records(stage, 2))  # 10, 10, 11, 11, ... 17, 17
    assert [run.length_quantile(share) for share in (0.05, 0.5, 0.95, 1.0)] == [10, 13, 17, 17]


# Training


def test_metrics_after_the_checkpoint_are_dropped_on_resume(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    for phase, step in (("warm start", 1), ("warm start", 2), ("grpo", 1), ("grpo", 2), ("grpo", 3)):
        run.training.log_metrics(phase, step, {"loss": 0.5})
    with open(run.folder / "metrics.jsonl", "a") as file:
        file.write('{"phase": "grpo", "st')  # cut off by the kill
    assert len(run.training.metrics()) == 5
    save_checkpoint(run, 2)

    resumed = open_run(tmp_path, resume=True)
    trainer = ScriptedTrainer(resumed)
    resumed.train(trainer, then=lambda stage: records(stage, 2))
    assert resumed.training.steps == {"grpo": (4, 4)}
    assert trainer.began_from == str(run.training.checkpoints("grpo") / "checkpoint-2")
    assert [(line["phase"], line["step"]) for line in resumed.training.metrics()] == [
        *(("warm start", step) for step in (1, 2)),
        *(("grpo", step) for step in (1, 2, 3, 4)),
    ]


def test_what_was_trained_is_saved_and_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """However far training came: the numbers are of that model."""
    run = open_run(tmp_path)
    run.train(ScriptedTrainer(run, stop_at=3), then=lambda stage: records(stage, 2))
    assert run.training.steps == {"grpo": (3, 4)} and [*run.stages] == ["after"]
    assert {path.name for path in (run.folder / "adapter").iterdir()} == {"adapter_model.safetensors", "tokenizer.json"}
    assert "Out of time at step 3 of 4 (grpo); the same command with --resume goes on." in capsys.readouterr().out


def test_after_a_whole_warm_start_the_story_goes_on(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    assert run.warm_up(ScriptedTrainer(run)) and not run.cut_short
    assert (run.folder / "warm_start" / "adapter_model.safetensors").exists()
    run.train(ScriptedTrainer(run), then=lambda stage: records(stage, 2))
    assert run.finish() is not None


def test_a_session_that_ends_in_the_warm_start_does_nothing_more(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    run.stage("before", lambda stage: records(stage, 1))
    assert not run.warm_up(ScriptedTrainer(run, stop_at=3))
    run.train(ScriptedTrainer(run), then=lambda stage: never(stage))
    assert run.finish() is None and [*run.stages] == ["before"]
    left = {path.name for path in run.folder.iterdir()}
    assert left == {"config.json", "completions.jsonl", "metrics.jsonl", "seconds.json", "checksums.json"}


# The end


def finished(run: Run, *, made: int = 4) -> dict[str, Any]:
    run.stage("before", lambda stage: records(stage, 1))
    run.stage("warm start", lambda stage: records(stage, 3))
    run.train(ScriptedTrainer(run, stop_at=made), then=lambda stage: records(stage, 8))
    save_checkpoint(run, made)
    return run.finish()


def test_results_have_the_stable_keys(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    results = finished(run)
    assert json.loads((run.folder / "results.json").read_text()) == results
    assert results.keys() >= {
        *("recipe", "model", "n", "stages", "paired", "seconds", "peak_memory_gib", "versions"),
        *("git_commit", "args", "complete", "steps", "comparisons", "machine", "date"),
    }
    assert (results["recipe"], results["model"], results["n"]) == ("toy", "smollm2-135m", 8)
    assert [stage["name"] for stage in results["stages"]] == ["before", "warm start", "after"]
    stage_keys = {"accuracy", "ci95", "sampled_reward", "format_rate", "truncation_rate", "mean_length", "n"}
    assert all(stage.keys() >= stage_keys for stage in results["stages"])
    assert results["paired"].keys() >= {"delta", "ci95", "p"}
    assert results["paired"]["delta"] == pytest.approx(7 / 8)
    # What the warm start gave and what GRPO gave are told apart.
    pairs = [(pair["from"], pair["to"], pair["accuracy"]["delta"]) for pair in results["comparisons"]]
    assert pairs == [("before", "warm start", 0.25), ("warm start", "after", 0.625), ("before", "after", 0.875)]
    assert results["seconds"].keys() >= {"evaluate before", "grpo", "evaluate after"}
    assert results["args"]["learning_rate"] == 1e-4
    assert results["peak_memory_gib"]["resident"] > 0
    assert results["complete"] is True and not (run.folder / "checkpoints").exists()


def test_results_of_supervised_training_name_what_they_compare(tmp_path: Path) -> None:
    run = Run.open("toy_sft", Args(output_dir=str(tmp_path)), correct="choice_reward", format=None)
    run.stage("before", lambda stage: supervised(stage, 1, 8.0))
    run.train(ScriptedTrainer(run), then=lambda stage: supervised(stage, 8, 4.0))
    results = run.finish()
    assert (results["correct"], results["format"]) == ("choice_reward", None)
    assert results["paired"] == {
        **{"from": "before", "to": "after", "n": 8, "measure": "accuracy"},
        **{"delta": 0.875, "ci95": results["paired"]["ci95"], "p": 0.01562},
    }
    assert results["comparisons"][0]["scores"]["likeliest_option"]["delta"] == 0.0
    assert results["comparisons"][0]["loss"]["delta"] == -1.0


def test_where_no_answer_is_right_the_loss_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run.open("toy_sft", Args(output_dir=str(tmp_path)), correct=None, format=None)
    run.stage("before", lambda stage: supervised(stage, 0, 8.0))
    run.train(ScriptedTrainer(run, weights="weights"), then=lambda stage: supervised(stage, 0, 4.0))
    results = run.finish()
    assert results["paired"] == {
        **{"from": "before", "to": "after", "n": 8, "measure": "loss"},
        **{"delta": -1.0, "ci95": [-1.0, -1.0], "p": None},
    }
    assert json.loads((run.folder / "results.json").read_text()) == results
    assert "held-out loss -1.000 nats/token" in capsys.readouterr().out
    assert results["training"]["adapter_bytes"] is None  # no safetensors: nothing is known


def test_where_there_is_no_loss_either_the_reward_is_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.open("toy_ppo", Args(output_dir=str(tmp_path)), correct=None, format=None)
    run.stage("before", lambda stage: rewarded(stage, -2.5))
    run.train(ScriptedTrainer(run), then=lambda stage: rewarded(stage, 0.5))
    results = run.finish()
    assert results["paired"] == {
        **{"from": "before", "to": "after", "n": 8, "measure": "sampled_reward"},
        **{"delta": 3.0, "ci95": [3.0, 3.0], "p": None},
    }
    assert json.loads((run.folder / "results.json").read_text()) == results
    assert "sampled reward +3.000 (95 % CI +3.000 to +3.000, n = 8): it learned" in capsys.readouterr().out
    assert "Sampled reward +3.000" in (run.folder / "report.html").read_text()
    assert "Sampled reward +3.000" in (run.folder / "adapter" / "README.md").read_text()


def test_results_tell_the_size_and_the_speed_of_training(tmp_path: Path) -> None:
    import torch

    class Counted(ScriptedTrainer):
        def train(self, resume_from_checkpoint: str | None) -> None:
            # Two sessions: TRL counts each from 0, and the first step of each warms up.
            steps = [(1, 100, 9.0), (2, 200, 1.0), (3, 320, 1.0), (4, 90, 9.0), (5, 200, 1.0), (6, 300, 0.0)]
            for step, tokens, seconds in steps:
                self.training.log_metrics("grpo", step, {"num_tokens": tokens, "seconds": seconds})
            self.state.global_step = 6

    run = open_run(tmp_path)
    run.training.log_metrics("warm start", 1, {"num_tokens": 5, "seconds": 1.0})
    run.training.log_metrics("warm start", 2, {"num_tokens": 5_000, "seconds": 1.0})
    run.stage("before", lambda stage: records(stage, 1))
    trainer = Counted(run, steps=6)
    layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2, bias=False))
    layers[0].requires_grad_(False)
    trainer.model.parameters = layers.parameters
    run.train(trainer, then=lambda stage: records(stage, 2))
    assert run.finish()["training"] == {
        "trainable_parameters": 8,
        "parameters": 24,
        "adapter_bytes": 10,
        "tokens_per_second": 110.0,  # the median of 100, 120 and 110
    }


def test_a_run_out_of_time_is_not_complete_and_keeps_its_checkpoints(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    results = finished(run, made=2)
    assert results["complete"] is False and results["steps"] == {"made": 2, "planned": 4}
    assert (run.folder / "checkpoints").exists()


@pytest.mark.parametrize("document", ["report", "model_card"])
def test_results_are_written_last(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"eval.report.write_{document}", fails)
    run = open_run(tmp_path)
    with pytest.raises(OSError):
        finished(run)
    assert not (run.folder / "results.json").exists()
    assert (run.folder / "checkpoints").exists()


def test_all_that_results_vouch_for_is_flushed_before_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And before they are there on the disk, no checkpoint is removed."""
    events: list[tuple[str, Path]] = []
    fsync, replaced, removed = os.fsync, os.replace, shutil.rmtree

    def note_flush(handle: int) -> None:
        events.append(("flushed", Path(os.readlink(f"/proc/self/fd/{handle}"))))
        fsync(handle)

    def note_rename(old: Path, new: Path) -> None:
        events.append(("renamed", Path(new)))
        replaced(old, new)

    def note_removal(path: Path, **kwargs: Any) -> None:
        events.append(("removed", Path(path)))
        removed(path, **kwargs)

    run = open_run(tmp_path)
    monkeypatch.setattr(os, "fsync", note_flush)
    monkeypatch.setattr(os, "replace", note_rename)
    monkeypatch.setattr(shutil, "rmtree", note_removal)
    finished(run)
    end = events.index(("renamed", run.folder / "results.json"))
    before = {path for what, path in events[:end] if what == "flushed"}
    for path in [run.folder, *run.folder.rglob("*")]:
        assert path in before or path.name == "results.json", path
    assert events[end + 1] == ("flushed", run.folder)
    assert events.index(("removed", run.folder / "checkpoints")) > end


def test_a_run_without_a_warm_start_has_one_comparison(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    run.stage("before", lambda stage: records(stage, 1))
    run.train(ScriptedTrainer(run), then=lambda stage: records(stage, 2))
    (pair,) = run.finish()["comparisons"]
    assert (pair["from"], pair["to"]) == ("before", "after")


# Stories of another shape


def test_a_story_without_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Few-shot against zero-shot: two stages, and a report that credits no training with the difference."""
    run = open_run(tmp_path, args=Untrained)
    run.stage("zero-shot", lambda stage: records(stage, 1))
    run.stage("few-shot", lambda stage: records(stage, 8))
    results = run.finish()
    assert json.loads((run.folder / "results.json").read_text()) == results
    assert results["complete"] is True and results["steps"] is None
    assert (results["paired"]["from"], results["paired"]["to"]) == ("zero-shot", "few-shot")
    assert set(results["training"].values()) == {None}
    written = {path.name for path in run.folder.iterdir()}
    named = {"config.json", "completions.jsonl", "seconds.json", "checksums.json", "report.html", "results.json"}
    assert written == named
    printed = capsys.readouterr().out
    assert "accuracy +87.5 points" in printed and "): it got better\n" in printed
    assert "Phases" not in printed and "learned" not in printed
    assert "it learned" not in (run.folder / "report.html").read_text()


def test_a_story_without_training_is_resumed(tmp_path: Path) -> None:
    open_run(tmp_path, args=Untrained).stage("zero-shot", lambda stage: records(stage, 1))
    resumed = open_run(tmp_path, args=Untrained, resume=True)
    resumed.stage("zero-shot", never)
    resumed.stage("few-shot", lambda stage: records(stage, 8))
    assert resumed.finish()["complete"] is True


@pytest.mark.parametrize("trained", [False, True])
def test_one_stage_is_compared_with_nothing(trained: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = open_run(tmp_path, args=Args if trained else Untrained)
    if trained:
        run.train(ScriptedTrainer(run), then=lambda stage: records(stage, 2))
    else:
        run.stage("few-shot", lambda stage: records(stage, 2))
    results = run.finish()
    assert (results["n"], results["paired"], results["comparisons"]) == (8, None, [])
    assert results["complete"] is True and (run.folder / "report.html").exists()
    assert (run.folder / "adapter" / "README.md").exists() == trained
    assert f"Only one stage was measured.\nReport: {run.folder / 'report.html'}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answered", "found"),
    [
        (8, "it learned: accuracy got better and answered did not measurably change"),
        (0, "it got better at one and worse at the other"),
    ],
)
def test_a_guard_has_a_say(answered: int, found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refusing what is harmful is half of it; what is harmless must still be answered."""

    def guarded(stage: str, refused: int, answered: int) -> list[dict[str, Any]]:
        """Eight problems that are to be refused, and eight more that are not."""
        harmful = [
            record | {"scores": {"refusal": float(i < refused), "answered": None}} for i, record in problems(stage)
        ]
        harmless = [
            record | {"index": 8 + i, "scores": {"refusal": None, "answered": float(i < answered)}}
            for i, record in problems(stage)
        ]
        return harmful + harmless

    def problems(stage: str) -> list[tuple[int, dict[str, Any]]]:
        return [*enumerate(records(stage, 0)[::2])]

    run = Run.open("toy_sft", Args(output_dir=str(tmp_path)), correct="refusal", format=None, guard="answered")
    run.stage("before", lambda stage: guarded(stage, 0, 8))
    assert (
        "accuracy 0.0% (95 % CI 0.0% to 32.4%), answered 100.0% (95 % CI 67.6% to 100.0%) of 8"
        in capsys.readouterr().out
    )
    run.train(ScriptedTrainer(run), then=lambda stage: guarded(stage, 8, answered))
    results = run.finish()
    assert results["guard"] == "answered" and results["comparisons"][0]["guard"]["delta"] == (answered - 8) / 8
    assert [stage["guard_n"] for stage in results["stages"]] == [8, 8]
    assert found in capsys.readouterr().out


def test_where_the_hub_is_gone_at_the_end_the_run_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    run = open_run(tmp_path)
    run.args = replace(run.args, push_to_hub="mine")
    with pytest.raises(Exception) as refused:
        finished(run)
    assert explain(refused.value) is not None
    assert json.loads((run.folder / "results.json").read_text())["complete"] is True
