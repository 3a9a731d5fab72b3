"""What the benches share: a process's memory, turns, tables, bars and their verdicts, the command line and the file."""

import argparse
import gc
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from eval.files import results_path, write_json_atomic
from recipes.bench.process import ROOT, Failed
from recipes.common import machine

PEER_PYTHON = ".venv-trl112/bin/python"
# What is compared, whose, with whose, and the largest ratio of the two; None: it is shown for information.
Bar = tuple[str, str, str, float | None]


def resident_mib(field: str) -> int:
    """Resident memory of this process in MiB: "VmRSS" now, or "VmHWM", the most since its start or `reset_peak`."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (kib,) = re.findall(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    return round(int(kib) / 1024)


def reset_peak() -> int:
    """Let the kernel's mark of the peak, "VmHWM", start again from what is held now; returns that, in MiB."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return resident_mib("VmRSS")


def memory(start: int) -> dict[str, Any]:
    """MiB at the `start`, of `reset_peak`, at the peak since, and between them."""
    peak = resident_mib("VmHWM")
    return {"start_mib": start, "peak_mib": peak, "above_mib": peak - start}


def in_turn(contenders: Iterable[tuple[str, Callable[[], Any]]]) -> Iterator[tuple[str, Any]]:
    """Each contender's name with what it found; None where it failed, for the others' figures must not go with it."""
    for name, contend in contenders:
        began = time.monotonic()
        try:
            found = contend()
        except (Failed, RuntimeError) as error:
            print(f"{name} failed: {error}", flush=True)
            yield name, None
        else:
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
            yield name, found


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table whose first column stands on the left, and all others on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]


def judged(bars: Sequence[Bar], figures: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Of each bar that `figures`, {what: {whose: figure}}, tell: "what", "whose", "peer", "ratio", "bar" and "met"."""
    rows: list[dict[str, Any]] = []
    for what, whose, peer, bar in bars:
        found = figures.get(what, {})
        if whose in found and found.get(peer):
            ratio = found[whose] / found[peer]
            met = None if bar is None else ratio <= bar
            rows.append(dict(what=what, whose=whose, peer=peer, ratio=round(ratio, 3), bar=bar, met=met))
    return rows


def verdicts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each row of `judged`."""
    lines = []
    for row in rows:
        verdict = "for information"
        if row["bar"] is not None:
            verdict = f"at most {row['bar']:.2f}: {'met' if row['met'] else 'MISSED'}"
        lines.append(f"{row['what'] + ': ' + row['whose'] + ' / ' + row['peer']:34}{row['ratio']:7.3f}   {verdict}")
    return lines


def command_line(description: str | None, *, peer: bool = False) -> argparse.ArgumentParser:
    """A parser that prints `description` as it is; with a `peer`, of --peer-python too."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if peer:
        parser.add_argument("--peer-python", default=PEER_PYTHON, help="Python that has TRL 1.12.0")
    return parser


def need_proc(parser: argparse.ArgumentParser) -> None:
    if not Path("/proc/self/clear_refs").exists():
        parser.error("this reads resident memory from /proc, which only Linux has")


def need_peer(parser: argparse.ArgumentParser, python: str) -> str:
    """The whole path of `python`, which the user gives relative to the clone."""
    if not (ROOT / python).exists():
        parser.error(f"there is no {python}, the Python with TRL 1.12.0: `make bench` makes it")
    return str(ROOT / python)


def about() -> dict[str, Any]:
    """What figures are of: "machine", "git_commit" and "versions"."""
    return {"machine": machine.describe(), "git_commit": machine.git_commit(), "versions": machine.versions()}


def keep(what: str, figures: Mapping[str, Any]) -> None:
    """Write today's `figures`, with those of `about` among them, to eval/results/, and say where."""
    path = results_path(figures["machine"], what)
    write_json_atomic(path, {"date": date.today().isoformat(), **figures})
    print(f"\nWritten to {path.relative_to(ROOT)}")
