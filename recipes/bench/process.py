"""A process of its own for whatever is measured, so that nothing that one contender leaves behind meets another.

python -m recipes.bench.process MODULE FUNCTION FILE    # as `call` starts it: arguments in, result out, both JSON
"""

import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import recipes.common  # noqa: F401  no usage pings, here and in what is started
from eval.files import read_json, write_json_atomic

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 1800  # seconds after which a process hangs, most likely


class Failed(Exception):
    """A process that did not do what it was asked, with the reason on a line."""


def call(function: Callable[..., Any], *arguments: Any, **how: Any) -> Any:
    """What `function`, of the top of a module, returns in a process of its own; `how` is that of `run`, or a `python`.

    Arguments and result go through JSON. There the module is imported and no other, so that a function decides itself
    what comes first, Unsloth for the most part, and may run where half of our libraries are missing.
    """
    module = sys.modules[function.__module__].__spec__  # a module that was started by its name is "__main__" here
    assert module, function
    with tempfile.TemporaryDirectory(prefix="bench-") as work:
        path = Path(work) / "call.json"
        write_json_atomic(path, arguments)
        python = how.pop("python", sys.executable)
        run([python, "-m", "recipes.bench.process", module.name, function.__name__, str(path)], **how)
        return read_json(path)


def run(command: Sequence[str], *, timeout: float | None = TIMEOUT, shown: bool = False, **environment: str) -> None:
    """Run `command` in the clone, offline and with `environment` besides; silently, unless `shown`.

    Raises Failed with its last line of error, or what killed it.
    """
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", **environment}
    pipes: dict[str, Any] = {} if shown else {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    try:
        done = subprocess.run(command, cwd=ROOT, env=settings, text=True, timeout=timeout, **pipes)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"it was not done after {error.timeout / 60:g} minutes") from None
    if done.returncode < 0:
        raise Failed(f"it was killed by signal {-done.returncode}, for want of memory most likely")
    if done.returncode:
        lines = [line for line in (done.stderr or "").splitlines() if line.strip()]
        raise Failed(lines[-1][:300] if lines else f"it ended with code {done.returncode}")


def main(module: str, function: str, file: str) -> None:
    path = Path(file)
    write_json_atomic(path, getattr(importlib.import_module(module), function)(*read_json(path)))


if __name__ == "__main__":
    main(*sys.argv[1:])
