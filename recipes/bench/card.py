"""The cost card: does every method run on this card, does it fit, and how long does a step take?

    python -m recipes.bench.card                                        # without a GPU: shape "tiny", every method
    python -m recipes.bench.card --shapes llama-3.1-8b phi-4 --methods sft grpo --peer
    python -m recipes.bench.card --resume                               # goes on where --minutes or a kill stopped it
    python -m recipes.bench.card --learn --minutes 25                   # two recipes, before and after, on SmolLM2
    python -m recipes.bench.card --table                                # writes the tables of README.md here

It needs no download: models of a shape are made on the spot with random weights, in NF4 where the recipe quantises, for
speed, memory, dtypes and kernels do not depend on training. A row is a method on a shape. Processes of its own, one
after another, make its steps with the recipe's own trainer and config (recipes/bench/card_row.py):

1. ours: warm-up steps, timed steps, the adapter saved; then steps with each kind of work doubled
2. with --peer, plain TRL and PEFT, on a GPU with bitsandbytes: the same model, rows, batch, lengths and precision. On a
   CPU, where TRL 1.15 does not train, and for PPO, which it no longer has, TRL 1.12.0 in an environment of its own
3. ours again: the adapter loaded, its logits compared with those before it was saved and, with --peer, the steps timed
   once more, so that a machine that slows down for a while slows both

A row that fails says why and ends nothing else. Rows are kept in eval/results/<card>/<date>.json as they are measured,
by method, shape, bits, precision and engine of rollouts: a new measurement takes the place of today's older one. Peak
memory is what PyTorch reserved on a GPU, elsewhere the most that was resident. What a row reaches of the machine is a
share of a large 16-bit matrix product and, in rollouts, of a large copy, measured in the same call.

No GPU has run this yet.
"""

import argparse
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

from eval.files import RESULTS, read_json, results_folder, write_json_atomic
from eval.metrics import verdict
from recipes.bench import gauge, process
from recipes.bench.card_row import METHODS, ROLLS_OUT, Job, ceilings, measure
from recipes.bench.card_table import DATED, describe, key, print_table, write_readme
from recipes.bench.process import Failed
from recipes.common import machine
from recipes.common.rollouts import Choice
from recipes.common.stand_ins.shapes import by_name, random_folder
from recipes.common.stand_ins.smollm2 import cache_root

README = Path(__file__).with_name("README.md")
# Methods, and the share of the time that is left which the recipe of each may take.
LEARNERS = {"grpo": 0.7, "dpo": 1.0}
# What an entry says as its process found it.
KEPT = ("work", "phases", "memory_gib", "loss_finite", "gradients_on_adapters_only", "growth")
Row = dict[str, Any]  # what a row of the card is of: the fields of `card_table.KEY`


def about() -> dict[str, Any]:
    """What the card is of. On a GPU in a process of its own: a context takes memory from whatever is measured."""
    half = "bf16"
    if machine.has_gpu():
        import torch

        half = "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16"
    return {**gauge.about(), "half": half, "gpu": machine.has_gpu(), "vllm": not machine.vllm_fault()}


def make_model(shape: str, parent: str, in_4bit: bool) -> str:
    """The folder of a random model."""
    return str(random_folder(by_name(shape), Path(parent), in_4bit=in_4bit))


def learn(method: str, output_dir: str, hours: float, resume: bool) -> None:
    """Run a method's recipe as it is without a GPU."""
    machine.quiet_libraries()
    recipe = METHODS[method].recipe
    recipe.main(replace(recipe.ON_CPU, output_dir=output_dir, max_hours=hours, resume=resume))


def planned(args: argparse.Namespace, about: dict[str, Any]) -> list[Row]:
    """The rows that are asked for, in their order."""
    bits, rows = args.bits or (4 if about["gpu"] else 16), []
    for shape, method, half in product(args.shapes, args.methods, args.half or [about["half"]]):
        engines: list[Choice | None] = ["model" if method in ROLLS_OUT else None]
        # vLLM has no 4-bit kernels on a CPU.
        if method == "grpo" and about["vllm"] and (about["gpu"] or bits == 16):
            engines.append("vllm")
        rows += [dict(method=method, shape=shape, bits=bits, half=half, rollouts=engine) for engine in engines]
    return rows


class Card:
    """A call of this command: what it knows of the machine, and the file that it adds rows to."""

    def __init__(self, args: argparse.Namespace, about: dict[str, Any]) -> None:
        self.args, self.about, self.began = args, about, time.monotonic()
        folder = results_folder(about["machine"], args.results)
        newest = max(folder.glob(DATED), default=None) if args.resume else None
        self.path = newest or folder / f"{date.today().isoformat()}.json"
        self.kept: dict[str, Any] = {"machine": about["machine"], "ceilings": None, "rows": [], "learned": []}
        if self.path.exists():
            self.kept = read_json(self.path)
        self.scratch = cache_root() / "card"

    def keep(self, kind: str, entry: dict[str, Any]) -> None:
        """Put `entry` among the "rows" or "learned", in place of an older one of the same."""
        others = [one for one in self.kept[kind] if key(one) != key(entry)]
        self.kept[kind] = [*others, entry]
        write_json_atomic(self.path, self.kept)

    def minutes_left(self) -> float:
        return self.args.minutes - (time.monotonic() - self.began) / 60

    def stamp(self) -> dict[str, Any]:
        about = self.about
        return {"date": date.today().isoformat(), "git_commit": about["git_commit"], "versions": about["versions"]}

    # Costs

    def missing(self, rows: Sequence[Row]) -> list[Row]:
        """Those that --resume still has to measure: not in the file or, with --peer, without a peer there."""
        if not self.args.resume:
            return list(rows)
        there = {key(row) for row in self.kept["rows"] if row.get("peer") or not self.args.peer or row["failed"]}
        return [row for row in rows if key(row) not in there]

    def run(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Measure what is missing while there is time; returns the entries of `rows` that there are."""
        missing = self.missing(rows)
        print(f"{len(rows)} rows on {self.about['machine']}, {len(rows) - len(missing)} of them there already")
        if missing and os.getloadavg()[0] > 0.5:
            print(f"Other work keeps {os.getloadavg()[0]:.1f} cores busy: figures will be worse than the machine's.")
        try:
            for number, row in enumerate(missing):
                if self.minutes_left() < 0:
                    print(
                        f"Stopped after {self.args.minutes:g} minutes with {len(missing) - number} rows to go: "
                        "the same command with --resume goes on."
                    )
                    break
                if number == 0:
                    self.kept["ceilings"] = process.call(ceilings)
                began = time.monotonic()
                entry = self.measure(row)
                self.keep("rows", entry)
                print(f"{describe(entry)}, {time.monotonic() - began:.0f} s", flush=True)
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)  # models of several GiB
        asked = [key(row) for row in rows]
        return [entry for entry in self.kept["rows"] if key(entry) in asked]

    def measure(self, row: Row) -> dict[str, Any]:
        """One row: its turns, and what they found."""
        entry = {**row, "recipe": METHODS[row["method"]].name, **self.stamp(), "failed": None, "peer": None}
        with tempfile.TemporaryDirectory(prefix="card-") as work:
            try:
                model = process.call(make_model, row["shape"], str(self.scratch), row["bits"] == 4)
                job = Job(**row, model=model, folder=f"{work}/run", gpu=self.about["gpu"])
                ours = self.turn(job, grow=True)
                in_turn = self.args.peer and row["rollouts"] != "vllm"  # for which TRL has no peer on a CPU
                peer = self.peer(job) if in_turn else None
                again = self.turn(job, reload=True, train=in_turn, rollouts="model")
            except Failed as error:
                return entry | {"failed": str(error)}
        return entry | figures(ours, again, peer, self.kept["ceilings"])

    def turn(self, job: Job, *, python: str = sys.executable, **changes: Any) -> dict[str, Any]:
        """A process of `job` with `changes`; what it found."""
        job = replace(job, **changes)
        whose = "plain TRL" if job.trl else "the recipe with its saved adapter" if job.reload else "the recipe"
        print(f"{job.method}, {job.shape}: {whose} ...", flush=True)
        # TRL's PPO ignores `bf16`; whoever heeds it is told the same twice.
        environment = {"ACCELERATE_MIXED_PRECISION": job.half} if job.trl else {}
        return process.call(measure, asdict(job), python=python, **environment)

    def peer(self, job: Job) -> dict[str, Any]:
        """The peer's turn, or why there was none: our figures stand without it."""
        here = self.about["gpu"] and job.method != "ppo"
        python = sys.executable if here else str(process.ROOT / self.args.peer_python)
        try:
            return self.turn(job, trl=True, folder=f"{job.folder}-peer", python=python)
        except Failed as error:
            return {"failed": str(error)}

    # Learning

    def learn(self) -> list[dict[str, Any]]:
        """Run `LEARNERS` on SmolLM2 within the time; returns what is known of them."""
        for method, share in LEARNERS.items():
            recipe = METHODS[method].name
            runs = Path(self.args.output_dir) / recipe / "smollm2-135m"
            begun = self.args.resume and any(runs.glob("*/config.json"))
            found = _results(runs) if begun else None
            if not (found and found["complete"]):
                hours = self.minutes_left() / 60 * share
                try:
                    process.call(learn, method, self.args.output_dir, hours, begun, shown=True, timeout=None)
                except Failed as error:
                    self.keep("learned", {"recipe": recipe, **self.stamp(), "failed": str(error)})
                    continue
                found = _results(runs)
            if found is None:
                print(f"{recipe}: out of time before its last evaluation; the same command with --resume goes on.")
            else:
                self.keep("learned", learned(found))
        return self.kept["learned"]


def figures(
    ours: dict[str, Any], again: dict[str, Any], peer: dict[str, Any] | None, ceilings: dict[str, float]
) -> dict[str, Any]:
    """What a row's entry says beside what it is of, from what its processes found."""
    seconds = ours["seconds"] + again["seconds"]
    median, rollout = statistics.median(seconds), ours["phases"]["rollout"]
    if peer and "failed" not in peer:
        theirs = statistics.median(peer["seconds"])
        held = "above_start" if peer["memory_gib"]["allocated"] is None else "allocated"
        peer = {
            "versions": peer["versions"],
            **_rates(peer, peer["seconds"]),
            "memory_gib": peer["memory_gib"],
            "speed": round(ours["tokens"] / median / (peer["tokens"] / theirs), 3),
            "memory": round(ours["memory_gib"][held] / peer["memory_gib"][held], 3),
        }
    return {
        **{name: ours[name] for name in KEPT},
        **_rates(ours, seconds),
        "logits_difference": again["logits_difference"],
        "share": {
            "matmul": round(ours["flops"] / median / ceilings["matmul_flops"], 4),
            "copy": round(ours["rollout_bytes"] / rollout / ceilings["copy_bytes"], 4) if rollout else None,
        },
        "peer": peer,
    }


def _rates(found: dict[str, Any], seconds: list[float]) -> dict[str, Any]:
    median = statistics.median(seconds)
    return {
        "seconds": seconds,
        "seconds_per_step": round(median, 4),
        "tokens_per_second": round(found["tokens"] / median, 1),
        "completions_per_second": round(found["completions"] / median, 2) or None,
    }


def learned(results: dict[str, Any]) -> dict[str, Any]:
    """What a recipe's results.json says of its stages and of the differences between them."""
    measured = ("name", "n", "accuracy", "ci95", "sampled_reward", "sampled_reward_ci95")
    same = ("recipe", "model", "date", "git_commit", "versions", "n", "complete", "steps")
    return {
        **{name: results[name] for name in same},
        "failed": None,
        "minutes": round(sum(results["seconds"].values()) / 60, 1),
        "stages": [{name: stage.get(name) for name in measured} for stage in results["stages"]],
        "comparisons": [
            {"from": one["from"], "to": one["to"], **one[one["measure"]], "verdict": verdict(one)}
            for one in results["comparisons"]
        ],
    }


def _results(runs: Path) -> dict[str, Any] | None:
    """The results.json of the newest of `runs`, where there is one."""
    path = max(runs.glob("*/config.json")).with_name("results.json")
    return read_json(path) if path.exists() else None


def sound(entry: dict[str, Any]) -> bool:
    """Whether a row ended, learned with finite numbers, on its adapter alone, and that loads as it was saved."""
    checks = not entry["failed"] and entry["loss_finite"] and entry["gradients_on_adapters_only"]
    return bool(checks and entry["logits_difference"] == 0)


def parsed(arguments: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = gauge.command_line(__doc__, peer=True)
    add, methods = parser.add_argument, ", ".join(METHODS)
    add("--shapes", nargs="+", metavar="SHAPE", help="tiny, or aliases of recipes/common/model_table.py")
    add("--methods", nargs="+", choices=METHODS, default=[*METHODS], metavar="METHOD", help=methods)
    add("--bits", type=int, choices=(4, 16), help="of the frozen weights: as the recipes here, 4 on a GPU")
    add("--half", nargs="+", choices=("bf16", "fp16"), help="precision; bf16 where there is one")
    add("--peer", action="store_true", help="plain TRL in turn with ours")
    add("--minutes", type=float, default=9.0, help="no row is begun after so many")
    add("--resume", action="store_true", help="leave out what the newest file of this machine has")
    add("--results", type=Path, default=RESULTS, help="folder of all machines' results")
    add("--learn", action="store_true", help="two recipes on SmolLM2 in place of the costs")
    add("--output-dir", default="outputs/card", help="where runs of --learn go")
    add("--table", action="store_true", help="write the tables of recipes/bench/README.md, and measure nothing")
    return parser, parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where every row and run did what it should; 1 where one did not; 2 for a mistake of the user's."""
    from filelock import FileLock, Timeout

    parser, args = parsed(arguments)
    if args.table:
        write_readme(README, args.results)
        return 0
    try:
        args.shapes = [by_name(name).alias for name in args.shapes or ["llama-3.1-8b" if machine.has_gpu() else "tiny"]]
    except ValueError as error:
        parser.error(str(error))
    known = process.call(about)
    if "fp16" in (args.half or []) and not known["gpu"]:
        parser.error("--half fp16 needs a GPU: no method trains in it on a CPU")
    if "bf16" in (args.half or []) and known["half"] == "fp16":
        parser.error("--half bf16: this card computes in no bfloat16; leave it out")
    gauge.need_proc(parser)
    if args.peer and not known["gpu"]:
        gauge.need_peer(parser, args.peer_python)
    cache = cache_root()
    cache.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(cache / "card.lock", timeout=0):  # two at once would measure each other
            card = Card(args, known)
            if args.learn:
                entries = card.learn()
                return 0 if entries and not any(entry["failed"] for entry in entries) else 1
            entries = card.run(planned(args, known))
    except Timeout:
        parser.error("another cost card is being measured on this machine: wait until it is done")
    except Failed as error:
        parser.error(f"what this machine reaches at most could not be measured: {error}")
    except KeyboardInterrupt:
        print("Interrupted; the same command with --resume goes on.")
        return 130
    print_table(entries)
    print(f"\nIn {card.path}")
    return 0 if all(map(sound, entries)) else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the row's process too
    raise SystemExit(main())
