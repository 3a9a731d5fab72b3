"""What the cost card measured, as people read it: on the terminal, and as the tables of README.md beside this file."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.files import write_text_atomic
from recipes.bench.card_row import METHODS

BEGIN = "<!-- cost card: written by `python -m recipes.bench.card --table` -->"
END = "<!-- end of the cost card -->"
KEY = ("method", "shape", "bits", "half", "rollouts")
# What a card of 24 GB or more must show: of which method, what, its bar, and whether that is the least or the most.
BARS = [
    ("sft", "speed", 1.7, "least"), ("sft", "memory", 0.6, "most"),
    ("dpo", "speed", 1.3, "least"), ("grpo", "speed", 1.3, "least"),
]  # fmt: skip
PPO_TO_GRPO = 1.25
BARS_SHAPE = "llama-3.1-8b"
KINDS = {"completions": "completions of a prompt", "length": "length", "batch": "rows or prompts"}
Entry = Mapping[str, Any]


def key(entry: Entry) -> tuple[Any, ...]:
    """What tells entries apart: rows by what they are of, runs that learned by their recipe."""
    return tuple(entry[name] for name in KEY) if "method" in entry else (entry["recipe"],)


def peak_gib(entry: Entry) -> float:
    """Reserved on a GPU, resident elsewhere."""
    memory = entry["memory_gib"]
    return memory["resident"] if memory["reserved"] is None else memory["reserved"]


def named(entry: Entry) -> str:
    """The method, and what else tells the row from others of its shape."""
    more = [entry["rollouts"]] if entry["rollouts"] == "vllm" else []
    more += [entry["half"]] if entry["half"] != "bf16" else []
    return f"{entry['method']} ({', '.join(more)})" if more else entry["method"]


def describe(entry: Entry) -> str:
    """A row on a line."""
    name = f"{named(entry)}, {entry['shape']} in {entry['bits']} bit"
    if entry["failed"]:
        return f"{name}: failed: {entry['failed']}"
    parts = [f"{entry['seconds_per_step']:.3g} s/step", f"{entry['tokens_per_second']:,.0f} tokens/s",
             f"{peak_gib(entry):.2f} GiB"]  # fmt: skip
    if peer := entry["peer"]:
        known = "failed" not in peer
        parts.append(f"{peer['speed']:.2f} x the peer's speed, {peer['memory']:.2f} x its memory" if known
                     else f"peer failed: {peer['failed']}")  # fmt: skip
    if not entry["loss_finite"]:
        parts.append("LOSS NOT FINITE")
    if not entry["gradients_on_adapters_only"]:
        parts.append("GRADIENTS ELSEWHERE THAN ON ADAPTERS, OR NONE")
    if entry["logits_difference"] != 0:
        parts.append(f"LOADED AGAIN ITS LOGITS DIFFER BY {entry['logits_difference']}")
    return f"{name}: {', '.join(parts)}"


def print_table(entries: Sequence[Entry]) -> None:
    """Every figure of every row, and the bars of a GPU."""
    done = [entry for entry in entries if not entry["failed"]]
    names = [f"{named(entry)} {entry['shape']}" for entry in done]
    width = max(map(len, names), default=0)
    print(f"\n{'':{width}} s/step  tokens/s  compl./s  peak GiB  speed  memory  matmul   copy"
          "   roll  reward   logp   back  optim  other")  # fmt: skip
    for name, entry in zip(names, done, strict=True):
        peer = entry["peer"] if entry["peer"] and "failed" not in entry["peer"] else {}
        cells = (
            (entry["seconds_per_step"], 7, ".3f"), (entry["tokens_per_second"], 10, ",.0f"),
            (entry["completions_per_second"], 10, ".2f"), (peak_gib(entry), 10, ".2f"), (peer.get("speed"), 7, ".2f"),
            (peer.get("memory"), 8, ".2f"), (entry["share"]["matmul"], 8, ".1%"), (entry["share"]["copy"], 7, ".1%"),
            *((seconds / sum(entry["phases"].values()), 7, ".0%") for seconds in entry["phases"].values()),
        )  # fmt: skip
        print(f"{name:{width}}" + "".join(" " * size if v is None else f"{v:{size}{form}}" for v, size, form in cells))
    if grown := [(name, entry["growth"]) for name, entry in zip(names, done, strict=True) if entry["growth"]]:
        print("\nA step takes so many times as long with twice the")
        for name, growth in grown:
            print(f"{name:{width}}  {', '.join(f'{what} {grows(one)}' for what, one in growth.items())}")
    for entry in entries:
        if entry["failed"]:
            print(describe(entry))
    for line in judged(entries):
        print(line)


def grows(growth: Entry) -> str:
    return f"{growth['seconds']:.2f}" if "seconds" in growth else f"unknown ({growth['failed']})"


def judged(entries: Iterable[Entry]) -> list[str]:
    """Lines on `BARS`, of the rows that they are meant for: 4 bit, bf16, on a GPU."""
    found = {
        entry["method"]: entry
        for entry in entries
        if entry["shape"] == BARS_SHAPE and not entry["failed"] and entry["half"] == "bf16" and entry["bits"] == 4
        and entry["rollouts"] != "vllm" and on_gpu(entry)
    }  # fmt: skip
    lines = []
    for method, what, bar, side in BARS:
        peer = found[method]["peer"] if method in found else None
        if peer and "failed" not in peer:
            met = peer[what] >= bar if side == "least" else peer[what] <= bar
            verdict = "met" if met else "MISSED"
            lines.append(f"{method}: {peer[what]:.2f} x the peer's {what}, at {side} {bar}: {verdict}")
    if {"ppo", "grpo"} <= found.keys():
        ratio = found["ppo"]["memory_gib"]["allocated"] / found["grpo"]["memory_gib"]["allocated"]
        verdict = "met" if ratio <= PPO_TO_GRPO else "MISSED"
        lines.append(f"ppo: {ratio:.2f} x the peak memory of grpo, at most {PPO_TO_GRPO}: {verdict}")
    return lines


# The README


def newest(results: Path) -> tuple[list[Entry], list[Entry]]:
    """Rows and runs that learned, of all machines, each with its "machine": of several of one kind the newest."""
    rows: dict[tuple[Any, ...], Entry] = {}
    runs: dict[tuple[Any, ...], Entry] = {}
    for path in sorted(results.glob("*/*.json")):
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", path.stem):
            continue
        kept = json.loads(path.read_text(encoding="utf-8"))
        for found, entries in ((rows, kept["rows"]), (runs, kept["learned"])):
            for entry in entries:
                if not entry["failed"]:
                    found[kept["machine"], *key(entry)] = entry | {"machine": kept["machine"]}
    return list(rows.values()), list(runs.values())


def tables(results: Path) -> str:
    """The README's part: costs, how they grow, and what was learned."""
    rows, runs = newest(results)
    methods = [*METHODS]
    rows.sort(key=lambda row: (row["machine"], row["shape"] != "tiny", row["shape"], methods.index(row["method"])))
    costs = [_costs(row) for row in rows]
    if not any(map(on_gpu, rows)):
        empty = (f"{BARS_SHAPE}, 4 bit", "a CUDA card of 24 GB", "not yet measured", "", "", "", "")
        costs += [(_linked(method.name, name), *empty) for name, method in METHODS.items()]
    head = ("recipe", "shape", "card", "s/step", "tokens/s", "peak GiB", "speed, memory / peer's", "date")
    parts = [_markdown(head, costs)]
    if grown := [row for row in rows if row["growth"]]:
        kinds = [what for what in KINDS if any(what in row["growth"] for row in grown)]
        lines = [
            (_linked(row["recipe"], named(row)), row["shape"], row["machine"],
             *(grows(row["growth"][what]) if what in row["growth"] else "" for what in kinds))
            for row in grown
        ]  # fmt: skip
        kinds_head = ("recipe", "shape", "card", *(f"twice the {what}" for what in kinds))
        parts += [growth_sentence(grown), _markdown(kinds_head, lines)]
    if runs:
        parts.append("`--learn`, SmolLM2 as the recipes train it without a GPU:")
        parts.append("\n".join(f"- {_learned(run)}" for run in runs))
    return "\n\n".join(parts)


def growth_sentence(rows: Sequence[Entry]) -> str:
    """How the time of a step grows with each kind of work, in one sentence."""
    said: list[str] = []
    for what, words in KINDS.items():
        times = [row["growth"][what]["seconds"] for row in rows if "seconds" in row["growth"].get(what, {})]
        if times:
            least, most = f"{min(times):.1f}", f"{max(times):.1f}"
            span = least if least == most else f"{least} to {most}"
            said.append(f"{span}{' times as long' * (not said)} with twice the {words}")
    return f"A step takes {' and '.join(filter(None, [', '.join(said[:-1]), said[-1]]))}." if said else ""


def write_readme(readme: Path, results: Path) -> None:
    """Write `tables` between the marks of `readme`. Raises ValueError where a mark is missing."""
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{readme} lacks the lines {BEGIN} and {END}: put them where the tables belong")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    write_text_atomic(readme, f"{before}{BEGIN}\n\n{tables(results)}\n\n{END}{after}")


def on_gpu(row: Entry) -> bool:
    return row["memory_gib"]["allocated"] is not None


def _costs(row: Entry) -> tuple[str, ...]:
    peer = row["peer"] if row["peer"] and "failed" not in row["peer"] else None
    return (
        _linked(row["recipe"], named(row)), f"{row['shape']}, {row['bits']} bit", row["machine"],
        f"{row['seconds_per_step']:.3g}", f"{row['tokens_per_second']:,.0f}", f"{peak_gib(row):.2f}",
        f"{peer['speed']:.2f}, {peer['memory']:.2f}" if peer else "", row["date"],
    )  # fmt: skip


def _learned(run: Entry) -> str:
    steps = " -> ".join(f"{stage['name']} {stage['accuracy']:.1%}" for stage in run["stages"])
    # What the last phase gave: a warm start's share is its own.
    last = next(one for one in run["comparisons"] if one["from"] == run["stages"][-2]["name"])
    return (
        f"{_linked(run['recipe'], run['recipe'])}, {run['machine']}, {run['minutes']:.0f} minutes, "
        f"{run['steps']['made']} of {run['steps']['planned']} steps, {run['date']}: {steps}; from {last['from']} to "
        f"{last['to']}, {last['verdict']}."
    )


def _linked(recipe: str, name: str) -> str:
    return f"[{name}](../{recipe}.py)"


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))
