"""Every preference recipe, sample to report, on the tiny random model: what it measures, keeps and compares with."""

import functools
import importlib
import io
import json
import math
import statistics
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from eval.metrics import PREFERENCE
from eval.pairs import pair_logps
from recipes.common.cli import explain, smoke_args
from recipes.common.preference import reference_policy
from rewards import reward_model

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("dpo", "kto", "orpo", "simpo", "reward")
RECIPES = sorted(path.stem for method in METHODS for path in (ROOT / "recipes").glob(f"*_{method}.py"))
REFERRING = [name for name in RECIPES if name.endswith(("_dpo", "_kto"))]
FREE = [name for name in RECIPES if name.endswith(("_orpo", "_simpo"))]
RATE = 1e-2  # at the recipes' own, three steps move the tiny model by no more than it rounds
PAIRED = {"rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"}
LOGGED = {
    "dpo": {"loss", "kl", "num_tokens", "rewards/accuracies", *PAIRED},
    "kto": {"loss", "kl", "num_tokens", *PAIRED},
    "orpo": {"loss", "kl", "rewards/accuracies", *PAIRED},  # TRL's experimental trainers count no tokens
    "simpo": {"loss", "kl", "rewards/accuracies", *PAIRED},
    "reward": {"loss", "accuracy", "margin", "mean_reward", "min_reward", "max_reward", "num_tokens"},
}


def method_of(name: str) -> str:
    return name.rpartition("_")[2]


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@dataclass(frozen=True)
class Finished:
    """A run that ended, and what it printed."""

    folder: Path
    printed: str

    @property
    def results(self) -> dict[str, Any]:
        return json.loads((self.folder / "results.json").read_text(encoding="utf-8"))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return read_jsonl(self.folder / "metrics.jsonl")

    def scores(self, stage: str) -> list[dict[str, float]]:
        records = read_jsonl(self.folder / "completions.jsonl")
        return [record["scores"] for record in records if record["stage"] == stage]

    def column(self, stage: str, score: str) -> list[float]:
        return [own[score] for own in self.scores(stage)]


def start(name: str, output: Path, **changes: Any) -> Finished:
    """`main` of a recipe with the sizes of `--smoke`, on the sample."""
    module = importlib.import_module(f"recipes.{name}")
    args = smoke_args(module.ON_CPU, module.SMOKE)
    with redirect_stdout(io.StringIO()) as printed:
        module.main(replace(args, output_dir=str(output), **{"learning_rate": RATE, **changes}))
    (folder,) = output.glob(f"{name}/*/*")
    return Finished(folder, printed.getvalue())


@pytest.fixture(scope="module")
def finished(unsloth: ModuleType, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Finished]:
    """`finished(name, **changes)`: a run of a recipe with these arguments, made once."""

    @functools.cache
    def run(name: str, **changes: Any) -> Finished:
        return start(name, tmp_path_factory.mktemp(name), model=str(tiny), **changes)

    return run


@pytest.fixture(scope="module")
def held_out() -> Any:
    """The eight pairs of a smoke run."""
    from data import ultrafeedback

    return ultrafeedback.load("test", source="sample", limit=8)


def test_every_method_has_a_recipe() -> None:
    assert {method_of(name) for name in RECIPES} == set(METHODS)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_whole(name: str, finished: Any) -> None:
    run = finished(name)
    results = run.results
    assert results["complete"] and results["steps"] == {"made": 3, "planned": 3}
    assert [stage["name"] for stage in results["stages"]] == ["before", "after"]
    assert results["correct"] == PREFERENCE and results["n"] == 8 and results["win_rate"] is None
    assert all(low <= stage["accuracy"] <= high for stage in results["stages"] for low, high in [stage["ci95"]])
    training = results["training"]
    assert 0 < training["trainable_parameters"] < training["parameters"]
    assert (run.folder / "adapter" / "adapter_model.safetensors").stat().st_size == training["adapter_bytes"]
    assert (run.folder / "adapter" / "README.md").exists() and (run.folder / "report.html").exists()
    assert "Supervision of" in run.printed and "Warning" not in run.printed
    measured = "chosen_reward" if method_of(name) == "reward" else "chosen_logp"
    assert all(a != b for a, b in zip(run.column("before", measured), run.column("after", measured), strict=True))


@pytest.mark.parametrize("name", RECIPES)
def test_every_step_logs_what_the_report_draws(name: str, finished: Any) -> None:
    lines = finished(name).metrics
    assert [(line["phase"], line["step"]) for line in lines] == [(method_of(name), step) for step in (1, 2, 3)]
    for line in lines:
        assert line.keys() >= LOGGED[method_of(name)]
        assert all(math.isfinite(line[key]) for key in LOGGED[method_of(name)])


@pytest.mark.parametrize("name", REFERRING)
def test_before_training_the_policy_is_the_reference(name: str, finished: Any) -> None:
    run = finished(name)
    chance = {PREFERENCE: 0.5, "reward_margin": 0.0, "kl_per_token": 0.0}
    assert all(own.items() >= chance.items() for own in run.scores("before"))
    assert all(own["reward_margin"] != 0 and own["kl_per_token"] > 1e-4 for own in run.scores("after"))
    words = "the model, its adapter switched off"
    assert f"Reference policy: {words}\n" in run.printed and run.results["reference"] == words
    for page in ("report.html", "adapter/README.md"):
        assert words in (run.folder / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", FREE)
def test_without_a_reference_the_reward_is_the_mean_log_probability(name: str, finished: Any) -> None:
    run = finished(name)
    beta = run.results["args"]["beta"]
    for own in run.scores("before") + run.scores("after"):
        assert own["reward_margin"] == pytest.approx(beta * (own["chosen_logp"] - own["rejected_logp"]))
        assert own[PREFERENCE] == float(own["reward_margin"] > 0)
    assert set(run.column("before", "kl_per_token")) == {0.0} and min(run.column("after", "kl_per_token")) > 1e-4
    assert run.results["reference"] is None and "Reference policy" not in run.printed


@pytest.mark.parametrize("name", [*REFERRING, *FREE])
def test_the_last_kl_logged_is_that_of_the_last_stage(name: str, finished: Any) -> None:
    """But for KTO, whose trainer logs another one: a chart cannot hold both."""
    run = finished(name)
    print("KL", name, statistics.fmean(run.column("after", "kl_per_token")), run.metrics[-1]["kl"])
    ours, logged = statistics.fmean(run.column("after", "kl_per_token")), run.metrics[-1]["kl"]
    assert (logged == pytest.approx(ours, rel=0.05)) == (method_of(name) != "kto")


# DPO's is stopped with a reference below.
@pytest.mark.parametrize("name", [f"ultrafeedback_{method}" for method in METHODS if method != "dpo"])
def test_a_run_that_was_stopped_ends_like_an_unbroken_one(name: str, finished: Any, tiny: Path, tmp_path: Path) -> None:
    stopped = start(name, tmp_path, model=str(tiny), max_hours=0.0)
    assert stopped.results["steps"] == {"made": 1, "planned": 3} and "goes on" in stopped.printed
    assert_same_training(start(name, tmp_path, model=str(tiny), resume=True), finished(name))


def assert_same_training(one: Finished, other: Finished) -> None:
    # TRL counts the tokens of one session.
    timeless = [
        [{key: value for key, value in line.items() if key not in ("seconds", "num_tokens")} for line in run.metrics]
        for run in (one, other)
    ]
    assert timeless[0] == timeless[1]
    for file in ("adapter/adapter_model.safetensors", "completions.jsonl"):
        assert (one.folder / file).read_bytes() == (other.folder / file).read_bytes(), file


# What is saved


def test_a_saved_reward_model_gives_the_same_rewards(finished: Any, held_out: Any) -> None:
    run = finished("ultrafeedback_reward")
    model, tokenizer = reward_model.load(str(run.folder / "adapter"))
    for side in ("chosen", "rejected"):
        texts = [answer[0]["content"] for answer in held_out[side]]
        found = reward_model.score(model, tokenizer, held_out["prompt"], texts, max_length=256)
        assert found == pytest.approx(run.column("after", f"{side}_reward"), abs=1e-2)
        assert found != pytest.approx(run.column("before", f"{side}_reward"), abs=1e-2)


def test_a_saved_adapter_gives_the_same_log_probabilities(finished: Any, held_out: Any, tiny: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = finished("ultrafeedback_dpo")
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(base, run.folder / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "adapter")
    found = [pair.chosen for pair in pair_logps(model, tokenizer, held_out, max_length=256)]
    # Nats over some 65 tokens. Training moved each by 0.2 or more; a machine whose kernels differ between the two
    # forwards, Unsloth's and the stock one, may round otherwise.
    assert found == pytest.approx(run.column("after", "chosen_logp"), abs=0.05)
    moved = zip(found, run.column("before", "chosen_logp"), strict=True)
    assert min(abs(after - before) for after, before in moved) > 0.1


# Starting from an adapter


@pytest.fixture(scope="module")
def restarted(finished: Any, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, Any]:
    """A DPO run that started from the adapter of another, and its trainer."""
    from recipes import ultrafeedback_dpo

    trainers: list[Any] = []
    adapter = str(finished("ultrafeedback_dpo").folder / "adapter")
    with pytest.MonkeyPatch.context() as patch:
        check = ultrafeedback_dpo.check_and_watch
        patch.setattr(
            ultrafeedback_dpo,
            "check_and_watch",
            lambda *a, **kw: trainers.append(check(*a, **kw)) or trainers[0],
        )
        run = start("ultrafeedback_dpo", tmp_path_factory.mktemp("restarted"), model=str(tiny), start_from=adapter)
    return run, trainers[0]


def test_an_adapter_to_start_from_is_the_reference(finished: Any, restarted: Any, held_out: Any) -> None:
    first, (run, trainer) = finished("ultrafeedback_dpo"), restarted
    words = "a frozen copy of the adapter that training starts from"
    assert f"Reference policy: {words}\n" in run.printed and run.results["reference"] == words
    assert set(run.column("before", "reward_margin")) == {0.0} and set(run.column("before", PREFERENCE)) == {0.5}
    for side in ("chosen_logp", "rejected_logp"):
        assert run.column("before", side) == first.column("after", side)

    model, tokenizer = trainer.model, trainer.processing_class
    policy = pair_logps(model, tokenizer, held_out, max_length=256)
    with reference_policy(model):
        reference = pair_logps(model, tokenizer, held_out, max_length=256)
    assert [pair.chosen for pair in reference] == run.column("before", "chosen_logp")
    assert [pair.rejected for pair in reference] == run.column("before", "rejected_logp")
    assert [pair.chosen for pair in policy] == run.column("after", "chosen_logp")
    assert all(one.chosen != other.chosen for one, other in zip(policy, reference, strict=True))


def test_the_reference_outlives_a_stop(restarted: Any, tiny: Path, tmp_path: Path) -> None:
    run, _ = restarted
    settings = {"model": str(tiny), "start_from": run.results["args"]["start_from"]}
    start("ultrafeedback_dpo", tmp_path, max_hours=0.0, **settings)
    assert_same_training(start("ultrafeedback_dpo", tmp_path, resume=True, **settings), run)


def test_without_a_reference_the_kl_is_to_the_base_model_at_every_stage(finished: Any) -> None:
    first = finished("ultrafeedback_dpo")
    run = finished("ultrafeedback_orpo", start_from=str(first.folder / "adapter"), max_steps=1)
    assert run.column("before", "kl_per_token") == pytest.approx(first.column("after", "kl_per_token"), rel=1e-3)


# Other settings


def test_log_probabilities_of_the_reference_can_be_computed_beforehand(
    finished: Any, restarted: Any, capsys: pytest.CaptureFixture
) -> None:
    """What KTO's change is none either: test_preference_losses.py."""
    other, _ = restarted
    run = finished("ultrafeedback_dpo", precompute_ref=True, start_from=other.results["args"]["start_from"])
    assert "Computing reference log probs" in capsys.readouterr().err
    for line, expected in zip(run.metrics, other.metrics, strict=True):
        for key in ("loss", "rewards/chosen", "rewards/rejected"):
            assert line[key] == pytest.approx(expected[key], abs=1e-4)
    assert run.column("after", "chosen_logp") == pytest.approx(other.column("after", "chosen_logp"), abs=0.05)


@pytest.mark.parametrize(
    ("name", "changes", "loss"),
    [
        ("ultrafeedback_dpo", {}, math.log(2)),
        # IPO's is (0 - 1 / (2 beta))^2, arXiv 2310.12036, equation 17
        ("webgpt_dpo", {"loss": "ipo", "sft_weight": 0.5, "max_steps": 1}, 25.0 + 0.5 * math.log(1024)),
        ("ultrafeedback_simpo", {}, math.log1p(math.exp(1.6))),
    ],
)
def test_the_first_loss_is_that_of_a_policy_that_prefers_nothing(
    name: str, changes: dict[str, Any], loss: float, finished: Any
) -> None:
    """The tiny model thinks each of its 1,024 tokens about as likely as any other."""
    run = finished(name, **changes)
    assert run.metrics[0]["loss"] == pytest.approx(loss, abs=0.1)


@pytest.mark.parametrize("name", ["ultrafeedback_dpo", "ultrafeedback_reward"])
def test_a_recipe_runs_over_4_bit_weights(name: str, finished: Any) -> None:
    run, plain = finished(name, load_in_4bit=True), finished(name)
    measured = "chosen_reward" if method_of(name) == "reward" else "chosen_logp"
    assert run.column("before", measured) != pytest.approx(plain.column("before", measured), rel=1e-4)
    assert all(a != b for a, b in zip(run.column("before", measured), run.column("after", measured), strict=True))
    assert run.results["training"] | {"tokens_per_second": 0} == plain.results["training"] | {"tokens_per_second": 0}


# The judge


def test_the_reward_model_judges_what_a_smoke_run_wrote(
    finished: Any, run_script: Callable[..., str], tmp_path: Path
) -> None:
    """As a user starts it: the run starts, stops, resumes and ends."""
    judge = finished("ultrafeedback_reward").folder / "adapter"
    printed = run_script("ultrafeedback_dpo", "--smoke", "--compare-with", judge, "--output-dir", tmp_path)
    assert printed.count("goes on") == 2 and "tuned over base responses: win rate" in printed
    (folder,) = tmp_path.glob("ultrafeedback_dpo/*/*")
    found = Finished(folder, printed).results["win_rate"]
    assert found["n"] == found["wins"] + found["ties"] + found["losses"] == 8
    assert found["order_disagreement"] in (None, 0.0)  # the rewards of either order are the same
    assert found["length_unit"] == "tokens" and found["before_mean_length"] > 0
    for page in ("report.html", "adapter/README.md"):
        assert "uned over base responses: win rate" in (folder / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*REFERRING, *FREE])
def test_a_judge_that_is_none_is_refused_before_a_run_begins(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no reward model") as refused:
        start(name, tmp_path, model="smollm2-135m", compare_with=str(tmp_path))
    assert explain(refused.value) == str(refused.value)
    assert list(tmp_path.iterdir()) == []
