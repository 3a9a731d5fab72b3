"""The time of a run over its sessions, what is left of `--max-hours`, and signals that end a session."""

import math
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recipes.common.clock import Clock, Terminated, ends_on_signals


def test_time_left_keeps_room_for_the_last_evaluation(tmp_path: Path) -> None:
    assert Clock(tmp_path, None).time_left() == math.inf
    clock = Clock(tmp_path, 0.5)
    assert clock.time_left() == pytest.approx(1800, abs=1)
    (tmp_path / "seconds.json").write_text('{"evaluate before": 100, "evaluate after": 60, "grpo": 900}')
    clock.started = time.monotonic() - 300  # this session's start; earlier sessions had hours of their own
    assert clock.time_left() == pytest.approx(1800 - 300 - 1.5 * 100, abs=1)


def test_seconds_add_up_over_sessions_and_failures(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Clock(tmp_path, None).phase("grpo"):
        time.sleep(0.15)
        raise KeyboardInterrupt
    resumed = Clock(tmp_path, None)
    with resumed.phase("grpo"):
        time.sleep(0.15)
    assert 0.2 <= resumed.seconds["grpo"] < 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_the_trainer_end_its_step(number: int, tmp_path: Path) -> None:
    clock, before = Clock(tmp_path, None), signal.getsignal(number)
    with pytest.raises(Terminated) as end, ends_on_signals(), clock.phase("grpo"):
        os.kill(os.getpid(), number)
        assert clock.time_left() == -math.inf  # which the trainer asks after the step, and then saves and stops
    assert end.value.args == (number,) and "grpo" in clock.seconds
    assert signal.getsignal(number) is before and clock.time_left() == -math.inf
    with ends_on_signals():
        assert clock.time_left() == math.inf  # another session


@pytest.mark.parametrize("phase", ["evaluate before", "compare"])
def test_a_signal_ends_at_once_what_no_trainer_is_at(phase: str, tmp_path: Path) -> None:
    with pytest.raises(Terminated), ends_on_signals(), Clock(tmp_path, None).phase(phase):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("it went on")
    with pytest.raises(Terminated), ends_on_signals():  # while a model loads
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("it went on")


def test_a_second_signal_does_not_wait_for_the_step(tmp_path: Path) -> None:
    with pytest.raises(Terminated), ends_on_signals(), Clock(tmp_path, None).phase("grpo"):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("it went on")


def test_under_nohup_a_run_goes_on(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ends_on_signals(), Clock(tmp_path, None).phase("grpo"):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


TERMINAL = """
import os, pathlib, sys, time
from recipes.common.clock import Clock, ends_on_signals
folder = pathlib.Path(sys.argv[1])
with ends_on_signals(), Clock(folder, None).phase("sft"):
    (folder / "began").touch()
    while Clock(folder, None).time_left() > 0:
        time.sleep(0.01)
    print("a row of the table", flush=True)
    (folder / "saved").touch()
"""


def test_a_terminal_that_is_closed_does_not_keep_the_checkpoint_from_being_saved(tmp_path: Path) -> None:
    """What is printed fails from then on, with an error of input and output."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", TERMINAL, tmp_path],
        cwd=Path(__file__).resolve().parents[2],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    while not (tmp_path / "began").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    assert process.wait() == 1 and (tmp_path / "saved").exists()
