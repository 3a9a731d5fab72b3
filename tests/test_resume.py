"""What a kill costs a run: nothing. For TRL's GRPO trainer, behind a warm start by SFT's, and for our PPO trainer."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
GRPO, PPO = "gsm8k_grpo", "ultrafeedback_ppo"
OF_BOTH = ("all_steps_made", "out_of_time", "asked_to_end")
SCENARIOS = [
    *((recipe, scenario) for recipe in (GRPO, PPO) for scenario in OF_BOTH),
    *((GRPO, scenario) for scenario in ("between_saves", "truncated_checkpoint", "during_save", "warming_up")),
    (PPO, "inside_updates"),
]
# The time a step took, and the count of this session's tokens.
OF_A_SESSION = ("seconds", "step_time", "num_tokens")


@pytest.fixture(scope="module")
def runs(nano: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of one run per scenario of resume_driver.py; each has finished but for `incomplete`."""
    output = tmp_path_factory.mktemp("runs")
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "resume_driver.py", nano.folder, output, GRPO, PPO],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=480,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return output


def only_run(output: Path, recipe: str) -> Path:
    (folder,) = output.glob(f"{recipe}/*/*")
    return folder


def training_of(run: Path) -> list[dict[str, Any]]:
    """All that was logged of every step, but for what differs between sessions."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in OF_A_SESSION} for line in lines]


def results_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text(encoding="utf-8"))


def test_the_unbroken_run_of_grpo_has_something_to_compare(runs: Path) -> None:
    lines = training_of(only_run(runs / "unbroken", GRPO))
    assert [(line["phase"], line["step"]) for line in lines] == [
        *(("warm start", step) for step in (1, 2)),
        *(("grpo", step) for step in (1, 2, 3, 4)),
    ]
    assert all(line["loss"] > 1 for line in lines[:2])
    # On policy, the loss of GRPO is 0 by construction: the gradient tells one run from another.
    assert sum(line["grad_norm"] > 0.01 for line in lines[2:]) >= 2


def test_the_unbroken_run_of_ppo_has_something_to_compare(runs: Path) -> None:
    lines = training_of(only_run(runs / "unbroken", PPO))
    assert [(line["step"], line["minibatches"]) for line in lines] == [(step, 4) for step in (1, 2, 3, 4)]
    assert len({line["kl_coefficient"] for line in lines}) == 4
    assert all(line["grad_norm"] > 0.01 and line["value_loss"] > 0.01 for line in lines)
    assert all(abs(line["kl"]) > 0.001 and line["explained_variance"] != 0 for line in lines[1:])


@pytest.mark.parametrize(("recipe", "scenario"), SCENARIOS)
def test_a_resumed_run_ends_like_an_unbroken_one(runs: Path, recipe: str, scenario: str) -> None:
    unbroken, resumed = only_run(runs / "unbroken", recipe), only_run(runs / scenario, recipe)
    assert training_of(resumed) == training_of(unbroken)
    for file in ("adapter/adapter_model.safetensors", "completions.jsonl", "config.json"):
        assert (resumed / file).read_bytes() == (unbroken / file).read_bytes(), file
    results = results_of(resumed)
    assert results["complete"] is True and results["steps"] == {"made": 4, "planned": 4}
    assert not (resumed / "checkpoints").exists()


@pytest.mark.parametrize("recipe", [GRPO, PPO])
def test_results_of_a_run_out_of_time_say_so(runs: Path, recipe: str) -> None:
    run = only_run(runs / "incomplete", recipe)
    results = results_of(run)
    assert results["complete"] is False and results["steps"] == {"made": 1, "planned": 4}
    assert (run / "checkpoints").exists()
