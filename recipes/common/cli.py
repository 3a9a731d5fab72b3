"""From the command line to a recipe's `main`: arguments, `--smoke`, and one sentence for a user's mistake."""

import dataclasses
import errno
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from recipes.common import resuming
from recipes.common.args import check_flags
from recipes.common.clock import Terminated, ends_on_signals
from recipes.common.machine import REPOSITORY, has_gpu, quiet_libraries
from recipes.common.models import resolve
from rewards.memory import is_out_of_memory

# Flags by their old names, where these mean something else to users of TRL or to another recipe.
RENAMED = {
    "--warmup-steps": "--sft-steps",
    "--warmup-learning-rate": "--sft-learning-rate",
    "--judge": "--compare-with",
}
ROWS_AT_ONCE = "per_device_train_batch_size"
LESS_MEMORY = ("max_completion_length", "max_length", "passage_tokens", "max_prompt_length", "num_generations")
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# safetensors passes the system's words on; torch finds its archive shorter than what it wrote.
NO_SPACE_WORDS = ("No space left", "File too large", "file write failed", "unexpected pos")


def start(main: Callable[[Any], None], *, on_cpu: Any, on_gpu: Any, smoke: dict[str, Any]) -> None:
    """Parse the command line and run `main`; exits with 2 on a user's mistake, with 130 on Ctrl-C, and as Unix has it
    on SIGTERM (143) and SIGHUP (129), which save a checkpoint first.

    `on_cpu` and `on_gpu` are the defaults without and with a GPU. With `--smoke`, few rows, and none of the hub's,
    and `smoke` override what was given, and the run is stopped in each phase and resumed, so that the whole path is
    walked.
    """
    import tyro

    defaults = on_gpu if has_gpu() else on_cpu
    if sentence := renamed(sys.argv[1:], vars(defaults)):
        sys.exit(_say(sentence, 2))
    described = sys.modules[main.__module__].__doc__
    args = tyro.cli(type(defaults), default=defaults, description=described, registry=_flags())
    if args.smoke:
        source = getattr(args, "source", "hub")
        rows = "rows of our own" if source == "sample" or source.startswith("hub") else source
        print(
            f"Smoke run: on {rows}, a tiny random model in place of {args.model} trains for a few steps, is stopped on"
        )
        print("purpose in each phase and resumed, in a minute or so; its figures mean nothing.", flush=True)
    elif not has_gpu():
        took = re.findall(r"\b\d+ min\b", sys.modules[main.__module__].__doc__ or "")
        like = f" The run that --help tells of took {took[-1]}." if took else ""
        if args.model != on_cpu.model:
            like = " Models of a billion parameters and more take hours there: on Colab and Kaggle choose a T4."
        print(f"No GPU found: training {args.model} on the CPU.{like}", flush=True)
    quiet_libraries()
    with ends_on_signals():
        try:
            check_flags(args)
            resolve(args.model)  # a name that nobody knows is told before any row is read
            if args.smoke:
                from recipes.common.stand_ins.tiny import tiny_folder

                first = dataclasses.replace(smoke_args(args, smoke), model=str(tiny_folder()), max_hours=0.0)
                main(dataclasses.replace(first, resume=False))
                main(dataclasses.replace(first, resume=True))
                main(dataclasses.replace(first, resume=True, max_hours=None))
                print("Smoke run passed: the whole path was walked, stopped and resumed.")
            else:
                main(args)
        except KeyboardInterrupt as stop:
            number = stop.args[0] if isinstance(stop, Terminated) else signal.SIGINT
            sys.exit(_say(interrupted(number, smoke=args.smoke), 128 + number))
        except Exception as error:
            sentence = explain(error) or out_of_memory(error, args)
            if sentence is None:
                raise
            sys.exit(_say(sentence, 2))
        finally:
            resuming.leave()


def _flags() -> Any:
    """How tyro reads `--resume`: alone, or with the folder of a run after it."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def resume(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[bool | str] | None:
        if info.type != bool | str:
            return None
        return PrimitiveConstructorSpec(
            nargs=(0, 1),
            metavar="[FOLDER]",
            instance_from_str=lambda words: words[0] if words else True,
            is_instance=lambda value: isinstance(value, bool | str),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def interrupted(number: int, *, smoke: bool = False) -> str:
    """A sentence on what a signal leaves, and how to go on from there, also where make gave the command."""
    name = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
    prospects, given = resuming.prospects(), sys.argv[1:]
    if smoke or not prospects:
        return f"{name} before anything was kept; the same command begins again"
    if prospects.startswith("the run is"):
        return f"{name}; {prospects}"
    words = shlex.join(given if any(word.startswith("--resume") for word in given) else [*given, "--resume"])
    made = "MAKELEVEL" in os.environ
    again = f"ARGS={words if ' ' not in words else shlex.quote(words)}" if made else "--resume"
    return f"{name}; the same command with {again} {prospects}"


def smoke_args(args: Any, smoke: dict[str, Any]) -> Any:
    """`args` with their rows, or our own where theirs are the hub's, eight held out, rollouts of the model itself,
    nothing sent anywhere, and `smoke` over it all."""
    given = {"rollouts": "model", "report_to": "none", "push_to_hub": None}
    if str(getattr(args, "source", "")).startswith("hub"):
        given["source"] = "sample"
    small = given | {name: 8 for name in vars(args) if name.startswith("eval_")}
    return dataclasses.replace(args, **{name: value for name, value in small.items() if name in vars(args)} | smoke)


def renamed(words: Iterable[str], fields: Collection[str]) -> str | None:
    """One sentence where a flag is given by its old name and there is one of the new name; else None."""
    for flag in (word.partition("=")[0].replace("_", "-") for word in words):
        new = RENAMED.get(flag)
        if new and flag[2:].replace("-", "_") not in fields and new[2:].replace("-", "_") in fields:
            return f"{flag} is called {new} since December 2026: give that"
    return None


def explain(error: Exception) -> str | None:
    """One sentence for what a user can mend: bad input, a full disk, an unwritable file, an unreachable hub.

    None for anything else: a bug wants its traceback.
    """
    text, number, file = str(error), getattr(error, "errno", None), getattr(error, "filename", None)
    if number in NO_SPACE or any(words in text for words in NO_SPACE_WORDS):
        where = f" while writing {file}" if file else ""
        again = "go on with --resume" if resuming.prospects() else "give the same command again"
        return f"the disk is full{where}: free some space, then {again}"
    if number == errno.ENAMETOOLONG:
        return f"{file} is too long for a path here: give shorter names, of at most 255 characters each"
    if (
        isinstance(error, PermissionError | FileExistsError | IsADirectoryError | NotADirectoryError)
        or number == errno.EROFS
    ):
        return f"cannot write {file} ({os.strerror(number or errno.EACCES)}): name another --output-dir"
    if isinstance(error, ValueError) and _raised_by_us(error):
        return text
    if _came_through(error, "huggingface_hub"):
        reason = text.partition("\n")[0].rstrip(".")
        return (
            f"the hub could not be read ({reason}): connect, log in where a model is gated, or name a local "
            "folder as --model"
        )
    return None


def out_of_memory(error: Exception, args: Any) -> str | None:
    """One sentence where memory ran out, naming the flags of `args` that ask for less; else None."""
    if not is_out_of_memory(error):
        return None
    fewer = getattr(args, ROWS_AT_ONCE, 1) != 1 and resuming.prospects()
    on = f"go on with --resume and {_flag(ROWS_AT_ONCE)} 1, or " if fewer else ""
    lower = " or ".join(_flag(name) for name in LESS_MEMORY if hasattr(args, name))
    return f"memory ran out: {on}start anew with a {f'lower {lower}' if lower else 'smaller --model'}"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _raised_by_us(error: Exception) -> bool:
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    return any(last.startswith(str(REPOSITORY / room)) for room in ("recipes", "rewards", "data", "eval"))


def _came_through(error: BaseException | None, package: str) -> bool:
    """Whether `error`, or one that it was raised from, passed through the code of `package`."""
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        if any(package in Path(frame.filename).parts for frame in frames):
            return True
        error = error.__cause__
    return False


def _say(sentence: str, code: int) -> Any:
    print(f"error: {sentence}" if code == 2 else sentence, file=sys.stderr)
    return code
