"""The training of a run: what every trainer is told, checkpoints that are whole or not there, and what was learnt."""

import json
import math
import os
import shutil
import statistics
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from eval.files import fsync_tree, write_json_atomic, write_text_atomic
from eval.methods import phase_of
from eval.results import MetricsLine, read_lines
from recipes.common import machine
from recipes.common.clock import Clock
from recipes.common.model_table import ModelSpec
from recipes.common.models import half_precision
from recipes.common.resuming import STOPPED

PROMPT_ENCODER = "prompt_encoder.safetensors"
# A phase's learning rates, where they are not --learning-rate alone.
RATES = {"warm start": ("sft_learning_rate",), "ppo": ("learning_rate", "value_learning_rate")}


class Training:
    """Of one run, in its folder: `checkpoints/`, `metrics.jsonl` and the adapters."""

    def __init__(self, folder: Path, spec: ModelSpec, args: Any, clock: Clock, *, resumed: bool) -> None:
        self.folder, self.spec, self.args, self.clock, self.resumed = folder, spec, args, clock, resumed
        self.steps: dict[str, tuple[int, int]] = {}  # phase: made, planned
        self.parameters = (0, 0)  # trainable, all: of the model trained last

    def settings(self, phase: str) -> dict[str, Any]:
        """Fields of a trainer's config that flags decide or that are no choice: steps, seed, precision, checkpoints."""
        args, half = self.args, half_precision(self.spec)
        return {
            "output_dir": str(self.checkpoints(phase)),
            "run_name": args.run_name or "-".join(self.folder.parts[-3:]),
            "max_steps": -1 if args.num_train_epochs else args.max_steps,
            "num_train_epochs": args.num_train_epochs or 1,
            "seed": args.seed,
            "bf16": half == "bfloat16",
            "fp16": half == "float16",
            "use_cpu": not machine.has_gpu(),  # plain TRL asks to be told; Unsloth sees it
            # Computing activations again drops past key values, which are what prefix tuning trains.
            "gradient_checkpointing": machine.has_gpu() and getattr(args, "adapter", None) != "prefix-tuning",
            "logging_steps": 1,
            "logging_nan_inf_filter": False,  # a loss of nan is to be seen: training stops there
            "save_strategy": "steps",
            "save_steps": args.save_steps,
            "save_total_limit": 2,  # the previous one, in case a save is cut off
            "report_to": args.report_to,
            "disable_tqdm": True,  # the table of `callbacks.StepTable` takes its place
            "dataloader_pin_memory": machine.has_gpu(),
        }

    def train(self, trainer: Any) -> bool:
        """Run a trainer built with `settings` from its last whole checkpoint, where there is one.

        False where `--max-hours` stopped it early. Raises ValueError at the first loss, gradient or weight that is not
        finite; what was saved before stays.
        """
        from recipes.common.callbacks import NotFinite, attach

        phase, planned = phase_of(trainer), planned_steps(trainer)
        checkpoint = self.last_checkpoint(phase)
        if hasattr(trainer.model, "prompt_encoder"):
            _keep_prompt_encoder(trainer, checkpoint)  # first: what marks a checkpoint as whole comes after it
        attach(trainer, phase, log=self.log_metrics, time_left=self.clock.time_left)
        self.parameters = _parameter_counts(trainer.model)
        made = _step(checkpoint) if checkpoint else 0
        if checkpoint and made >= planned:  # a trainer resumed after its last step would make one more
            self.load_adapter(str(checkpoint.relative_to(self.folder)), trainer.model)
        else:
            machine.keep_freed_memory()
            try:
                with self.clock.phase(phase):
                    _train(trainer, checkpoint)
            except NotFinite as error:
                if checkpoint and error.before_update and error.step == made + 1:
                    shutil.rmtree(checkpoint)  # nothing can go on from there
                raise ValueError(self._stopped(trainer, phase, planned, error)) from error
            (self.folder / STOPPED).unlink(missing_ok=True)
            made = trainer.state.global_step
        self.steps[phase] = (made, planned)
        if made < planned:
            print(f"Out of time at step {made} of {planned} ({phase}); the same command with --resume goes on.")
        return made >= planned

    def checkpoints(self, phase: str) -> Path:
        """Where the trainer of `phase` keeps its checkpoints."""
        return self.folder / "checkpoints" / phase.replace(" ", "_")

    def last_checkpoint(self, phase: str) -> Path | None:
        """The newest checkpoint of `phase` whose every file is as it was saved, or None.

        Newer ones, cut off or damaged since, are deleted, and a line names the fault of each. Metrics that a killed
        session logged after it are dropped too: their steps will be made again.
        """
        from recipes.common.callbacks import find_fault

        faults, whole = {}, None
        for folder in sorted(self.checkpoints(phase).glob("checkpoint-[0-9]*"), key=_step, reverse=True):
            fault = find_fault(folder)
            if fault is None:
                whole = folder
                break
            faults[str(folder.relative_to(self.folder))] = fault
            shutil.rmtree(folder)
        goes_on = f"goes on from step {_step(whole)}" if whole else "starts anew"
        for name, fault in faults.items():
            print(f"{name} is not whole ({fault}): {phase} {goes_on}.")
        if self.resumed:
            step = _step(whole) if whole else 0
            kept = [line for line in self.metrics() if line["phase"] != phase or line["step"] <= step]
            write_text_atomic(self.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))
        return whole

    def _stopped(self, trainer: Any, phase: str, planned: int, error: Any) -> str:
        """Leave a note for `resuming.changeable`; what to tell the user."""
        rates = RATES.get(phase, ("learning_rate",))
        note = {"phase": phase, "step": error.step, "what": error.what, "flags": rates}
        write_json_atomic(self.folder / STOPPED, note)
        own = rates[-1] if error.what.startswith("value") else rates[0]
        rate = trainer.args.value_learning_rate if own == "value_learning_rate" else trainer.args.learning_rate
        kept, flag = self.last_checkpoint(phase), f"--{own.replace('_', '-')}"
        goes_on = f"goes on from step {_step(kept)}" if kept else "starts the phase anew"
        return (
            f"{error.what} not finite in step {error.step} of {planned} ({phase}) at {flag} {rate:g}: the same command "
            f"with --resume and a lower {flag} {goes_on}"
        )

    def log_metrics(self, phase: str, step: int, values: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl; values that JSON cannot hold (nan, inf) become null."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"phase": phase, "step": step, **clean}) + "\n")

    def metrics(self) -> list[MetricsLine]:
        """The lines of metrics.jsonl; a last line that a kill cut off is left out."""
        path = self.folder / "metrics.jsonl"
        return list(read_lines(path)) if path.exists() else []

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
        fsync_tree(building)
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


def planned_steps(trainer: Any) -> int:
    """How many updates a built trainer will make; where its config counts epochs, it counts steps from then on."""
    args = trainer.args
    if args.max_steps < 1:
        batches = len(trainer.get_train_dataloader())
        args.max_steps = math.ceil(args.num_train_epochs * math.ceil(batches / args.gradient_accumulation_steps))
    return args.max_steps


def weights_bytes(folder: Path) -> int | None:
    """Size on disk of the safetensors in `folder`; None where it has none."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) or None


def tokens_per_second(lines: Iterable[MetricsLine]) -> float | None:
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


def _train(trainer: Any, checkpoint: Path | None) -> None:
    """`trainer.train`; raises NotFinite."""
    from recipes.common.callbacks import NotFinite

    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except RuntimeError as error:  # of torch.multinomial, where rollouts are sampled from nan
        if "probability tensor contains" not in str(error):
            raise
        step = trainer.state.global_step + 1
        raise NotFinite("probabilities of the rollouts", step, before_update=True) from error
    # Out of the trainer's autocast, so that it evaluates as it will when it is loaded from its folder.
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)


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


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
