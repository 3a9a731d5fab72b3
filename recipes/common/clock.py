"""The time of a run, over all its sessions: seconds by phase, what `--max-hours` leaves, and signals that end it."""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eval.files import read_json, write_json_atomic


class Terminated(KeyboardInterrupt):
    """A SIGTERM or a SIGHUP, whose number is `args[0]`, ended this session."""


class _Session:
    """Of this process."""

    asked: int | None = None  # the signal that asked it to end
    training = False  # a trainer is at work, which asks for the time left after each step


@contextmanager
def ends_on_signals() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP end the session with `Terminated`: after the step that a trainer is at and with a
    checkpoint of it, elsewhere or at a second signal at once. One that is ignored, as by nohup, stays so."""
    _Session.asked, _Session.training = None, False
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    caught = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    try:
        for number in caught:
            signal.signal(number, _on_signal)
        yield
    finally:
        for number in caught:
            signal.signal(number, before[number])


def _on_signal(number: int, frame: Any) -> None:
    again, _Session.asked = _Session.asked is not None, number
    if number == signal.SIGHUP:
        _let_go_of_terminal()
    if again or not _Session.training:
        raise Terminated(number)
    os.write(2, f"{signal.Signals(number).name}: a checkpoint is saved after this step.\n".encode())


def _let_go_of_terminal() -> None:
    """Where the terminal is gone, what is printed from now on goes nowhere, so that no print fails before the save."""
    for handle in (1, 2):
        try:
            os.write(handle, b"\n")
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), handle)


class Clock:
    """Keeps `seconds.json` in the run's folder; the time limit is this session's."""

    def __init__(self, folder: Path, max_hours: float | None) -> None:
        self.file, self.max_hours, self.started = folder / "seconds.json", max_hours, time.monotonic()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds spent inside to phase `name`, also when the phase fails or is resumed later."""
        started = time.monotonic()
        _Session.training = not name.startswith(("evaluate", "compare"))
        try:
            yield
            if _Session.asked is not None:
                raise Terminated(_Session.asked)
        finally:
            _Session.training = False
            seconds = self.seconds
            seconds[name] = round(seconds.get(name, 0.0) + time.monotonic() - started, 1)
            write_json_atomic(self.file, seconds)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase so far, over all sessions of this run."""
        return read_json(self.file) if self.file.exists() else {}

    def time_left(self) -> float:
        """Seconds until training must stop so that the last evaluation still fits into `--max-hours`; none are left
        once a signal asked for the end."""
        if _Session.asked is not None:
            return -math.inf
        if self.max_hours is None:
            return math.inf
        evaluation = max((s for name, s in self.seconds.items() if name.startswith("evaluate")), default=0.0)
        return self.max_hours * 3600 - (time.monotonic() - self.started) - 1.5 * evaluation
