"""Which folder a run goes on in, who else is in it, and whether all in it is what an earlier session left there.

Nothing here imports what is heavy: a run that cannot go on says so before a model is loaded.
"""

import fcntl
import json
import os
import re
import shutil
import socket
from collections.abc import Iterable, Mapping
from datetime import datetime
from hashlib import sha256 as hash_of
from itertools import groupby
from pathlib import Path
from typing import Any

from data.source import rows_read
from eval import files
from eval.files import read_json, write_json_atomic, write_text_atomic
from eval.results import MetricsLine, Record, Records, complete_results, read_lines, read_results, scan_lines
from recipes.common.model_table import ModelSpec
from recipes.common.models import ON_HUB, folder_identity, weights_identity

CHECKSUMS, LOCK = "checksums.json", ".lock"
COMPLETE = "complete.json"  # written into a checkpoint last: without it the checkpoint was cut off
STOPPED = "stopped.json"  # where numbers were no longer finite; these flags may change for it
FILES = {
    "config.json",
    "completions.jsonl",
    "metrics.jsonl",
    "seconds.json",
    "report.html",
    "results.json",
    CHECKSUMS,
    STOPPED,
}
FOLDERS = {"warm_start", "checkpoints", "adapter"}
ADAPTERS = ("start_from", "reward", "compare_with")  # flags that may name the folder of an adapter
PATHS = {"model", "source", "passages", "judge_model", *ADAPTERS}
ANOTHER = "start a new run without --resume"

NO_LOCK = -1
_held: dict[Path, int] = {}  # folders that this process is in, by the handle of their lock
_made: dict[Path, list[Path]] = {}  # what this process made for each, the folder itself first
_chosen: dict[str, str] = {}  # folders of adapters that flags mean and do not name


# What must be the same


def identity(args: Any, spec: ModelSpec) -> dict[str, dict[str, str]]:
    """What a run is of beside its arguments: fingerprints of the rows that were read, and of the weights it starts
    from, adapters that flags name among them."""
    weights = weights_identity(spec, getattr(args, "load_in_4bit", False))
    for name in ADAPTERS:
        value, chosen = getattr(args, name, None), _chosen.pop(name, None)
        if value == "trained" and chosen:
            value = chosen
        if value and (folder := Path(value).expanduser()).is_dir():
            weights |= {f"--{name.replace('_', '-')} {file}": known for file, known in folder_identity(folder).items()}
    return {"rows": rows_read(), "weights": weights}


def means(name: str, folder: Path) -> None:
    """Keep for `identity` that the flag of this name means the adapter in `folder`, which it does not name."""
    _chosen[name] = str(folder)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What another configuration, other rows and other weights differ in, each in a few words.

    A path counts by what is there, which has its fingerprint: it is written otherwise from another working directory.
    What either side does not know of rows and weights is not compared.
    """
    changed = []
    for name in sorted((before.keys() | now.keys()) - {"flags", "rows", "weights"}):
        old, new = before.get(name), now.get(name)
        same_place = name in PATHS and old and new and Path(old).name == Path(new).name and Path(new).exists()
        if name in ADAPTERS and old == "trained" and new and Path(new).exists():
            same_place = True  # that one, by its folder, since a newer one was trained
        if old != new and not same_place:
            changed.append(f"--{name.replace('_', '-')} {old} -> {new}" if name != "recipe" else f"{old} -> {new}")
    for kind in ("rows", "weights"):
        old, new = before.get(kind) or {}, now.get(kind) or {}
        for name in sorted(old.keys() & new.keys()):
            if old[name] != new[name]:
                changed.append(f"the {kind} of {name} were {old[name]} and are {new[name]}")
        if kind == "weights" and old and new:
            # A later session may begin with an empty cache.
            changed += [f"{name} is gone" for name in sorted(old.keys() - new.keys()) if not name.startswith(ON_HUB)]
            changed += [f"{name} is new" for name in sorted(new.keys() - old.keys()) if not name.startswith(ON_HUB)]
    return changed


def settle(folder: Path, spec: ModelSpec, load_in_4bit: bool) -> None:
    """Keep which weights of the hub were loaded, which may be known only once they are.

    Raises:
        ValueError: an earlier session had others.
    """
    path = folder / "config.json"
    commit = {name: known for name, known in weights_identity(spec, load_in_4bit).items() if name.startswith(ON_HUB)}
    if not commit or not path.exists():
        return
    config = read_json(path)
    known = config.get("weights") or {}
    _refuse(
        folder, differences({"weights": {name: known[name] for name in commit if name in known}}, {"weights": commit})
    )
    if not commit.items() <= known.items():
        write_json_atomic(path, config | {"weights": known | commit})


def changeable(folder: Path) -> set[str]:
    """The flags that may differ when the run in `folder` is resumed: the learning rates of a phase that stopped because
    numbers were no longer finite."""
    try:
        return set(read_json(folder / STOPPED)["flags"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def accept(folder: Path, config: Mapping[str, Any]) -> None:
    """Keep what this session has that the run began without, where `changeable` allows it."""
    begun = _config(folder)
    changed = {name: config[name] for name in changeable(folder) & config.keys()}
    if begun != begun | changed:
        write_json_atomic(folder / "config.json", begun | changed)


# Which folder


def choose(parent: Path, what: str, wanted: bool | str, config: Mapping[str, Any]) -> Path:
    """The folder to go on in: `wanted`, or where that is True the newest unfinished one in `parent` of this `config`.

    Newer ones that are complete or of another configuration are passed over, and so are those of starts that failed
    before their first stage while there is another. `what` names recipe and model.

    Raises:
        ValueError: there is none, it is complete, it is another configuration's, or its state cannot be told.
    """
    if isinstance(wanted, str):
        folder = Path(wanted).expanduser()
        if not folder.is_dir():
            raise ValueError(f"--resume {wanted}: there is no such folder; give one that a run named as its run folder")
        if _is_complete(folder):
            raise ValueError(f"--resume {wanted}: that run is complete{_faults(folder)}; {ANOTHER}")
        _refuse(folder, *_compared(folder, _config(folder), config))
        return folder
    complete: Path | None = None
    unfinished: list[tuple[Path, dict[str, Any]]] = []
    folders = sorted((path for path in parent.glob("*") if path.is_dir()), reverse=True) if parent.is_dir() else []
    for folder in sorted(folders, key=lambda folder: not has_begun(folder)):  # stable: the newest first in both parts
        if not any((folder / name).exists() for name in FILES | FOLDERS):
            continue  # none of ours, or killed before its first file
        if _is_complete(folder):
            complete = complete or folder
            continue
        begun = _config(folder)
        if not any(_compared(folder, begun, config)):
            for newer, _ in unfinished:
                print(f"Passing over {newer}: it is unfinished too, but not of these settings, rows and weights.")
            return folder
        unfinished.append((folder, begun))
    if unfinished:
        folder, begun = unfinished[0]
        _refuse(folder, *_compared(folder, begun, config))
    if complete:
        raise ValueError(f"the newest run, {complete}, is complete; start a new one without --resume")
    raise ValueError(f"--resume found no run of {what} in {parent}; start one without --resume")


def has_begun(folder: Path) -> bool:
    """Whether a run has anything to go on from."""
    steps = folder.glob("checkpoints/*/checkpoint-*")
    return any(map(_has_content, (folder / "completions.jsonl", folder / "metrics.jsonl"))) or any(steps)


def _has_content(path: Path) -> bool:
    return path.exists() and (path.is_dir() or path.stat().st_size > 0)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = read_json(path)
        if isinstance(config, dict) and "seed" in config:  # as those of older versions have
            return config
        wrong = "it holds no arguments"
    except OSError as error:
        wrong = error.strerror or str(error)
    except ValueError as error:
        wrong = files.what_is_wrong(error.__cause__) if isinstance(error.__cause__, Exception) else str(error)
    raise ValueError(
        f"{path} cannot be read ({wrong}), and only it says what this run is of: put a copy in its place, give the "
        f"folder of another run as --resume FOLDER, or move this one away"
    )


def _is_complete(folder: Path) -> bool:
    """What results.json says; where that is gone or damaged, what the other files do."""
    path = folder / "results.json"
    wrong = "is not there"
    if path.exists():
        try:
            return read_results(path)["complete"]
        except (OSError, ValueError) as error:
            wrong = f"is damaged ({error.strerror})" if isinstance(error, OSError) else "is damaged"
    # The checkpoints go last of all, and an adapter is saved when there are some.
    if (folder / "adapter").exists() and not any(folder.glob("checkpoints/*/*")):
        raise ValueError(
            f"{path} {wrong}, and there are no checkpoints to go on from, as in a complete run: its adapter and its "
            f"completions are in {folder}; give another folder as --resume FOLDER, move this one away, or {ANOTHER}"
        )
    return False


def _compared(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], bool]:
    """The differences that may not be, and whether the flags of the one mean other things than those of the other."""
    may_change = {name: now.get(name) for name in changeable(folder)}
    return differences({**before, **may_change}, now), before.get("flags") != now["flags"]


def _refuse(folder: Path, changed: list[str], other_flags: bool = False) -> None:
    if other_flags:
        raise ValueError(
            f"--resume cannot continue {folder}: an older version of Tunebook began it, whose flags or rows meant "
            "other things; finish it with that version, or start a new run without --resume"
        )
    if changed:
        raise ValueError(
            f"--resume cannot continue {folder} with another configuration ({', '.join(changed)}); "
            "give the values it started with, or start a new run without --resume"
        )


# Who is in it


def make(parent: Path, config: Mapping[str, Any]) -> Path:
    """A new folder in `parent`, named by the time and after all that are there, with `config` in it, which is taken.

    Raises:
        ValueError: it cannot be written.
    """
    name = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = parent / name
    missing: list[Path] = []
    try:
        newest = max((path.name for path in parent.glob("*") if re.fullmatch(r"\d{8}-\d{6}b*", path.name)), default="")
        if newest >= name:  # within a second, or with a clock that was set back
            folder = parent / f"{newest}b"
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True)
        take(folder)
        _made[folder.resolve()] = missing
        write_json_atomic(folder / "config.json", config)
        for path in missing:
            files.fsync_tree(path) if path == folder else files.fsync(path.parent)
    except OSError as error:
        leave(folder)
        raise ValueError(f"cannot write {folder} ({error.strerror}): name another --output-dir") from error
    return folder


def take(folder: Path) -> None:
    """Be the one process that works in `folder`, until `leave` or until this process ends, however it does.

    Raises:
        ValueError: another one is there, and the sentence names it.
    """
    if (place := folder.resolve()) in _held:
        return
    while True:
        # Closed in whatever another program is started: it would keep the lock.
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.read(handle, 1000).decode("utf-8", "replace").strip() or "another process"
            os.close(handle)
            raise ValueError(
                f"{folder} is in use by {who}: wait for it or stop it, or {ANOTHER}, which gets a folder of its own"
            ) from None
        except OSError:  # a network drive without locks
            os.close(handle)
            print(f"No lock can be had in {folder}: see to it that no other process resumes this run meanwhile.")
            _held[place] = NO_LOCK
            return
        try:
            if os.path.samestat(os.fstat(handle), os.stat(folder / LOCK)):
                break
        except FileNotFoundError:
            pass
        os.close(handle)  # who held it has left and removed it
    since = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    os.ftruncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode())
    _held[place] = handle


def leave(*folders: Path) -> None:
    """Leave these folders, or all that this process is in. Those of a run that it began and that has nothing to go on
    from are removed."""
    for folder in [path.resolve() for path in folders] or [*_held]:
        made = _made.pop(folder, [])
        if made and not has_begun(folder) and not (folder / "results.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            for path in made[1:]:
                try:
                    path.rmdir()
                except OSError:
                    break  # others are in it
        if (handle := _held.pop(folder, None)) is not None:
            (folder / LOCK).unlink(missing_ok=True)
            if handle != NO_LOCK:
                os.close(handle)


def prospects() -> str:
    """What the next session finds of the run that this process is in, as the rest of a sentence on --resume."""
    for folder in _held:
        if (folder / "results.json").exists():
            return f"the run is complete but for its last words, see {folder}"
        steps = {phase: step for phase, step, _ in whole_checkpoints(folder)}
        if steps:
            phase, step = [*steps.items()][-1]
            return f"goes on from the last checkpoint, step {step} of {phase}"
        if has_begun(folder):
            return "goes on; without a checkpoint yet, training begins at its first step"
    return ""


# Is it whole


def whole_checkpoints(folder: Path) -> list[tuple[str, int, Path]]:
    """The newest checkpoint that was saved whole of each phase, in the order of the phases: its phase, step, folder."""
    newest: dict[str, tuple[int, Path]] = {}
    for mark in folder.glob(f"checkpoints/*/checkpoint-*/{COMPLETE}"):
        phase, number = mark.parent.parent.name.replace("_", " "), mark.parent.name.rpartition("-")[2]
        if number.isdecimal() and int(number) > newest.get(phase, (-1, mark))[0]:
            newest[phase] = (int(number), mark.parent)
    phases = sorted(newest, key=_order)
    return [(phase, *newest[phase]) for phase in phases]


def _order(phase: str) -> bool:
    return phase != "warm start"  # which is before every other


def mend(folder: Path) -> Records:
    """Make whole again what an earlier session, a kill or a damage left in `folder`, and say what had to be; returns
    the records of the stages that are whole.

    What is not there is left to be made again: stages are evaluated, report and results are written at the end.

    Raises:
        ValueError: what is damaged cannot be made again.
    """
    for name in sorted(FILES | FOLDERS):
        path = folder / name
        if path.exists() and path.is_dir() != (name in FOLDERS):
            is_, should = ("a folder", "a file") if name in FILES else ("a file", "a folder")
            raise ValueError(f"{path} is {is_}, where {should} belongs: move it away and give the same command again")
    left = [*folder.glob(".*.tmp"), *folder.glob(".*.part")]
    for path in left:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if left:
        print(f"Removed what a kill left unfinished: {', '.join(path.name for path in left)}")
    sums = _checksums(folder)
    _mend_metrics(folder)
    records = _whole_stages(folder, sums)
    _mend_seconds(folder, records)
    _check_warm_start(folder, sums)
    return records


def vouch(folder: Path, *, stages: Mapping[str, Records] | None = None, adapter: str | None = None) -> None:
    """Flush what is in `folder`, and keep the checksums of stages, as they stand in completions.jsonl, or of the files
    of an adapter; where neither is given, of all of a run that ends, which its results.json may then vouch for."""
    sums = _checksums(folder, quiet=True)
    if stages is not None:
        sums["stages"] = {name: _sum(map(line_of, records)) for name, records in stages.items()}
    elif adapter is not None:
        files.fsync_tree(folder / adapter)
        sums[adapter] = _sums(folder / adapter)
    else:
        files.fsync_tree(folder)
        ends = FILES - {"results.json", CHECKSUMS, STOPPED}
        sums["files"] = {name: files.sha256(folder / name) for name in sorted(ends) if (folder / name).exists()}
    write_json_atomic(folder / CHECKSUMS, sums)


def line_of(record: Mapping[str, Any]) -> str:
    """A record as a line of completions.jsonl."""
    return json.dumps(record, ensure_ascii=False)


def _sum(lines: Iterable[str]) -> str:
    digest = hash_of()
    for line in lines:
        digest.update(line.encode("utf-8", "backslashreplace") + b"\n")
    return digest.hexdigest()


def _sums(folder: Path) -> dict[str, str]:
    """Of all of an adapter but its model card, which is written later."""
    return {
        path.relative_to(folder).as_posix(): files.sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "README.md"
    }


def _checksums(folder: Path, *, quiet: bool = False) -> dict[str, dict[str, str]]:
    path = folder / CHECKSUMS
    wrong = "is not there"
    try:
        sums = read_json(path)
        if isinstance(sums, dict) and all(isinstance(known, dict) for known in sums.values()):
            return sums
        wrong = "is damaged"
    except FileNotFoundError:
        quiet = quiet or not has_begun(folder)
    except (OSError, ValueError):
        wrong = "is damaged"
    if not quiet:
        print(f"{path} {wrong}: completions and adapters that can be read are taken for whole.")
        path.unlink(missing_ok=True)
    return {}


def _whole_stages(folder: Path, sums: Mapping[str, Mapping[str, str]]) -> Records:
    """The records of stages that are as they were written; a line for each that is not."""
    path, known = folder / "completions.jsonl", sums.get("stages")
    if not path.exists():
        for name in known or ():
            print(f"{path} is not there: {name} is evaluated again.")
        return []
    records: Records = []
    stages: dict[str, list[tuple[bytes, Record]]] = {}
    for number, line, found in scan_lines(path):
        if isinstance(found, dict) and found.keys() >= Record.__required_keys__ and isinstance(found["stage"], str):
            stages.setdefault(found["stage"], []).append((line, found))  # type: ignore[arg-type]
        else:
            wrong = found if isinstance(found, str) else "cut off" if found is None else "no record of a completion"
            print(f"{path}, line {number} is damaged ({wrong}).")
            known = known or {}
    for name, lines in stages.items():
        whole = known is None or hash_of(b"".join(line + b"\n" for line, _ in lines)).hexdigest() == known.get(name)
        if whole:
            records += [record for _, record in lines]
        else:
            print(f"{path} does not hold all of {name} as it was written: {name} is evaluated again.")
    for name in (known or {}).keys() - stages.keys():
        print(f"{path} has lost {name}: it is evaluated again.")
    return records


def _mend_metrics(folder: Path) -> None:
    """Drop lines that cannot be read, and write those of steps before a checkpoint anew from what the trainer noted
    there: all but seconds and what callbacks measured."""
    path = folder / "metrics.jsonl"
    lines: list[MetricsLine] = []
    faults: list[str] = []
    for number, _, found in scan_lines(path) if path.exists() else ():
        if found is None:
            faults.append(f"line {number} was cut off by a kill")
        elif isinstance(found, str) or not (isinstance(found.get("phase"), str) and type(found.get("step")) is int):
            faults.append(f"line {number} is damaged")
        else:
            lines.append(found)  # type: ignore[arg-type]
    checkpoints = whole_checkpoints(folder)
    for phase, step, checkpoint in checkpoints:
        there = {line["step"]: line for line in lines if line["phase"] == phase}
        noted = _noted(checkpoint)
        wrong = [n for n in range(1, step + 1) if n not in there or _differs(there[n], noted.get(n, {}))]
        if not wrong:
            continue
        lost = [n for n in wrong if n not in noted]
        faults.append(f"{phase} lacks steps or has others ({_ranges(wrong)})")
        if lost:
            faults.append(f"of {_ranges(lost)} nothing is known any more")
        lines = [line for line in lines if line["phase"] != phase or line["step"] not in wrong]
        lines += [{"phase": phase, **noted[n], "step": n} for n in wrong if n in noted]  # type: ignore[typeddict-item]
        lines.sort(key=lambda line: (_order(line["phase"]), line["step"]))
    for phase in {line["phase"] for line in lines} - {phase for phase, _, _ in checkpoints}:
        if phase != "warm start" or not (folder / "warm_start").exists():
            print(f"There is no whole checkpoint of {phase}: it begins again at its first step.")
    if faults:
        print(f"{path}: {'; '.join(faults)}. It is mended from the last checkpoints.")
        write_text_atomic(path, "".join(json.dumps(line) + "\n" for line in lines))


def _noted(checkpoint: Path) -> dict[int, dict[str, Any]]:
    """What the trainer kept of each step in its last whole checkpoint; nothing where that cannot be read."""
    try:
        history = read_json(checkpoint / "trainer_state.json")["log_history"]
        return {entry["step"]: entry for entry in history if "train_runtime" not in entry}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _differs(line: Mapping[str, Any], noted: Mapping[str, Any]) -> bool:
    """Whether a line gives another figure than the trainer noted; null stands for what is not finite."""
    return any(line.get(key, value) not in (value, None) for key, value in noted.items())


def _ranges(steps: list[int]) -> str:
    runs = (list(run) for _, run in groupby(enumerate(steps), key=lambda pair: pair[1] - pair[0]))
    return ", ".join(f"{run[0][1]} to {run[-1][1]}" if len(run) > 1 else str(run[0][1]) for run in runs)


def _mend_seconds(folder: Path, records: Records) -> None:
    path = folder / "seconds.json"
    wrong = "is not there"
    try:
        seconds = read_json(path)
        if isinstance(seconds, dict) and all(type(s) in (int, float) and s >= 0 for s in seconds.values()):
            return
        wrong = "is damaged"
    except FileNotFoundError:
        if not records:  # killed before any phase ended
            return
    except (OSError, ValueError):
        wrong = "is damaged"
    metrics = folder / "metrics.jsonl"
    found: dict[str, float] = {}
    for line in read_lines(metrics) if metrics.exists() else ():
        found[line["phase"]] = round(found.get(line["phase"], 0.0) + (line.get("seconds") or 0.0), 1)
    write_json_atomic(path, found)
    print(f"{path} {wrong}: those of training are summed from metrics.jsonl, those of evaluations so far are lost.")


def _check_warm_start(folder: Path, sums: Mapping[str, Mapping[str, str]]) -> None:
    warm, known = folder / "warm_start", sums.get("warm_start")
    if not warm.exists() and not known:
        return
    found = _sums(warm)
    if known is None:
        wrong = [name for name in found if name.endswith(".safetensors") and not _is_safetensors(warm / name)]
    else:
        wrong = sorted(name for name in known.keys() | found.keys() if known.get(name) != found.get(name))
    if not wrong:
        return
    if not any(phase == "warm start" for phase, _, _ in whole_checkpoints(folder)):
        raise ValueError(
            f"{warm / wrong[0]} is damaged or gone, and no checkpoint of the warm start is left to make it from: put a "
            f"copy in its place, or {ANOTHER}"
        )
    print(f"{warm} is damaged ({', '.join(wrong)}): it is made again from its last checkpoint.")
    shutil.rmtree(warm, ignore_errors=True)


def _is_safetensors(path: Path) -> bool:
    """Whether a file is as long as its header says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            return True
    except (OSError, ValueError, SafetensorError):
        return False


def _faults(folder: Path) -> str:
    """What is damaged in a complete run, as the rest of a sentence; "" where all is whole."""
    try:
        sums = read_json(folder / CHECKSUMS)
        known = dict(sums["files"])
        found = {name: files.sha256(path) for name in known if (path := folder / name).is_file()}
        for name in FOLDERS & sums.keys():
            known |= {f"{name}/{file}": known_sum for file, known_sum in sums[name].items()}
            found |= {f"{name}/{file}": found_sum for file, found_sum in _sums(folder / name).items()}
        wrong = sorted(name for name in known if known[name] != found.get(name))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        wrong = [CHECKSUMS]
    return f", and damaged since ({', '.join(wrong)}): put copies in their place" if wrong else ""


def clean_up(parent: Path) -> None:
    """Remove the checkpoints that a kill left in complete runs of `parent`, which no one goes on from."""
    for checkpoints in parent.glob("*/checkpoints"):
        folder = checkpoints.parent
        if folder.resolve() in _held or not complete_results(folder / "results.json"):
            continue
        try:
            take(folder)
        except (OSError, ValueError):
            continue  # its process is at it, or nothing may be written there
        shutil.rmtree(checkpoints, ignore_errors=True)
        leave(folder)
        print(f"Removed the checkpoints of {folder}, which is complete.")
