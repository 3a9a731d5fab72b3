"""The gauge of resident memory."""

from pathlib import Path

import pytest

from recipes.bench.gauge import reset_peak, resident_mib
from recipes.bench.process import call


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
