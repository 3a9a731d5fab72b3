"""The recipe as a user meets it: its help, its smoke run and its mistakes. What a kill costs it: test_resume.py."""

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes.common import NO_PINGS

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "gsm8k_grpo.py"
# Imported by every Python before the script: writes down each connection and refuses it.
WATCH_SOCKETS = """
import os, sys

def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        with open(os.environ["SOCKET_LOG"], "a") as log:
            log.write(f"{event} {args}\\n")
        raise OSError("refused by the test")

sys.addaudithook(refuse)
"""


def python(*args: Any, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python as a user would: none of the switches that could hide a request to the hub are set."""
    switches = {*NO_PINGS, "CI", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"}
    clean = {name: value for name, value in os.environ.items() if name not in switches}
    command = [sys.executable, *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=clean | environment, capture_output=True, text=True, timeout=240)


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def only_run(output: Path) -> Path:
    (folder,) = output.glob("gsm8k_grpo/*/*")
    return folder


# Smoke


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The finished process of `--smoke`, its run folder, and the log of the connections it tried."""
    folder = tmp_path_factory.mktemp("smoke")
    (folder / "sitecustomize.py").write_text(WATCH_SOCKETS)
    log = folder / "sockets.log"
    # Elsewhere than the clone, as from a user's home; the recipe finds its own modules.
    done = python(RECIPE, "--smoke", "--output-dir", "runs", cwd=folder, PYTHONPATH=str(folder), SOCKET_LOG=str(log))
    assert done.returncode == 0, done.stderr
    return done, only_run(folder / "runs"), log.read_text() if log.exists() else ""


def test_smoke_walks_the_whole_path(smoke: Any) -> None:
    done, run, _ = smoke
    files = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    adapter = {
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "README.md",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert files == {
        *("config.json", "completions.jsonl", "metrics.jsonl", "report.html", "results.json", "seconds.json"),
        "checksums.json",
        *(f"{folder}/{name}" for folder in ("adapter", "warm_start") for name in adapter),
    }
    assert done.stdout.count("Out of time") == 2 and done.stdout.count("Resuming") == 2

    results = read_json(run / "results.json")
    assert results["complete"] is True and results["steps"] == {"made": 2, "planned": 2}
    assert [stage["name"] for stage in results["stages"]] == ["before", "warm start", "after"]
    # What a session announces, in the order in which the clock then counts it.
    phases = ["evaluate before", "warm start", "evaluate warm start", "grpo", "evaluate after"]
    assert [*results["seconds"]] == phases
    held_out, two = "(8 held out)", "(2 steps)"
    told = ", ".join(f"{name} {held_out if name.startswith('evaluate') else two}" for name in phases)
    assert done.stdout.count(f"Phases: {told}; the table of steps tells the time left\n") == 3
    steps = [(line["phase"], line["step"]) for line in read_jsonl(run / "metrics.jsonl")]
    assert steps == [("warm start", 1), ("warm start", 2), ("grpo", 1), ("grpo", 2)]


def test_smoke_keeps_every_completion(smoke: Any) -> None:
    records = read_jsonl(smoke[1] / "completions.jsonl")
    samples = len(records) // (3 * 8)
    for stage in ("before", "warm start", "after"):
        problems = {(r["kind"], r["index"], r["sample"]) for r in records if r["stage"] == stage}
        assert problems >= {("greedy", index, 0) for index in range(8)}
        assert len(problems) == 8 * samples
    assert all(set(r["scores"]) == set(records[0]["scores"]) for r in records)


def test_smoke_report_needs_nothing_but_itself(smoke: Any) -> None:
    page = (smoke[1] / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    outside = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!#|data:)[^"'\s>)]+""", page)
    assert outside == []


def test_smoke_opens_no_connection(smoke: Any) -> None:
    assert smoke[2] == ""


# Mistakes: one sentence, exit code 2, and nothing that looks finished


def assert_one_sentence(code: object, said: str, *, says: str) -> None:
    assert code == 2, said
    assert "Traceback" not in said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and re.search(says, errors[0]), said


def assert_nothing_looks_finished(output: Path) -> None:
    assert not list(output.rglob("report.html")) and not list(output.rglob("results.json"))


def test_a_mistake_ends_the_process(tmp_path: Path) -> None:
    done = python(RECIPE, "--source", "smaple", "--output-dir", tmp_path / "runs")
    assert_one_sentence(done.returncode, done.stderr, says="did you mean sample")
    assert_nothing_looks_finished(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "smolm2-135m"], "did you mean smollm2-135m"),
        (["--rollouts", "vllm", "--load-in-4bit"], "vLLM|4-bit"),  # refused with and without vLLM
        (["--resume"], "found no run .* start one without --resume"),
        (["--warmup-steps", 5], "--warmup-steps is called --sft-steps"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[Any], says: str, tmp_path: Path, run_script: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run_script(
            *("gsm8k_grpo", "--model", "smollm2-135m", "--source", "sample", "--output-dir", tmp_path / "runs"),
            *arguments,
        )
    assert_one_sentence(end.value.code, capfd.readouterr().err, says=says)
    assert_nothing_looks_finished(tmp_path)


@pytest.mark.parametrize("place", ["below a file", "where nothing can be made"])
def test_an_unwritable_folder_is_one_sentence(
    place: str, tmp_path: Path, run_script: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    output = {"below a file": tmp_path / "file" / "runs", "where nothing can be made": Path("/proc/runs")}[place]
    with pytest.raises(SystemExit) as end:
        run_script("gsm8k_grpo", "--source", "sample", "--model", "smollm2-135m", "--output-dir", output)
    assert_one_sentence(end.value.code, capfd.readouterr().err, says="cannot write .* name another --output-dir")


def test_a_full_disk_is_one_sentence(
    tmp_path: Path, nano: Any, run_script: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    """A cap on the size of a file, which needs no rights: a checkpoint's weights fit and torch's state does not."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, unlimited[1]))
    try:
        with pytest.raises(SystemExit) as end:
            run_script(
                *("gsm8k_grpo", "--model", nano.folder, "--source", "sample", "--output-dir", tmp_path / "runs"),
                *("--lora-rank", 8, "--max-steps", 2, "--sft-steps", 1, "--eval-problems", 4, "--rollouts", "model"),
                *("--prompts-per-step", 1, "--num-generations", 2, "--max-completion-length", 8),
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert_one_sentence(end.value.code, capfd.readouterr().err, says="the disk is full.*--resume")
    assert_nothing_looks_finished(tmp_path)
    assert not (only_run(tmp_path / "runs") / "adapter").exists()
