"""The run folder: everything a run leaves behind, written so that a kill loses little and fakes nothing.

outputs/<recipe>/<model>/<time>/
    config.json         the arguments, and by what rows and weights are known; a resumed run must have the same
    completions.jsonl   every graded completion of every stage
    metrics.jsonl       the trainers' metrics, one line a step
    seconds.json        seconds by phase
    checksums.json      of stages, adapters and files: by them, what was damaged since is known
    warm_start/         the adapter after the warm start
    checkpoints/        trainer state, until the run is complete
    stopped.json        where numbers were no longer finite: until training is past it, a learning rate may change
    adapter/            the trained adapter, or the whole model, with tokenizer, chat template and model card
    results.json        the figures; "complete": true only when all of it is there
    report.html         the same to look at
"""

import dataclasses
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from eval.files import write_json_atomic, write_text_atomic
from eval.metrics import compare, headline, short_name, side_scores, summarise
from eval.results import Record, Records, Results, Stage, Steps, WinRate, complete_results
from eval.winrate import describe, win_rate
from recipes.common import machine, resuming
from recipes.common.clock import Clock
from recipes.common.model_table import ModelSpec
from recipes.common.models import resolve
from recipes.common.training import Training, tokens_per_second, weights_bytes
from rewards.contract import Prefer
from rewards.judge import Judge

# These say where and how long to run, not what: they may differ when a run is resumed.
NOT_CONFIGURATION = {
    *("output_dir", "resume", "max_hours", "push_to_hub", "run_name", "report_to", "save_steps", "show_tokens"),
    *("per_device_train_batch_size", "gradient_accumulation_steps"),  # how the same update fits into memory
}
FLAGS = 3  # which flags and rows config.json is of: raise it when a flag or the split changes its meaning


class Run:
    """One run's folder. `Run.open` makes a new one or finds the one to resume."""

    def __init__(
        self,
        folder: Path,
        recipe: str,
        spec: ModelSpec,
        args: Any,
        *,
        resumed: bool = False,
        correct: str | None = None,
        format: str | None = None,
        guard: str | None = None,
        reference: str | None = None,
        beside: Sequence[str] = (),
        earlier: Sequence[Record] = (),
    ) -> None:
        self.folder, self.recipe, self.spec, self.args = folder, recipe, spec, args
        self.correct, self.format, self.guard = correct, format, guard
        self.reference, self.beside = reference, list(beside)
        self.win_rate: WinRate | None = None
        self.cut_short = False  # before the last phase
        self.clock = Clock(folder, args.max_hours)
        self.training = Training(folder, spec, args, self.clock, resumed=resumed)
        self.stages: dict[str, Records] = {}  # that this session came to
        self.earlier: dict[str, Records] = {}  # that an earlier session left and this one may still come to
        for record in earlier:
            self.earlier.setdefault(record["stage"], []).append(record)

    @classmethod
    def open(
        cls,
        recipe: str,
        args: Any,
        *,
        correct: str | None,
        format: str | None,
        guard: str | None = None,
        reference: str | None = None,
        beside: Sequence[str] = (),
    ) -> "Run":
        """Make the folder of a new run, or resume; say what is to come.

        Args:
            recipe: `<dataset>_<method>`.
            args: the recipe's dataclass; the alias of the model that it names names a folder.
            correct: the score that says that a problem is solved; None where no answer is right or wrong, and the
                held-out loss decides, or the sampled reward where no loss was measured.
            format: the score that says that a completion is well formed; None where any form will do.
            guard: a second score that must not get worse where `correct` gets better; None where one is enough.
            reference: which weights the policy is compared with, in words; None where a method has no reference.
            beside: rewards whose greedy means are told beside the share of solved problems, with intervals.

        Raises:
            ValueError: nothing to resume; the configuration, the rows or the weights changed, and the sentence lists
                the differences; another process is in the folder; what is damaged in it cannot be made again; the
                output folder cannot be written; or nobody is logged in for `--push-to-hub`.
        """
        spec = resolve(args.model)
        parent = Path(args.output_dir) / recipe / spec.alias.replace("/", "--")
        config = _configuration(recipe, args, spec)
        if args.push_to_hub:
            _log_in()  # before hours of training
        earlier: Records = []
        resuming.clean_up(parent)
        if args.resume:
            folder = resuming.choose(parent, f"{recipe} with {spec.alias}", args.resume, config)
            resuming.take(folder)
            resuming.accept(folder, config)
            print(f"Resuming {folder}")
            earlier = resuming.mend(folder)
            (folder / "results.json").unlink(missing_ok=True)
        else:
            folder = resuming.make(parent, config)
            print(f"Run folder: {folder}")
        if reference:
            print(f"Reference policy: {reference}")
        if hasattr(args, "max_steps"):
            print(_plan(recipe, args, parent))
        judged: dict[str, Any] = {"correct": correct, "format": format, "guard": guard}
        told: dict[str, Any] = {"reference": reference, "beside": beside}
        return cls(folder, recipe, spec, args, resumed=bool(args.resume), earlier=earlier, **told, **judged)

    # Stages

    def stage(self, name: str, evaluate: Callable[..., Records]) -> Stage:
        """Evaluate stage `name` or read it back from an earlier session; print and return its summary."""
        if not self.stages:
            resuming.settle(self.folder, self.spec, getattr(self.args, "load_in_4bit", False))
        if name in self.earlier:
            self.stages[name] = self.earlier.pop(name)
        else:
            with self.clock.phase(f"evaluate {name}"):
                self.stages[name] = evaluate(stage=name)
            stages = self.stages | self.earlier
            lines = [resuming.line_of(record) for stage in stages.values() for record in stage]
            write_text_atomic(self.folder / "completions.jsonl", "\n".join(lines) + "\n")
            resuming.vouch(self.folder, stages=stages)
        summary = summarise(self.stages[name], correct=self.correct, format=self.format, guard=self.guard)
        print(f"{name}: {', '.join(self._measured(summary))}")
        return summary

    def _measured(self, summary: Stage) -> Iterator[str]:
        """What a stage measured, in the order of its line."""
        yield f"n = {summary['n']}"
        if summary["ci95"]:
            low, high = summary["ci95"]
            yield f"accuracy {summary['accuracy']:.1%} (95 % CI {low:.1%} to {high:.1%})"
        if self.guard and (ends := summary["guard_ci95"]):
            rate = f"{summary['guard_rate']:.1%} (95 % CI {ends[0]:.1%} to {ends[1]:.1%})"
            yield f"{short_name(self.guard)} {rate} of {summary['guard_n']}"
        if summary["format_rate"] is not None:
            yield f"format {summary['format_rate']:.1%}"
        if summary["loss"] is not None:
            yield f"loss {summary['loss']:.3f} nats/token (perplexity {summary['perplexity']:.2f})"
        for name in side_scores([summary], self.correct, self.format, self.beside, self.guard):
            if (mean := summary["scores"][name]) is not None:
                interval = summary["scores_ci95"][name] if name in self.beside else None
                yield f"{short_name(name)} {mean:.3f}{_ends(interval)}"
        decides = not self.correct and summary["loss"] is None
        if summary["sampled_reward"] is not None:
            interval = summary["sampled_reward_ci95"] if decides else None
            yield f"sampled reward {summary['sampled_reward']:.3f}{_ends(interval)}"
        if decides and summary["greedy_reward"] is not None:
            yield f"greedy reward {summary['greedy_reward']:.3f}"
        if summary["mean_length"] is not None:
            yield f"{summary['mean_length']:.0f} tokens"
        if summary["truncation_rate"] is not None:
            yield f"{summary['truncation_rate']:.1%} truncated"

    def length_quantile(self, share: float) -> float:
        """The length in tokens that `share` of the latest stage's completions stay within; infinite before any."""
        lengths = sorted(record["tokens"] for stage in list(self.stages.values())[-1:] for record in stage)
        return lengths[math.ceil(share * len(lengths)) - 1] if lengths else math.inf

    # Training

    def trainer_settings(self, phase: str) -> dict[str, Any]:
        """What flags and machine say of a trainer's config; see `Training.settings`."""
        return self.training.settings(phase)

    def warm_up(self, trainer: Any) -> bool:
        """Run the trainer of a phase before the last, and save what it trained as `warm_start`; False where time ran
        out: what is left of this session then does nothing."""
        self.earlier.clear()  # what this session has not come to yet shows the model after less training
        self.cut_short = not self.training.train(trainer)
        if not self.cut_short:
            self._save("warm_start", trainer)
        return not self.cut_short

    def train(self, trainer: Any, then: Callable[..., Records]) -> None:
        """Run a trainer built with `trainer_settings`, save what it trained, and evaluate stage "after"."""
        if self.cut_short:
            return
        self.earlier.clear()
        self.training.train(trainer)
        self._save("adapter", trainer)
        self.stage("after", then)

    def _save(self, name: str, trainer: Any) -> None:
        self.training.save_adapter(name, trainer.model, trainer.processing_class)
        resuming.vouch(self.folder, adapter=name)

    # The end

    def finish(
        self, judge: Judge | None = None, *, prefer: Prefer | None = None, prompts: Sequence[Any] = ()
    ) -> Results | None:
        """Write results.json, report.html and the model card; None where time ran out before the last phase.

        The run is complete when its last phase made all its steps; then the checkpoints go.

        Args:
            judge: who graded, where one did; what it was asked is told.
            prefer: compares what the model wrote to `prompts` at the last stage with what it did at the first.
            prompts: of the held-out problems, in their order.
        """
        from eval.report import verdicts, write_model_card, write_report

        if self.cut_short:
            resuming.leave(self.folder)
            return None
        if prefer:
            self._compare(prefer, prompts)
        results = self._results(judge)
        records = [record for stage in self.stages.values() for record in stage]
        write_report(self.folder / "report.html", results, self.training.metrics(), records)
        if self.training.steps:
            write_model_card(self.folder / "adapter" / "README.md", results)
        resuming.vouch(self.folder)
        write_json_atomic(self.folder / "results.json", results)  # last: its "complete" vouches for the rest
        if results["complete"]:
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        if judge:
            print(f"In this session: {judge.summary()}")
        if results["comparisons"]:
            whole = results["comparisons"][-1]
            for name in self.beside:
                if (moved := whole["scores"].get(name)) and moved["delta"] is not None:
                    print(f"{short_name(name)} {moved['delta']:+.3f}{_ends(moved['ci95'], '+.3f')}")
            print(*verdicts(results), sep="\n")
        else:
            print("Only one stage was measured.")
        print(f"Report: {self.folder / 'report.html'}")
        if self.args.push_to_hub and results["complete"] and self.training.steps:
            repository = _hub().create_repo(self.args.push_to_hub, private=True, exist_ok=True)
            _hub().upload_folder(repo_id=repository.repo_id, folder_path=str(self.folder / "adapter"))
            print(f"Uploaded to {repository}")
        resuming.leave(self.folder)
        return results

    def _compare(self, prefer: Prefer, prompts: Sequence[Any]) -> None:
        names = list(self.stages)
        before, after = (
            [record for record in self.stages[name] if record["kind"] == "greedy"] for name in (names[0], names[-1])
        )
        with self.clock.phase("compare"):
            self.win_rate = win_rate(
                [prompts[record["index"]] for record in before],
                [record["completion"] for record in before],
                [record["completion"] for record in after],
                prefer,
                tokens=([record["tokens"] for record in before], [record["tokens"] for record in after]),
            )
        print(describe(self.win_rate) if self.win_rate else "The judge gave no verdict on any pair.")

    def _results(self, judge: Judge | None) -> Results:
        training, metrics = self.training, self.training.metrics()
        phase, (made, planned) = list(training.steps.items())[-1] if training.steps else ("", (0, 0))
        judged_by: dict[str, Any] = {"correct": self.correct, "format": self.format, "guard": self.guard}
        summaries = {name: summarise(records, **judged_by) for name, records in self.stages.items()}
        names = list(summaries)
        pairs = [*pairwise(names), *([(names[0], names[-1])] if len(names) > 2 else [])]
        comparisons = [compare(self.stages[a], self.stages[b], **judged_by) for a, b in pairs]
        return {
            "recipe": self.recipe,
            "model": self.spec.alias,
            "base_model": self.spec.hub_id,
            "licence": self.spec.licence,
            "n": comparisons[-1]["n"] if comparisons else summaries[names[0]]["n"],
            "complete": made >= planned,
            "steps": {"made": made, "planned": planned} if training.steps else None,
            "date": datetime.now().date().isoformat(),
            "machine": machine.describe(),
            "command": " ".join(["python", *sys.argv]),
            "correct": self.correct,
            "format": self.format,
            "guard": self.guard,
            "reference": self.reference,
            "beside": self.beside,
            "win_rate": self.win_rate,
            "judge": judge.summary() if judge else None,
            "stages": list(summaries.values()),
            "paired": headline(comparisons[-1]) if comparisons else None,
            "comparisons": comparisons,
            "training": {
                "trainable_parameters": training.parameters[0] or None,
                "parameters": training.parameters[1] or None,
                "adapter_bytes": weights_bytes(self.folder / "adapter"),
                "tokens_per_second": tokens_per_second(line for line in metrics if line["phase"] == phase),
            },
            "seconds": self.clock.seconds,
            "peak_memory_gib": machine.peak_memory_gib(),
            "versions": machine.versions(),
            "git_commit": machine.git_commit(),
            "args": dataclasses.asdict(self.args),
        }


def _plan(recipe: str, args: Any, parent: Path) -> str:
    """A line on the phases to come, with the minutes that they took in the newest complete run of this model."""
    phases = _phases(recipe, vars(args))
    told = [
        name + (f" ({amount:,} {'held out' if name.startswith('evaluate') else 'steps'})" if amount else "")
        for name, amount in phases.items()
    ]
    line = f"Phases: {', '.join(told)}"
    for path in sorted(parent.glob("*/results.json"), reverse=True):
        if not (results := complete_results(path)):
            continue
        seconds, then = results["seconds"], _phases(recipe, results["args"], results["steps"])
        if phases.keys() <= then.keys() & seconds.keys():
            scaled = [
                seconds[name] * (amount / before if amount and (before := then[name]) else 1)
                for name, amount in phases.items()
            ]
            return f"{line}; about {max(1, round(sum(scaled) / 60))} min, going by the run of {results['date']}"
    return f"{line}; the table of steps tells the time left"


def _phases(recipe: str, args: Mapping[str, Any], steps: Steps | None = None) -> dict[str, int | None]:
    """How many problems or steps each phase has of a run with these arguments, as far as is known; `steps` are those
    that its method's trainer counted."""
    problems = next((n for name, n in args.items() if name.startswith("eval_")), None)
    phases: dict[str, int | None] = {"evaluate before": problems}
    if args.get("sft_steps"):
        phases |= {"warm start": args["sft_steps"], "evaluate warm start": problems}
    planned = steps["planned"] if steps else None if args["num_train_epochs"] else args["max_steps"]
    return phases | {recipe.rpartition("_")[2]: planned, "evaluate after": problems}


def _log_in() -> None:
    """Ask the hub who is logged in."""
    try:
        _hub().whoami()
    except Exception as error:
        raise ValueError(
            f"--push-to-hub finds no login of the hub ({str(error).partition('. ')[0]}): connect and run `hf auth "
            "login`, or leave it out"
        ) from error


def _hub() -> Any:
    from huggingface_hub import HfApi

    return HfApi()


def _ends(interval: Sequence[float] | None, number: str = ".3f") -> str:
    return f" (95 % CI {interval[0]:{number}} to {interval[1]:{number}})" if interval else ""


def _configuration(recipe: str, args: Any, spec: ModelSpec) -> dict[str, Any]:
    values = {k: v for k, v in dataclasses.asdict(args).items() if k not in NOT_CONFIGURATION}
    whole = {"flags": FLAGS, "recipe": recipe, **values, **resuming.identity(args, spec)}
    return json.loads(json.dumps(whole))  # as it will read back: tuples are lists
