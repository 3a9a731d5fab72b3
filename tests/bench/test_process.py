"""Functions in processes of their own: what they return, what they see, and why they failed."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes.bench import process
from recipes.bench.process import Failed, call


def test_a_function_returns_what_it_found_from_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONE", "1")
    assert call(os.getpid) != os.getpid()
    assert [call(os.getenv, name, TWO="2") for name in ("ONE", "TWO", "HF_HUB_OFFLINE")] == ["1", "2", "1"]
    assert Path(call(os.getcwd)) == process.ROOT
    assert "UNSLOTH_DISABLE_STATISTICS" in os.environ


@pytest.mark.parametrize(
    ("function", "arguments", "reason"),
    [
        (os.listdir, ["/no/such/folder"], "^FileNotFoundError: .* '/no/such/folder'$"),
        (os.abort, [], "^it was killed by signal 6, for want of memory most likely$"),
        (os._exit, [3], "^it ended with code 3$"),
        (time.sleep, [60], "^it was not done after 0.01 minutes$"),
    ],
)
def test_a_process_says_why_it_failed(function: Callable[..., Any], arguments: list[Any], reason: str) -> None:
    with pytest.raises(Failed, match=reason):
        call(function, *arguments, timeout=0.6 if function is time.sleep else None)
