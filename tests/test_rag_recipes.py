"""The RAG recipes, sample to report, on the tiny random model: some by the rules alone, some as users start them,
judged."""

import functools
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest

from recipes.common.args import JudgeReward
from recipes.common.cli import explain, smoke_args

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ["freshqa_grpo", "hotpotqa_grpo", "musique_grpo", "triviaqa_grpo"]
JUDGED, BY_RULES = RECIPES[::2], RECIPES[1::2]  # of each kind, one that is labelled and one that is not
LABELLED = ["hotpotqa_grpo", "musique_grpo"]  # their sets say which passages the answer rests on
FORM = {"tags_reward", "structure_reward", "multiline_reward", "steps_reward"}
RULES = {"exact_match_reward", "lenient_match_reward", "f1_reward", *FORM}


def recipe(name: str) -> ModuleType:
    return importlib.import_module(f"recipes.{name}")


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


def start(name: str, *arguments: object) -> str:
    """What a recipe prints in a process of its own, in which a judge brings transformers before Unsloth is imported."""
    command = [sys.executable, f"recipes/{name}.py", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def smoked(run_script: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Finished]:
    """`smoked(name)`: a recipe's `--smoke` with a judge in this process, asked all that it can be; made once."""

    @functools.cache
    def smoke(name: str) -> Finished:
        output = tmp_path_factory.mktemp(name)
        run = start if name == JUDGED[0] else run_script
        printed = run(name, "--smoke", "--judge-rewards", *get_args(JudgeReward), "--output-dir", output)
        (folder,) = output.glob(f"{name}/*/*")
        return Finished(folder, printed)

    return smoke


@pytest.mark.parametrize("name", BY_RULES)
def test_a_recipe_runs_whole_by_the_rules_alone(name: str, run_script: Callable[..., str], tmp_path: Path) -> None:
    """As a user starts it: it starts, stops in each phase, resumes and ends."""
    printed = run_script(name, "--smoke", "--judge", "none", "--output-dir", tmp_path)
    (folder,) = tmp_path.glob(f"{name}/*/*")
    run = Finished(folder, printed)
    results = run.results
    assert results["complete"] and results["correct"] == "exact_match_reward"
    assert [stage["name"] for stage in results["stages"]] == ["before", "warm start", "after"]
    for stage in results["stages"]:
        low, high = stage["ci95"]
        assert low <= stage["accuracy"] <= high
        low, high = stage["scores_ci95"]["f1_reward"]
        assert low <= stage["scores"]["f1_reward"] <= high
    assert all(len(pair["scores"]["f1_reward"]["ci95"]) == 2 for pair in results["comparisons"])
    scored = read_jsonl(run.folder / "completions.jsonl")[0]["scores"]
    assert scored.keys() == RULES | ({"citation_reward"} if name in LABELLED else set())
    assert "passages: " in run.printed and ("supporting passages: " in run.printed) == (name in LABELLED)
    assert "f1 0." in run.printed and "Supervision of" in run.printed


@pytest.mark.parametrize("name", JUDGED)
def test_all_judged_rewards_are_asked_and_told_beside_the_rules(name: str, smoked: Any) -> None:
    run = smoked(name)
    judged = {make.__name__ for make in recipe(name).JUDGED}
    assert judged <= set(run.results["beside"]) and len(judged) == 4
    scored = read_jsonl(run.folder / "completions.jsonl")[0]["scores"]
    assert scored.keys() == RULES | judged | ({"citation_reward"} if name in LABELLED else set())
    logged = [line for line in read_jsonl(run.folder / "metrics.jsonl") if line["phase"] == "grpo"]
    assert all(
        {f"rewards/{reward}/mean" for reward in judged} | {"judge/calls", "judge/unjudged"} <= line.keys()
        for line in logged
    )
    assert "judge local" in run.printed


@pytest.mark.parametrize("name", RECIPES)
def test_right_answers_outweigh_form(name: str) -> None:
    module = recipe(name)
    rules = {reward.__name__: weight for reward, weight in module.RULES.items()}
    form = sum(rules[f"{part}_reward"] for part in ("tags", "structure", "multiline", "steps"))
    assert rules["exact_match_reward"] + rules["f1_reward"] > form
    assert sum(module.JUDGED.values()) < rules["exact_match_reward"] + rules["f1_reward"]
    assert {make.__name__ for make in module.JUDGED} == {f"{name}_reward" for name in get_args(JudgeReward)}


@pytest.mark.parametrize(
    ("judge", "sentence"), [("gpt-4", "the judge is 'gpt-4': pass none, local"), ("http://127.0.0.1:9", "127.0.0.1:9")]
)
def test_a_judge_that_is_not_there_is_refused_before_a_model_is_loaded(
    judge: str, sentence: str, tiny: Path, tmp_path: Path
) -> None:
    module = recipe("hotpotqa_grpo")
    args = smoke_args(module.ON_CPU, module.SMOKE)
    with pytest.raises(ValueError, match=r"judge|server") as raised:
        module.main(replace(args, model=str(tiny), judge=judge, output_dir=str(tmp_path)))
    assert sentence in (explain(raised.value) or "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", JUDGED)
def test_smoke(name: str, smoked: Any) -> None:
    """Starts, stops in each phase, resumes and ends."""
    run = smoked(name)
    assert run.results["complete"] and run.results["steps"] == {"made": 2, "planned": 2}
    assert run.printed.count("goes on") == 2 and "Report:" in run.printed and "judge local" in run.printed
