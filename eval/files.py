"""Files that are either complete or absent: a killed run or a full disk never leaves half of one."""

import json
import os
import re
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def write_text_atomic(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, which afterwards holds all of it or what it held before.

    Raises OSError (full disk, missing or unwritable folder), and then removes the temporary file beside
    `path`.
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

    Raises ValueError for NaN or infinity, which JSON cannot express, TypeError for other such
    objects, and OSError.
    """
    write_text_atomic(path, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


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
