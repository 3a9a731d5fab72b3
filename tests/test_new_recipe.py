"""What recipes/README.md says of adding a recipe, done: three files put into a clone are a recipe, and touch no other.

They lie in toy/ and not in the rooms, since the toy is no recipe to learn from: 126 questions about weekdays.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOY = ROOT / "tests" / "toy"
PLACES = {"weekdays.py": "data", "weekdays.jsonl": "data", "weekdays_grpo.py": "recipes"}
# Of test_house.py, what it asks of this recipe and of the tree with it, less what imports Unsloth, which --smoke does.
RULES = "weekdays and not instant and not unsloth or eight_lines or alike or occurs_once or circle"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this tree with the toy in its places."""
    clone = tmp_path_factory.mktemp("new") / "clone"
    for room in ("recipes", "rewards", "data", "eval", "tests"):
        shutil.copytree(ROOT / room, clone / room, ignore=shutil.ignore_patterns("toy"))
    shutil.copy(ROOT / "pyproject.toml", clone)
    for name, room in PLACES.items():
        assert not (clone / room / name).exists(), "the toy would replace a file"
        shutil.copy(TOY / name, clone / room)
    return clone


def python(clone: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=clone, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_takes_three_files_and_few_lines() -> None:
    assert {path.name for path in TOY.iterdir() if path.is_file()} == {*PLACES}
    assert len((TOY / "weekdays_grpo.py").read_text(encoding="utf-8").splitlines()) <= 110


def test_the_new_recipe_keeps_the_house_rules(clone: Path) -> None:
    said = python(clone, "-m", "pytest", "tests/test_house.py", "-k", RULES, "-v")
    assert "test_recipe_keeps_the_house_rules[weekdays_grpo] PASSED" in said
    assert "test_module_keeps_the_house_rules[data.weekdays] PASSED" in said


def test_the_new_recipe_runs_whole(clone: Path) -> None:
    """As a user starts it, in a process of its own: stopped in each phase, resumed, and ended."""
    printed = python(clone, "recipes/weekdays_grpo.py", "--smoke", "--output-dir", "runs")
    (folder,) = clone.glob("runs/weekdays_grpo/*/*")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert results["complete"] and results["steps"] == {"made": 2, "planned": 2}
    assert [stage["name"] for stage in results["stages"]] == ["before", "warm start", "after"]
    assert (results["correct"], results["format"], results["n"]) == ("exact_match_reward", "structure_reward", 8)
    assert printed.count("goes on") == 2 and "Supervision of" in printed and (folder / "report.html").exists()
