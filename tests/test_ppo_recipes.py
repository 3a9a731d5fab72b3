"""Both PPO recipes, sample to report, on the tiny random model: one rewarded by PairRM and one by a reward model; what
a run keeps, what it is compared with, and its mistakes. What a kill costs: test_resume.py."""

import functools
import importlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from recipes.common.cli import explain, smoke_args
from recipes.common.stand_ins.tiny import tiny_pairrm_folder
from rewards import pairrm, reward_model

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*_ppo.py"))
RATE = 1e-2  # at the recipes' own, three updates move the tiny model by no more than it rounds
ADAPTER = {
    *("adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "README.md"),
    *("tokenizer.json", "tokenizer_config.json"),
}
FIGURES = {
    *("loss", "grad_norm", "learning_rate", "score", "score_std", "kl", "kl_per_completion", "kl_coefficient"),
    *("entropy", "explained_variance", "length", "truncated", "ungraded", "num_tokens", "ratio_error", "policy_loss"),
    *("value_loss", "clip_fraction", "value_clip_fraction", "approx_kl", "minibatches", "value_grad_norm", "seconds"),
}


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@dataclass(frozen=True)
class Finished:
    """A run that ended, what it printed, and its trainer where it was PPO's."""

    folder: Path
    printed: str
    trainer: Any = None

    @property
    def results(self) -> dict[str, Any]:
        return json.loads((self.folder / "results.json").read_text(encoding="utf-8"))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return read_jsonl(self.folder / "metrics.jsonl")

    def records(self, stage: str) -> list[dict[str, Any]]:
        return [record for record in read_jsonl(self.folder / "completions.jsonl") if record["stage"] == stage]


def start(name: str, output: Path, **changes: Any) -> Finished:
    """`main` of a recipe with the sizes of `--smoke`, on the sample."""
    from recipes.common import ppo

    trainers: list[Any] = []

    class Kept(ppo.PPOTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            trainers.append(self)

    module = importlib.import_module(f"recipes.{name}")
    args = smoke_args(module.ON_CPU, module.SMOKE)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.setattr(ppo, "PPOTrainer", Kept)
        module.main(replace(args, output_dir=str(output), **{"learning_rate": RATE, **changes}))
    (folder,) = output.glob(f"{name}/*/*")
    return Finished(folder, printed.getvalue(), *trainers)


@pytest.fixture(scope="module")
def finished(unsloth: ModuleType, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Finished]:
    """`finished(name, **changes)`: a run of a recipe with these arguments, made once; by default the tiny PairRM's."""

    @functools.cache
    def run(name: str, **changes: Any) -> Finished:
        rewarded = {"reward": str(tiny_pairrm_folder())} if name.endswith("_ppo") else {}
        return start(name, tmp_path_factory.mktemp(name), **{"model": str(tiny)} | rewarded | changes)

    return run


@pytest.fixture(scope="module")
def reward_folder(finished: Any) -> str:
    """A reward model on the policy's own base model: that of `recipes/ultrafeedback_reward.py`, seconds old."""
    return str(finished("ultrafeedback_reward").folder / "adapter")


@pytest.fixture(scope="module")
def whole(finished: Any, reward_folder: str) -> Callable[[str], Finished]:
    """`whole(name)`: the run of a recipe, UltraFeedback's rewarded by PairRM and WebGPT's by the reward model."""

    def run(name: str) -> Finished:
        if name == "ultrafeedback_ppo":
            return finished(name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reward_model, "load_trunk", lambda *_, **__: pytest.fail("a second model was loaded"))
            return finished(name, reward=reward_folder)

    return run


def test_there_are_recipes() -> None:
    assert RECIPES == ["ultrafeedback_ppo", "webgpt_ppo"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_whole(name: str, whole: Any) -> None:
    run = whole(name)
    files = {path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*") if path.is_file()}
    assert files == {
        *("config.json", "completions.jsonl", "metrics.jsonl", "report.html", "results.json", "seconds.json"),
        "checksums.json",
        *(f"adapter/{file}" for file in ADAPTER),
    }
    results = run.results
    assert results["complete"] and results["steps"] == {"made": 3, "planned": 3}
    assert results["paired"]["measure"] == "sampled_reward" and results["correct"] is None
    before, after = (results["stages"][i]["sampled_reward"] for i in (0, 1))
    assert [stage["name"] for stage in results["stages"]] == ["before", "after"] and before != after
    assert results["paired"]["delta"] == pytest.approx(after - before, abs=2e-4)  # all three are rounded
    assert [len(run.records(stage)) for stage in ("before", "after")] == [8 * 3] * 2
    for page in ("report.html", "adapter/README.md"):
        assert "Sampled reward" in (run.folder / page).read_text(encoding="utf-8")
    assert "Warning" not in run.printed


@pytest.mark.parametrize("name", RECIPES)
def test_every_update_logs_what_the_report_draws(name: str, whole: Any) -> None:
    lines = whole(name).metrics
    assert [(line["phase"], line["step"]) for line in lines] == [("ppo", step) for step in (1, 2, 3)]
    assert all(line.keys() >= FIGURES and None not in line.values() for line in lines)
    assert lines[0]["kl"] == 0 and all(line["kl"] != 0 for line in lines[1:])  # the policy leaves its reference
    assert {line["ratio_error"] for line in lines} == {0} and {line["minibatches"] for line in lines} == {4}


@pytest.mark.parametrize("name", RECIPES)
def test_the_adapter_that_is_kept_is_the_policy_alone(name: str, whole: Any) -> None:
    import torch
    from safetensors.torch import load_file

    run = whole(name)
    kept = load_file(run.folder / "adapter" / "adapter_model.safetensors")
    policy = {
        weight_name.replace(".default.", "."): weight
        for weight_name, weight in run.trainer.model.named_parameters()
        if ".default." in weight_name
    }
    assert kept.keys() == policy.keys() and all(torch.equal(kept[key], weight) for key, weight in policy.items())
    assert any(".value." in weight_name for weight_name, _ in run.trainer.model.named_parameters())


# Who rewards


def rewards_of(records: list[dict[str, Any]]) -> list[float]:
    return [record["reward"] for record in records]


def test_pairrm_compares_with_the_answer_of_the_dataset(finished: Any) -> None:
    judge = pairrm.load(str(tiny_pairrm_folder()))
    for stage in ("before", "after"):
        records = finished("ultrafeedback_ppo").records(stage)
        questions, written, gold = ([record[key] for record in records] for key in ("question", "completion", "gold"))
        assert rewards_of(records) == pytest.approx(judge.logits(questions, written, gold), abs=1e-4)
        assert all(record["scores"] == {"pairrm_reward": record["reward"]} for record in records)


def test_pairrm_compares_with_what_the_model_wrote_before_training(finished: Any) -> None:
    judge = pairrm.load(str(tiny_pairrm_folder()))
    run = finished("ultrafeedback_ppo", pairrm_reference="greedy")
    first = {record["index"]: record["completion"] for record in run.records("before") if record["kind"] == "greedy"}
    for stage in ("before", "after"):
        records = run.records(stage)
        questions, written = ([record[key] for record in records] for key in ("question", "completion"))
        expected = judge.logits(questions, written, [first[record["index"]] for record in records])
        assert rewards_of(records) == pytest.approx(expected, abs=1e-4)
    assert first[0] != next(record["completion"] for record in records if record["kind"] == "greedy")
    assert run.metrics[0]["score"] != finished("ultrafeedback_ppo").metrics[0]["score"]


def test_a_reward_model_is_an_adapter_of_the_policys_trunk(whole: Any, reward_folder: str) -> None:
    run = whole("webgpt_ppo")
    assert set(run.trainer.model.peft_config) == {"default", "value", "reward"}
    assert "memory of its own" not in run.printed and run.results["complete"]

    model, tokenizer = reward_model.load(reward_folder)
    for stage in ("before", "after"):
        records = run.records(stage)
        prompts = [[{"role": "user", "content": record["question"]}] for record in records]
        expected = reward_model.score(model, tokenizer, prompts, [record["completion"] for record in records])
        assert rewards_of(records) == pytest.approx(expected, abs=0.02)  # the trunk rounds to 16 bit


# Where training starts


def test_an_adapter_to_start_from_is_the_reference(finished: Any, reward_folder: str) -> None:
    """With a reward model on the same trunk, which is then four adapters."""
    import torch
    from safetensors.torch import load_file

    first = finished("ultrafeedback_ppo")
    run = finished("ultrafeedback_ppo", start_from=str(first.folder / "adapter"), reward=reward_folder)
    words = "a frozen copy of the adapter that training starts from"
    assert f"Reference policy: {words}\n" in run.printed and run.results["reference"] == words
    written = [[record["completion"] for record in one] for one in (run.records("before"), first.records("after"))]
    assert written[0] == written[1]
    assert run.metrics[0]["kl"] == 0 and all(line["kl"] != 0 for line in run.metrics[1:])

    model = run.trainer.model
    assert set(model.peft_config) == {"default", "value", "ref", "reward"}
    start_weights, weights = load_file(first.folder / "adapter" / "adapter_model.safetensors"), model.state_dict()
    for key, weight in start_weights.items():
        copy, policy = (weights[key.replace(".weight", f".{adapter}.weight")] for adapter in ("ref", "default"))
        assert torch.equal(copy, weight) and not torch.equal(policy, weight), key


# Mistakes: one sentence, exit code 2, and nothing that looks finished


@pytest.mark.parametrize(
    ("name", "reward", "says"),
    [
        ("ultrafeedback_ppo", ".", "error: . holds no reward model"),
        ("webgpt_ppo", "pairrm", "error: llm-blender/PairRM-hf could not be fetched from the hub"),
    ],
)
def test_a_reward_that_is_none_is_one_sentence(name: str, reward: str, says: str, tmp_path: Path) -> None:
    command = [sys.executable, f"recipes/{name}.py", "--model", "smollm2-135m", "--source", "sample"]
    done = subprocess.run(
        [*command, "--reward", reward, "--output-dir", tmp_path / "runs"],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith(says) and "recipes/ultrafeedback_reward.py" in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", RECIPES)
def test_prompts_that_are_all_too_long_are_one_sentence(name: str, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^no prompt has at most 4 tokens: raise --max-prompt-length$") as refused:
        start(name, tmp_path, model=str(tiny), reward=str(tiny_pairrm_folder()), max_prompt_length=4)
    assert explain(refused.value) == str(refused.value)
    assert not list(tmp_path.rglob("results.json")) and not list(tmp_path.rglob("report.html"))
