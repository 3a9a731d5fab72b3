"""Which adapter learns best, and which differences are more than chance: one recipe, every adapter, several seeds.

    python -m recipes.tools.compare_adapters --dataset arc --model smollm2-135m --adapters qlora lora p-tuning --seeds 3
    python -m recipes.tools.compare_adapters --dataset arc -- --source mine.jsonl  # after --: the recipe's own

A *cell* is one adapter trained with one seed: a run of `recipes/<dataset>_sft.py` in a process of its own, one after
another. The same command continues what was interrupted and runs no finished cell again.

<output-dir>/adapters/<dataset>/<model>/
    <adapter>-seed<N>/  cell.json, what it was started with; log.txt, what the recipe printed; and its run folder
    comparison.json     every figure below
    comparison.html     the same to look at

Two things make a figure uncertain, and both are in its interval: which problems happened to be asked, and the luck of a
training run. Problems are resampled (bootstrap), the same ones for all adapters, since all were asked the same. Three
seeds are too few to resample: no resample goes past the luckiest of them. Their spread is measured instead, and the
luck drawn from Student's t with Welch's degrees of freedom. Of 400 simulated comparisons of five equal adapters, with
300 problems and three seeds that lay four points apart (standard deviation), 2 % found some difference; where the seeds
were resampled too, 28 % did. With one seed and no luck in it: 4 %, and 8 % with 64 problems that nearly all
adapters agree on.
"""

import argparse
import difflib
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import chain, combinations, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.charts import COLOURS, svg
from eval.files import read_json, write_json_atomic, write_text_atomic
from eval.methods import ADAPTERS
from eval.metrics import MIN_PROBLEMS, bootstrap_mean, problem_losses, problem_rates, require_same_problems, wilson
from eval.report import page_template
from eval.results import Record, Records, Results, read_lines, read_results
from recipes.bench.gauge import aligned

if TYPE_CHECKING:
    import numpy as np

ROOT = Path(__file__).resolve().parents[2]
LEVEL = 0.05
RESAMPLES = 10_000
BATCH = 500  # resamples at once: 7 adapters x 500 x ARC's 1,172 problems take 33 MB
OURS = ("--model", "--adapter", "--seed", "--output-dir", "--resume")
# What may differ between cells that are compared; all else must be the same.
FREE = {"adapter", "seed", "output_dir", "resume", "max_hours"}
LOG_LINES = 8


@dataclass(frozen=True)
class Cell:
    """One adapter with one seed, and the folder that its runs are in."""

    adapter: str
    seed: int
    folder: Path
    arguments: list[str]
    """The recipe's, without where to write and whether to resume"""

    @property
    def name(self) -> str:
        return f"{self.adapter}, seed {self.seed}"

    def run(self) -> Path | None:
        """The folder of the newest run, or None where none was begun."""
        begun = [config.parent for config in self.folder.glob("*/*/*/config.json")]
        return max(begun, key=lambda folder: folder.name, default=None)

    def results(self) -> Results | None:
        """results.json of the newest run, which may say that it is not complete; None where there is none."""
        path = (self.run() or self.folder) / "results.json"
        return read_results(path) if path.exists() else None

    def complete(self) -> bool:
        results = self.results()
        return results is not None and results["complete"]

    def require_same_arguments(self) -> None:
        """Raise ValueError where a run of this cell was begun with other arguments."""
        path = self.folder / "cell.json"
        before = read_json(path)["arguments"] if path.exists() else self.arguments
        if before != self.arguments and self.run():
            raise ValueError(
                f"{self.folder} was started with `{' '.join(before)}` and not with `{' '.join(self.arguments)}`: give "
                "the same arguments, or name another --output-dir"
            )


# Running


def find_recipe(dataset: str, recipes: Path) -> Path:
    """The recipe that fine-tunes on `dataset`; ValueError, with the closest name, where there is none."""
    found = {path.name.removesuffix("_sft.py"): path for path in sorted(recipes.glob("*_sft.py"))}
    if dataset in found:
        return found[dataset]
    (closest,) = difflib.get_close_matches(dataset.lower(), found, n=1, cutoff=0.0)
    raise ValueError(f"there is no recipe {dataset}_sft.py (did you mean {closest}?): --dataset takes {_listed(found)}")


def run_cells(script: Path, cells: Sequence[Cell]) -> list[str]:
    """Run or continue every cell that is not complete; one line each. Returns what went wrong, a sentence a cell.

    Raises ValueError, before anything is run, where a cell was begun with other arguments.
    """
    for cell in cells:
        cell.require_same_arguments()
    left = sum(not cell.complete() for cell in cells)
    failures: list[str] = []
    seconds: list[float] = []
    for number, cell in enumerate(cells, 1):
        print(f"[{number}/{len(cells)}] {cell.name}: ", end="", flush=True)
        if cell.complete():
            print("already there", flush=True)
            continue
        began = time.monotonic()
        failure = _run_cell(script, cell)
        seconds.append(time.monotonic() - began)
        left -= 1
        estimate = f", about {math.ceil(left * statistics.mean(seconds) / 60)} min left" if left else ""
        print(f"{seconds[-1] / 60:.1f} min{', FAILED' if failure else ''}{estimate}", flush=True)
        if failure:
            failures.append(f"{cell.name} {failure}")
            log = (cell.folder / "log.txt").read_text(encoding="utf-8", errors="replace")
            print("".join(f"    {line}\n" for line in log.splitlines()[-LOG_LINES:]), end="", flush=True)
    return failures


def _run_cell(script: Path, cell: Cell) -> str | None:
    """Run one cell to its end; None, or what went wrong."""
    try:
        cell.folder.mkdir(parents=True, exist_ok=True)
        write_json_atomic(cell.folder / "cell.json", {"arguments": cell.arguments})
    except OSError as error:
        raise ValueError(f"cannot write {cell.folder} ({error.strerror}): name another --output-dir") from error
    command = [sys.executable, os.path.relpath(script), *cell.arguments, "--output-dir", str(cell.folder)]
    if cell.run():
        command.append("--resume")
    with open(cell.folder / "log.txt", "ab") as log:
        unbuffered = {**os.environ, "PYTHONUNBUFFERED": "1"}  # so that `tail -f` shows where it is
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=unbuffered).returncode
    if code:
        return f"failed with exit code {code}; {cell.folder / 'log.txt'} says why"
    results = cell.results()
    if results is None:
        return f"ended without results.json; see {cell.folder / 'log.txt'}"
    if (steps := results["steps"]) and not results["complete"]:
        return "stopped after step {made} of {planned}; the same command goes on".format(**steps)
    return None


# Comparing


def analyse(
    outcomes: Mapping[str, "np.ndarray"],
    sizes: "np.ndarray",
    *,
    lower_is_better: bool = False,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Means, paired differences and groups of adapters that were asked the same problems.

    Args:
        outcomes: by adapter, (seeds, problems): 1.0 for a solved problem, or nats summed over its gold answer. The
            number of seeds may differ.
        sizes: (problems,): 1.0 each, or the tokens of the gold answer. A mean is sum(outcomes) / sum(sizes).
        lower_is_better: for losses.
        resamples: of the problems.

    Returns "adapters", best first: {"adapter", "value", "ci95", "by_seed", "group"}; "pairs", the better adapter
    first: {"adapters", "difference", "interval", "told_apart"}, the interval at a level of `LEVEL` divided by the
    number of pairs (Bonferroni), in "level". Two adapters are told apart where it is clear of zero. With one seed
    each, the intervals hold the luck of the problems alone. Fewer than six problems tell nothing apart.
    """
    import numpy as np
    from scipy.stats import t as student

    rng = np.random.default_rng(0)
    names = list(outcomes)
    by_seed = {name: outcomes[name].sum(axis=1) / sizes.sum() for name in names}
    values = {name: float(by_seed[name].mean()) for name in names}
    names.sort(key=lambda name: values[name], reverse=not lower_is_better)
    over_seeds = np.stack([outcomes[name].mean(axis=0) for name in names])
    n = over_seeds.shape[1]
    batches = []
    for begin in range(0, resamples, BATCH):
        problems = rng.integers(n, size=(min(BATCH, resamples - begin), n))
        batches.append(over_seeds[:, problems].sum(axis=2) / sizes[problems].sum(axis=1))
    means = dict(zip(names, np.concatenate(batches, axis=1), strict=True))
    # Of a mean over seeds: its variance and that variance's degrees of freedom. One seed has no spread to show.
    luck = {name: (seeds.var(ddof=1) / len(seeds), len(seeds) - 1) for name, seeds in by_seed.items() if len(seeds) > 1}

    def interval(resampled: "np.ndarray", level: float, *involved: str) -> tuple[float, float]:
        parts = [luck[name] for name in involved if name in luck and luck[name][0] > 0]
        variance = sum(part for part, _ in parts)
        if variance:
            freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)  # Welch (1947)
            # The whole distribution in random order, and not draws from it, whose tails would be luck again.
            drawn = student.ppf((np.arange(resamples) + 0.5) / resamples, freedom)
            resampled = resampled + rng.permutation(drawn) * variance**0.5
        low, high = np.quantile(resampled, [level / 2, 1 - level / 2])
        return float(low), float(high)

    pairs = list(combinations(names, 2))
    level = LEVEL / max(1, len(pairs))
    compared, told_apart = [], []
    for a, b in pairs:
        ends = interval(means[a] - means[b], level, a, b)
        apart = n >= MIN_PROBLEMS and (ends[0] > 0 or ends[1] < 0)
        told_apart += [(a, b)] * apart
        difference, rounded = round(values[a] - values[b], 4) + 0.0, [round(end, 4) for end in ends]
        compared.append({"adapters": [a, b], "difference": difference, "interval": rounded, "told_apart": apart})
    groups = letters(names, told_apart)
    adapters = []
    for name in names:
        ci95 = np.clip(interval(means[name], LEVEL, name), 0, None if lower_is_better else 1)
        figures = {"value": values[name], "ci95": ci95, "by_seed": by_seed[name]}
        shown: dict[str, Any] = {what: np.asarray(figure).round(4).tolist() for what, figure in figures.items()}
        adapters.append({"adapter": name, **shown, "group": groups[name]})
    return {"adapters": adapters, "pairs": compared, "level": level}


def letters(names: Sequence[str], told_apart: Iterable[Collection[str]]) -> dict[str, str]:
    """Compact letter display: two names share a letter where, and only where, they are not told apart.

    A letter is a largest possible set of names of which no two are told apart; "a" goes to the set that holds the
    first name. Tries all sets: for a handful of names. Source: Piepho (2004), J. Comput. Graph. Stat. 13:456.

    >>> letters(["lora", "dora", "p-tuning"], [("lora", "p-tuning")])
    {'lora': 'a', 'dora': 'ab', 'p-tuning': 'b'}
    """
    apart = {frozenset(pair) for pair in told_apart}
    sets: list[tuple[str, ...]] = []
    for candidate in chain.from_iterable(combinations(names, size) for size in range(len(names), 0, -1)):
        if not any(frozenset(pair) in apart for pair in combinations(candidate, 2)) and not any(
            set(candidate) <= set(larger) for larger in sets
        ):
            sets.append(candidate)
    sets.sort(key=lambda members: [names.index(name) for name in members])
    return {name: "".join(chr(97 + i) for i, members in enumerate(sets) if name in members) for name in names}


def conclude(analysis: Mapping[str, Any], *, measure: str, n: int) -> str:
    """Say in one sentence, without a full stop, which adapters the data tell apart."""
    names = [row["adapter"] for row in analysis["adapters"]]
    if len(names) < 2:
        return f"only {names[0]} was measured, so there is nothing to compare"
    if n < MIN_PROBLEMS:
        return f"{n} problems are too few to tell the adapters apart"
    better: dict[str, list[str]] = {}
    for pair in analysis["pairs"]:
        if pair["told_apart"]:
            first, second = pair["adapters"]
            better.setdefault(second, []).append(first)
    if not better:
        return "the adapters cannot be told apart: every difference could be chance"
    alike: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        if name in better:
            alike.setdefault(tuple(better[name]), []).append(name)
    what, side = ("accuracy", "below") if measure == "accuracy" else ("held-out loss", "above")
    found = [
        f"{_listed(worse)} {'is' if len(worse) == 1 else 'are'} {side} {_listed(best)}"
        for best, worse in reversed(alike.items())
    ]
    chance = sum(not pair["told_apart"] for pair in analysis["pairs"])
    if chance:
        found.append(f"the other difference{'s' if chance > 1 else ''} could be chance")
    return f"in {what}, {'; '.join(found)}"


def compare_cells(cells: Sequence[Cell]) -> dict[str, Any]:
    """Compare complete cells. Returns the content of comparison.json, but for what the caller knows.

    Raises ValueError where cells differ in more than adapter and seed, or were measured on different problems.
    """
    import numpy as np

    all_results = [results for cell in cells if (results := cell.results())]
    _require_same_settings(cells, all_results)
    correct = all_results[0]["correct"]
    stages = [_stages(cell, results) for cell, results in zip(cells, all_results, strict=True)]
    first = stages[0]["after"]
    for cell, stage in zip(cells, stages, strict=True):
        require_same_problems(first, stage["after"], (cells[0].name, cell.name))
    # 16-bit weights where there are any: QLoRA's base model has lost something to quantisation already.
    base_cell = next((cell for cell in cells if cell.adapter != "qlora"), cells[0])
    base = stages[cells.index(base_cell)]["before"]
    measured = [_outcomes(records, correct) for records in (*(stage["after"] for stage in stages), base)]
    indices = sorted(set.intersection(*map(set, measured)))
    if not indices:
        raise ValueError("no problem was graded in every cell: see what their reports say was left out")
    values, sizes = (
        np.array([[outcome[index][part] for index in indices] for outcome in measured], dtype=float) for part in (0, 1)
    )
    if (sizes != sizes[0]).any():
        raise ValueError("the gold answers differ in tokens between cells: measure all with the same tokenizer")
    rows = {cell.adapter: [row for row, one in enumerate(cells) if one.adapter == cell.adapter] for cell in cells}
    measure, by_adapter = "accuracy" if correct else "loss", {adapter: values[own] for adapter, own in rows.items()}
    analysis = analyse(by_adapter, sizes[0], lower_is_better=not correct)
    for row in analysis["adapters"]:
        own = rows[row["adapter"]]
        row["seeds"] = [cells[index].seed for index in own]
        row |= _cost([all_results[index] for index in own])
    n, total = len(indices), float(values[-1].sum())
    interval = wilson(round(total), n) if correct else bootstrap_mean(list(values[-1]), list(sizes[0]))
    once = [row["adapter"] for row in analysis["adapters"] if len(row["seeds"]) < 2]
    return {
        "measure": measure,
        "n": n,
        "left_out": len({record["index"] for record in first}) - n,
        "conclusion": conclude(analysis, measure=measure, n=n),
        "caveat": f"one seed only for {_listed(once)}: the luck of training is not covered" if once else None,
        "base": {
            "weights": "4 bit" if base_cell.adapter == "qlora" else "16 bit",
            "value": round(total / float(sizes[0].sum()), 4),
            "ci95": interval and [round(end, 4) for end in interval],
        },
        **analysis,
        **{key: _agreed(results[key] for results in all_results) for key in ("machine", "git_commit")},
        "versions": {
            package: _agreed(results["versions"].get(package) for results in all_results)
            for package in dict.fromkeys(chain.from_iterable(results["versions"] for results in all_results))
        },
    }


def _require_same_settings(cells: Sequence[Cell], all_results: Sequence[Results]) -> None:
    first, *others = ({k: v for k, v in results["args"].items() if k not in FREE} for results in all_results)
    for cell, settings in zip(cells[1:], others, strict=True):
        differing = sorted(name for name in first.keys() | settings.keys() if first.get(name) != settings.get(name))
        if differing:
            changed = [f"--{name.replace('_', '-')} {first.get(name)} and {settings.get(name)}" for name in differing]
            raise ValueError(
                f"{cells[0].name} and {cell.name} ran with different settings ({', '.join(changed)}), so nothing can "
                "be said of their adapters: name another --output-dir and run all of them again"
            )


def _stages(cell: Cell, results: Results) -> dict[str, Records]:
    """The records of the first stage, "before", and of the last, "after"."""
    run = cell.run()
    assert run is not None
    records = list(read_lines(run / "completions.jsonl"))
    ends = {"before": results["stages"][0]["name"], "after": results["stages"][-1]["name"]}
    return {end: [record for record in records if record["stage"] == name] for end, name in ends.items()}


def _outcomes(records: Sequence[Record], correct: str | None) -> Mapping[int, tuple[float, float]]:
    """{problem: (outcome, size)}; see `analyse`."""
    if correct is None:
        return problem_losses(records)
    return {index: (solved, 1.0) for index, solved in problem_rates(records, correct, None)["accuracy"].items()}


def _cost(all_results: Sequence[Results]) -> dict[str, Any]:
    """What one adapter takes, over its seeds. Memory is the GPU's where there is one, in GiB; None: not measured."""
    training = all_results[0]["training"]
    peaks = [results["peak_memory_gib"] for results in all_results]
    speeds = [speed for results in all_results if (speed := results["training"]["tokens_per_second"])]
    return {
        **{key: training[key] for key in ("trainable_parameters", "parameters", "adapter_bytes")},
        "peak_memory_gib": max(peak.get("gpu", peak["resident"]) for peak in peaks),
        "tokens_per_second": round(statistics.median(speeds), 1) if speeds else None,
    }


def _agreed(values: Iterable[str | None]) -> str:
    """One value where all cells agree, and all of them where not."""
    return ", ".join(dict.fromkeys(value or "unknown" for value in values))


# Showing


def table(comparison: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the table, the names of its columns first and the base model last."""
    accuracy = comparison["measure"] == "accuracy"
    number, unit, factor = (".1f", " %", 100) if accuracy else (".3f", "", 1)

    def quality(row: Mapping[str, Any]) -> list[str]:
        interval = " to ".join(f"{factor * end:{number}}" for end in row["ci95"] or [])
        return [f"{factor * row['value']:{number}}{unit}", interval or "-"]

    def cost(value: float | None, number: str, unit: str = "") -> str:
        return "-" if value is None else f"{value:{number}}{unit}"

    rows = [["adapter", "group", "accuracy" if accuracy else "loss, nats/token", "95 % CI", "seeds"]]
    rows[0] += ["trainable", "on disk", "peak memory", "tokens/s"]
    for row in comparison["adapters"]:
        on_disk = row["adapter_bytes"] and row["adapter_bytes"] / 2**20
        costs = [cost(row["trainable_parameters"], ",d"), cost(on_disk, ",.2f", " MiB")]
        costs += [cost(row["peak_memory_gib"], ".2f", " GiB"), cost(row["tokens_per_second"], ",.0f")]
        rows.append([row["adapter"], row["group"], *quality(row), str(len(row["seeds"])), *costs])
    base = comparison["base"]
    return [*rows, [f"base model, {base['weights']}", "", *quality(base), *[""] * 5]]


def notes(comparison: Mapping[str, Any]) -> list[str]:
    """What a reader must know to read the table: sentences."""
    found = [f"Over {comparison['n']} held-out problems, greedy."]
    if comparison["pairs"]:
        found.append(
            "Adapters that share a letter cannot be told apart: paired by problem, with the chance of any false "
            f"difference held at {100 * LEVEL:.0f} %."
        )
    if comparison["left_out"]:
        found.append(f"{comparison['left_out']} that could not be graded in every cell are left out.")
    if comparison["caveat"]:
        found.append(f"{comparison['caveat'][0].upper()}{comparison['caveat'][1:]}.")
    if comparison["failed"]:
        found.append(f"Not in it: {'; '.join(comparison['failed'])}.")
    return found


def write_page(path: Path, comparison: Mapping[str, Any]) -> None:
    """Write the comparison to `path` as one self-contained HTML page, atomically."""
    page = page_template("comparison.html.j2").render(
        comparison=comparison, table=table(comparison), notes=notes(comparison), chart=_chart(comparison)
    )
    write_text_atomic(path, page)


def _chart(comparison: Mapping[str, Any]) -> str:
    """SVG: a row per adapter with its mean, its interval and a ring per seed; the base model is the dashed line."""
    rows, accuracy = comparison["adapters"], comparison["measure"] == "accuracy"
    factor, label = (100, "accuracy, %") if accuracy else (1, "held-out loss, nats per token")

    def draw(axes: Any) -> None:
        for y, row in enumerate(rows):
            axes.plot([factor * end for end in row["ci95"]], [y, y], color=COLOURS["accent"], linewidth=1.6)
            axes.plot([factor * row["value"]], [y], "o", color=COLOURS["accent"], markersize=6)
            seeds = [factor * value for value in row["by_seed"]]
            axes.plot(seeds, [y] * len(seeds), "o", color=COLOURS["ink"], markersize=3.5, fillstyle="none")
        axes.axvline(factor * comparison["base"]["value"], color=COLOURS["muted"], linewidth=1, linestyle="--")
        axes.set_yticks(range(len(rows)), [f"{row['adapter']}  {row['group']}" for row in rows], color=COLOURS["ink"])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(f"{label}; dashed: base model, rings: single seeds")
        axes.grid(axis="x")

    return svg(draw, size=(6.4, 0.8 + 0.34 * len(rows)), label="the table as a chart")


def _listed(names: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *most, last = [*names] or [""]
    return f"{', '.join(most)} and {last}" if most else last


def _show(comparison: Mapping[str, Any]) -> None:
    conclusion = comparison["conclusion"]
    sentences = [f"{conclusion[0].upper()}{conclusion[1:]}.", *notes(comparison)]
    print("", *aligned(table(comparison)), "", *sentences, sep="\n")


def main(argv: Sequence[str] | None = None, *, recipes: Path = ROOT / "recipes") -> int:
    """Run the cells, compare them, write and print the comparison.

    Returns 0; 1 where a cell failed or did not end; 2 on a user's mistake; 130 on Ctrl-C. `recipes` is the folder of
    the recipes.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    split = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="the dataset of a recipe: recipes/<dataset>_sft.py")
    parser.add_argument("--model", default="smollm2-135m", help="as the recipe takes it")
    known = f"of {', '.join(ADAPTERS)}; all of them where none is named"
    parser.add_argument("--adapters", nargs="+", choices=ADAPTERS, default=[*ADAPTERS], metavar="ADAPTER", help=known)
    parser.add_argument("--seeds", type=int, default=3, help="how many: 0, 1, ...; more can be added later")
    parser.add_argument("--output-dir", default="outputs", type=Path, help="where adapters/<dataset>/<model>/ goes")
    args, rest = parser.parse_args(given[:split]), given[split + 1 :]
    try:
        return _main(args, rest, recipes)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from there", file=sys.stderr)
        return 130


def _main(args: argparse.Namespace, rest: list[str], recipes: Path) -> int:
    script = find_recipe(args.dataset, recipes)
    if args.seeds < 1:
        raise ValueError(f"--seeds is {args.seeds}: at least one is needed")
    clash = [option for option in rest if option.partition("=")[0].replace("_", "-") in OURS]
    if clash:
        raise ValueError(f"{clash[0]} after -- is set for every cell by the comparison itself: leave it out there")
    folder = args.output_dir / "adapters" / args.dataset / re.sub(r"[^\w.-]+", "--", args.model).strip(".-")
    cells = []
    for seed, adapter in product(
        range(args.seeds), dict.fromkeys(args.adapters)
    ):  # what an interrupted one leaves is balanced
        arguments = ["--model", args.model, "--adapter", adapter, "--seed", str(seed), *rest]
        cells.append(Cell(adapter, seed, folder / f"{adapter}-seed{seed}", arguments))
    failed = run_cells(script, cells)
    complete = [cell for cell in cells if cell.complete()]
    if complete:
        what = {"dataset": args.dataset, "model": args.model, "date": date.today().isoformat(), "arguments": rest}
        comparison = {**what, "failed": failed, **compare_cells(complete)}
        write_json_atomic(folder / "comparison.json", comparison)
        write_page(folder / "comparison.html", comparison)
        _show(comparison)
        print(f"Comparison: {folder / 'comparison.html'}")
    if failed:
        print(f"\n{len(failed)} of {len(cells)} cells are missing:", *failed, sep="\n  ", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
