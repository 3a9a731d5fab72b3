"""What the cost card measured, as people read it: on the terminal, and as the tables of README.md beside this file."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.files import read_json, write_text_atomic
from recipes.bench.card_row import METHODS, PHASES
from recipes.bench.gauge import aligned

BEGIN = "<!-- cost card: written by `python -m recipes.bench.card --table` -->"
END = "<!-- end of the cost card -->"
DATED = "????-??-??.json"  # of the card's results; those of other benches are also named for what they measure
KEY = ("method", "shape", "bits", "half", "rollouts")
# What a card of 24 GB or more must show: of which method, what, its bar, and whether that is the least or the most.
BARS = [
    ("sft", "speed", 1.7, "least"),
    ("sft", "memory", 0.6, "most"),
    ("dpo", "speed", 1.3, "least"),
    ("grpo", "speed", 1.3, "least"),
]
PPO_TO_GRPO = 1.25
BARS_SHAPE = "llama-3.1-8b"
COSTS = ("s/step", "tokens/s", "peak GiB", "speed, memory / peer's")
KINDS = ("completions", "length", "batch")
Entry = Mapping[str, Any]


def key(entry: Entry) -> tuple[Any, ...]:
    """What tells entries apart: rows by what they are of, runs that learned by their recipe."""
    return tuple(entry[name] for name in KEY) if "method" in entry else (entry["recipe"],)


def named(entry: Entry) -> str:
    """The method, and what else tells the row from others of its shape."""
    more = [entry["rollouts"]] if entry["rollouts"] == "vllm" else []
    more += [entry["half"]] if entry["half"] != "bf16" else []
    return f"{entry['method']} ({', '.join(more)})" if more else entry["method"]


def peer_of(entry: Entry) -> Entry | None:
    """The peer's figures, where there are any."""
    return entry["peer"] if entry["peer"] and "failed" not in entry["peer"] else None


def costs(entry: Entry) -> list[str]:
    """The cells of `COSTS`. Peak memory is what was reserved on a GPU, resident elsewhere."""
    memory, peer = entry["memory_gib"], peer_of(entry)
    peak = memory["resident"] if memory["reserved"] is None else memory["reserved"]
    ratios = f"{peer['speed']:.2f}, {peer['memory']:.2f}" if peer else ""
    return [f"{entry['seconds_per_step']:.3g}", f"{entry['tokens_per_second']:,.0f}", f"{peak:.2f}", ratios]


def doubled(entry: Entry) -> list[str]:
    """How many times as long a step takes with twice each of `KINDS`."""
    growth = [entry["growth"].get(what, {"failed": ""}) for what in KINDS]
    return [f"{one['seconds']:.2f}" if "seconds" in one else one["failed"] for one in growth]


def describe(entry: Entry) -> str:
    """A row on a line."""
    name = f"{named(entry)}, {entry['shape']} in {entry['bits']} bit"
    if entry["failed"]:
        return f"{name}: failed: {entry['failed']}"
    parts = [f"{what} {cell}" for what, cell in zip(COSTS, costs(entry), strict=True) if cell]
    if entry["peer"] and not peer_of(entry):
        parts.append(f"peer failed: {entry['peer']['failed']}")
    if not entry["loss_finite"]:
        parts.append("LOSS NOT FINITE")
    if not entry["gradients_on_adapters_only"]:
        parts.append("GRADIENTS ELSEWHERE THAN ON ADAPTERS, OR NONE")
    if entry["logits_difference"] != 0:
        parts.append(f"LOADED AGAIN ITS LOGITS DIFFER BY {entry['logits_difference']}")
    return f"{name}: {'; '.join(parts)}"


def print_table(entries: Sequence[Entry]) -> None:
    """Every figure of every row, and the bars of a GPU."""
    rows = [["", *COSTS, "completions/s", "of matmul", "of copy", *PHASES, *(f"2 x {what}" for what in KINDS)]]
    for entry in entries:
        if not entry["failed"]:
            written, phases = entry["completions_per_second"], entry["phases"].values()
            shares = [*entry["share"].values(), *(seconds / sum(phases) for seconds in phases)]
            more = [f"{written:.2f}" if written else "", *("" if part is None else f"{part:.1%}" for part in shares)]
            rows.append([f"{named(entry)} {entry['shape']}", *costs(entry), *more, *doubled(entry)])
    failed = [describe(entry) for entry in entries if entry["failed"]]
    print("", *aligned(rows), *failed, *judged(entries), sep="\n")


def judged(entries: Iterable[Entry]) -> list[str]:
    """Lines on `BARS`, of the rows that they are meant for: 4 bit, bf16, on a GPU."""

    def line(method: str, ratio: float, whose: str, bar: float, side: str) -> str:
        met = ratio >= bar if side == "least" else ratio <= bar
        return f"{method}: {ratio:.2f} x {whose}, at {side} {bar}: {'met' if met else 'MISSED'}"

    found = {
        entry["method"]: entry
        for entry in entries
        if key(entry)[1:4] == (BARS_SHAPE, 4, "bf16") and entry["rollouts"] != "vllm"
        if not entry["failed"] and on_gpu(entry)
    }
    lines = [
        line(method, peer[what], f"the peer's {what}", bar, side)
        for method, what, bar, side in BARS
        if method in found and (peer := peer_of(found[method]))
    ]
    if {"ppo", "grpo"} <= found.keys():
        ppo, grpo = (found[method]["memory_gib"]["allocated"] for method in ("ppo", "grpo"))
        lines.append(line("ppo", ppo / grpo, "the peak memory of grpo", PPO_TO_GRPO, "most"))
    return lines


# The README


def newest(results: Path) -> tuple[list[Entry], list[Entry]]:
    """Rows and runs that learned, of all machines, each with its "machine": of several of one kind the newest."""
    found: dict[str, dict[tuple[Any, ...], Entry]] = {"rows": {}, "learned": {}}
    for path in sorted(results.glob(f"*/{DATED}")):
        kept = read_json(path)
        for kind, entries in found.items():
            for entry in kept[kind]:
                if not entry["failed"]:
                    entries[kept["machine"], *key(entry)] = entry | {"machine": kept["machine"]}
    return [*found["rows"].values()], [*found["learned"].values()]


def tables(results: Path) -> str:
    """The README's part: costs, how they grow, and what was learned."""
    rows, runs = newest(results)
    methods = [*METHODS]
    rows.sort(key=lambda row: (row["machine"], row["shape"] != "tiny", row["shape"], methods.index(row["method"])))
    lines, grown = [], []
    for row in rows:
        what = [_linked(row["recipe"], named(row)), f"{row['shape']}, {row['bits']} bit", row["machine"]]
        lines.append([*what, *costs(row), row["date"]])
        if row["growth"]:
            grown.append([*what, *doubled(row)])
    if not any(map(on_gpu, rows)):
        empty = [f"{BARS_SHAPE}, 4 bit", "a CUDA card of 24 GB", "not yet measured", "", "", "", ""]
        lines += [[_linked(method.name, name), *empty] for name, method in METHODS.items()]
    head = ["recipe", "shape", "card"]
    parts = [_markdown([*head, *COSTS, "date"], lines)]
    if grown:
        parts.append(
            "How many times as long a step takes with twice the completions of a prompt, length, rows or prompts:"
        )
        parts.append(_markdown([*head, *KINDS], grown))
    if runs:
        parts.append("`--learn`, SmolLM2 as the recipes train it without a GPU:")
        parts.append("\n".join(f"- {_learned(run)}" for run in runs))
    return "\n\n".join(parts)


def write_readme(readme: Path, results: Path) -> None:
    """Write `tables` between the marks of `readme`. Raises ValueError where a mark is missing."""
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{readme} lacks the lines {BEGIN} and {END}: put them where the tables belong")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    write_text_atomic(readme, f"{before}{BEGIN}\n\n{tables(results)}\n\n{END}{after}")


def on_gpu(row: Entry) -> bool:
    return row["memory_gib"]["allocated"] is not None


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
