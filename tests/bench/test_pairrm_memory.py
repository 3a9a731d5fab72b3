"""The benchmark's rows and its figures on a tiny PairRM; the measurement is `python -m recipes.bench.pairrm_memory`."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from recipes.bench.pairrm_memory import BAR, build_pairs, measure
from recipes.common.stand_ins.tiny import write_pairrm

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(unsloth: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pairrm")
    write_pairrm(folder)
    return str(folder)


def test_no_pair_is_spared_for_being_another() -> None:
    """PairRM reads equal rows once."""
    texts = build_pairs(100, 300)
    assert [len(set(side)) for side in texts] == [100] * 3 and len({*texts[0], *texts[1], *texts[2]}) == 300
    assert {len(text) for side in texts for text in side} == {96}
    assert build_pairs(100, 300) == texts != build_pairs(100, 300, seed=1)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux has /proc")
def test_what_is_measured_is_beside_the_size_of_the_model(folder: str) -> None:
    from rewards import pairrm

    found = measure(folder, 30, 300)
    assert found["above_mib"] == found["peak_mib"] - found["start_mib"] >= 0
    weights = sum(weight.nbytes for weight in pairrm.load(folder).model.state_dict().values()) / 2**20
    assert found["ratio"] == pytest.approx(found["above_mib"] / weights, abs=1e-3)
    assert found["met"] == (found["ratio"] <= BAR) and found["pairs_per_second"] > 0
    with pytest.raises(RuntimeError, match="not of 301 tokens"):
        measure(folder, 2, 301)


@pytest.mark.parametrize("given", [["--pairs", "0"], ["--tokens", "301"], ["--tokens", "12"], ["--tokens", "2100"]])
def test_nothing_is_built_for_what_cannot_be_measured(given: list[str]) -> None:
    command = [sys.executable, "-m", "recipes.bench.pairrm_memory", *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "--tokens a multiple of 3 from 15 to 2048" in done.stderr
