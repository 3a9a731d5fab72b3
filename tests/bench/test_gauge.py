"""The gauge of resident memory, turns and tables."""

from pathlib import Path

import pytest

from recipes.bench.gauge import aligned, in_turn, reset_peak, resident_mib
from recipes.bench.process import Failed, call


def marks() -> list[int]:
    """The peak before a block of 64 MiB, after it and after a reset, and what is held then."""
    reset_peak()
    before = resident_mib("VmHWM")
    block = b"\1" * (64 << 20)
    del block
    after = resident_mib("VmHWM")
    reset_peak()
    return [before, after, resident_mib("VmHWM"), resident_mib("VmRSS")]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux has /proc")
def test_the_gauge_keeps_a_peak_until_it_is_reset() -> None:
    before, after, peak, now = call(marks)  # one that has held much has room for a block without growing
    assert 60 <= after - before <= 100
    assert peak - now < 8 and peak - before < 32


def test_a_contender_that_fails_takes_no_figure_with_it(capsys: pytest.CaptureFixture) -> None:
    def fail() -> None:
        raise Failed("it was killed")

    assert list(in_turn([("ours", lambda: 1), ("trl", fail), ("ours", lambda: 2)])) == [
        ("ours", 1),
        ("trl", None),
        ("ours", 2),
    ]
    assert "trl failed: it was killed\n" in capsys.readouterr().out


def test_a_table_stands_in_columns() -> None:
    assert aligned([["", "peak"], ["ours", "12"], ["trl", ""]]) == ["      peak", "ours    12", "trl"]
