"""The run folder: everything a run leaves behind, written so that a kill loses little and fakes nothing.

outputs/<recipe>/<model>/<time>/
    config.json         the arguments, written first; a resumed run must have the same
    completions.jsonl   every graded completion of every stage
    metrics.jsonl       the trainers' metrics, one line a step
    warm_start/         the adapter after the warm start
    checkpoints/        trainer state, until the run is complete
    adapter/            the trained adapter, or the whole model, with tokenizer, chat template and model card
    results.json        the figures; "complete": true only when all of it is there
    report.html         the same to look at
"""

import dataclasses
import json
import math
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.files import write_json_atomic, write_text_atomic
from eval.metrics import compare, short_name, side_scores, summarise, verdict
from eval.report import write_model_card, write_report
from eval.winrate import Prefer, describe, win_rate
from recipes.common import machine
from recipes.common.model_table import ModelSpec

if TYPE_CHECKING:
    from rewards.judge import Judge

# These say where and how long to run, not what: they may differ when a run is resumed.
NOT_CONFIGURATION = {"output_dir", "resume", "max_hours"}
COMPLETE = "complete.json"  # written into a checkpoint last: without it the checkpoint was cut off
PROMPT_ENCODER = "prompt_encoder.safetensors"
Records = list[dict[str, Any]]


class Run:
    """One run's folder. `Run.open` makes a new one or finds the one to resume."""

    def __init__(
        self,
        folder: Path,
        recipe: str,
        spec: ModelSpec,
        args: Any,
        *,
        resumed: bool,
        correct: str | None,
        format: str | None,
        reference: str | None = None,
        beside: Sequence[str] = (),
    ) -> None:
        self.folder, self.recipe, self.spec, self.args, self.resumed = folder, recipe, spec, args, resumed
        self.correct, self.format, self.reference, self.beside = correct, format, reference, list(beside)
        self.win_rate: dict[str, Any] | None = None
        self.started = time.monotonic()
        self.steps: dict[str, tuple[int, int]] = {}  # phase: made, planned
        self.parameters = (0, 0)  # trainable, all: of the model trained last
        self.stages: dict[str, Records] = {}  # that this session came to
        self.earlier: dict[str, Records] = {}  # that an earlier session left and this one may still come to
        if (folder / "completions.jsonl").exists():
            for record in _read_jsonl(folder / "completions.jsonl"):
                self.earlier.setdefault(record["stage"], []).append(record)

    @classmethod
    def open(
        cls,
        recipe: str,
        spec: ModelSpec,
        args: Any,
        *,
        correct: str | None = "correctness_reward",
        format: str | None = "structure_reward",
        reference: str | None = None,
        beside: Sequence[str] = (),
    ) -> "Run":
        """Make the folder of a new run, or resume.

        Args:
            recipe: `<dataset>_<method>`.
            spec: the model; its alias names a folder.
            args: the recipe's dataclass.
            correct: the score that says that a problem is solved; None where no answer is right or wrong, and the
                held-out loss decides, or the sampled reward where no loss was measured.
            format: the score that says that a completion is well formed; None where any form will do.
            reference: which weights the policy is compared with, in words; None where a method has no reference.
            beside: rewards whose greedy means are told beside the share of solved problems, with intervals.

        Raises:
            ValueError: nothing to resume; the configuration changed, and the sentence lists the differences; or
                the output folder cannot be written.
        """
        parent = Path(args.output_dir) / recipe / spec.alias.replace("/", "--")
        config = _configuration(args)
        if not args.resume:
            folder = parent / datetime.now().strftime("%Y%m%d-%H%M%S")
            while folder.exists():
                folder = folder.with_name(folder.name + "b")
            try:
                folder.mkdir(parents=True)
                write_json_atomic(folder / "config.json", config)
            except OSError as error:
                raise ValueError(f"cannot write {folder} ({error.strerror}): name another --output-dir") from error
            print(f"Run folder: {folder}")
            resumed = False
        else:
            folder = cls._newest(parent, recipe, spec, config)
            print(f"Resuming {folder}")
            (folder / "results.json").unlink(missing_ok=True)
            resumed = True
        if reference:
            print(f"Reference policy: {reference}")
        judged: dict[str, Any] = {"correct": correct, "format": format, "reference": reference, "beside": beside}
        return cls(folder, recipe, spec, args, resumed=resumed, **judged)

    @staticmethod
    def _newest(parent: Path, recipe: str, spec: ModelSpec, config: dict[str, Any]) -> Path:
        """The newest run in `parent`, which must be unfinished and of the same configuration."""
        candidates = sorted(parent.glob("*/config.json"), reverse=True)
        if not candidates:
            raise ValueError(
                f"--resume found no run of {recipe} with {spec.alias} in {parent}; start one without --resume"
            )
        folder = candidates[0].parent
        if (folder / "results.json").exists() and _read_json(folder / "results.json")["complete"]:
            raise ValueError(f"the newest run, {folder}, is complete; start a new one without --resume")
        before = _read_json(candidates[0])
        changed = [
            f"--{name.replace('_', '-')} {before.get(name)} -> {config.get(name)}"
            for name in sorted(before.keys() | config.keys())
            if before.get(name) != config.get(name)
        ]
        if changed:
            raise ValueError(
                f"--resume cannot continue {folder} with another configuration ({', '.join(changed)}); "
                "give the values it started with, or start a new run without --resume"
            )
        return folder

    # Time

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds spent inside to phase `name`, also when the phase fails or is resumed later."""
        started = time.monotonic()
        try:
            yield
        finally:
            seconds = self.seconds
            seconds[name] = round(seconds.get(name, 0.0) + time.monotonic() - started, 1)
            write_json_atomic(self.folder / "seconds.json", seconds)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase so far, over all sessions of this run."""
        path = self.folder / "seconds.json"
        return _read_json(path) if path.exists() else {}

    def time_left(self) -> float:
        """Seconds until training must stop so that the last evaluation still fits into `--max-hours`."""
        if self.args.max_hours is None:
            return math.inf
        evaluation = max((s for name, s in self.seconds.items() if name.startswith("evaluate")), default=0.0)
        return self.args.max_hours * 3600 - (time.monotonic() - self.started) - 1.5 * evaluation

    # Stages

    def stage(self, name: str, evaluate: Callable[..., Records]) -> dict[str, Any]:
        """Evaluate stage `name` or read it back from an earlier session; print and return its summary."""
        if name in self.earlier:
            self.stages[name] = self.earlier.pop(name)
        else:
            with self.phase(f"evaluate {name}"):
                self.stages[name] = evaluate(stage=name)
            self._write_stages()
        summary = summarise(self.stages[name], correct=self.correct, format=self.format)
        print(f"{name}: {', '.join(self._measured(summary))}")
        return summary

    def _measured(self, summary: dict[str, Any]) -> Iterator[str]:
        """What a stage measured, in the order of its line."""
        yield f"n = {summary['n']}"
        if self.correct:
            low, high = summary["ci95"]
            yield f"accuracy {summary['accuracy']:.1%} (95 % CI {low:.1%} to {high:.1%})"
        if summary["format_rate"] is not None:
            yield f"format {summary['format_rate']:.1%}"
        if summary["loss"] is not None:
            yield f"loss {summary['loss']:.3f} nats/token (perplexity {summary['perplexity']:.2f})"
        for name in side_scores([summary], self.correct, self.format, self.beside):
            if (mean := summary["scores"][name]) is not None:
                interval = summary["scores_ci95"][name] if name in self.beside else None
                yield f"{short_name(name)} {mean:.3f}{_ends(interval)}"
        decides = not self.correct and summary["loss"] is None
        if summary["sampled_reward"] is not None:
            interval = summary["sampled_reward_ci95"] if decides else None
            yield f"sampled reward {summary['sampled_reward']:.3f}{_ends(interval)}"
        if decides and summary["greedy_reward"] is not None:
            yield f"greedy reward {summary['greedy_reward']:.3f}"
        yield f"{summary['mean_length']:.0f} tokens"
        yield f"{summary['truncation_rate']:.1%} truncated"

    def judge(self, prefer: Prefer, prompts: Sequence[Any]) -> None:
        """Let `prefer` compare what the model wrote to `prompts` at the last stage with what it did at the first."""
        names = list(self.stages)
        before, after = (
            [record for record in self.stages[name] if record["kind"] == "greedy"] for name in (names[0], names[-1])
        )
        with self.phase("judge"):
            self.win_rate = win_rate(
                [prompts[record["index"]] for record in before],
                [record["completion"] for record in before],
                [record["completion"] for record in after],
                prefer,
                tokens=([record["tokens"] for record in before], [record["tokens"] for record in after]),
            )
        print(describe(self.win_rate))

    def length_quantile(self, share: float) -> int:
        """The length in tokens that `share` of the latest stage's completions stay within; before any, the limit."""
        if not self.stages:
            return self.args.max_completion_length
        lengths = sorted(record["tokens"] for record in list(self.stages.values())[-1])
        return lengths[math.ceil(share * len(lengths)) - 1]

    def _write_stages(self) -> None:
        lines = [json.dumps(record, ensure_ascii=False) for stage in self.stages.values() for record in stage]
        write_text_atomic(self.folder / "completions.jsonl", "\n".join(lines) + "\n")

    # Training state

    def checkpoints(self, phase: str) -> Path:
        """Where the trainer of `phase` keeps its checkpoints."""
        return self.folder / "checkpoints" / phase.replace(" ", "_")

    def last_checkpoint(self, phase: str) -> Path | None:
        """The newest checkpoint of `phase` that was saved whole, or None; deletes cut-off ones.

        Metrics that a killed session logged after it are dropped too: their steps will be made again.
        """
        whole = None
        for folder in self.checkpoints(phase).glob("checkpoint-*"):
            if not (folder / COMPLETE).exists():
                shutil.rmtree(folder)
            elif whole is None or _step(folder) > _step(whole):
                whole = folder
        if self.resumed:
            step = _step(whole) if whole else 0
            kept = [line for line in self.metrics() if line["phase"] != phase or line["step"] <= step]
            write_text_atomic(self.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))
        return whole

    def trainer_settings(self, phase: str) -> dict[str, Any]:
        """Fields of a trainer's config that are no choice of a recipe: seed, precision, logs, checkpoints."""
        import torch

        bf16 = not machine.has_gpu() or torch.cuda.is_bf16_supported(including_emulation=False)
        return {
            "output_dir": str(self.checkpoints(phase)),
            "seed": self.args.seed,
            "bf16": bf16,
            "fp16": not bf16 and not self.spec.fp16_unsafe,
            "use_cpu": not machine.has_gpu(),  # plain TRL asks to be told; Unsloth sees it
            "gradient_checkpointing": machine.has_gpu(),
            "optim": "adamw_8bit" if machine.has_gpu() else "adamw_torch_fused",
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "logging_steps": 1,
            "save_strategy": "steps",
            "save_steps": 0.1,  # a tenth of the run is the most that a kill can cost
            "save_total_limit": 2,  # the previous one, in case a save is cut off
            "report_to": self.args.report_to,
            "disable_tqdm": True,  # the table of `callbacks.StepTable` takes its place
            "dataloader_pin_memory": machine.has_gpu(),
        }

    def train(self, trainer: Any) -> bool:
        """Run a trainer built with `trainer_settings` from its last whole checkpoint, where there is one.

        False where `--max-hours` stopped it early.
        """
        from recipes.common.callbacks import attach

        phase = Path(trainer.args.output_dir).name.replace("_", " ")
        self.earlier.clear()  # what this session has not come to yet shows the model after less training
        checkpoint, planned = self.last_checkpoint(phase), trainer.args.max_steps
        if hasattr(trainer.model, "prompt_encoder"):
            _keep_prompt_encoder(trainer, checkpoint)  # first: what marks a checkpoint as whole comes after it
        attach(trainer, self, phase)
        self.parameters = _parameter_counts(trainer.model)
        made = _step(checkpoint) if checkpoint else 0
        if checkpoint and made >= planned:  # a trainer resumed after its last step would make one more
            self.load_adapter(str(checkpoint.relative_to(self.folder)), trainer.model)
        else:
            machine.keep_freed_memory()
            with self.phase(phase):
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            # Out of the trainer's autocast, so that it evaluates as it will when it is loaded from its folder.
            trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
            made = trainer.state.global_step
        self.steps[phase] = (made, planned)
        if made < planned:
            print(f"Out of time at step {made} of {planned} ({phase}); the same command with --resume goes on.")
        return made >= planned

    def log_metrics(self, phase: str, step: int, values: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl; values that JSON cannot hold (nan, inf) become null."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"phase": phase, "step": step, **clean}) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line that a kill cut off is left out."""
        path = self.folder / "metrics.jsonl"
        return list(_read_jsonl(path)) if path.exists() else []

    def save_adapter(self, name: str, model: Any, tokenizer: Any) -> Path:
        """Save what was trained as safetensors, with tokenizer and template, in folder `name`; atomically.

        A PEFT model's adapter, or all weights of any other model.
        """
        from peft import PeftModel

        target, building = self.folder / name, self.folder / f".{name}.part"
        shutil.rmtree(building, ignore_errors=True)
        # Only "default": a reference adapter, where beta > 0 made one, is not what was trained.
        only = {"selected_adapters": ["default"]} if isinstance(model, PeftModel) else {}
        model.save_pretrained(str(building), **only)
        tokenizer.save_pretrained(str(building))
        shutil.rmtree(target, ignore_errors=True)
        os.replace(building, target)
        return target

    def load_adapter(self, name: str, model: Any) -> bool:
        """Load what `save_adapter` saved as `name` into such a model; False where nothing was saved."""
        from peft import PeftModel, set_peft_model_state_dict
        from safetensors.torch import load_file, load_model

        is_adapter = isinstance(model, PeftModel)
        path = self.folder / name / ("adapter_model.safetensors" if is_adapter else "model.safetensors")
        if not path.exists():
            return False
        if not is_adapter:
            load_model(model, path)
            return True
        set_peft_model_state_dict(model, load_file(path))
        config = model.peft_config["default"]
        if config.is_prompt_learning:
            # What is saved of p-tuning is what its network wrote, and must not go through the network again.
            config.inference_mode = True
        return True

    # The end

    def finish(self, judge: "Judge | None" = None) -> dict[str, Any]:
        """Write results.json, report.html and the model card; say what `judge` was asked, where one rewarded.

        The run is complete when its last phase made all its steps; then the checkpoints go.
        """
        phase = list(self.steps)[-1]
        made, planned = self.steps[phase]
        judged_by = {"correct": self.correct, "format": self.format}
        summaries = {name: summarise(records, **judged_by) for name, records in self.stages.items()}
        names = list(summaries)
        pairs = [*pairwise(names), *([(names[0], names[-1])] if len(names) > 2 else [])]
        comparisons = [compare(self.stages[a], self.stages[b], **judged_by) for a, b in pairs]
        whole = comparisons[-1]
        results = {
            "recipe": self.recipe,
            "model": self.spec.alias,
            "base_model": self.spec.hub_id,
            "licence": self.spec.licence,
            "n": whole["n"],
            "complete": made >= planned,
            "steps": {"made": made, "planned": planned},
            "date": datetime.now().date().isoformat(),
            "machine": machine.describe(),
            "command": " ".join(["python", *sys.argv]),
            **judged_by,
            "reference": self.reference,
            "beside": self.beside,
            "win_rate": self.win_rate,
            "judge": judge.summary() if judge else None,
            "stages": list(summaries.values()),
            "paired": {
                **{key: whole[key] for key in ("from", "to", "n", "measure")},
                **{key: whole[whole["measure"]].get(key) for key in ("delta", "ci95", "p")},  # no p but of accuracy
            },
            "comparisons": comparisons,
            "training": {
                "trainable_parameters": self.parameters[0],
                "parameters": self.parameters[1],
                "adapter_bytes": _weights_bytes(self.folder / "adapter"),
                "tokens_per_second": _tokens_per_second(line for line in self.metrics() if line["phase"] == phase),
            },
            "seconds": self.seconds,
            "peak_memory_gib": machine.peak_memory_gib(),
            "versions": machine.versions(),
            "git_commit": machine.git_commit(),
            "args": dataclasses.asdict(self.args),
        }
        records = [record for stage in self.stages.values() for record in stage]
        write_report(self.folder / "report.html", results, self.metrics(), records)
        write_model_card(self.folder / "adapter" / "README.md", results)
        write_json_atomic(self.folder / "results.json", results)  # last: its "complete" vouches for the rest
        if results["complete"]:
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        if judge:
            print(f"In this session: {judge.summary()}")
        for name in self.beside:
            if (moved := whole["scores"].get(name)) and moved["delta"] is not None:
                print(f"{short_name(name)} {moved['delta']:+.3f}{_ends(moved['ci95'], '+.3f')}")
        print(f"{verdict(whole)}\nReport: {self.folder / 'report.html'}")
        return results


def _ends(interval: Sequence[float] | None, number: str = ".3f") -> str:
    return f" (95 % CI {interval[0]:{number}} to {interval[1]:{number}})" if interval else ""


def _configuration(args: Any) -> dict[str, Any]:
    values = {k: v for k, v in dataclasses.asdict(args).items() if k not in NOT_CONFIGURATION}
    return json.loads(json.dumps(values))  # as it will read back: tuples are lists


def _keep_prompt_encoder(trainer: Any, checkpoint: Path | None) -> None:
    """Save the prompt encoder whole with every checkpoint, and load it where training resumes from one.

    PEFT saves the virtual tokens that p-tuning's network writes and not the network, and takes them for the network's
    input when it resumes: training would go on from another prompt.
    """
    from safetensors.torch import load_model, save_model
    from transformers import TrainerCallback

    encoder = trainer.model.prompt_encoder

    class PromptEncoderKeeper(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            if checkpoint:
                load_model(encoder, checkpoint / PROMPT_ENCODER)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            save_model(encoder, str(Path(args.output_dir) / f"checkpoint-{state.global_step}" / PROMPT_ENCODER))

    trainer.add_callback(PromptEncoderKeeper())


def _parameter_counts(model: Any) -> tuple[int, int]:
    """How many parameters of `model` are trainable, and how many there are."""
    trainable = total = 0
    for parameter in model.parameters():
        count = parameter.numel()
        if type(parameter).__name__ == "Params4bit":  # bitsandbytes packs two weights into a byte
            count *= 2 * parameter.element_size()
        total += count
        trainable += count * parameter.requires_grad
    return trainable, total


def _weights_bytes(folder: Path) -> int | None:
    """Size on disk of the safetensors in `folder`; None where it has none."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) or None


def _tokens_per_second(lines: Iterable[dict[str, Any]]) -> float | None:
    """Tokens that one phase trained on a second, without padding: median over its steps. None where none were counted.

    A session's first step, which warms up, is left out, as is the one across two sessions: TRL counts from 0 in each.
    """
    counted = [line for line in lines if line.get("num_tokens") and line.get("seconds")]
    speeds = [
        (line["num_tokens"] - before["num_tokens"]) / line["seconds"]
        for before, line in pairwise(counted)
        if line["num_tokens"] > before["num_tokens"]
    ]
    return round(statistics.median(speeds), 1) if speeds else None


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    # Not splitlines, which also cuts at a U+2028 that a model wrote.
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # the last line of a killed session
            return
