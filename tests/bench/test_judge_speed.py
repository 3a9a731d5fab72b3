"""The benchmark's gauge on a small scale; the measurement itself is `python -m recipes.bench.judge_speed`."""

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import pytest

from recipes.bench import judge_speed as bench_judge
from recipes.bench.judge_speed import STEP, build_columns, measure_lookups, measure_step, serve, table, verdict


def test_no_completion_of_the_rows_is_another() -> None:
    columns = build_columns(40)
    assert {len(values) for values in columns.values()} == {40}
    assert len({json.dumps(completion) for completion in columns["completions"]}) == 40
    assert build_columns(20, first=20) == {name: values[20:] for name, values in columns.items()}


def test_the_server_takes_its_time_for_all_at_once() -> None:
    def ask(address: str) -> str:
        body = json.dumps({"model": "scripted", "messages": [{"role": "user", "content": "Well?"}]}).encode()
        with urllib.request.urlopen(f"{address}/v1/chat/completions", body, timeout=10) as reply:
            return json.load(reply)["choices"][0]["message"]["content"]

    with serve(verdict, 0.3) as address, ThreadPoolExecutor(STEP) as pool:
        began = perf_counter()
        replies = list(pool.map(ask, [address] * STEP))
        assert 0.3 <= perf_counter() - began < 2
    assert replies == [verdict({})] * STEP
    with pytest.raises(OSError):
        ask(address)


def test_lookups_are_read_and_steps_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_judge, "ROUNDS", 2)
    assert measure_lookups(tmp_path / "warm", 40) > 0
    waits = measure_step(tmp_path / "step", 0.1)
    assert len(waits) == 2 and min(waits) >= 0.1


def test_what_was_not_measured_is_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_judge, "verdict", lambda request: "no verdict")
    monkeypatch.setattr("rewards.judge.ATTEMPTS", 1)
    with pytest.raises(RuntimeError, match=r"0 of 8 verdicts arrived"):
        measure_lookups(tmp_path, 8)


@pytest.mark.parametrize(
    ("rate", "wait", "missed"), [(10_000, 1.5, 0), (9_999, 1.5, 1), (10_000, 1.501, 1), (1, 9.0, 2)]
)
def test_a_missed_bar_says_so(rate: int, wait: float, missed: int) -> None:
    lines = table({"lookups_per_second": rate, "step_seconds": wait})
    assert [line.endswith("MISSED") for line, _ in lines] == [not met for _, met in lines]
    assert sum(not met for _, met in lines) == missed
