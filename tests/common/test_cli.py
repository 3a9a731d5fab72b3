"""A user's mistake is one sentence; a bug keeps its traceback."""

import errno
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from data import gsm8k
from recipes.common import cli, resuming
from recipes.common.args import RunArgs
from recipes.common.cli import explain
from recipes.common.models import resolve
from recipes.common.run import Run


@dataclass(frozen=True)
class Args:
    """Doc."""

    model: str = "smollm2-135m"
    output_dir: str = "outputs"
    max_hours: float | None = None
    resume: bool | str = False
    smoke: bool = False


@dataclass(frozen=True, kw_only=True)
class Full(RunArgs):
    model: str = "smollm2-135m"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "runs/a/metrics.jsonl"),
        OSError(errno.EFBIG, "File too large", "runs/a/metrics.jsonl"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
    ],
)
def test_a_full_disk_in_the_systems_words(error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = explain(error)
    assert sentence is not None and sentence.startswith("the disk is full")
    assert sentence.endswith("then give the same command again")  # there is no run yet
    monkeypatch.setattr(resuming, "prospects", lambda: "goes on")
    assert str(explain(error)).endswith("then go on with --resume")
    assert error.filename is None or error.filename in sentence


@pytest.mark.parametrize(
    "text",
    [
        "Error while serializing: I/O error: No space left on device (os error 28)",
        "Error while serializing: I/O error: File too large (os error 27)",
        "[enforce fail at inline_container.cc:672] . unexpected pos 147648 vs 147536",
        "PytorchStreamWriter failed writing file data/0: file write failed",
    ],
)
def test_a_full_disk_in_the_libraries_words(text: str) -> None:
    sentence = explain(RuntimeError(text))
    assert sentence is not None and sentence.startswith("the disk is full")


def test_a_full_disk_for_real() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OSError) as full, open("/dev/full", "w") as file:
        file.write("x")
        file.flush()
    sentence = explain(full.value)
    assert sentence is not None and sentence.startswith("the disk is full")


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied", "runs/a"),
        NotADirectoryError(errno.ENOTDIR, "Not a directory", "runs/a"),
        IsADirectoryError(errno.EISDIR, "Is a directory", "runs/a"),
        FileExistsError(errno.EEXIST, "File exists", "runs/a"),
        OSError(errno.EROFS, "Read-only file system", "runs/a"),
    ],
)
def test_an_unwritable_place(error: OSError) -> None:
    assert explain(error) == f"cannot write runs/a ({error.strerror}): name another --output-dir"


def caught(function: object, *args: object, **kwargs: object) -> Exception:
    try:
        function(*args, **kwargs)  # type: ignore[operator]
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_bad_input_keeps_its_own_sentence() -> None:
    for error in (caught(gsm8k.load, "train", source="smaple"), caught(resolve, "smolm2-135m")):
        assert isinstance(error, ValueError) and explain(error) == str(error)


def test_a_bug_keeps_its_traceback() -> None:
    def ours() -> None:
        raise ValueError("raised in a test, which is none of our rooms")

    import json

    assert explain(caught(ours)) is None
    assert explain(caught(json.loads, "{")) is None  # a ValueError by inheritance
    assert explain(caught(lambda: {}["key"])) is None
    assert explain(TypeError("a bug")) is None
    assert explain(FileNotFoundError(errno.ENOENT, "No such file or directory", "x")) is None


@pytest.mark.usefixtures("unsloth")  # before transformers
def test_a_missing_hub_is_one_sentence(tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download
    from transformers import AutoConfig

    for error in (
        caught(hf_hub_download, "nobody/nothing", "config.json", cache_dir=tmp_path, local_files_only=True),
        caught(AutoConfig.from_pretrained, "nobody/nothing", cache_dir=tmp_path, local_files_only=True),
    ):
        sentence = explain(error)
        assert sentence is not None and sentence.startswith("the hub could not be read (")
        assert "\n" not in sentence and "local folder" in sentence


def start(main: object, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["recipe.py", *arguments])
    cli.start(main, on_cpu=Args(), on_gpu=Args(), smoke={})  # type: ignore[arg-type]


def test_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def mistaken(args: Args) -> None:
        resolve("smolm2-135m")

    def interrupted(args: Args) -> None:
        raise KeyboardInterrupt

    def buggy(args: Args) -> None:
        raise KeyError("a bug")

    with pytest.raises(SystemExit) as mistake:
        start(mistaken, monkeypatch)
    error = capsys.readouterr().err
    assert mistake.value.code == 2 and error.startswith("error: no model named") and error.count("\n") == 1
    with pytest.raises(SystemExit) as stop:
        start(interrupted, monkeypatch)
    assert stop.value.code == 130
    assert capsys.readouterr().err == "interrupted before anything was kept; the same command begins again\n"
    with pytest.raises(KeyError):
        start(buggy, monkeypatch)


def end_a_run(folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, *arguments: str, keeps: str = "") -> int:
    """A recipe that makes `keeps` in its run's folder and is ended by a signal; the code it exits with."""

    def ended(args: Args) -> None:
        (folder / keeps).parent.mkdir(parents=True, exist_ok=True)
        if keeps:
            (folder / keeps).write_text("{}")
        resuming.take(folder)
        os.kill(os.getpid(), number)

    with pytest.raises(SystemExit) as end:
        start(ended, monkeypatch, *arguments)
    assert not (folder / ".lock").exists()
    return end.value.code  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("keeps", "arguments", "made", "words"),
    [
        ("", (), False, " before anything was kept; the same command begins again"),
        (
            "completions.jsonl",
            (),
            False,
            "; the same command with --resume goes on; without a checkpoint yet, training begins at its first step",
        ),
        (
            "checkpoints/grpo/checkpoint-8/complete.json",
            ("--max-hours", "3"),
            False,
            "; the same command with --resume goes on from the last checkpoint, step 8 of grpo",
        ),
        (
            "checkpoints/warm_start/checkpoint-8/complete.json",
            (),
            True,
            "; the same command with ARGS=--resume goes on from the last checkpoint, step 8 of warm start",
        ),
        (
            "checkpoints/grpo/checkpoint-8/complete.json",
            ("--max-hours", "3"),
            True,
            "; the same command with ARGS='--max-hours 3 --resume' goes on from the last checkpoint, step 8 of grpo",
        ),
        ("completions.jsonl", ("--smoke",), False, " before anything was kept; the same command begins again"),
    ],
)
def test_what_is_said_at_the_end_is_true(
    keeps: str,
    arguments: tuple[str, ...],
    made: bool,
    words: str,
    tmp_path: Path,
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("MAKELEVEL", raising=False)
    if made:
        monkeypatch.setenv("MAKELEVEL", "1")
    signals = ((signal.SIGINT, "interrupted", 130), (signal.SIGTERM, "ended by SIGTERM", 143))
    for number, name, code in (*signals, (signal.SIGHUP, "ended by SIGHUP", 129)):
        assert end_a_run(tmp_path, monkeypatch, number, *arguments, keeps=keeps) == code
        assert capsys.readouterr().err.strip() == name + words


@pytest.mark.parametrize(
    ("words", "resume"),
    [
        ((), False),
        (("--resume",), True),
        (("--resume", "--max-hours", "3"), True),
        (("--max-hours", "3", "--resume", "outputs/toy/1"), "outputs/toy/1"),
        (("--resume=outputs/toy/1",), "outputs/toy/1"),
    ],
)
def test_resume_takes_a_folder_or_none(
    words: tuple[str, ...], resume: bool | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions: list[Args] = []
    start(lambda args: sessions.append(args), monkeypatch, *words)
    assert [args.resume for args in sessions] == [resume]


@pytest.mark.parametrize("flag", ["--model", "--output-dir", "--resume"])
def test_a_name_that_is_too_long_is_one_sentence(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def recipe(args: Args) -> None:
        Run.open("toy", Full(resume=args.resume, output_dir=args.output_dir), correct=None, format=None)

    long = str(tmp_path / ("x" * 300))
    with pytest.raises(SystemExit) as end:
        start(recipe, monkeypatch, "--output-dir", str(tmp_path), flag, long)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1
    assert "too long" in said


def test_smoke_stops_in_each_phase_and_resumes(
    monkeypatch: pytest.MonkeyPatch, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sessions: list[Args] = []
    start(lambda args: sessions.append(args), monkeypatch, "--smoke", "--model", "phi-4")
    first, *_, last = capsys.readouterr().out.splitlines()
    assert "in place of phi-4" in first and "rows of our own" in first and last.startswith("Smoke run passed")
    assert [(args.resume, args.max_hours) for args in sessions] == [(False, 0.0), (True, 0.0), (True, None)]
    assert {args.model for args in sessions} == {str(tiny)}


@dataclass(frozen=True)
class Sampled(Args):
    """Doc of what reads rows, rolls out and is judged by another."""

    source: str = "hub"
    rollouts: str = "auto"
    eval_pairs: int = 256
    max_steps: int = 500
    sft_steps: int = 0
    compare_with: str = "none"


def test_smoke_is_small_whatever_was_given(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    sessions: list[Sampled] = []

    def smoke(small: dict[str, object], *arguments: str) -> Sampled:
        sessions.clear()
        monkeypatch.setattr("sys.argv", ["recipe.py", "--smoke", *arguments])
        defaults = Sampled()
        cli.start(lambda args: sessions.append(args), on_cpu=defaults, on_gpu=defaults, smoke=small)
        (args,) = {replace(session, resume=False, max_hours=None) for session in sessions}
        return args

    given = ("--source", "hub", "--rollouts", "vllm", "--eval-pairs", "99", "--max-steps", "99")
    args = smoke({"max_steps": 2}, *given)
    assert (args.source, args.rollouts, args.eval_pairs, args.max_steps) == ("sample", "model", 8, 2)
    assert smoke({}, "--source", "mine.jsonl").source == "mine.jsonl"  # a file is tried out with it
    assert smoke({"eval_pairs": 4, "source": "rows.jsonl"}).eval_pairs == 4
    assert smoke({"eval_pairs": 4, "source": "rows.jsonl"}).source == "rows.jsonl"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--warmup-steps", "5"], "--warmup-steps is called --sft-steps since December 2026: give that"),
        (["--warmup_steps=5"], "--warmup-steps is called --sft-steps since December 2026: give that"),
        (["--smoke", "--judge", "pairrm"], "--judge is called --compare-with since December 2026: give that"),
        (["--warmup-learning-rate", "1e-3"], None),  # there is no flag of the new name either
        (["--judge-model", "x", "--compare-with", "pairrm", "judge"], None),
    ],
)
def test_an_old_flag_names_the_new_one(words: list[str], sentence: str | None) -> None:
    assert cli.renamed(words, vars(Sampled())) == sentence


def test_a_flag_that_means_something_else_here_is_not_renamed() -> None:
    """A recipe that grades has a --judge of its own."""
    assert cli.renamed(["--judge", "local"], ["judge", "compare_with"]) is None


def test_an_old_flag_ends_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["recipe.py", "--judge", "pairrm"])
    with pytest.raises(SystemExit) as end:
        cli.start(print, on_cpu=Sampled(), on_gpu=Sampled(), smoke={})
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: --judge is called --compare-with since December 2026: give that\n"


def test_an_unknown_model_is_told_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        start(lambda args: pytest.fail("the recipe began"), monkeypatch, "--model", "smolm2-135m")
    assert end.value.code == 2 and "did you mean smollm2-135m" in capsys.readouterr().err


@dataclass(frozen=True)
class Supervised(Args):
    """Doc of what trains on rows."""

    max_length: int = 512
    batch_size: int = 8
    per_device_train_batch_size: int | None = None
    gradient_accumulation_steps: int | None = None


@dataclass(frozen=True)
class OnPolicy(Args):
    """Doc of what rolls out, its batches fixed."""

    max_prompt_length: int = 256
    max_completion_length: int = 64


def out_of_memory() -> list[Exception]:
    """By the card, by the CPU's allocator and by Python itself."""
    import torch

    return [torch.OutOfMemoryError("CUDA out of memory."), caught(torch.empty, 2**50), caught(bytearray, 2**60)]


@pytest.mark.parametrize(
    ("args", "remedy"),
    [
        (
            Supervised(),
            "go on with --resume and --per-device-train-batch-size 1, or start anew with a lower --max-length",
        ),
        (Supervised(per_device_train_batch_size=1), "start anew with a lower --max-length"),
        (OnPolicy(), "start anew with a lower --max-completion-length or --max-prompt-length"),
        (Args(), "start anew with a smaller --model"),
    ],
)
def test_where_memory_runs_out_the_flags_to_lower_are_told(
    args: Args, remedy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(resuming, "prospects", lambda: "goes on")
    for error in out_of_memory():

        def full(args: Args, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("sys.argv", ["recipe.py"])
        with pytest.raises(SystemExit) as end:
            cli.start(full, on_cpu=args, on_gpu=args, smoke={})
        assert end.value.code == 2
        assert capsys.readouterr().err == f"error: memory ran out: {remedy}\n"
