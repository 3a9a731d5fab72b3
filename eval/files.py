"""Files that are either complete or absent: a killed run or a full disk never leaves half of one."""

import json
import os
import re
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def write_text_atomic(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, which afterwards holds all of it or what it held before.

    Raises OSError (full disk, missing or unwritable folder), and leaves no temporary file then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # no rename across file systems
    try:
        with open(temporary, "wb") as file:
            # A model or a command line may hold a lone surrogate, which UTF-8 cannot express. It is written
            # as \udXXX, which JSON reads back as the same character.
            file.write(text.encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json_atomic(path: Path, obj: Any) -> None:
    """Write `obj` as indented JSON to `path`, atomically.

    Raises ValueError for NaN or infinity, which JSON cannot express, TypeError for other such objects, and OSError.
    """
    write_text_atomic(path, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def built_once(folder: Path, build: Callable[[Path], object], *, intact: Callable[[Path], bool] = Path.is_dir) -> Path:
    """`folder`, which `build` fills where it is not `intact`: it appears by one rename, whole and on disk.

    Processes that call at the same time wait for one build, in an empty folder beside it. What a killed build left
    there is removed, and so is a `folder` that is no longer intact; one that is may be read-only.

    Raises whatever `build` raises, and OSError (full disk, unwritable folder). Then nothing is left but a lock file.
    """
    if intact(folder):
        return folder
    from filelock import FileLock

    partial = folder.with_name(folder.name + ".partial")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(folder.name + ".lock")):
        if intact(folder):  # another process built it while this one waited
            return folder
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            build(partial)
            # A rename can reach the disk before the data: after a power cut the folder is whole in name only.
            fsync_tree(partial)
            if folder.exists():
                shutil.rmtree(folder)
            partial.rename(folder)
            _fsync(folder.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def fsync_tree(folder: Path) -> None:
    """Flush every file below `folder` to the disk, then every folder, deepest first, and `folder`'s parent.

    For what something else is to vouch for: after a power cut a file that was not flushed may be all zeros. Raises
    OSError.
    """
    below = sorted(folder.rglob("*"), key=lambda path: (path.is_dir(), -len(path.parts)))
    for path in [*below, folder, folder.parent]:
        _fsync(path)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def results_folder(machine: str, root: Path = RESULTS) -> Path:
    """Where the figures of this kind of machine are kept, eval/results/<machine>/; makes the folder."""
    folder = root / re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def results_path(machine: str, what: str) -> Path:
    """Where today's figures of a benchmark are kept, eval/results/<machine>/<date>-<what>.json; makes the folder."""
    return results_folder(machine) / f"{date.today().isoformat()}-{what}.json"


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
