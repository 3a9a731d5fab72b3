"""The time of a run over its sessions, and what is left of `--max-hours`."""

import math
import time
from pathlib import Path

import pytest

from recipes.common.clock import Clock


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
