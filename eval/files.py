"""Files that are either complete or absent: a killed run or a full disk never leaves half of one."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
READ_WHOLE = 2**24  # bytes of a file that are read for its fingerprint; of a longer one, 5 MiB
MEND = "put a whole copy in its place, or remove it"


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
        fsync(path.parent)  # or a power cut takes the rename back
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
            fsync(folder.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def fsync_tree(folder: Path) -> None:
    """Flush every file below `folder`, then every folder, deepest first, and `folder`'s parent: to be called before
    anything is written that vouches for them. After a power cut they hold what they hold now.

    Links are not followed. Raises OSError (a failing disk, a file that may not be read).
    """
    inside = [path for path in folder.rglob("*") if not path.is_symlink()]
    for path in [*sorted(inside, key=lambda path: (path.is_dir(), -len(path.parts))), folder, folder.parent]:
        fsync(path)


def sha256(path: Path) -> str:
    """Of all of a file, in hexadecimal. About a second for a GB."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(path: Path) -> str:
    """By which a file of weights is known again without reading all of it: a hash of its size, its first MiB, where a
    safetensors file has its header, and of 64 pieces of 64 KiB over the rest; of all of it up to 16 MiB."""
    size, digest = path.stat().st_size, hashlib.sha256()
    digest.update(str(size).encode())
    with open(path, "rb") as file:
        if size <= READ_WHOLE:
            digest.update(file.read())
        else:
            digest.update(file.read(2**20))
            for piece in range(64):
                file.seek(2**20 + piece * (size - 2**20 - 2**16) // 63)
                digest.update(file.read(2**16))
    return digest.hexdigest()[:16]


def fsync(path: Path) -> None:
    """Flush one file or folder to the disk. Some shared drives flush no folders and say so: that is no fault."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
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
    """What a JSON file holds; raises ValueError, in one sentence, where that is not JSON, and OSError."""
    try:
        return json.loads(path.read_bytes().decode("utf-8"))
    except (IsADirectoryError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({what_is_wrong(error)}): {MEND}") from error


def what_is_wrong(error: Exception) -> str:
    """With what is not a file of JSON, in a few words."""
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}: {error.msg}" if error.doc.strip() else "it is empty"
    if isinstance(error, IsADirectoryError):
        return "it is a folder"
    return "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else "it is nested too deeply"
