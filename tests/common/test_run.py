"""The run folder: what a new run, a resumed one and a killed one find in it."""

import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from recipes.common.models import resolve
from recipes.common.run import Run, _parameter_counts

pytestmark = pytest.mark.usefixtures("unsloth")  # before transformers, which the trainer's callbacks import
SPEC = resolve("smollm2-135m")


@dataclass(frozen=True)
class Args:
    output_dir: str
    learning_rate: float = 1e-4
    max_steps: int = 4
    max_hours: float | None = None
    resume: bool = False
    seed: int = 1
    report_to: str = "none"


def open_run(folder: Path, **changes: Any) -> Run:
    return Run.open("toy", SPEC, Args(str(folder), **changes))


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


class ScriptedTrainer:
    """The part of a trainer that `Run.train` speaks to: it logs and saves as told, and says where it began."""

    def __init__(self, run: Run, steps: int = 4, stop_at: int | None = None) -> None:
        self.args = SimpleNamespace(output_dir=str(run.checkpoints("grpo")), max_steps=steps)
        self.state = SimpleNamespace(global_step=0, max_steps=steps)
        self.model = SimpleNamespace(parameters=list, named_parameters=list)
        self.accelerator = SimpleNamespace(unwrap_model=lambda model, keep_fp32_wrapper: model)
        self.run, self.stop_at, self.began_from = run, stop_at or steps, "nowhere"

    def remove_callback(self, callback: Any) -> None: ...

    def add_callback(self, callback: Any) -> None: ...

    def train(self, resume_from_checkpoint: str | None) -> None:
        self.began_from = resume_from_checkpoint
        first = int(resume_from_checkpoint.rpartition("-")[2]) if resume_from_checkpoint else 0
        for step in range(first + 1, self.stop_at + 1):
            self.run.log_metrics("grpo", step, {"reward": float(step)})
        self.state.global_step = self.stop_at


# Opening


def test_a_new_run_keeps_its_configuration(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    assert run.folder.parent == tmp_path / "toy" / "smollm2-135m"
    # Where and how long to run is no configuration.
    assert json.loads((run.folder / "config.json").read_text()) == {
        "learning_rate": 1e-4,
        "max_steps": 4,
        "seed": 1,
        "report_to": "none",
    }
    assert open_run(tmp_path).folder != run.folder  # within the same second


def test_resume_finds_the_newest_run(tmp_path: Path) -> None:
    open_run(tmp_path)
    newest = open_run(tmp_path)
    resumed = open_run(tmp_path, resume=True, max_hours=1.0)
    assert resumed.folder == newest.folder and resumed.resumed


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found no run of toy with smollm2-135m in .*; start one without"):
        open_run(tmp_path, resume=True)


def test_a_complete_run_is_not_resumed(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    (run.folder / "results.json").write_text('{"complete": true}')
    with pytest.raises(ValueError, match=r"is complete; start a new one without --resume"):
        open_run(tmp_path, resume=True)


def test_results_of_an_incomplete_run_go_when_it_is_resumed(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    (run.folder / "results.json").write_text('{"complete": false}')
    assert not (open_run(tmp_path, resume=True).folder / "results.json").exists()


def test_a_changed_configuration_is_refused_with_every_difference(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    with pytest.raises(ValueError) as refusal:
        open_run(tmp_path, resume=True, learning_rate=0.5, seed=2)
    assert "(--learning-rate 0.0001 -> 0.5, --seed 1 -> 2)" in str(refusal.value)
    assert str(run.folder) in str(refusal.value) and "max" not in str(refusal.value)


def test_an_unwritable_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "runs", Path("/proc/runs")):
        with pytest.raises(ValueError, match=r"^cannot write .* \(.+\): name another --output-dir$"):
            open_run(place)


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
    run = Run.open("toy", SPEC, Args(str(tmp_path)), **judge)
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
    resumed.train(ScriptedTrainer(resumed))
    assert resumed.stage("after", lambda stage: records(stage, 6))["accuracy"] == 0.75
    again = open_run(tmp_path, resume=True)
    again.stage("before", never)
    assert again.stage("after", never)["accuracy"] == 0.75


def test_length_quantile_is_of_the_latest_stage(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    run.stage("before", lambda stage: [record | {"tokens": 99} for record in records(stage, 2)])
    run.stage("warm start", lambda stage: records(stage, 2))  # 10, 10, 11, 11, ... 17, 17
    assert [run.length_quantile(share) for share in (0.05, 0.5, 0.95, 1.0)] == [10, 13, 17, 17]


# Checkpoints and metrics


def save_checkpoint(run: Run, step: int, *, whole: bool = True) -> Path:
    from recipes.common.callbacks import COMPLETE

    folder = run.checkpoints("grpo") / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "weights").write_text("x")
    if whole:
        (folder / COMPLETE).write_text("{}")
    return folder


def test_a_checkpoint_cut_off_by_a_kill_is_deleted_and_the_previous_one_used(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    for step in (8, 9):
        save_checkpoint(run, step)
    cut_off = save_checkpoint(run, 10, whole=False)
    assert run.last_checkpoint("grpo") == run.checkpoints("grpo") / "checkpoint-9"
    assert not cut_off.exists()
    save_checkpoint(run, 10)  # as a number: 10 comes after 9
    assert run.last_checkpoint("grpo") == run.checkpoints("grpo") / "checkpoint-10"
    assert run.last_checkpoint("warm start") is None


def test_metrics_after_the_checkpoint_are_dropped_on_resume(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    for phase, step in (("warm start", 1), ("warm start", 2), ("grpo", 1), ("grpo", 2), ("grpo", 3)):
        run.log_metrics(phase, step, {"loss": 0.5, "entropy": math.nan})
    with open(run.folder / "metrics.jsonl", "a") as file:
        file.write('{"phase": "grpo", "st')  # cut off by the kill
    assert len(run.metrics()) == 5 and run.metrics()[0]["entropy"] is None
    save_checkpoint(run, 2)

    resumed = open_run(tmp_path, resume=True)
    trainer = ScriptedTrainer(resumed)
    assert resumed.train(trainer)
    assert trainer.began_from == str(run.checkpoints("grpo") / "checkpoint-2")
    assert [(line["phase"], line["step"]) for line in resumed.metrics()] == [
        *(("warm start", step) for step in (1, 2)),
        *(("grpo", step) for step in (1, 2, 3, 4)),
    ]


def test_training_that_stopped_early_is_not_done(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    assert not run.train(ScriptedTrainer(run, stop_at=3))
    assert run.steps == {"grpo": (3, 4)}


# Adapters


class Saves:
    """A model or tokenizer that writes one file, or half of it and fails."""

    def __init__(self, name: str, text: str, *, fails: bool = False) -> None:
        self.name, self.text, self.fails = name, text, fails

    def save_pretrained(self, folder: str, **kwargs: Any) -> None:
        Path(folder).mkdir(exist_ok=True)
        (Path(folder) / self.name).write_text(self.text)
        if self.fails:
            raise OSError(28, "No space left on device")


def test_a_failed_save_leaves_the_old_adapter(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    saved = run.save_adapter("adapter", Saves("weights", "old"), Saves("tokenizer", "old"))
    for model, tokenizer in (
        (Saves("weights", "ne", fails=True), Saves("tokenizer", "new")),
        (Saves("weights", "new"), Saves("tokenizer", "ne", fails=True)),
    ):
        with pytest.raises(OSError):
            run.save_adapter("adapter", model, tokenizer)
        assert {path.name: path.read_text() for path in saved.iterdir()} == {
            "weights": "old",
            "tokenizer": "old",
        }
    run.save_adapter("adapter", Saves("weights", "new"), Saves("tokenizer", "new"))
    assert (saved / "weights").read_text() == "new"
    assert not list(run.folder.glob(".*"))


def test_an_adapter_comes_back_as_it_was(tmp_path: Path, tiny: Path, load_lora: Any) -> None:
    import torch

    model, tokenizer = load_lora(tiny, rank=4)
    run = open_run(tmp_path)
    assert not run.load_adapter("adapter", model)
    weights = {name: value for name, value in model.named_parameters() if "lora_" in name}
    with torch.no_grad():
        for value in weights.values():
            value.normal_()
    saved = {name: value.detach().clone() for name, value in weights.items()}
    run.save_adapter("adapter", model, tokenizer)
    with torch.no_grad():
        for value in weights.values():
            value.zero_()
    assert run.load_adapter("adapter", model)
    assert all(torch.equal(value, saved[name]) for name, value in weights.items())
    assert {value.dtype for value in saved.values()} == {torch.float32}  # small updates would round away


VIRTUAL = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4}


def stock_model(kind: str, folder: Path, seed: int) -> Any:
    """The random model, loaded without Unsloth, whole or with a prompt-learning adapter of that seed."""
    import torch
    from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(seed)
    if kind == "full":
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model
    configs = {
        "p-tuning": PromptEncoderConfig(**VIRTUAL, encoder_hidden_size=16),
        "prefix-tuning": PrefixTuningConfig(**VIRTUAL),
        "prompt-tuning": PromptTuningConfig(**VIRTUAL),
    }
    return get_peft_model(model, configs[kind])


def logits(model: Any) -> Any:
    import torch

    model.eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 9, 7, 3, 11]])).logits


@pytest.mark.parametrize("kind", ["full", "p-tuning", "prefix-tuning", "prompt-tuning"])
def test_what_is_no_lora_comes_back_as_it_was(kind: str, tmp_path: Path, tiny: Path) -> None:
    import torch
    from transformers import AutoTokenizer

    run = open_run(tmp_path)
    trained, fresh = stock_model(kind, tiny, seed=1), stock_model(kind, tiny, seed=2)
    assert not run.load_adapter("adapter", fresh)
    assert not torch.allclose(logits(trained), logits(fresh), atol=1e-3)
    saved = run.save_adapter("adapter", trained, AutoTokenizer.from_pretrained(tiny))
    weights = "model.safetensors" if kind == "full" else "adapter_model.safetensors"
    assert [path.name for path in saved.glob("*.safetensors")] == [weights]
    assert not [*saved.glob("*.bin"), *saved.glob("*.pt")]
    assert run.load_adapter("adapter", fresh)
    assert torch.allclose(logits(trained), logits(fresh), atol=1e-5)
    # What was read back can be saved again, as a session does that comes after the last step.
    again = run.save_adapter("again", fresh, AutoTokenizer.from_pretrained(tiny))
    assert (again / weights).read_bytes() == (saved / weights).read_bytes()


def train(run: Run, model: Any, *, kill_at: int | None = None) -> bool:
    """Four steps of transformers' own trainer on eight rows of noise; killed before a step's update, if told so."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Kill(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == kill_at:
                raise KeyboardInterrupt

    noise = torch.Generator().manual_seed(0)
    rows = [{"input_ids": (ids := torch.randint(3, 200, (6,), generator=noise)), "labels": ids} for _ in range(8)]
    settings = run.trainer_settings("sft") | {"max_steps": 4, "learning_rate": 0.01, "per_device_train_batch_size": 2}
    return run.train(Trainer(model, TrainingArguments(**settings), train_dataset=rows, callbacks=[Kill()]))


@pytest.mark.parametrize("kind", ["full", "p-tuning", "prefix-tuning"])
def test_training_goes_on_from_a_checkpoint_as_if_never_killed(kind: str, tmp_path: Path, tiny: Path) -> None:
    """PEFT's checkpoint of p-tuning holds what its network writes, and not the network that training needs."""
    import torch

    unbroken = stock_model(kind, tiny, seed=1)
    assert train(open_run(tmp_path / "unbroken"), unbroken)

    broken = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        train(open_run(broken), stock_model(kind, tiny, seed=1), kill_at=2)
    resumed, run = stock_model(kind, tiny, seed=2), open_run(broken, resume=True)
    assert train(run, resumed)
    assert [line["step"] for line in run.metrics()] == [1, 2, 3, 4]
    assert torch.equal(logits(unbroken), logits(resumed))
    # And once more after the last step, when nothing is left to train.
    done = stock_model(kind, tiny, seed=3)
    assert train(open_run(broken, resume=True), done)
    tokenizer = Saves("tokenizer.json", "x")
    first, last = (run.save_adapter(name, model, tokenizer) for name, model in (("first", unbroken), ("last", done)))
    (weights,) = first.glob("*.safetensors")
    assert weights.read_bytes() == (last / weights.name).read_bytes()


# Time


def test_time_left_keeps_room_for_the_last_evaluation(tmp_path: Path) -> None:
    assert open_run(tmp_path).time_left() == math.inf
    run = open_run(tmp_path, max_hours=0.5)
    assert run.time_left() == pytest.approx(1800, abs=1)
    (run.folder / "seconds.json").write_text('{"evaluate before": 100, "evaluate after": 60, "grpo": 900}')
    run.started = time.monotonic() - 300  # this session's start; earlier sessions had hours of their own
    assert run.time_left() == pytest.approx(1800 - 300 - 1.5 * 100, abs=1)


def test_seconds_add_up_over_sessions_and_failures(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    with pytest.raises(KeyboardInterrupt), run.phase("grpo"):
        time.sleep(0.15)
        raise KeyboardInterrupt
    resumed = open_run(tmp_path, resume=True)
    with resumed.phase("grpo"):
        time.sleep(0.15)
    assert 0.2 <= resumed.seconds["grpo"] < 5


# The end


def finished(run: Run, *, made: int = 4) -> dict[str, Any]:
    run.stage("before", lambda stage: records(stage, 1))
    run.stage("warm start", lambda stage: records(stage, 3))
    run.train(ScriptedTrainer(run, stop_at=made))
    save_checkpoint(run, made)
    run.save_adapter("adapter", Saves("adapter_model.safetensors", "x"), Saves("tokenizer.json", "x"))
    run.stage("after", lambda stage: records(stage, 8))
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
    run = Run.open("toy_sft", SPEC, Args(str(tmp_path)), correct="choice_reward", format=None)
    run.stage("before", lambda stage: supervised(stage, 1, 8.0))
    run.train(ScriptedTrainer(run))
    run.save_adapter("adapter", Saves("adapter_model.safetensors", "x" * 10), Saves("tokenizer.json", "x"))
    run.stage("after", lambda stage: supervised(stage, 8, 4.0))
    results = run.finish()
    assert (results["correct"], results["format"]) == ("choice_reward", None)
    assert results["paired"] == {
        **{"from": "before", "to": "after", "n": 8, "measure": "accuracy"},
        **{"delta": 0.875, "ci95": results["paired"]["ci95"], "p": 0.01562},
    }
    assert results["comparisons"][0]["scores"]["likeliest_option"]["delta"] == 0.0
    assert results["comparisons"][0]["loss"]["delta"] == -1.0


def test_where_no_answer_is_right_the_loss_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run.open("toy_sft", SPEC, Args(str(tmp_path)), correct=None, format=None)
    run.stage("before", lambda stage: supervised(stage, 0, 8.0))
    run.train(ScriptedTrainer(run))
    run.save_adapter("adapter", Saves("weights", "x"), Saves("tokenizer.json", "x"))
    run.stage("after", lambda stage: supervised(stage, 0, 4.0))
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
    run = Run.open("toy_ppo", SPEC, Args(str(tmp_path)), correct=None, format=None)
    run.stage("before", lambda stage: rewarded(stage, -2.5))
    run.train(ScriptedTrainer(run))
    run.save_adapter("adapter", Saves("adapter_model.safetensors", "x"), Saves("tokenizer.json", "x"))
    run.stage("after", lambda stage: rewarded(stage, 0.5))
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
                self.run.log_metrics("grpo", step, {"num_tokens": tokens, "seconds": seconds})
            self.state.global_step = 6

    run = open_run(tmp_path)
    run.log_metrics("warm start", 1, {"num_tokens": 5, "seconds": 1.0})
    run.log_metrics("warm start", 2, {"num_tokens": 5_000, "seconds": 1.0})
    run.stage("before", lambda stage: records(stage, 1))
    trainer = Counted(run, steps=6)
    trainer.model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2, bias=False))
    trainer.model[0].requires_grad_(False)
    run.train(trainer)
    run.save_adapter("adapter", Saves("adapter_model.safetensors", "x" * 10), Saves("tokenizer.json", "xx"))
    run.stage("after", lambda stage: records(stage, 2))
    assert run.finish()["training"] == {
        "trainable_parameters": 8,
        "parameters": 24,
        "adapter_bytes": 10,
        "tokens_per_second": 110.0,  # the median of 100, 120 and 110
    }


def test_weights_in_4_bit_count_as_the_parameters_they_are(tiny: Path, unsloth: Any) -> None:
    whole, _ = unsloth.FastLanguageModel.from_pretrained(str(tiny), max_seq_length=64, load_in_4bit=False)
    packed, _ = unsloth.FastLanguageModel.from_pretrained(str(tiny), max_seq_length=64, load_in_4bit=True)
    assert "Params4bit" in {type(parameter).__name__ for parameter in packed.parameters()}
    assert _parameter_counts(packed)[1] == _parameter_counts(whole)[1]


def test_a_run_out_of_time_is_not_complete_and_keeps_its_checkpoints(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    results = finished(run, made=2)
    assert results["complete"] is False and results["steps"] == {"made": 2, "planned": 4}
    assert (run.folder / "checkpoints").exists()


@pytest.mark.parametrize("document", ["report", "model_card"])
def test_results_are_written_last(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"recipes.common.run.write_{document}", fails)
    run = open_run(tmp_path)
    with pytest.raises(OSError):
        finished(run)
    assert not (run.folder / "results.json").exists()
    assert (run.folder / "checkpoints").exists()


def test_a_run_without_a_warm_start_has_one_comparison(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    run.stage("before", lambda stage: records(stage, 1))
    run.train(ScriptedTrainer(run))
    run.save_adapter("adapter", Saves("weights", "x"), Saves("tokenizer", "x"))
    run.stage("after", lambda stage: records(stage, 2))
    (pair,) = run.finish()["comparisons"]
    assert (pair["from"], pair["to"]) == ("before", "after")


def test_settings_follow_the_phase(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    settings = run.trainer_settings("warm start")
    assert settings["output_dir"] == str(run.folder / "checkpoints" / "warm_start")
    assert settings["seed"] == 1 and settings["save_total_limit"] == 2
    assert settings["bf16"] != settings["fp16"]
    other = Run.open("toy", SPEC, replace(run.args, seed=5))
    assert other.trainer_settings("grpo")["seed"] == 5
