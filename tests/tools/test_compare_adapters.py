"""The comparison of adapters: what it calls a difference, and what it runs again."""

import json
import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recipes.tools.compare_adapters import analyse, conclude, letters, main

FAKE_RECIPE = '''
"""What a recipe leaves behind, without a model: `--accuracies lora=0.9,dora=0.2` says how each adapter ends up."""
import argparse, json, random, sys
from pathlib import Path

parser = argparse.ArgumentParser()
for name in ("--model", "--adapter", "--output-dir"):
    parser.add_argument(name, required=True)
parser.add_argument("--seed", type=int, required=True)
parser.add_argument("--resume", action="store_true")
parser.add_argument("--problems", type=int, default=60)
parser.add_argument("--accuracies", default="")
parser.add_argument("--measure", default="accuracy")
parser.add_argument("--fail", help="the adapter that cannot be trained")
parser.add_argument("--stop", help="the adapter that ends early unless it is resumed")
args = parser.parse_args()
if args.adapter == args.fail:
    print("reading the data")
    sys.exit("error: no GPU has room for this")
parent = Path(args.output_dir) / "fake_sft" / args.model.replace("/", "--")
if args.resume:
    run = max(parent.iterdir())
else:
    run = parent / f"2026010{1 + len(list(parent.glob('*')))}-000000"
    run.mkdir(parents=True)
(run / "config.json").write_text("{}")
with open(run / "sessions", "a") as file:
    file.write("resumed " if args.resume else "started ")
complete = args.resume or args.adapter != args.stop
accuracy = dict(pair.split("=") for pair in args.accuracies.split(",") if pair).get(args.adapter, 0.5)
luck = random.Random(f"{args.adapter} {args.seed}")
with open(run / "completions.jsonl", "w") as file:
    for stage, share in (("before", 0.25), ("after", float(accuracy))):
        for index in range(args.problems):
            solved = float(luck.random() < share) if index else None
            record = {
                "stage": stage, "kind": "greedy", "index": index, "sample": 0, "question": f"question {index}\\u2028",
                "gold": "A", "completion": "A", "tokens": 2, "truncated": False, "reward": solved,
                "scores": {"choice_reward": solved}, "nll": 3 * (2 - share) + luck.random(), "nll_tokens": 3,
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\\n")
settings = {name: value for name, value in vars(args).items() if name not in ("fail", "stop")}
results = {
    "complete": complete, "steps": {"made": 20 if complete else 7, "planned": 20},
    "correct": "choice_reward" if args.measure == "accuracy" else None,
    "stages": [{"name": "before"}, {"name": "after"}], "args": settings, "machine": "a <test> machine",
    "training": {
        "trainable_parameters": 1000, "parameters": 50000, "adapter_bytes": 4 << 20, "tokens_per_second": 120.0,
    },
    "peak_memory_gib": {"resident": 1.5 + args.seed}, "versions": {"torch": "2.13.0"}, "git_commit": "abc",
}
(run / "results.json").write_text(json.dumps(results))
'''


@pytest.fixture
def compare(tmp_path: Path) -> Any:
    """`compare(*arguments, recipe=())`: the command on the fake recipe; its exit code."""
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    (recipes / "fake_sft.py").write_text(FAKE_RECIPE, encoding="utf-8")

    def run(*arguments: str, recipe: Sequence[str] = ()) -> int:
        where = ("--dataset", "fake", "--model", "org/nano", "--output-dir", str(tmp_path / "out"))
        return main([*where, *arguments, "--", *recipe], recipes=recipes)

    return run


def folder(tmp_path: Path) -> Path:
    return tmp_path / "out" / "adapters" / "fake" / "org--nano"


def comparison(tmp_path: Path) -> dict[str, Any]:
    return json.loads((folder(tmp_path) / "comparison.json").read_text(encoding="utf-8"))


def sessions(tmp_path: Path) -> dict[str, str]:
    """By cell, what its only run went through."""
    return {path.parents[3].name: path.read_text().strip() for path in folder(tmp_path).glob("*/*/*/*/sessions")}


# Statistics


def simulate(
    rng: np.random.Generator, effects: Sequence[float], *, seeds: int, problems: int, luck: float
) -> dict[str, np.ndarray]:
    """Solved or not, where problems differ in difficulty and training runs in luck (log-odds)."""
    difficulty = rng.normal(0, 2, problems)
    odds = [effect + luck * rng.normal(size=(seeds, 1)) - difficulty for effect in effects]
    return {f"adapter {i}": (rng.random(o.shape) < 1 / (1 + np.exp(-o))).astype(float) for i, o in enumerate(odds)}


@pytest.mark.parametrize(("seeds", "luck"), [(1, 0.0), (3, 0.0), (3, 0.7), (5, 0.7)])
def test_equal_adapters_are_rarely_told_apart(seeds: int, luck: float) -> None:
    rng = np.random.default_rng(7)
    alarms = 0
    for _ in range(100):
        found = analyse(simulate(rng, [0] * 4, seeds=seeds, problems=60, luck=luck), np.ones(60), resamples=1000)
        alarms += any(pair["told_apart"] for pair in found["pairs"])
    assert alarms <= 10  # 5 by construction; 11 or more of 100 would then be a one in a hundred event


def test_a_real_difference_is_found() -> None:
    rng = np.random.default_rng(8)
    found = [
        analyse(simulate(rng, [0, 0, -2], seeds=3, problems=300, luck=0.1), np.ones(300), resamples=1000)
        for _ in range(20)
    ]
    worst = [analysis["adapters"][-1] for analysis in found]
    assert {row["adapter"] for row in worst} == {"adapter 2"}
    alone = sum([row["group"] for row in analysis["adapters"]] == ["a", "a", "b"] for analysis in found)
    assert alone >= 18


def test_a_lucky_seed_is_no_difference() -> None:
    """Every seed of the one beats every seed of the other: one time in ten among equals, so no finding."""
    problems = np.arange(100)
    solved = {
        name: np.array([(problems < share).astype(float) for share in shares])
        for name, shares in (("lucky", (50, 60, 75)), ("unlucky", (30, 40, 48)))
    }
    found = analyse(solved, np.ones(100))
    assert [row["group"] for row in found["adapters"]] == ["a", "a"]
    (pair,) = found["pairs"]
    assert pair["difference"] == pytest.approx(0.2233, abs=1e-4)
    # One seed each knows nothing of luck.
    once = analyse({name: values[:1] for name, values in solved.items()}, np.ones(100))
    assert once["pairs"][0]["told_apart"]


def test_adapters_are_paired_by_problem() -> None:
    """Ten points apart, both intervals overlap; but no problem is lost, ever."""
    problems = np.arange(200)
    solved = {"better": problems < 110, "worse": problems < 90}
    found = analyse({name: np.array([row, row, row], dtype=float) for name, row in solved.items()}, np.ones(200))
    better, worse = found["adapters"]
    assert better["ci95"][0] < worse["ci95"][1]
    assert found["pairs"][0]["told_apart"]
    assert found["pairs"][0]["interval"] == pytest.approx([0.06, 0.145], abs=0.02)
    assert (better["value"], better["by_seed"], better["group"], worse["group"]) == (0.55, [0.55] * 3, "a", "b")


def test_the_interval_of_one_adapter_holds_the_truth() -> None:
    rng = np.random.default_rng(9)
    # Half of the problems are solved in the long run, whoever asks and whoever trains.
    ends = [
        analyse(simulate(rng, [0], seeds=3, problems=60, luck=0.5), np.ones(60), resamples=1000)["adapters"][0]["ci95"]
        for _ in range(100)
    ]
    assert sum(low <= 0.5 <= high for low, high in ends) >= 90


def test_a_loss_is_per_token_and_the_lower_one_is_better() -> None:
    tokens = np.array([1.0, 9.0] * 10)
    nats = {"high": np.array([2.0, 27.0] * 10), "low": np.array([1.0, 18.0] * 10)}
    found = analyse({name: row[None] for name, row in nats.items()}, tokens, lower_is_better=True)
    assert [(row["adapter"], row["value"], row["group"]) for row in found["adapters"]] == [
        ("low", 1.9, "a"),
        ("high", 2.9, "b"),
    ]
    assert conclude(found, measure="loss", n=20) == "in held-out loss, high is above low"


def test_five_problems_tell_nothing_apart() -> None:
    found = analyse({"lora": np.ones((3, 5)), "dora": np.zeros((3, 5))}, np.ones(5))
    assert [row["group"] for row in found["adapters"]] == ["a", "a"]
    assert "too few" in conclude(found, measure="accuracy", n=5)


def test_the_same_cells_give_the_same_figures() -> None:
    outcomes = simulate(np.random.default_rng(1), [0, 1], seeds=2, problems=30, luck=0.2)
    assert analyse(outcomes, np.ones(30)) == analyse(outcomes, np.ones(30))


@pytest.mark.parametrize(
    ("names", "apart", "expected"),
    [
        ("a", [], {"a": "a"}),
        ("abc", [], {"a": "a", "b": "a", "c": "a"}),
        ("ab", ["ab"], {"a": "a", "b": "b"}),
        ("abc", ["ac"], {"a": "a", "b": "ab", "c": "b"}),
        ("abc", ["ab", "bc", "ac"], {"a": "a", "b": "b", "c": "c"}),
        # Only the ends of the first pair and of the second are apart: four sets of two.
        ("abcd", ["ad", "bc"], {"a": "ab", "b": "ac", "c": "bd", "d": "cd"}),
        ("abcde", ["ae", "be", "ce"], {"a": "a", "b": "a", "c": "a", "d": "ab", "e": "b"}),
    ],
)
def test_letters(names: str, apart: list[str], expected: dict[str, str]) -> None:
    assert letters(names, apart) == expected


def test_letters_say_exactly_what_is_told_apart() -> None:
    rng = np.random.default_rng(2)
    names = [f"adapter {i}" for i in range(7)]
    for _ in range(20):
        apart = [pair for pair in combinations(names, 2) if rng.random() < 0.4]
        shown = letters(names, apart)
        for a, b in combinations(names, 2):
            assert (not set(shown[a]) & set(shown[b])) == ((a, b) in apart)


def pairs(text: str) -> dict[str, Any]:
    """`lora>p-tuning lora=dora`: an analysis of the adapters in order of appearance, best first."""
    found = [re.fullmatch(r"([\w-]+)([>=])([\w-]+)", pair) for pair in text.split()]
    compared = [{"adapters": [m[1], m[3]], "told_apart": m[2] == ">"} for m in found if m]
    names = dict.fromkeys(name for pair in compared for name in pair["adapters"])
    return {"adapters": [{"adapter": name} for name in names], "pairs": compared}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("lora=dora", "the adapters cannot be told apart: every difference could be chance"),
        ("lora>dora", "in accuracy, dora is below lora"),
        (
            "lora=dora lora>p-tuning dora=p-tuning",
            "in accuracy, p-tuning is below lora; the other differences could be chance",
        ),
        (
            "lora=dora lora>p-tuning dora>p-tuning",
            "in accuracy, p-tuning is below lora and dora; the other difference could be chance",
        ),
        (
            "lora=qlora lora=dora lora>full lora>p-tuning qlora=dora qlora>full qlora>p-tuning dora>full dora>p-tuning "
            "full=p-tuning",
            "in accuracy, full and p-tuning are below lora, qlora and dora; the other differences could be chance",
        ),
        (
            "lora>dora lora>p-tuning dora>p-tuning",
            "in accuracy, p-tuning is below lora and dora; dora is below lora",
        ),
    ],
)
def test_the_conclusion_says_it_plainly(text: str, sentence: str) -> None:
    assert conclude(pairs(text), measure="accuracy", n=100) == sentence


# The command


def test_every_cell_is_run_compared_and_shown(tmp_path: Path, compare: Any, capsys: pytest.CaptureFixture) -> None:
    accuracies = ("--accuracies", "lora=0.95,dora=0.9,p-tuning=0.05", "--problems", "200")
    assert compare("--adapters", "p-tuning", "lora", "dora", "--seeds", "2", recipe=accuracies) == 0
    out = capsys.readouterr().out
    assert re.search(r"^\[1/6\] p-tuning, seed 0: 0\.0 min, about 1 min left$", out, re.MULTILINE)
    assert re.search(r"^\[6/6\] dora, seed 1: 0\.0 min$", out, re.MULTILINE)
    assert "In accuracy, p-tuning is below lora and dora; the other difference could be chance." in out

    found = comparison(tmp_path)
    assert (found["dataset"], found["model"], found["measure"]) == ("fake", "org/nano", "accuracy")
    assert (found["n"], found["left_out"], found["caveat"], found["failed"]) == (199, 1, None, [])
    assert (found["git_commit"], found["versions"]) == ("abc", {"torch": "2.13.0"})
    best = found["adapters"][0]
    assert best.keys() == {
        *("adapter", "value", "ci95", "by_seed", "group", "seeds", "trainable_parameters", "parameters"),
        *("adapter_bytes", "peak_memory_gib", "tokens_per_second"),
    }
    assert (best["seeds"], best["peak_memory_gib"], best["tokens_per_second"]) == ([0, 1], 2.5, 120.0)
    assert [row["group"] for row in found["adapters"]] == ["a", "a", "b"]
    assert found["base"]["value"] == pytest.approx(0.25, abs=0.1)

    (line,) = [line for line in out.splitlines() if line.startswith(best["adapter"])]
    for figure in (f"{100 * best['value']:.1f} %", "1,000", "4.00 MiB", "2.50 GiB", "120"):
        assert figure in line
    assert re.search(r"^base model, 16 bit +2\d\.\d %", out, re.MULTILINE)

    page = (folder(tmp_path) / "comparison.html").read_text(encoding="utf-8")
    assert "a &lt;test&gt; machine" in page
    assert page.count("<svg") == 1
    assert "var(--accent)" in page
    assert "told apart" in page
    assert not re.search(r"<script|(src|href)=\"(?!data:|#)|@import|url\((?!#)", page)


def test_finished_cells_are_not_run_again_and_seeds_can_be_added(tmp_path: Path, compare: Any) -> None:
    assert compare("--adapters", "lora", "--seeds", "1") == 0
    assert compare("--adapters", "lora", "dora", "--seeds", "2") == 0
    assert sessions(tmp_path) == dict.fromkeys(["lora-seed0", "lora-seed1", "dora-seed0", "dora-seed1"], "started")


def test_an_unfinished_cell_is_missing_and_then_resumed(
    tmp_path: Path, compare: Any, capsys: pytest.CaptureFixture
) -> None:
    arguments = ("--adapters", "lora", "dora", "--seeds", "1")
    assert compare(*arguments, recipe=["--stop", "dora"]) == 1
    assert "dora, seed 0 stopped after step 7 of 20; the same command goes on" in capsys.readouterr().err
    assert [row["adapter"] for row in comparison(tmp_path)["adapters"]] == ["lora"]
    assert compare(*arguments, recipe=["--stop", "dora"]) == 0
    assert sessions(tmp_path) == {"lora-seed0": "started", "dora-seed0": "started resumed"}
    assert len(comparison(tmp_path)["adapters"]) == 2


def test_a_failing_cell_does_not_lose_the_others(tmp_path: Path, compare: Any, capsys: pytest.CaptureFixture) -> None:
    assert compare("--adapters", "lora", "dora", "qlora", "--seeds", "1", recipe=["--fail", "dora"]) == 1
    out, err = capsys.readouterr()
    assert re.search(r"^\[2/3\] dora, seed 0: .*FAILED", out, re.MULTILINE)
    assert "    error: no GPU has room for this" in out
    assert "1 of 3 cells are missing" in err
    found = comparison(tmp_path)
    assert {row["adapter"] for row in found["adapters"]} == {"lora", "qlora"}
    assert len(found["failed"]) == 1
    assert "Not in it: dora, seed 0 failed with exit code 1" in out
    # Nothing was begun, so it may be tried again with other arguments: alone, since the others are as they were.
    assert compare("--adapters", "dora", "--seeds", "1") == 0


def test_nothing_is_compared_where_every_cell_failed(tmp_path: Path, compare: Any) -> None:
    assert compare("--adapters", "lora", "--seeds", "2", recipe=["--fail", "lora"]) == 1
    assert not (folder(tmp_path) / "comparison.json").exists()


def test_other_arguments_are_refused_before_anything_runs(
    tmp_path: Path, compare: Any, capsys: pytest.CaptureFixture
) -> None:
    assert compare("--adapters", "lora", "--seeds", "1") == 0
    capsys.readouterr()
    assert compare("--adapters", "dora", "lora", "--seeds", "1", recipe=["--problems", "9"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "lora-seed0 was started with" in err and "--problems 9" in err and "another --output-dir" in err
    assert sessions(tmp_path) == {"lora-seed0": "started"}


def test_cells_that_ran_with_other_settings_are_not_compared(
    tmp_path: Path, compare: Any, capsys: pytest.CaptureFixture
) -> None:
    """Equal arguments, but the recipe's defaults changed in between."""
    assert compare("--adapters", "lora", "--seeds", "1") == 0
    recipe = tmp_path / "recipes" / "fake_sft.py"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("default=60", "default=50"), encoding="utf-8")
    assert compare("--adapters", "lora", "dora", "--seeds", "1") == 2
    assert "different settings (--problems 60 and 50)" in capsys.readouterr().err


def test_cells_on_other_problems_are_not_compared(tmp_path: Path, compare: Any, capsys: pytest.CaptureFixture) -> None:
    """Equal settings, but the file that they name changed in between."""
    assert compare("--adapters", "lora", "--seeds", "1") == 0
    recipe = tmp_path / "recipes" / "fake_sft.py"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("question {", "riddle {"), encoding="utf-8")
    assert compare("--adapters", "lora", "dora", "--seeds", "1") == 2
    assert "'lora, seed 0' and 'dora, seed 0' were measured on different problems" in capsys.readouterr().err


def test_one_seed_says_what_it_does_not_cover(tmp_path: Path, compare: Any, capsys: pytest.CaptureFixture) -> None:
    assert compare("--adapters", "lora", "qlora", "--seeds", "1", recipe=["--accuracies", "lora=1,qlora=0"]) == 0
    assert "One seed only for lora and qlora: the luck of training is not covered." in capsys.readouterr().out


def test_without_right_answers_the_loss_is_compared(
    tmp_path: Path, compare: Any, capsys: pytest.CaptureFixture
) -> None:
    recipe = ("--measure", "loss", "--accuracies", "lora=0.9,dora=0.1")
    assert compare("--adapters", "dora", "lora", "--seeds", "2", recipe=recipe) == 0
    out = capsys.readouterr().out
    assert "In held-out loss, dora is above lora." in out
    found = comparison(tmp_path)
    assert (found["measure"], found["n"], found["left_out"]) == ("loss", 60, 0)
    assert [row["adapter"] for row in found["adapters"]] == ["lora", "dora"]
    assert found["adapters"][0]["value"] == pytest.approx(1.27, abs=0.05)
    assert "nats per token" in (folder(tmp_path) / "comparison.html").read_text(encoding="utf-8")


def test_a_base_model_in_4_bit_is_called_that(tmp_path: Path, compare: Any) -> None:
    assert compare("--adapters", "qlora", "--seeds", "1") == 0
    assert comparison(tmp_path)["base"]["weights"] == "4 bit"
    assert comparison(tmp_path)["conclusion"] == "only qlora was measured, so there is nothing to compare"


@pytest.mark.parametrize(
    ("arguments", "recipe", "expected"),
    [
        (["--dataset", "fakee"], [], "no recipe fakee_sft.py (did you mean fake?): --dataset takes fake"),
        (["--seeds", "0"], [], "--seeds is 0: at least one is needed"),
        ([], ["--output_dir=elsewhere"], "--output_dir=elsewhere after -- is set for every cell"),
    ],
)
def test_a_mistake_is_one_sentence(
    compare: Any, capsys: pytest.CaptureFixture, arguments: list[str], recipe: list[str], expected: str
) -> None:
    assert compare("--adapters", "lora", *arguments, recipe=recipe) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and expected in err and err.count("\n") == 1
