"""The time of a run, over all its sessions: seconds by phase, and what `--max-hours` leaves."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eval.files import read_json, write_json_atomic


class Clock:
    """Keeps `seconds.json` in the run's folder; the time limit is this session's."""

    def __init__(self, folder: Path, max_hours: float | None) -> None:
        self.file, self.max_hours, self.started = folder / "seconds.json", max_hours, time.monotonic()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds spent inside to phase `name`, also when the phase fails or is resumed later."""
        started = time.monotonic()
        try:
            yield
        finally:
            seconds = self.seconds
            seconds[name] = round(seconds.get(name, 0.0) + time.monotonic() - started, 1)
            write_json_atomic(self.file, seconds)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase so far, over all sessions of this run."""
        return read_json(self.file) if self.file.exists() else {}

    def time_left(self) -> float:
        """Seconds until training must stop so that the last evaluation still fits into `--max-hours`."""
        if self.max_hours is None:
            return math.inf
        evaluation = max((s for name, s in self.seconds.items() if name.startswith("evaluate")), default=0.0)
        return self.max_hours * 3600 - (time.monotonic() - self.started) - 1.5 * evaluation
