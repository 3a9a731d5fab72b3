"""The cost card: rows measured for real on the tiny shape, killed and resumed; sums and tables of made-up ones."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from eval.files import RESULTS
from eval.metrics import compare, summarise
from recipes.bench import card, card_row, card_table
from recipes.bench.card_row import LOGP, PHASES, Phases

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "recipes.bench.card", "--methods", "sft", "ppo", "--shapes", "tiny"]


def results_of(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("*/*.json")
    return json.loads(path.read_text(encoding="utf-8"))


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def kill(folder: Path, moment: Callable[[str], object], later: float = 0, *arguments: str) -> None:
    """Start the command, and kill it so many seconds after the `moment` has come, which reads what was printed."""
    log = folder / "log"
    with log.open("w") as out:
        started = subprocess.Popen([*COMMAND, "--results", str(folder), *arguments], cwd=ROOT, stdout=out, stderr=out)
    while started.poll() is None and not moment(log.read_text()):
        time.sleep(0.1)
    time.sleep(later)
    assert started.poll() is None, log.read_text()
    os.kill(started.pid, signal.SIGKILL)
    started.wait()


def test_rows_that_were_killed_are_resumed_and_none_is_lost_or_made_twice(tmp_path: Path) -> None:
    stopped = run("--results", str(tmp_path), "--minutes", "0")
    assert "Stopped after 0 minutes with 2 rows to go" in stopped.stdout

    kill(tmp_path, lambda log: list(tmp_path.glob("*/*.json")))  # between the rows
    kill(tmp_path, lambda log: "ppo, tiny: the recipe" in log, 4, "--resume")  # inside the second
    (first,) = results_of(tmp_path)["rows"]
    assert first["method"] == "sft"

    resumed = run("--results", str(tmp_path), "--resume")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "2 rows on" in resumed.stdout and "1 of them there already" in resumed.stdout
    rows = results_of(tmp_path)["rows"]
    assert [row["method"] for row in rows] == ["sft", "ppo"]
    assert rows[0] == first
    for row in rows:
        assert card.sound(row), row
        assert set(row["growth"]) == {"length", "batch"}
        assert all(one["seconds"] > 0 for one in row["growth"].values()), row["growth"]
        assert row["seconds_per_step"] > 0 and row["tokens_per_second"] > 0
        assert 0 < row["share"]["matmul"] < 1
        assert sum(row["phases"].values()) == pytest.approx(sum(row["seconds"]) / len(row["seconds"]), rel=0.05)
    sft, ppo = rows
    assert sft["phases"]["rollout"] == 0 == sft["phases"]["reward"] and sft["completions_per_second"] is None
    assert all(ppo["phases"][name] > 0 for name in PHASES)
    assert ppo["completions_per_second"] * ppo["seconds_per_step"] == pytest.approx(8, rel=0.02)

    again = run("--results", str(tmp_path), "--resume")
    assert again.returncode == 0 and "2 of them there already" in again.stdout
    assert results_of(tmp_path)["rows"] == rows


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shapes", "lama-3.1-8b"], "did you mean llama-3.1-8b"),
        (["--shapes", "tiny", "--half", "fp16"], "needs a GPU"),
        (["--shapes", "tiny", "--peer", "--peer-python", "nowhere/python"], "there is no nowhere/python"),
        (["--methods", "grop"], "invalid choice: 'grop'"),
    ],
)
def test_a_mistake_gets_a_sentence(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(SystemExit) as stopped:
        card.main(arguments)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def the_card(tmp_path: Path, *arguments: str) -> card.Card:
    args = card.parsed(["--results", str(tmp_path), *arguments])[1]
    about = {"gpu": False, "vllm": True, "machine": "2 cores", "git_commit": "c", "versions": {}}
    return card.Card(args, about)


def test_what_fails_is_a_row_with_its_reason(tmp_path: Path) -> None:
    row = {"method": "sft", "shape": "no-such-shape", "bits": 16, "half": "bf16", "rollouts": None}
    entry = the_card(tmp_path).measure(row)
    assert entry["failed"].startswith("ValueError: no shape named 'no-such-shape'")
    assert "failed: ValueError" in card_table.describe(entry)
    assert not card.sound(entry)


def test_rows_are_planned_with_and_without_vllm() -> None:
    args = card.parsed(["--shapes", "tiny", "--methods", "grpo", "ppo", "--half", "bf16", "fp16"])[1]
    about = {"half": "bf16", "gpu": True, "vllm": True}
    assert [tuple(row.values()) for row in card.planned(args, about)] == [
        ("grpo", "tiny", 4, "bf16", "model"),
        ("grpo", "tiny", 4, "bf16", "vllm"),
        ("grpo", "tiny", 4, "fp16", "model"),
        ("grpo", "tiny", 4, "fp16", "vllm"),
        ("ppo", "tiny", 4, "bf16", "model"),
        ("ppo", "tiny", 4, "fp16", "model"),
    ]
    on_cpu = card.planned(
        card.parsed(["--shapes", "tiny", "--methods", "grpo", "--bits", "4"])[1], {**about, "gpu": False}
    )
    assert [row["rollouts"] for row in on_cpu] == ["model"], "vLLM has no 4-bit kernels on a CPU"


def test_a_new_measurement_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    rows = [
        {"method": method, "shape": "tiny", "bits": 16, "half": "bf16", "rollouts": None} for method in ("sft", "dpo")
    ]
    measured = the_card(tmp_path)
    for number, row in enumerate([*rows, rows[0]]):
        measured.keep("rows", {**row, "failed": None, "peer": None, "number": number})
    found = the_card(tmp_path, "--resume")
    assert [(row["method"], row["number"]) for row in found.kept["rows"]] == [("dpo", 1), ("sft", 2)]
    assert found.missing(rows) == []
    assert the_card(tmp_path, "--resume", "--peer").missing(rows) == rows, "they have no peer yet"
    assert the_card(tmp_path).missing(rows) == rows


FOUND = {
    "seconds": [1.0, 1.2],
    "phases": dict.fromkeys(PHASES, 0.1) | {"rollout": 0.5},
    "tokens": 200.0,
    "completions": 8,
    "memory_gib": {"allocated": None, "reserved": None, "resident": 3.0, "above_start": 2.0},
    "loss_finite": True,
    "gradients_on_adapters_only": True,
    "logits_difference": None,
    "growth": {"length": {"seconds": 2.0}, "batch": {"failed": "OutOfMemoryError: no"}},
    "work": {"length": 1, "batch": 2},
    "flops": 4e9,
    "rollout_bytes": 1e9,
    "versions": {"trl": "1.12.0"},
}
CEILINGS = {"matmul_flops": 1e10, "copy_bytes": 4e9}


def entry_of(method: str = "grpo", shape: str = "tiny", **changes: Any) -> dict[str, Any]:
    again = FOUND | {"seconds": [0.8, 1.0], "logits_difference": 0.0}
    memory = {"allocated": None, "reserved": None, "resident": 5.0, "above_start": 4.0}
    peer = FOUND | {"seconds": [2.0, 2.2], "memory_gib": memory, "tokens": 220.0}
    row = {"method": method, "shape": shape, "bits": 16, "half": "bf16", "rollouts": None}
    stamp = {"date": "2026-01-02", "git_commit": "c", "versions": {}, "failed": None}
    return {
        **row,
        "recipe": card_row.METHODS[method].name,
        **stamp,
        **card.figures(deepcopy(FOUND), again, peer, CEILINGS),
        **changes,
    }


def test_figures_of_a_row() -> None:
    entry = entry_of()
    assert entry["seconds_per_step"] == 1.0, "the median of both turns"
    assert (entry["tokens_per_second"], entry["completions_per_second"]) == (200.0, 8.0)
    assert entry["memory_gib"] == {"allocated": None, "reserved": None, "resident": 3.0, "above_start": 2.0}
    assert entry["share"] == {"matmul": 0.4, "copy": 0.5}
    assert entry["peer"]["seconds_per_step"] == 2.1
    assert entry["peer"]["speed"] == pytest.approx(200 / (220 / 2.1), abs=1e-3), (
        "tokens a second, which it wrote more of"
    )
    assert entry["peer"]["memory"] == 0.5
    assert card.sound(entry)


@pytest.mark.parametrize(
    "changes", [{"loss_finite": False}, {"gradients_on_adapters_only": False}, {"logits_difference": 1e-3}]
)
def test_a_row_that_is_not_sound_says_so(changes: dict[str, Any]) -> None:
    entry = entry_of() | changes
    assert not card.sound(entry)
    assert any(word in card_table.describe(entry) for word in ("NOT FINITE", "ELSEWHERE", "DIFFER"))


def test_bars_are_judged_on_a_gpu_in_four_bits() -> None:
    def on_gpu(method: str, allocated: float, **peer: float) -> dict[str, Any]:
        memory = {"allocated": allocated, "reserved": allocated, "resident": 1.0, "above_start": 1.0}
        return entry_of(method, "llama-3.1-8b", bits=4, memory_gib=memory, peer=peer)

    rows = [on_gpu("sft", 6, speed=1.8, memory=0.7), on_gpu("grpo", 8, speed=1.2, memory=0.5), on_gpu("ppo", 9)]
    rows[2]["peer"] = None
    assert card_table.judged([*rows, entry_of("dpo")]) == [
        "sft: 1.80 x the peer's speed, at least 1.7: met",
        "sft: 0.70 x the peer's memory, at most 0.6: MISSED",
        "grpo: 1.20 x the peer's speed, at least 1.3: MISSED",
        "ppo: 1.12 x the peak memory of grpo, at most 1.25: met",
    ]
    assert card_table.judged([entry_of(method) for method in card_row.METHODS]) == []


def written(folder: Path, machine: str, day: str, *rows: dict[str, Any]) -> None:
    path = folder / machine.replace(" ", "-") / f"{day}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "ceilings": CEILINGS, "rows": rows, "learned": []}), "utf-8")


def test_the_tables_show_the_newest_and_leave_out_what_was_not_measured(tmp_path: Path) -> None:
    written(tmp_path, "2 cores", "2026-01-01", entry_of("sft", seconds_per_step=9.0), entry_of("dpo", peer=None))
    written(tmp_path, "2 cores", "2026-01-02", entry_of("sft"), entry_of("kto", failed="ValueError: no"))
    (tmp_path / "2-cores" / "2026-01-02-memory.json").write_text("{}", "utf-8")  # another benchmark's
    lines = card_table.tables(tmp_path).splitlines()
    assert "| [sft](../arc_sft.py) | tiny, 16 bit | 2 cores | 1 | 200 | 3.00 | 1.91, 0.50 | 2026-01-02 |" in lines
    assert "| [dpo](../ultrafeedback_dpo.py) | tiny, 16 bit | 2 cores | 1 | 200 | 3.00 |  | 2026-01-02 |" in lines
    assert not any("[kto](../ultrafeedback_kto.py) | tiny" in line for line in lines)
    unmeasured = [line for line in lines if "not yet measured" in line]
    assert len(unmeasured) == len(card_row.METHODS) and all("llama-3.1-8b, 4 bit" in line for line in unmeasured)
    assert "| [sft](../arc_sft.py) | tiny, 16 bit | 2 cores |  | 2.00 | OutOfMemoryError: no |" in lines


def test_the_terminal_shows_every_figure_of_a_row(capsys: pytest.CaptureFixture) -> None:
    card_table.print_table(
        [entry_of(), entry_of("sft", peer={"failed": "no"}), entry_of("kto", failed="it was killed")]
    )
    head, grpo, sft, failed = capsys.readouterr().out.strip().splitlines()
    for name in (*card_table.COSTS, *PHASES, "2 x length"):
        assert name in head
    assert grpo.split() == [
        *("grpo", "tiny", "1", "200", "3.00", "1.91,", "0.50", "8.00", "40.0%", "50.0%"),
        *("50.0%", *["10.0%"] * 5, "2.00", "OutOfMemoryError:", "no"),
    ]
    assert "1.91" not in sft and failed == "kto, tiny in 16 bit: failed: it was killed"


def test_the_readme_shows_the_results_that_are_kept() -> None:
    shown = card.README.read_text(encoding="utf-8").split(card_table.BEGIN)[1].split(card_table.END)[0]
    assert shown.strip() == card_table.tables(RESULTS).strip(), "run `python -m recipes.bench.card --table`"


def test_a_readme_without_marks_is_refused(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# No marks\n", "utf-8")
    with pytest.raises(ValueError, match="lacks the lines"):
        card_table.write_readme(readme, tmp_path)
    assert readme.read_text("utf-8") == "# No marks\n"


def test_a_phase_inside_another_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(card_row.time, "monotonic", lambda: now)
    phases = Phases(lambda: None)

    def pass_time(seconds: float) -> None:
        nonlocal now
        now += seconds

    pass_time(1)

    def score() -> None:
        pass_time(2)
        phases.timed("backward", pass_time)(4)
        pass_time(8)

    phases.timed(LOGP, score)()
    pass_time(16)
    assert phases.lap() == {"other": 17, LOGP: 10, "backward": 4}
    assert sum(phases.lap().values()) == 0


def test_gradients_belong_on_adapters() -> None:
    import torch

    def model(**gradients: float | None) -> torch.nn.Module:
        module = torch.nn.Module()
        for name, value in gradients.items():
            module.register_parameter(name, torch.nn.Parameter(torch.zeros(1)))
            getattr(module, name).grad = None if value is None else torch.tensor([value])
        return module

    check = card_row.gradients_on_adapters_only
    assert check(model(base=None, lora_A=0.0, lora_B=1.0))
    assert not check(model(base=1.0, lora_B=1.0))
    assert not check(model(base=None, lora_A=0.0, lora_B=0.0)), "nothing would be learned"
    assert not check(model(base=None))


def results_json(solved_before: int, solved_after: int) -> dict[str, Any]:
    """A run's results.json, as far as the card reads it, of 40 problems."""

    def record(stage: str, index: int, solved: bool) -> Any:
        graded = {"reward": None, "scores": {"correctness_reward": float(solved)}}
        words = {"question": "?", "gold": "4", "completion": "", "tokens": 10, "truncated": False}
        return {"stage": stage, "kind": "greedy", "index": index, "sample": 0, **words, **graded}

    stages = [
        [record(name, index, index < solved) for index in range(40)]
        for name, solved in (("before", solved_before), ("after", solved_after))
    ]
    judged_by = {"correct": "correctness_reward", "format": None}
    return {
        **{"recipe": "gsm8k_grpo", "model": "smollm2-135m", "date": "2026-01-02", "git_commit": "c", "versions": {}},
        **{"n": 40, "complete": True, "steps": {"made": 3, "planned": 3}, "seconds": {"grpo": 90.0}},
        "stages": [summarise(records, **judged_by) for records in stages],
        "comparisons": [compare(*stages, **judged_by)],
    }


@pytest.mark.parametrize(("after", "verdict"), [(30, "it learned"), (9, "no measurable change")])
def test_what_a_run_learned_is_kept_with_its_interval(after: int, verdict: str, tmp_path: Path) -> None:
    run = card.learned(results_json(8, after))
    (comparison,) = run["comparisons"]
    assert comparison["delta"] == pytest.approx((after - 8) / 40) and len(comparison["ci95"]) == 2
    assert comparison["verdict"].endswith(verdict)
    path = tmp_path / "2-cores" / "2026-01-02.json"
    path.parent.mkdir()
    kept = {"machine": "2 cores", "ceilings": None, "rows": [], "learned": [run]}
    path.write_text(json.dumps(kept), "utf-8")
    shown = card_table.tables(tmp_path).splitlines()[-1]
    assert f"before 20.0% -> after {after / 40:.1%}" in shown and verdict in shown and "3 of 3 steps" in shown


def test_a_run_is_judged_by_its_last_results(tmp_path: Path) -> None:
    """A folder whose run is complete is not run again by --resume."""
    recipes = [card_row.METHODS[method].name for method in card.LEARNERS]
    for recipe in recipes:
        folder = tmp_path / "runs" / recipe / "smollm2-135m" / "20260102-000000"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}", "utf-8")
        (folder / "results.json").write_text(json.dumps(results_json(8, 30) | {"recipe": recipe}), "utf-8")
    found = the_card(tmp_path, "--resume", "--learn", "--output-dir", str(tmp_path / "runs")).learn()
    assert [run["recipe"] for run in found] == recipes
    assert results_of(tmp_path)["learned"] == found
