"""Reading the machine: nvidia-smi in whatever state it is, and what CUDA_VISIBLE_DEVICES hides."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recipes.common import machine


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An nvidia-smi of ours that finds a card; `has_gpu` is asked anew."""
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\nexit 0\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    machine.has_gpu.cache_clear()
    yield script
    machine.has_gpu.cache_clear()


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        *((value, True) for value in (None, "0", " 1", "0,1", "0,-1", "GPU-5ebe9f43", "MIG-GPU-5ebe9f43/1/0")),
        *((value, False) for value in ("", " ", "-1", "-1,0", "none", "void", "NoDevFiles")),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_does(
    smi: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, seen: bool
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.has_gpu() == seen


def test_an_nvidia_smi_that_fails_or_cannot_be_started_is_no_card(smi: Path) -> None:
    for content in ("#!/bin/sh\nexit 9\n", "\x7fELF"):
        smi.write_text(content)
        machine.has_gpu.cache_clear()
        assert not machine.has_gpu()


def test_an_nvidia_smi_that_hangs_is_no_card_and_said(smi: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    smi.write_text("#!/bin/sh\nexec sleep 600\n")
    start = machine.subprocess.run
    monkeypatch.setattr(machine.subprocess, "run", lambda *args, **how: start(*args, **{**how, "timeout": 0.2}))
    assert not machine.has_gpu()
    assert capsys.readouterr().err.startswith("nvidia-smi did not answer within 20 seconds: going on without a GPU")
