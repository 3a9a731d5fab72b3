"""What every trainer of a run is told, checkpoints that are whole or not there, and adapters that come back."""

import math
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from recipes.common.args import RunArgs, TrainArgs
from recipes.common.clock import Clock
from recipes.common.models import resolve
from recipes.common.resuming import changeable
from recipes.common.training import Training, _parameter_counts, planned_steps

pytestmark = pytest.mark.usefixtures("unsloth")  # before transformers, which the trainer's callbacks import


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs, TrainArgs):
    lr_scheduler_type: str = "linear"
    weight_decay: float = 0.0
    max_steps: int = 4


def training_in(folder: Path, *, model: str = "smollm2-135m", resumed: bool = False, **flags: Any) -> Training:
    folder.mkdir(exist_ok=True)
    return Training(folder, resolve(model), Args(**flags), Clock(folder, None), resumed=resumed)


# What a trainer is told


def test_settings_follow_the_phase(tmp_path: Path) -> None:
    training = training_in(tmp_path, seed=1)
    settings = training.settings("warm start")
    assert settings["output_dir"] == str(tmp_path / "checkpoints" / "warm_start")
    assert settings["seed"] == 1 and settings["save_total_limit"] == 2
    assert settings["bf16"] != settings["fp16"]
    assert training_in(tmp_path, seed=5).settings("grpo")["seed"] == 5


@pytest.mark.parametrize(
    ("flags", "fields"),
    [
        ({}, {"max_steps": 4, "num_train_epochs": 1, "report_to": "none", "save_steps": 0.1}),
        ({"max_steps": 7}, {"max_steps": 7}),
        ({"num_train_epochs": 2.5}, {"max_steps": -1, "num_train_epochs": 2.5}),  # transformers: -1 lets epochs decide
        ({"save_steps": 25.0, "report_to": "trackio"}, {"save_steps": 25.0, "report_to": "trackio"}),
        ({"run_name": "third try"}, {"run_name": "third try"}),
    ],
)
def test_flags_reach_the_trainer(flags: dict[str, Any], fields: dict[str, Any], tmp_path: Path) -> None:
    from transformers import TrainingArguments

    settings = training_in(tmp_path, **flags).settings("sft")
    assert {name: settings[name] for name in fields} == fields
    read = TrainingArguments(**settings | {"report_to": "none"})
    assert {name: getattr(read, name) for name in fields if name != "report_to"} == {
        name: value for name, value in fields.items() if name != "report_to"
    }


def test_a_tracker_is_told_recipe_model_and_time(tmp_path: Path) -> None:
    folder = tmp_path / "arc_sft" / "phi-4" / "20261201-101010"
    folder.mkdir(parents=True)
    assert training_in(folder).settings("sft")["run_name"] == "arc_sft-phi-4-20261201-101010"


@pytest.mark.parametrize(
    ("card", "model", "half"),
    [
        ("none", "gemma-3-1b", "bf16"),
        ("with bfloat16", "gemma-3-1b", "bf16"),
        ("T4", "llama-3.2-3b", "fp16"),
        ("T4", "gemma-3-1b", None),
    ],
)
def test_half_precision_heeds_card_and_model(
    card: str, model: str, half: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma's activations leave float16's range: on a card without bfloat16 it trains in float32."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: card != "none")
    # A T4 emulates bfloat16, slowly.
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: card != "T4" or including_emulation
    )
    settings = training_in(tmp_path, model=model).settings("sft")
    assert {name for name in ("bf16", "fp16") if settings[name]} == {half} - {None}


ROWS = [{"prompt": f"{n} ?", "completion": " 4"} for n in range(10)]


def sft(model: Any, tokenizer: Any, settings: dict[str, Any]) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(**settings, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    return SFTTrainer(model, config, train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer)


def grpo(model: Any, tokenizer: Any, settings: dict[str, Any]) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    config = GRPOConfig(
        **settings,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_generations=4,
        max_completion_length=4,
    )

    def reward(completions: list[Any], **kwargs: Any) -> list[float]:
        return [float(len(completion)) for completion in completions]

    return GRPOTrainer(model, reward, config, train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer)


def ppo(model: Any, tokenizer: Any, settings: dict[str, Any]) -> Any:
    from datasets import Dataset

    from eval.sampling import ModelSampler
    from recipes.common.ppo import PPOConfig, PPOTrainer

    sizes = {"per_device_train_batch_size": 4, "minibatch_size": 2, "micro_batch_size": 2, "max_completion_length": 8}
    config = PPOConfig(**settings, **sizes)
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS])
    sampler = ModelSampler(model, tokenizer)

    def reward(completions: list[Any], **kwargs: Any) -> list[float]:
        return [float(len(completion[0]["content"])) for completion in completions]

    return PPOTrainer(model, reward, config, sampler, train_dataset=rows, processing_class=tokenizer)


@pytest.mark.parametrize(
    ("build", "epochs", "steps"),
    [
        (sft, 1, 3),  # of 10 rows, 2 x 2 at a time: 5 batches are 2 1/2 updates
        (sft, 2.5, 8),  # 7 1/2
        (sft, 0.1, 1),
        (grpo, 2, 10),  # of 10 prompts, 8 completions in groups of 4 at a time
        (ppo, 2, 6),  # of 10 prompts, 4 at a time
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_epochs_are_as_many_steps_as_the_trainer_makes_of_them(
    build: Callable[..., Any], epochs: float, steps: int, tmp_path: Path, tiny: Path, load_lora: Any
) -> None:
    from transformers import TrainerCallback

    class Begun(Exception): ...

    class Stop(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            raise Begun(state.max_steps)

    trainer = build(*load_lora(tiny), training_in(tmp_path, num_train_epochs=epochs).settings("sft"))
    trainer.add_callback(Stop())
    with pytest.raises(Begun) as own:
        trainer.train()
    assert own.value.args == (steps,)
    assert planned_steps(trainer) == trainer.args.max_steps == steps
    with pytest.raises(Begun) as told:
        trainer.train()
    assert told.value.args == (steps,)


def test_steps_that_were_asked_for_are_planned(tmp_path: Path, tiny: Path, load_lora: Any) -> None:
    trainer = sft(*load_lora(tiny), training_in(tmp_path, max_steps=7).settings("sft"))
    assert planned_steps(trainer) == 7


# Checkpoints and metrics


def save_checkpoint(training: Training, step: int, *, whole: bool = True) -> Path:
    from recipes.common.callbacks import mark_whole

    folder = training.checkpoints("grpo") / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "weights").write_text("x")
    if whole:
        mark_whole(folder, step)
    return folder


def test_a_checkpoint_cut_off_by_a_kill_is_deleted_and_the_previous_one_used(tmp_path: Path) -> None:
    training = training_in(tmp_path)
    for step in (8, 9):
        save_checkpoint(training, step)
    cut_off = save_checkpoint(training, 10, whole=False)
    assert training.last_checkpoint("grpo") == training.checkpoints("grpo") / "checkpoint-9"
    assert not cut_off.exists()
    save_checkpoint(training, 10)  # as a number: 10 comes after 9
    assert training.last_checkpoint("grpo") == training.checkpoints("grpo") / "checkpoint-10"
    assert training.last_checkpoint("warm start") is None


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flipped(file: Path) -> None:
    *rest, last = file.read_bytes()
    file.write_bytes(bytes([*rest, last ^ 1]))


def replaced(file: Path) -> None:
    file.write_bytes(b"[]")


def removed(file: Path) -> None:
    file.unlink()


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("damage", [emptied, cut, flipped, replaced, removed, a_folder])
def test_a_damaged_checkpoint_is_told_and_the_previous_one_used(
    damage: Callable[[Path], None], tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture
) -> None:
    """Whichever file of a real one it is: without its optimiser's, training would go on, to other weights."""
    training = training_in(tmp_path / "run", save_steps=1.0, max_steps=2)
    assert train(training, stock_model("prompt-tuning", tiny, seed=1))
    kept, whole = training.checkpoints("sft"), tmp_path / "kept"
    shutil.copytree(kept, whole)
    names = [path.name for path in (whole / "checkpoint-2").iterdir()]
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "complete.json"} < set(names)
    for name in names:
        damage(kept / "checkpoint-2" / name)
        capsys.readouterr()
        assert training.last_checkpoint("sft") == kept / "checkpoint-1", name
        told = capsys.readouterr().out
        assert told.startswith("checkpoints/sft/checkpoint-2 is not whole (" + name)
        assert told.endswith(": sft goes on from step 1.\n") and told.count("\n") == 1
        assert not (kept / "checkpoint-2").exists()
        shutil.copytree(whole / "checkpoint-2", kept / "checkpoint-2")
    for step in (1, 2):
        damage(kept / f"checkpoint-{step}" / "optimizer.pt")
    assert training.last_checkpoint("sft") is None
    assert capsys.readouterr().out.count("sft starts anew.\n") == 2


def test_what_a_mark_vouches_for_is_on_disk_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recipes.common.callbacks import mark_whole

    flushed, fsync = [], os.fsync

    def record(handle: int) -> None:
        flushed.append(os.fstat(handle).st_ino)
        fsync(handle)

    folder = tmp_path / "checkpoint-1"
    (folder / "below").mkdir(parents=True)
    for file in (folder / "weights", folder / "below" / "more"):
        file.write_text("x")
    monkeypatch.setattr(os, "fsync", record)
    mark_whole(folder, 1)
    files = {path.stat().st_ino for path in (folder / "weights", folder / "below" / "more")}
    rest = [path.stat().st_ino for path in (folder / "below", folder, tmp_path, folder / "complete.json")]
    order = list(dict.fromkeys(flushed))
    assert set(order[:2]) == files and order[2:] == rest


def test_a_step_that_takes_long_is_saved(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recipes.common import callbacks

    training = training_in(tmp_path / "quick", save_steps=4.0)
    assert train(training, stock_model("prompt-tuning", tiny, seed=1))
    assert [path.name for path in training.checkpoints("sft").iterdir()] == ["checkpoint-4"]
    monkeypatch.setattr(callbacks, "SAVE_EVERY", 0.0)
    training = training_in(tmp_path / "slow", save_steps=4.0)
    assert train(training, stock_model("prompt-tuning", tiny, seed=1))
    # Two are kept, and with them a way back from a damaged one.
    assert {path.name for path in training.checkpoints("sft").iterdir()} == {"checkpoint-3", "checkpoint-4"}


def test_metrics_that_json_cannot_hold_are_null(tmp_path: Path) -> None:
    training = training_in(tmp_path)
    assert training.metrics() == []
    training.log_metrics("grpo", 1, {"loss": 0.5, "entropy": math.nan, "kl": math.inf})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"phase": "grpo", "st')  # cut off by a kill
    assert training.metrics() == [{"phase": "grpo", "step": 1, "loss": 0.5, "entropy": None, "kl": None}]


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
    training = training_in(tmp_path)
    saved = training.save_adapter("adapter", Saves("weights", "old"), Saves("tokenizer", "old"))
    for model, tokenizer in (
        (Saves("weights", "ne", fails=True), Saves("tokenizer", "new")),
        (Saves("weights", "new"), Saves("tokenizer", "ne", fails=True)),
    ):
        with pytest.raises(OSError):
            training.save_adapter("adapter", model, tokenizer)
        assert {path.name: path.read_text() for path in saved.iterdir()} == {
            "weights": "old",
            "tokenizer": "old",
        }
    training.save_adapter("adapter", Saves("weights", "new"), Saves("tokenizer", "new"))
    assert (saved / "weights").read_text() == "new"
    assert not list(tmp_path.glob(".*"))


def test_an_adapter_comes_back_as_it_was(tmp_path: Path, tiny: Path, load_lora: Any) -> None:
    import torch

    model, tokenizer = load_lora(tiny, rank=4)
    training = training_in(tmp_path)
    assert not training.load_adapter("adapter", model)
    weights = {name: value for name, value in model.named_parameters() if "lora_" in name}
    with torch.no_grad():
        for value in weights.values():
            value.normal_()
    saved = {name: value.detach().clone() for name, value in weights.items()}
    training.save_adapter("adapter", model, tokenizer)
    with torch.no_grad():
        for value in weights.values():
            value.zero_()
    assert training.load_adapter("adapter", model)
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

    training = training_in(tmp_path)
    trained, fresh = stock_model(kind, tiny, seed=1), stock_model(kind, tiny, seed=2)
    assert not training.load_adapter("adapter", fresh)
    assert not torch.allclose(logits(trained), logits(fresh), atol=1e-3)
    saved = training.save_adapter("adapter", trained, AutoTokenizer.from_pretrained(tiny))
    weights = "model.safetensors" if kind == "full" else "adapter_model.safetensors"
    assert [path.name for path in saved.glob("*.safetensors")] == [weights]
    assert not [*saved.glob("*.bin"), *saved.glob("*.pt")]
    assert training.load_adapter("adapter", fresh)
    assert torch.allclose(logits(trained), logits(fresh), atol=1e-5)
    # What was read back can be saved again, as a session does that comes after the last step.
    again = training.save_adapter("again", fresh, AutoTokenizer.from_pretrained(tiny))
    assert (again / weights).read_bytes() == (saved / weights).read_bytes()


def train(training: Training, model: Any, *, kill_at: int | None = None, callbacks: Iterable[Any] = ()) -> bool:
    """Steps of transformers' own trainer on eight rows of noise; killed before a step's update, if told so."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Kill(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == kill_at:
                raise KeyboardInterrupt

    noise = torch.Generator().manual_seed(0)
    rows = [{"input_ids": (ids := torch.randint(3, 200, (6,), generator=noise)), "labels": ids} for _ in range(8)]
    settings = training.settings("sft") | {"learning_rate": 0.01, "per_device_train_batch_size": 2}
    config = TrainingArguments(**settings)
    return training.train(Trainer(model, config, train_dataset=rows, callbacks=[Kill(), *callbacks]))


@pytest.mark.parametrize("kind", ["full", "p-tuning", "prefix-tuning"])
def test_training_goes_on_from_a_checkpoint_as_if_never_killed(kind: str, tmp_path: Path, tiny: Path) -> None:
    """PEFT's checkpoint of p-tuning holds what its network writes, and not the network that training needs."""
    import torch

    unbroken = stock_model(kind, tiny, seed=1)
    assert train(training_in(tmp_path / "unbroken"), unbroken)

    broken = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        train(training_in(broken), stock_model(kind, tiny, seed=1), kill_at=2)
    resumed, training = stock_model(kind, tiny, seed=2), training_in(broken, resumed=True)
    assert train(training, resumed) and training.steps == {"sft": (4, 4)}
    assert [line["step"] for line in training.metrics()] == [1, 2, 3, 4]
    assert torch.equal(logits(unbroken), logits(resumed))
    # And once more after the last step, when nothing is left to train.
    done = stock_model(kind, tiny, seed=3)
    assert train(training_in(broken, resumed=True), done)
    tokenizer = Saves("tokenizer.json", "x")
    first, last = (
        training.save_adapter(name, model, tokenizer) for name, model in (("first", unbroken), ("last", done))
    )
    (weights,) = first.glob("*.safetensors")
    assert weights.read_bytes() == (last / weights.name).read_bytes()


def test_weights_in_4_bit_count_as_the_parameters_they_are(tiny: Path, unsloth: Any) -> None:
    whole, _ = unsloth.FastLanguageModel.from_pretrained(str(tiny), max_seq_length=64, load_in_4bit=False)
    packed, _ = unsloth.FastLanguageModel.from_pretrained(str(tiny), max_seq_length=64, load_in_4bit=True)
    assert "Params4bit" in {type(parameter).__name__ for parameter in packed.parameters()}
    assert _parameter_counts(packed)[1] == _parameter_counts(whole)[1]


# Numbers that are no longer finite


PAIR = {
    "prompt": [{"role": "user", "content": "2 + 2 ?"}],
    "chosen": [{"role": "assistant", "content": "4"}],
    "rejected": [{"role": "assistant", "content": "5 ?"}],
}
ANSWER = {"prompt": PAIR["prompt"], "completion": PAIR["chosen"]}
METHODS = ("sft", "dpo", "kto", "orpo", "simpo", "reward", "grpo", "ppo")


@pytest.fixture
def build(tiny: Path, load_lora: Any, preference_trainer: Any) -> Callable[..., Any]:
    """`build(method, training, **rates)`: the trainer of a method, on a new adapter of a small random model."""

    def build(method: str, training: Training, phase: str | None = None, **rates: float) -> Any:
        from transformers import AutoTokenizer

        settings = training.settings(phase or method) | rates
        on_adapter = {"sft": sft, "grpo": grpo, "ppo": ppo}
        if method in on_adapter:
            return on_adapter[method](*load_lora(tiny, rank=4), settings)
        rows = [{**ANSWER, "label": n % 2 == 0} for n in range(8)] if method == "kto" else [PAIR] * 8
        tokenizer = AutoTokenizer.from_pretrained(tiny)
        return preference_trainer(method, tokenizer, rows, per_device_train_batch_size=4, **settings)

    return build


def spoil(trainer: Any, step: int) -> Any:
    """Make a trained weight infinite before this step."""
    import torch
    from transformers import TrainerCallback

    class Spoil(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
            if state.global_step == step - 1:
                *_, weight = (weight for name, weight in model.named_parameters() if "lora_B.default" in name)
                with torch.no_grad():
                    weight.fill_(math.inf)

    trainer.add_callback(Spoil())
    return trainer


@pytest.mark.parametrize("method", METHODS)
def test_training_stops_where_numbers_are_no_longer_finite_and_goes_on_at_a_lower_rate(
    method: str, build: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    import torch

    from recipes.common.callbacks import find_fault

    first = training_in(tmp_path, save_steps=1.0)
    with pytest.raises(ValueError) as stopped:
        first.train(spoil(build(method, first, learning_rate=1e-3), step=3))
    # PPO's rollouts are the sampler's, which draws a token from whatever there is.
    what = {"grpo": "probabilities of the rollouts", "ppo": "policy loss"}.get(method, "loss")
    assert str(stopped.value) == (
        f"{what} not finite in step 3 of 4 ({method}) at --learning-rate 0.001: the same command with --resume and a "
        "lower --learning-rate goes on from step 2"
    )
    kept = [first.checkpoints(method) / f"checkpoint-{step}" for step in (1, 2)]
    assert [find_fault(folder) for folder in kept] == [None, None] and not (tmp_path / "adapter").exists()
    assert [line["step"] for line in first.metrics()] == [1, 2]
    rates = {"learning_rate", "value_learning_rate"} if method == "ppo" else {"learning_rate"}
    assert changeable(tmp_path) == rates

    capsys.readouterr()
    second = training_in(tmp_path, save_steps=1.0, resumed=True)
    trainer = build(method, second, learning_rate=1e-4)
    assert second.train(trainer)
    lines = second.metrics()
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and changeable(tmp_path) == set()
    # Both fall linearly over four steps; a checkpoint alone would bring the first one back.
    assert [line["learning_rate"] for line in lines] == pytest.approx([1e-3, 7.5e-4, 5e-5, 2.5e-5])
    warning = "The learning rate was changed before this step: 0.001 -> 0.0001."
    assert [line.get("warning") for line in lines] == [None, None, warning, None]
    assert warning in capsys.readouterr().out
    groups = {group["initial_lr"] for group in trainer.optimizer.param_groups}
    assert groups == ({1e-4, 1e-5} if method == "ppo" else {1e-4})
    assert all(torch.isfinite(weight).all() for weight in trainer.model.parameters())


# A rate past float32's range makes weights infinite; a lower one leaves finite ones that the model cannot compute with.
@pytest.mark.parametrize(("method", "rate"), [*((method, 1e39) for method in METHODS), ("sft", 1e30), ("grpo", 1e30)])
def test_a_rate_far_too_high_stops_at_once_and_leaves_nothing_that_is_of_no_use(
    method: str, rate: float, build: Any, tmp_path: Path
) -> None:
    training = training_in(tmp_path, save_steps=1.0)
    with pytest.raises(ValueError, match=rf" not finite in step 1 of 4 \({method}\) at --learning-rate ") as stopped:
        training.train(build(method, training, learning_rate=rate))
    assert str(stopped.value).endswith(" and a lower --learning-rate starts the phase anew")
    assert not list(training.checkpoints(method).glob("checkpoint-*"))


def test_the_rate_that_may_change_is_that_of_what_was_not_finite(build: Any, tmp_path: Path) -> None:
    training = training_in(tmp_path, save_steps=1.0)
    with pytest.raises(
        ValueError, match=r"\(warm start\) at --sft-learning-rate 0\.01: .* a lower --sft-learning-rate "
    ):
        training.train(spoil(build("sft", training, "warm start", learning_rate=1e-2), step=2))
    assert changeable(tmp_path) == {"sft_learning_rate"}
    value = (
        r"^value loss not finite in step 1 of 4 \(ppo\) at --value-learning-rate 1e\+30: .*value-learning-rate starts"
    )
    with pytest.raises(ValueError, match=value):  # in the second minibatch: no step is waited for
        training.train(build("ppo", training, value_learning_rate=1e30))
    assert changeable(tmp_path) == {"learning_rate", "value_learning_rate"}


def test_a_checkpoint_that_nothing_can_go_on_from_gives_way_to_the_one_before(build: Any, tmp_path: Path) -> None:
    training = training_in(tmp_path, save_steps=1.0, resumed=True)
    for step, kept in ((3, "goes on from step 2"), (3, "goes on from step 1"), (2, "starts the phase anew")):
        with pytest.raises(ValueError, match=f"not finite in step {step} .* {kept}$"):
            training.train(spoil(build("sft", training, learning_rate=1e-3), step))
