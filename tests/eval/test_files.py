import json
import os
import resource
import threading
from pathlib import Path
from typing import Any

import pytest

from eval.files import built_once, fsync_tree, read_json, write_json_atomic, write_text_atomic


def test_text_is_written_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_text_atomic(path, "first")
    write_text_atomic(path, "naïve ≤ 3\r\n")
    assert path.read_bytes() == "naïve ≤ 3\r\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_text_atomic(path, "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        with pytest.raises(OSError):
            write_text_atomic(path, "new" * 1_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_replace_removes_the_temporary_file(tmp_path: Path) -> None:
    taken = tmp_path / "results.json"
    taken.mkdir()
    with pytest.raises(OSError):
        write_text_atomic(taken, "{}")
    assert list(tmp_path.iterdir()) == [taken]


def test_a_missing_folder_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_text_atomic(tmp_path / "nowhere" / "results.json", "{}")


def test_json_round_trips_even_a_lone_surrogate(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    value = {"args": {"source": "caf\udce9", "name": "é \\udce9"}, "n": [1, None, 0.5]}
    write_json_atomic(path, value)
    assert json.loads(path.read_text(encoding="utf-8")) == value


@pytest.mark.parametrize(("value", "error"), [(float("nan"), ValueError), (Path("x"), TypeError)])
def test_what_json_cannot_hold_is_never_begun(tmp_path: Path, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        write_json_atomic(tmp_path / "results.json", {"value": value})
    assert not list(tmp_path.iterdir())


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files and folders that are flushed from now on, in their order; they are flushed for real."""
    paths: list[Path] = []
    fsync = os.fsync

    def note(handle: int) -> None:
        paths.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    return paths


def test_a_tree_is_flushed_from_its_leaves_to_the_folder_that_holds_it(tmp_path: Path, flushed: list[Path]) -> None:
    tree = tmp_path / "adapter"
    (tree / "deep" / "er").mkdir(parents=True)
    files = [tree / "config.json", tree / "deep" / "weights", tree / "deep" / "er" / "vocabulary"]
    for file in files:
        file.write_text("x")
    (tree / "link").symlink_to("/nowhere")
    fsync_tree(tree)
    assert sorted(flushed) == sorted([*files, tree, tree / "deep", tree / "deep" / "er", tmp_path])
    assert flushed[-2:] == [tree, tmp_path]
    for path in flushed[:-1]:
        assert flushed.index(path) < flushed.index(path.parent), "a folder is flushed after what it holds"


def test_a_file_is_written_with_its_folder(tmp_path: Path, flushed: list[Path]) -> None:
    write_text_atomic(tmp_path / "results.json", "{}")
    assert flushed[0].name.startswith(".results.json.") and flushed[1:] == [tmp_path]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty"),
        (b"{\n", r"line 2: Expecting property name enclosed in double quotes"),
        (b"\0" * 9, "line 1: Expecting value"),
        (b"\xff\xfe", "it is not UTF-8 text"),
        (b"[" * 100_000, "it is nested too deeply"),
    ],
)
def test_what_is_no_json_is_one_sentence(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"^{path} is damaged \({says}.*\): put a whole copy in its place, or remove it$"
    ):
        read_json(path)


def test_two_callers_after_a_kill_build_once(tmp_path: Path) -> None:
    partial, builds = tmp_path / "cache" / "model.partial", []
    partial.mkdir(parents=True)
    (partial / "half").write_text("of a killed build")
    waiting = threading.Barrier(2)

    def build(folder: Path) -> None:
        builds.append(folder)
        (folder / "deep").mkdir()
        (folder / "deep" / "weights").write_text("1")

    def call() -> None:
        waiting.wait()
        assert built_once(tmp_path / "cache" / "model", build) == tmp_path / "cache" / "model"

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert builds == [partial]
    assert {path.name for path in (tmp_path / "cache").rglob("*")} == {"model", "model.lock", "deep", "weights"}


def test_a_damaged_folder_is_built_again_and_an_intact_one_is_only_read(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "old").mkdir(parents=True)

    def is_intact(folder: Path) -> bool:
        return (folder / "new").exists()

    built_once(folder, lambda empty: (empty / "new").write_text("1"), intact=is_intact)
    assert [path.name for path in folder.iterdir()] == ["new"]
    (tmp_path / "model.lock").unlink()
    built_once(folder, lambda empty: pytest.fail("built an intact folder"), intact=is_intact)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_build_that_fails_leaves_nothing_but_its_lock(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("1")
        raise RuntimeError("no weights")

    with pytest.raises(RuntimeError, match="no weights"):
        built_once(tmp_path / "model", build)
    assert [path.name for path in tmp_path.iterdir()] == ["model.lock"]
