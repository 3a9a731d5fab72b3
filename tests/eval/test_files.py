import json
import resource
from pathlib import Path
from typing import Any

import pytest

from eval.files import write_json_atomic, write_text_atomic


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
