"""What `make setup` asks of a machine before it downloads, and `make notebook`: the set on top of a torch.

    python requirements/install.py check --device gpu   refuse in one sentence what cannot work, before any download
    python requirements/install.py venv .venv           a virtual environment with pip, even where ensurepip is missing
    python requirements/install.py here                 install into the Python that runs this: Colab, Kaggle, servers

Standard library only, and readable by any Python 3.8: an old one has to get as far as the sentence that refuses it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass, replace
from importlib import invalidate_caches
from importlib.util import find_spec
from pathlib import Path
from textwrap import indent
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ((3, 11), (3, 14))  # from, to before: pyproject.toml says the same
DRIVER = (580, 65)  # CUDA 13.0's, which torch 2.13 and vLLM 0.27.1 are built for
CAPABILITY = (7, 5)  # Turing, as on a T4. CUDA 13 has no kernels for Volta (V100, 7.0) and Pascal (P100, 6.0)
OLDEST = 70  # for Triton and Unsloth, whatever torch holds kernels for
OLD_CARDS = {"P100": (6, 0), "V100": (7, 0)}  # drivers before 510 do not tell the capability
MEMORY_GB = 7.5  # a machine sold with 8
FREE_GB = {"gpu": 14, "cpu": 4, "notebook": 2}  # the environment, and what is kept of the downloads
# What stands on a machine that somebody else set up and other programs there count on.
KEPT = ("torch", "numpy", "pandas", "scipy", "matplotlib")
# Beside what pyproject.toml leaves out: what came with the torch if it is needed, and what nothing calls.
NOT_ON_TOP = (
    *("cuda-bindings", "cuda-toolkit", "cut-cross-entropy", "diffusers", "torchvision", "triton"),
    *("nvidia-cudnn-cu13", "nvidia-cusparselt-cu13", "nvidia-nccl-cu13", "nvidia-nvshmem-cu13"),
)
OVERRIDES = (
    "certifi>=2024.7.4",  # Unsloth asks for one newer than registries may hold
    "click>=8.0",  # DeepEval's bound would pull huggingface_hub down
)
UV = (0, 13)  # --excludes
ELSEWHERE = "/usr/lib/wsl/lib"  # where WSL2 keeps nvidia-smi, and PATH may not say so
UNREACHED = ("error sending request", "Failed to fetch", "network was disabled", "NewConnectionError", "NameResolution")


@dataclass(frozen=True)
class Card:
    name: str
    driver: str
    """As nvidia-smi writes it, "[N/A]" included."""
    capability: tuple[int, ...] | None
    """None where the driver is too old to tell and the name says nothing."""


@dataclass(frozen=True)
class Torch:
    """`capability` of the first card as torch sees it, 75 for 7.5, and 0 where it sees none; `kernels` as it lists."""

    version: str
    cuda: str
    capability: int
    kernels: str


@dataclass(frozen=True)
class Machine:
    """What decides whether a set-up can work. `free_gb` is of the disk that the environment would lie on."""

    system: str
    python: tuple[int, ...]
    card: Card | None
    free_gb: float
    memory_gb: float
    compiler: bool
    headers: bool
    can_make_venv: bool


def numbers(text: str) -> tuple[int, ...]:
    """`580.65.06` as (580, 65, 6): what stands before the first other character."""
    match = re.match(r"\d+(\.\d+)*", text.strip())
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def dotted(parts: tuple[int, ...]) -> str:
    return ".".join(map(str, parts))


def run(command: list[str], seconds: float | None = None) -> subprocess.CompletedProcess[str]:
    """Its end and output. A program that does not start or does not answer within `seconds` failed as well.

    Hosted notebooks force colours upon every program, and what is read here has none.
    """
    plain = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "CLICOLOR_FORCE")}
    plain.update(NO_COLOR="1", PYTHON_COLORS="0", PATH=f"{os.environ.get('PATH', os.defpath)}:{ELSEWHERE}")
    how: Any = {"capture_output": True, "encoding": "utf-8", "errors": "replace", "timeout": seconds, "env": plain}
    try:
        return subprocess.run(command, **how)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer within {seconds:.0f} seconds")
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


def why(done: subprocess.CompletedProcess[str]) -> str:
    """Why it failed, in one line: uv names its last cause, everything else ends with it."""
    if done.returncode < 0:
        return f"it was killed by signal {-done.returncode}"
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith(("cause:", "Caused by:", "╰─▶", "ERROR:"))]
    last = re.sub(
        r"^(cause:|Caused by:|╰─▶|hint:|error:|ERROR:|Error:)\s*", "", (causes or lines or ["no reason given"])[-1]
    )
    unreached = any(word in done.stderr for word in UNREACHED)
    return f"the package index could not be reached ({last})" if unreached else last


def must(done: subprocess.CompletedProcess[str], what: str) -> None:
    if done.returncode:
        raise SystemExit(f"{what}: {why(done).rstrip('.')}. Mend that and run the same again.")


def ask(body: str) -> Any:
    """What a program of this Python leaves in `answer`, as JSON has it, or why there is none, as a string.

    In a process of its own, which sees what was just added, may print, die and hang, and does not import what lies in
    the current folder.
    """
    mark = "tunebook answers "
    code = (
        f"import json\ntry:\n{indent(body, '    ')}\nexcept BaseException as error:\n"
        "    answer = ' '.join(f'{type(error).__name__}: {error}'.split())\n"
        f"print('\\n{mark}' + json.dumps(answer), flush=True)"
    )
    done = run([sys.executable, "-P", "-c", code], 300)
    answers = [line for line in done.stdout.splitlines() if line.startswith(mark)]
    if answers:
        return json.loads(answers[-1][len(mark) :])
    return why(done) if done.returncode else "it ended before it answered"


def read_card() -> Card | None:
    """The most capable card, or None where nvidia-smi is missing, does not answer or finds none.

    It writes warnings between its lines, and errors with exit code 0; drivers before 510 know no compute_cap.
    """
    for fields in ("compute_cap,driver_version,name", "driver_version,name"):
        done = run(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"], 20)
        cards = []
        for line in done.stdout.splitlines():
            match = re.fullmatch(r"(?:([\d.]+|\[?N/A\]?), )?(\d[\d.]*|\[?N/A\]?), (.+)", line.strip())
            if match:
                told, driver, name = match.groups()
                known = next((known for card, known in OLD_CARDS.items() if card in name), None)
                cards.append(Card(name.strip(), driver, numbers(told or "") or known))
        if done.returncode == 0 and cards:
            return max(cards, key=lambda card: card.capability or CAPABILITY)
        if done.returncode == 124:
            break
    return None


def size(folder: Path) -> int:
    return sum(os.lstat(os.path.join(top, name)).st_size for top, _, names in os.walk(folder) for name in names)


def read_machine(folder: Path) -> Machine:
    """Of the disk that `folder` lies on; an environment that is in it is written over."""
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 8e9
    compilers = (os.environ["CC"],) if os.environ.get("CC") else ("gcc", "clang")
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        python=tuple(sys.version_info[:3]),
        card=read_card(),
        free_gb=(shutil.disk_usage(folder).free + size(folder / ".venv")) / 1e9,
        memory_gb=pages / 1e9,
        # What Triton looks for when it builds a launcher; Debian's own scheme names another folder.
        compiler=any(map(shutil.which, compilers)),
        headers=Path(sysconfig.get_path("include", "posix_prefix"), "Python.h").exists(),
        can_make_venv=find_spec("venv") is not None and (has_ensurepip() or has_pip() or find_uv() is not None),
    )


def python_hindrance(python: tuple[int, ...]) -> str | None:
    lowest, end = PYTHONS
    if lowest <= python[:2] < end:
        return None
    wanted = f"Python {dotted(lowest)} to {end[0]}.{end[1] - 1} is needed"
    return f"{wanted}, and {sys.executable} is {dotted(python)}: name another with PYTHON=/path/to/python3"


def card_hindrance(card: Card) -> str | None:
    if card.capability is not None and card.capability < CAPABILITY:
        return (
            f"the {card.name} (compute capability {dotted(card.capability)}) is older than {dotted(CAPABILITY)}, and "
            "today's PyTorch and vLLM hold no kernels for it: take a T4 on Kaggle, a card of 2018 or later elsewhere"
        )
    if () < numbers(card.driver) < DRIVER:
        return (
            f"the {card.name} has driver {card.driver}, and this set (torch 2.13, vLLM 0.27, CUDA 13) needs "
            f"{dotted(DRIVER)} or newer: update it, or run `make notebook` to train on top of a torch that is "
            "here, or `make setup DEVICE=cpu` to do without the card"
        )
    return None


def tools_hindrance(machine: Machine) -> str | None:
    """Of what a card needs beside its driver."""
    if machine.compiler and machine.headers:
        return None
    python = dotted(machine.python[:2])
    missing = "C compiler" if not machine.compiler else f"Python.h of Python {python}"
    return (
        f"Triton builds its kernels on this machine and finds no {missing}: "
        f"`sudo apt install build-essential python{python}-dev`"
    )


def disk_hindrance(machine: Machine, what: str) -> str | None:
    if machine.free_gb >= FREE_GB[what]:
        return None
    free = int(machine.free_gb * 10) / 10  # 3.96 is not 4
    return f"{free} GB of disk are free; the environment and its downloads take {FREE_GB[what]} GB"


def hindrance(machine: Machine, device: str) -> str | None:
    """Why the set for `device` ("gpu" or "cpu") cannot work on this machine, in one sentence; None where it can."""
    if machine.system != "Linux x86_64":
        elsewhere = "use WSL2" if machine.system.startswith("Windows") else "take a machine or a notebook of that kind"
        return f"the pins are made for Linux x86_64, and this is {machine.system}: {elsewhere}"
    wrong = python_hindrance(machine.python)
    if wrong or (device == "gpu" and machine.card and (wrong := card_hindrance(machine.card))):
        return wrong
    if not machine.can_make_venv:
        python = dotted(machine.python[:2])
        return f"Python {python} here cannot make an environment: `sudo apt install python{python}-venv`, or install uv"
    return (tools_hindrance(machine) if device == "gpu" else None) or disk_hindrance(machine, device)


def notes(machine: Machine, device: str) -> list[str]:
    """What does not hinder and is better known beforehand."""
    found = []
    if device == "gpu" and machine.card is None:
        found.append("No card answers here (nvidia-smi tells why): DEVICE=gpu makes the set for one all the same.")
    if device != "gpu" and machine.card is None and shutil.which("nvidia-smi"):
        found.append("nvidia-smi is here and finds no card or does not answer: this goes on without one.")
    if machine.memory_gb < MEMORY_GB:
        found.append(
            f"This machine has {machine.memory_gb:.1f} GB of memory; `make demo` takes 5, and loading an 8B model more."
        )
    return found


def has_ensurepip() -> bool:
    return find_spec("ensurepip") is not None


def has_pip() -> bool:
    return find_spec("pip") is not None


def find_uv() -> list[str] | None:
    """The command of a uv that is here and new enough."""
    for command in ([sys.executable, "-m", "uv"] if find_spec("uv") else ["uv"], ["uv"]):
        done = run([*command, "--version"], 60)
        if done.returncode == 0 and numbers(done.stdout.partition(" ")[2]) >= UV:
            return command
    return None


def remove_leftovers(packages: Path) -> None:
    """Of an install that was cut off: neither pip nor uv goes on beside an entry that names no package."""
    for entry in packages.glob("*.dist-info"):
        metadata = entry / "METADATA"
        if not metadata.is_file() or not metadata.stat().st_size:
            print(f"Removing {entry}, left by an install that was cut off.")
            shutil.rmtree(entry)


def make_venv(folder: Path, device: str) -> None:
    """A virtual environment with pip in it. Debian and hosted notebooks leave ensurepip out; pip comes another way.

    One of another Python or for another device is made anew: pip takes a torch without kernels for a card's.
    """
    note, made_for = folder / ".made-for", f"{device} {sys.version.split()[0]} {os.path.realpath(sys.base_prefix)}"
    if note.is_file() and note.read_text(encoding="utf-8") == made_for and (folder / "bin" / "python").exists():
        for packages in folder.glob("lib/python*/site-packages"):
            remove_leftovers(packages)
        return
    if folder.is_dir():
        print(f"{folder} is of another Python or for another device, or unfinished: it is made anew.")
    without = [] if has_ensurepip() else ["--without-pip"]
    must(run([sys.executable, "-m", "venv", "--clear", *without, str(folder)]), f"{folder} could not be made")
    if without:
        pip = [sys.executable, "-m", "pip"] if has_pip() else [*(find_uv() or ["uv"]), "pip"]
        python = ["--python", str(folder / "bin" / "python")]
        must(
            run([*pip, *python, "install", "pip"] if has_pip() else [*pip, "install", *python, "pip"]),
            f"{folder} has no pip",
        )
    note.write_text(made_for, encoding="utf-8")


# On top of a torch that is there


def installed() -> tuple[dict[str, str], set[str]]:
    """Name and version of every package that this Python sees; the names of those that are not its own.

    A user's folder, PYTHONPATH and the Python under a virtual environment hold packages that uv does not see.
    """
    found = ask(
        "import os, sysconfig\nfrom importlib.metadata import distributions\n"
        "own = {os.path.realpath(sysconfig.get_path(kind)) for kind in ('purelib', 'platlib')}\n"
        "answer = [(p.metadata['Name'], p.version, os.path.realpath(p.locate_file('')) in own)\n"
        "    for p in distributions() if p.metadata['Name'] and p.version]"
    )
    if isinstance(found, str):
        raise SystemExit(f"{sys.executable} does not list its packages: {found}.")
    # Where a package is there twice, the first is the one that is imported.
    first = {re.sub(r"[-_.]+", "-", name).lower(): (number, own) for name, number, own in reversed(found)}
    return {name: number for name, (number, _) in first.items()}, {name for name, (_, own) in first.items() if not own}


def uv_command(scratch: Path) -> list[str]:
    """uv, which can leave out and overrule what packages ask for; fetched into `scratch` where it is not here."""
    found = find_uv()
    if found:
        return found
    if not has_pip():
        raise SystemExit(f"neither pip nor uv is here: install uv, or `{sys.executable} -m ensurepip`, or python3-pip")
    pin = next(line for line in (ROOT / "requirements" / "cpu.txt").read_text().splitlines() if line.startswith("uv=="))
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-warn-script-location", "--no-user"]
    fetch = [sys.executable, "-m", "pip", "install", *quiet, "--target", str(scratch), pin]
    must(run(fetch), "uv could not be fetched")
    return [str(scratch / "bin" / "uv")]


def wanted(torch: Torch, have: dict[str, str], foreign: set[str]) -> tuple[list[str], list[str]]:
    """What to ask for, the ranges of pyproject.toml and what depends on what is here; and what to leave out.

    What is `foreign`, as `installed` tells, and has to stay is left out: it would be downloaded a second time.
    """
    import tomllib

    tables = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    ranges = tables["project"]["dependencies"] + tables["project"]["optional-dependencies"]["judge"]
    left_out = {*tables["tool"]["uv"]["exclude-dependencies"], *NOT_ON_TOP, *(foreign & {*KEPT})}
    if "torchao" in have:
        ranges.append("torchao>=0.16")  # PEFT 0.21 ends in an ImportError beside an older one
    if torch.cuda.startswith("12.8"):
        ranges.append("xformers==0.0.35")  # the one CUDA that it is built for
        left_out.remove("xformers")
    return ranges, sorted(left_out)


def read_torch() -> Torch | str:
    """The torch that is here, asked in a process of its own; where it does not import, one line of why."""
    found = ask(
        "import torch\ncapability = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)\n"
        "answer = [torch.__version__, str(torch.version.cuda), capability[0] * 10 + capability[1],\n"
        "    ' '.join(torch.cuda.get_arch_list())]"
    )
    return found if isinstance(found, str) else Torch(*found)


def torch_hindrance(torch: Torch, card: Card | None) -> str | None:
    """Why the recipes cannot run on top of this torch, in one sentence; None where they can."""
    name = card.name if card else "card"
    if card and not torch.capability:
        return (
            f"torch {torch.version} (CUDA {torch.cuda}) does not reach the {name} (driver {card.driver}): "
            "install a torch for that driver, or set CUDA_VISIBLE_DEVICES=-1 to do without the card"
        )
    if not torch.capability:
        return None
    if torch.cuda == "None":
        return (
            f"torch {torch.version} reaches a card without CUDA, which no recipe was tried on: set "
            "CUDA_VISIBLE_DEVICES=-1 to do without the card, or take an NVIDIA one"
        )
    if torch.capability < OLDEST:
        return (
            f"the {name} (compute capability {torch.capability / 10}) is older than {OLDEST / 10}, where Triton and "
            "Unsloth begin: take a T4 on Kaggle, a newer card elsewhere"
        )
    # A kernel runs on its own generation from its card on; "compute" is compiled for any newer card.
    made = [(kind, int(number)) for kind, number in re.findall(r"(sm|compute)_(\d+)", torch.kernels)]
    own = torch.capability // 10
    if made and not any(
        number <= torch.capability and (kind == "compute" or number // 10 == own) for kind, number in made
    ):
        return f"torch {torch.version} holds no kernels for the {name}: take another torch, or a T4 on Kaggle"
    return None


def outside(keep: dict[str, str], ranges: list[str]) -> str | None:
    """What has to stay as it is and is not in our range: no set can be found around it."""
    for name, low, high in re.findall(r"^([\w-]+)>=([\d.]+)(?:,<([\d.]+))?$", "\n".join(ranges), flags=re.MULTILINE):
        number = keep.get(name, "")
        early = re.match(r"[\d.]+?\.?(a|b|rc|dev)\d", number) and numbers(number)[:2] <= numbers(low)
        if number and (early or numbers(number) < numbers(low) or (high and numbers(number) >= numbers(high))):
            upper = f" and below {high}" if high else ""
            return f"{name} {number} is here, and {low} or newer{upper} is needed: install one, or use `make setup`"
    return None


def install(uv: list[str], asked: tuple[list[str], list[str]], keep: dict[str, str], scratch: Path) -> None:
    """Add what `asked`, as `wanted` returns it, finds missing, at the versions of requirements/gpu.txt where they fit.

    What is here and in range stays as it is, and `keep` in any case. What an earlier call left half-written is
    written again: uv takes a package for whole as soon as its name is there.
    """
    packages = Path(sysconfig.get_path("purelib"))
    remove_leftovers(packages)
    unfinished = packages / ".tunebook-unfinished"
    again = unfinished.read_text(encoding="utf-8").split() if unfinished.exists() else []
    files = {
        "wanted": asked[0],
        "excludes": asked[1],
        "overrides": list(OVERRIDES),
        "keep": [f"{name}=={number}" for name, number in keep.items()],
        "pinned": [],
    }
    command = [*uv, "pip", "install", "--python", sys.executable, "--no-config", "--color", "never"]
    command += [f"--reinstall-package={name}" for name in again]
    for flag, name in zip(("-r", "--excludes", "--overrides", "-c", "-c"), files, strict=True):
        (scratch / f"{name}.txt").write_text("\n".join(files[name]) + "\n", encoding="utf-8")
        command += [flag, str(scratch / f"{name}.txt")]
    plan, kept = run([*command, "--dry-run"]), ", ".join(files["keep"])
    if plan.returncode and "No solution found" in plan.stderr and not any(word in plan.stderr for word in UNREACHED):
        raise SystemExit(f"{plan.stderr.strip()}\nNothing was changed: no set was found that leaves {kept} alone.")
    must(plan, "make notebook changed nothing")
    added = re.findall(r"^ [+~] ([\w.-]+)==", plan.stderr, flags=re.MULTILINE)
    if moved := sorted({*added} & {*keep}):
        raise SystemExit(f"Nothing was changed: {', '.join(moved)} would be, and {kept} have to stay as they are.")
    if not added:
        return
    pins = dict(line.split("==") for line in (ROOT / "requirements" / "gpu.txt").read_text().split() if "==" in line)
    pinned = "".join(f"{name}=={pins[name]}\n" for name in added if name in pins)
    (scratch / "pinned.txt").write_text(pinned, encoding="utf-8")
    if "No solution found" in run([*command, "--dry-run"]).stderr:
        print("The pinned versions do not fit beside what is here: newer ones inside the ranges are taken.", flush=True)
        (scratch / "pinned.txt").write_text("", encoding="utf-8")
    unfinished.write_text(" ".join(added), encoding="utf-8")
    must(run([*command, "--quiet"]), "make notebook did not come to its end")
    unfinished.unlink()


def changes(before: dict[str, str], after: dict[str, str]) -> tuple[list[str], list[str]]:
    """The packages that were added, and those that moved, as `datasets 4.0.0 -> 4.8.5`."""
    moved = [f"{name} {old} -> {after.get(name)}" for name, old in before.items() if after.get(name) != old]
    return sorted(after.keys() - before.keys()), sorted(moved)


def report(before: dict[str, str]) -> None:
    """Say what was found, assert that nothing was moved that had to stay, and import what trains."""
    after, _ = installed()
    added, moved = changes(before, after)
    print(f"{len(added)} packages added; moved: {', '.join(moved) or 'none'}.")
    lost = [name for name in KEPT if name in before and after.get(name) != before[name]]
    if lost:
        raise SystemExit(f"{', '.join(lost)} had to stay as they were, and did not: see the line above")
    print("Checking that it loads ...", flush=True)
    device = ask("import unsloth, trl, peft\nanswer = [unsloth.DEVICE_TYPE]")
    if isinstance(device, str):
        raise SystemExit(f"Installed, and `import unsloth, trl, peft` fails: {device}.")
    sys.path.insert(0, str(ROOT))
    invalidate_caches()
    from recipes.common import machine

    fault = machine.vllm_fault()
    kept = ", ".join(f"{name} {after[name]}" for name in KEPT if name in after)
    seen = "" if device != ["cpu"] else ": no card is visible (on Colab and Kaggle, choose a T4 for this session)"
    print(f"Kept: {kept}. Unsloth trains on {device[0]}{seen}.")
    print(f"Rollouts go through {'the model itself, since ' + fault if fault else 'vLLM'}.")
    print(f"Next: {sys.executable} recipes/gsm8k_grpo.py --smoke")


def here_hindrance(before: dict[str, str], torch: Torch | str, machine: Machine, packages: Path) -> str | None:
    """Why `here` cannot work, in one sentence; None where it can."""
    if "torch" not in before:
        return f"{sys.executable} has no torch to build upon: install one for this machine, or use `make setup`"
    if isinstance(torch, str):
        return f"torch {before['torch']} is here and does not import ({torch}): mend it, or use `make setup`"
    managed = sys.prefix == sys.base_prefix and Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").exists()
    if managed or not os.access(packages, os.W_OK):
        without = "" if has_ensurepip() else "--without-pip "
        return (
            f"{sys.executable} is not to be installed into: make an environment that sees its torch "
            f"(`{sys.executable} -m venv {without}--system-site-packages env`) and give PYTHON=env/bin/python"
        )
    tools = tools_hindrance(machine) if machine.card else None
    return torch_hindrance(torch, machine.card) or tools or disk_hindrance(machine, "notebook")


def install_here() -> None:
    start, folder = "make notebook stops before any download", Path(sysconfig.get_path("purelib"))
    if fault := python_hindrance(tuple(sys.version_info[:3])):
        raise SystemExit(f"{start}: {fault}.")
    before, foreign = installed()
    torch = read_torch() if "torch" in before else ""
    packages = next(path for path in (folder, *folder.parents) if path.exists())
    machine = read_machine(packages)
    known = notes(machine, "notebook")
    if not re.match(r"\s*(\d+|GPU-|MIG-)", os.environ.get("CUDA_VISIBLE_DEVICES", "0")):
        machine = replace(machine, card=None)  # hidden
    keep = {package: before[package] for package in KEPT if package in before}
    fault = here_hindrance(before, torch, machine, packages)
    if fault or isinstance(torch, str) or (fault := outside(keep, (asked := wanted(torch, before, foreign))[0])):
        raise SystemExit(f"{start}: {fault}.")
    print(f"On top of torch {torch.version} in {sys.prefix}: a minute and 0.3 GB", flush=True)
    print("".join(f"{note}\n" for note in known), end="", flush=True)
    with tempfile.TemporaryDirectory() as name:
        install(uv_command(Path(name)), asked, keep, Path(name))
    report(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="refuse in one sentence what cannot work, before any download")
    check.add_argument("--device", choices=("gpu", "cpu"), required=True)
    venv = commands.add_parser("venv", help="make a virtual environment with pip in it")
    venv.add_argument("folder", type=Path)
    venv.add_argument("--device", choices=("gpu", "cpu"), required=True)
    commands.add_parser("here", help="install into the Python that runs this, on top of its torch")
    args = parser.parse_args()
    if args.command == "check":
        machine = read_machine(ROOT)
        if fault := hindrance(machine, args.device):
            raise SystemExit(f"make setup stops before any download: {fault}.")
        for note in notes(machine, args.device):
            print(note)
    elif args.command == "venv":
        make_venv(args.folder, args.device)
    else:
        install_here()


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        raise SystemExit(f"make stops: {error}.") from None
    except KeyboardInterrupt:
        raise SystemExit("Interrupted: the same command goes on from here.") from None
