"""Which folder a run goes on in, who may be in it, and what becomes of one that is damaged."""

import functools
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from data import gsm8k, source
from data.source import SAMPLES, rows_read
from recipes import gsm8k_grpo as recipe
from recipes.common import resuming
from recipes.common.cli import explain, smoke_args
from recipes.common.models import resolve, start_from
from recipes.common.run import Run

ROOT = Path(__file__).resolve().parents[2]
OF_A_SESSION = ("seconds", "step_time", "num_tokens")


class Runs(NamedTuple):
    """The same run, ended after a step of GRPO and whole: its arguments, and the folders."""

    args: Any
    killed: Path
    whole: Path


def main(args: Any) -> str:
    with redirect_stdout(io.StringIO()) as printed:
        recipe.main(args)
    return printed.getvalue()


@pytest.fixture(scope="module")
def runs(unsloth: Any, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    output = tmp_path_factory.mktemp("runs")
    args = replace(smoke_args(recipe.ON_CPU, recipe.SMOKE), model=str(tiny), output_dir=str(output), learning_rate=1e-2)
    main(replace(args, max_hours=0.0))
    main(replace(args, max_hours=0.0, resume=True))
    (folder,) = output.glob("*/*/*")
    killed = tmp_path_factory.mktemp("killed") / folder.name
    shutil.copytree(folder, killed)
    main(replace(args, resume=True))
    return Runs(args, killed, folder)


# Every file of a folder, damaged in every way


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_after_a_line(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"\n", 0, -1) + 1])


def fill_with_zeros(path: Path) -> None:
    """What a power cut leaves of a file that was not flushed."""
    path.write_bytes(bytes(path.stat().st_size))


def put_other_json(path: Path) -> None:
    path.write_text('[{"other": 1}]\n')


def put_another_object(path: Path) -> None:
    path.write_text('{"other": "x"}\n')


def put_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def remove(path: Path) -> None:
    path.unlink()


DAMAGES = (empty, cut, fill_with_zeros, put_other_json, put_another_object, put_a_folder, remove)
WEIGHTS = "adapter_model.safetensors"
FILES = [
    *("config.json", "results.json", "seconds.json", "completions.jsonl", "metrics.jsonl", "checksums.json"),
    *("report.html", f"warm_start/{WEIGHTS}", "warm_start/adapter_config.json", f"adapter/{WEIGHTS}"),
]
LINES = ("completions.jsonl", "metrics.jsonl")
CASES = [(file, damage) for file in FILES for damage in DAMAGES] + [(file, cut_after_a_line) for file in LINES]
# What is written anew at the end whatever is there, and needs no word.
SILENT = {"report.html", f"adapter/{WEIGHTS}", "results.json"}


def named(value: Any) -> str:
    return getattr(value, "__name__", str(value))


def lay(folder: Path, output: Path, args: Any, name: str = "20260101-000000") -> Path:
    """A copy of `folder` where runs of `args` go in `output`."""
    there = output / "gsm8k_grpo" / Path(args.model).name / name
    shutil.copytree(folder, there)
    return there


@functools.cache
def rows_of(where: str, limit: int) -> dict[str, str]:
    rows_read()  # not what was read before
    gsm8k.load("train", source=where)
    gsm8k.load("test", source=where, limit=limit)
    return rows_read()


def opened(args: Any, **changes: Any) -> Run:
    """As the recipe begins, with its rows read."""
    args = replace(args, **changes)
    source._READ.update(rows_of(args.source, args.eval_problems))
    return Run.open("gsm8k_grpo", args, correct="correctness_reward", format="structure_reward")


def said(error: Exception) -> str:
    sentence = explain(error)
    assert sentence is not None and "\n" not in sentence and len(sentence) < 700, repr(error)
    return sentence


def stages(folder: Path) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for line in (folder / "completions.jsonl").read_text(encoding="utf-8").splitlines():
        found.setdefault(json.loads(line)["stage"], []).append(json.loads(line))
    return found


def timeless(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [{key: value for key, value in line.items() if key not in OF_A_SESSION} for line in lines]


@pytest.mark.parametrize(
    ("file", "damage", "by_name"),
    [(*case, False) for case in CASES] + [(file, damage, True) for file in FILES[:2] for damage in DAMAGES],
    ids=named,
)
def test_a_damaged_file_is_refused_or_mended_and_named(
    file: str,
    damage: Callable[[Path], None],
    by_name: bool,
    runs: Runs,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is mended is as it was; what is left out is made again, which the next test does."""
    folder = lay(runs.killed, tmp_path, runs.args)
    damage(folder / file)
    try:
        run = opened(runs.args, output_dir=str(tmp_path), resume=str(folder) if by_name else True)
    except Exception as error:
        sentence = said(error)
        assert file in sentence or file in ("config.json",)
        return
    finally:
        resuming.leave()
    printed = capsys.readouterr().out
    assert file in SILENT or f"{folder / file}" in printed or f"{folder / file.partition('/')[0]} is" in printed
    whole = stages(runs.killed)
    assert all(run.earlier[name] == whole[name] for name in run.earlier)
    for name in whole.keys() - run.earlier.keys():
        assert f"{name} is evaluated again" in printed or f"lost {name}" in printed
    assert timeless(folder) == timeless(runs.killed)
    assert run.clock.seconds.keys() >= {"warm start", "grpo"}
    if file.startswith("warm_start"):
        assert not (folder / "warm_start").exists() and "made again from its last checkpoint" in printed


def test_a_run_that_was_damaged_all_over_ends_as_if_it_had_not_been(runs: Runs, tmp_path: Path) -> None:
    folder = lay(runs.killed, tmp_path, runs.args)
    cut(folder / "completions.jsonl")
    empty(folder / "seconds.json")
    remove(folder / "metrics.jsonl")
    fill_with_zeros(folder / "warm_start" / WEIGHTS)
    remove(folder / "adapter" / WEIGHTS)
    put_other_json(folder / "results.json")
    main(replace(runs.args, output_dir=str(tmp_path), resume=True))
    assert timeless(folder) == timeless(runs.whole)
    for file in ("completions.jsonl", "config.json", f"adapter/{WEIGHTS}", f"warm_start/{WEIGHTS}"):
        assert (folder / file).read_bytes() == (runs.whole / file).read_bytes(), file
    sums, whole = (json.loads((run / "checksums.json").read_text()) for run in (folder, runs.whole))
    assert {**sums, "files": 0} == {**whole, "files": 0}
    assert json.loads((folder / "results.json").read_text())["complete"] is True


@pytest.mark.parametrize(("file", "damage"), CASES, ids=named)
def test_a_complete_run_that_is_damaged_is_not_made_again(
    file: str, damage: Callable[[Path], None], runs: Runs, tmp_path: Path
) -> None:
    folder = lay(runs.whole, tmp_path, runs.args)
    damage(folder / file)
    with pytest.raises(ValueError) as refused:
        opened(runs.args, output_dir=str(tmp_path), resume=str(folder))
    sentence = said(refused.value)
    assert file in sentence
    with pytest.raises(ValueError) as refused:
        opened(runs.args, output_dir=str(tmp_path), resume=True)
    assert said(refused.value)
    # Nor does it keep another from being begun, whose minutes are told by it.
    opened(runs.args, output_dir=str(tmp_path))
    resuming.leave()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("file", [WEIGHTS, "adapter_config.json"])
@pytest.mark.parametrize("damage", DAMAGES, ids=named)
def test_a_damaged_adapter_is_not_started_from(
    file: str, damage: Callable[[Path], None], runs: Runs, adapted: Any, tmp_path: Path
) -> None:
    shutil.copytree(runs.whole / "adapter", tmp_path / "adapter")
    damage(tmp_path / "adapter" / file)
    with pytest.raises(ValueError) as refused:
        start_from(adapted, str(tmp_path / "adapter"))
    assert file in said(refused.value)


@pytest.fixture(scope="module")
def adapted(load_lora: Any, runs: Runs) -> Any:
    model, _ = load_lora(Path(runs.args.model), rank=runs.args.lora_rank)
    return model


def test_a_line_cut_off_by_a_kill_is_left_out_and_told(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = lay(runs.killed, tmp_path, runs.args)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"phase": "grpo", "st')
    opened(runs.args, output_dir=str(tmp_path), resume=True)
    resuming.leave()
    assert "metrics.jsonl: line 4 was cut off by a kill." in capsys.readouterr().out
    assert timeless(folder) == timeless(runs.killed)


def test_a_checkpoint_is_whole_by_the_mark_of_the_callbacks(runs: Runs) -> None:
    assert [(phase, step) for phase, step, _ in resuming.whole_checkpoints(runs.killed)] == [
        ("warm start", 2),
        ("grpo", 1),
    ]


def test_what_earlier_kills_left_is_removed(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = lay(runs.killed, tmp_path, runs.args)
    (folder / ".results.json.123.tmp").write_text("{")
    (folder / ".adapter.part").mkdir()
    opened(runs.args, output_dir=str(tmp_path), resume=True)
    resuming.leave()
    assert ".adapter.part" in capsys.readouterr().out
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_checkpoints_that_a_kill_left_of_a_complete_run_go(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = lay(runs.whole, tmp_path, runs.args)
    shutil.copytree(runs.killed / "checkpoints", folder / "checkpoints")
    other = lay(runs.killed, tmp_path, runs.args, "20250101-000000")
    opened(runs.args, output_dir=str(tmp_path))
    resuming.leave()
    assert not (folder / "checkpoints").exists() and (other / "checkpoints").exists()
    assert f"Removed the checkpoints of {folder}, which is complete." in capsys.readouterr().out


# Rows and weights


def test_changed_rows_are_refused(runs: Runs, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    for split in ("train", "test"):
        shutil.copy(SAMPLES / f"gsm8k_{split}.jsonl", rows / f"{split}.jsonl")
    args = replace(runs.args, source=str(rows), output_dir=str(tmp_path / "runs"))
    rows_of.cache_clear()
    folder = opened(args).folder
    resuming.leave()  # nothing was kept
    assert not folder.exists()
    folder = opened(args).folder
    (folder / "metrics.jsonl").write_text('{"phase": "grpo", "step": 1}\n')
    resuming.leave()
    moved = tmp_path / "elsewhere" / "rows"
    shutil.copytree(rows, moved)
    assert opened(replace(args, source=str(moved)), resume=True).folder == folder  # the same rows
    resuming.leave()
    for split, told in (("test", "8 rows"), ("train", r"\d+ rows")):
        path = moved / f"{split}.jsonl"
        content = path.read_text(encoding="utf-8")
        path.write_text(content.replace("how many", "How many", 1).replace("How many", "And how many", 1))
        rows_of.cache_clear()
        with pytest.raises(ValueError, match=rf"the rows of GSM8K {split} were {told}, \w+ and are {told}, \w+\); "):
            opened(replace(args, source=str(moved)), resume=True)
        path.write_text(content)
    rows_of.cache_clear()


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_changed_weights_are_refused(file: str, runs: Runs, tiny: Path, tmp_path: Path) -> None:
    model = tmp_path / tiny.name
    shutil.copytree(tiny, model)
    lay(runs.killed, tmp_path / "runs", runs.args)
    args = replace(runs.args, model=str(model), output_dir=str(tmp_path / "runs"))
    opened(args, resume=True)  # the same in another place
    resuming.leave()
    content = bytearray((model / file).read_bytes())
    content[-2] ^= 1
    (model / file).write_bytes(content)
    if file == "config.json":
        shutil.copy(tiny / file, model / file)
        (model / file).write_text((tiny / file).read_text() + "\n")
    with pytest.raises(ValueError, match=rf"the weights of {file} were \w+ and are \w+"):
        opened(args, resume=True)


def test_another_adapter_is_refused(runs: Runs, tmp_path: Path) -> None:
    """Of any flag that names one, or means one, as `--reward trained` does the newest."""
    for name in ("old", "new"):
        shutil.copytree(runs.whole / "adapter", tmp_path / name)
    (tmp_path / "new" / WEIGHTS).write_bytes(b"1")
    spec = resolve(runs.args.model)

    def known(**flags: Any) -> dict[str, Any]:
        return resuming.identity(SimpleNamespace(load_in_4bit=False, **flags), spec)

    old, new = str(tmp_path / "old"), str(tmp_path / "new")
    for flag, before, after in (
        ("--start-from", known(start_from=old), known(start_from=new)),
        ("--compare-with", known(compare_with=old), known(compare_with=new)),
        ("--reward", known(reward=old), known(reward=new)),
    ):
        (changed,) = resuming.differences(before, after)
        assert changed.startswith(f"the weights of {flag} {WEIGHTS} were ")
    resuming.means("reward", tmp_path / "old")
    before = known(reward="trained")
    resuming.means("reward", tmp_path / "new")
    assert len(resuming.differences(before, known(reward="trained"))) == 1


def test_what_a_large_file_is_known_by_sees_its_ends_and_its_middle(tmp_path: Path) -> None:
    from eval.files import READ_WHOLE, fingerprint

    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(READ_WHOLE + 2**20))
    known = fingerprint(path)
    for place in (0, 2**20 - 1, 2**20, path.stat().st_size - 1):
        with open(path, "r+b") as file:
            file.seek(place)
            file.write(b"x")
        assert fingerprint(path) != known
        known = fingerprint(path)
    with open(path, "ab") as file:
        file.write(b"\0")
    assert fingerprint(path) != known


def test_the_weights_of_a_hub_model_are_kept_once_they_are_known(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are known by their contents: a new commit that leaves them alone, of a model card, changes nothing."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    spec, config = resolve("nobody/nothing"), tmp_path / "config.json"
    config.write_text('{"weights": {}}')
    resuming.settle(tmp_path, spec, False)
    assert json.loads(config.read_text()) == {"weights": {}}  # not downloaded yet

    def download(commit: str, content: str) -> None:
        cached = tmp_path / "hub" / "models--nobody--nothing"
        blob, snapshot = cached / "blobs" / content, cached / "snapshots" / commit
        for folder in (blob.parent, snapshot, cached / "refs"):
            folder.mkdir(parents=True, exist_ok=True)
        blob.write_text("weights")
        (snapshot / "model.safetensors").symlink_to(blob)
        (cached / "refs" / "main").write_text(commit)

    download("a" * 40, "one")
    resuming.settle(tmp_path, spec, False)
    known = json.loads(config.read_text())
    assert [*known["weights"]] == ["the hub's nobody/nothing"]
    download("b" * 40, "one")
    resuming.settle(tmp_path, spec, False)
    assert json.loads(config.read_text()) == known
    download("c" * 40, "two")
    with pytest.raises(ValueError, match=r"the weights of the hub's nobody/nothing were \w+ and are \w+"):
        resuming.settle(tmp_path, spec, False)


def test_an_empty_cache_of_the_hub_is_no_other_model() -> None:
    """The next session on Colab or Kaggle has one, and adapters that flags name are known all the same."""
    begun = {"weights": {"the hub's org/x": "1", "--start-from adapter": "2"}}
    assert resuming.differences(begun, {"weights": {"--start-from adapter": "2"}}) == []
    assert resuming.differences({"weights": {"--start-from adapter": "2"}}, begun) == []
    assert resuming.differences(begun, {"weights": {"the hub's org/x": "1"}}) == ["--start-from adapter is gone"]


def test_a_reward_model_that_was_the_newest_is_given_by_its_folder(tmp_path: Path) -> None:
    begun = {"reward": "trained", "weights": {"--reward adapter": "1"}}
    named = {"reward": str(tmp_path), "weights": {"--reward adapter": "1"}}
    assert resuming.differences(begun, named) == []
    assert resuming.differences(begun, named | {"weights": {"--reward adapter": "2"}}) != []


def test_where_no_lock_can_be_had_the_run_is_known_all_the_same(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    folder = Path(shutil.copytree(runs.killed, tmp_path / "run"))
    monkeypatch.setattr(resuming.fcntl, "flock", refuse)
    resuming.take(folder)
    assert "No lock can be had" in capsys.readouterr().out and resuming.prospects() != ""
    resuming.leave(folder)
    assert not (folder / resuming.LOCK).exists()


# Which folder


def test_what_hides_no_unfinished_run(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Complete runs, runs of other settings and starts that failed, all newer; and a clock that was set back."""
    there = lay(runs.killed, tmp_path, runs.args)
    lay(runs.whole, tmp_path, runs.args, "20260102-000000")
    other = lay(runs.killed, tmp_path, runs.args, "20260103-000000")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"seed": 1}))
    failed = lay(runs.killed, tmp_path, runs.args, "20260104-000000")
    for path in failed.iterdir():
        if path.name != "config.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (there.parent / "20260105-000000").mkdir()
    args = replace(runs.args, output_dir=str(tmp_path))
    assert opened(args, resume=True).folder == there
    assert f"Passing over {other}: it is unfinished too" in capsys.readouterr().out
    resuming.leave()
    for damage in (put_another_object, cut):  # of what, nobody knows
        kept = (other / "config.json").read_bytes()
        damage(other / "config.json")
        with pytest.raises(ValueError, match=rf"^{other / 'config.json'} cannot be read \("):
            opened(args, resume=True)
        (other / "config.json").write_bytes(kept)
    shutil.move(there, tmp_path / "moved")  # by name, wherever it is
    assert opened(args, resume=str(tmp_path / "moved")).folder == tmp_path / "moved"
    resuming.leave()
    assert opened(args, resume=True).folder == failed  # nothing else is left
    resuming.leave()
    lay(runs.killed, tmp_path, runs.args, "29990101-000000")
    newest = opened(args).folder
    assert newest.name == "29990101-000000b" == max(path.name for path in newest.parent.iterdir())
    resuming.leave()


def test_a_folder_that_is_named_must_be_one(runs: Runs, tmp_path: Path) -> None:
    for wanted, says in ((tmp_path / "x", "there is no such folder"), (tmp_path, "config.json cannot be read")):
        with pytest.raises(ValueError, match=says):
            opened(runs.args, output_dir=str(tmp_path), resume=str(wanted))
    other = lay(runs.killed, tmp_path, runs.args)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"recipe": "arc_sft"}))
    with pytest.raises(ValueError, match=r"another configuration \(arc_sft -> gsm8k_grpo\)"):
        opened(runs.args, output_dir=str(tmp_path), resume=str(other))


def test_a_start_that_failed_leaves_nothing(runs: Runs, tmp_path: Path) -> None:
    run = opened(runs.args, output_dir=str(tmp_path / "new" / "runs"))
    assert (run.folder / "config.json").exists()
    resuming.leave()  # as `cli.start` does at the end
    assert not (tmp_path / "new").exists()
    run = opened(runs.args, output_dir=str(tmp_path / "new"))
    run.stage("before", lambda stage: stages(runs.killed)["before"])
    resuming.leave()
    assert (run.folder / "completions.jsonl").exists() and not (run.folder / ".lock").exists()


# Who is in it

HOLDER = "import sys; from pathlib import Path; from recipes.common import resuming; {}; print(1, flush=True); input()"


def test_one_process_is_in_a_folder(runs: Runs, tmp_path: Path) -> None:
    """It is named to others, and its lock dies with it."""
    folder = lay(runs.killed, tmp_path, runs.args)
    program = HOLDER.format("resuming.take(Path(sys.argv[1]))")
    holder = subprocess.Popen(
        [sys.executable, "-c", program, folder], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None and holder.stdout.readline() == b"1\n"
    for wanted in (True, str(folder)):
        with pytest.raises(ValueError, match=rf"is in use by process {holder.pid} on \S+ since \S+ \S+: wait for it"):
            opened(runs.args, output_dir=str(tmp_path), resume=wanted)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (folder / ".lock").exists()
    assert opened(runs.args, output_dir=str(tmp_path), resume=True).folder == folder
    resuming.leave()
    assert not (folder / ".lock").exists()
