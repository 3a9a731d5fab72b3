"""What `make setup` asks of a machine before it downloads, and `make notebook`: the set on top of a torch.

    python requirements/install.py check --device gpu   refuse in one sentence what cannot work, before any download
    python requirements/install.py venv .venv           a virtual environment with pip, even where ensurepip is missing
    python requirements/install.py here                 install into the Python that runs this: Colab, Kaggle, servers

Standard library only, and readable by any Python 3.8: an old one has to get as far as the sentence that refuses it.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from importlib import invalidate_caches
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ((3, 11), (3, 14))  # from, to before: pyproject.toml says the same
DRIVER = (580, 65)  # CUDA 13.0's, which torch 2.13 and vLLM 0.27.1 are built for
CAPABILITY = (7, 5)  # Turing, as on a T4. CUDA 13 has no kernels for Volta (V100, 7.0) and Pascal (P100, 6.0)
OLD_CARDS = {"P100": (6, 0), "V100": (7, 0)}  # drivers before 510 do not tell the capability
MEMORY_GB = 7.5  # a machine sold with 8
FREE_GB = {"gpu": 14, "cpu": 4}  # the environment, and what pip keeps of the downloads
TORCHES = ((2, 11), (2, 14))  # that the set on top was tried with; from, to before
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


@dataclass(frozen=True)
class Card:
    name: str
    driver: tuple[int, ...]
    capability: tuple[int, ...] | None
    """None where the driver is too old to tell and the name says nothing."""


@dataclass(frozen=True)
class Torch:
    """`capability` of the first card as torch sees it, 75 for 7.5, and 0 where it sees none; `kernels` likewise."""

    version: str
    cuda: str
    capability: int
    kernels: tuple[int, ...]


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


def nvidia_smi(fields: str) -> str | None:
    """The first card's fields, or None where nvidia-smi is missing or knows no such field or no card."""
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.splitlines()
    return lines[0] if done.returncode == 0 and lines else None


def read_card() -> Card | None:
    basics = nvidia_smi("driver_version,name")
    if basics is None:
        return None
    driver, _, name = basics.partition(",")
    capability = numbers(nvidia_smi("compute_cap") or "")
    if not capability:
        capability = next((known for card, known in OLD_CARDS.items() if card in name), ())
    return Card(name.strip(), numbers(driver), capability or None)


def read_machine(folder: Path) -> Machine:
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        python=tuple(sys.version_info[:3]),
        card=read_card(),
        free_gb=shutil.disk_usage(folder).free / 1e9,
        memory_gb=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        # What Triton looks for when it builds a kernel's launcher.
        compiler=any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))),
        headers=Path(sysconfig.get_path("include"), "Python.h").exists(),
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
    if card.driver < DRIVER:
        return (
            f"the {card.name} has driver {dotted(card.driver)}, and this set (torch 2.13, vLLM 0.27, CUDA 13) needs "
            f"{dotted(DRIVER)} or newer: update it, or run `make notebook` to train on top of a torch that is "
            "here, or `make setup DEVICE=cpu` to do without the card"
        )
    return None


def hindrance(machine: Machine, device: str) -> str | None:
    """Why the set for `device` ("gpu" or "cpu") cannot work on this machine, in one sentence; None where it can."""
    python = dotted(machine.python[:2])
    if machine.system != "Linux x86_64":
        return f"the pins are made for Linux x86_64, and this is {machine.system}: on Windows use WSL2"
    wrong = python_hindrance(machine.python)
    if wrong or (device == "gpu" and machine.card and (wrong := card_hindrance(machine.card))):
        return wrong
    if not machine.can_make_venv:
        return f"Python {python} here cannot make an environment: `sudo apt install python{python}-venv`, or install uv"
    if device == "gpu" and not (machine.compiler and machine.headers):
        missing = "a C compiler" if not machine.compiler else f"Python.h of Python {python}"
        return (
            f"Triton builds its kernels on this machine and finds no {missing.removeprefix('a ')}: "
            f"`sudo apt install build-essential python{python}-dev`"
        )
    if machine.free_gb < FREE_GB[device]:
        return f"{machine.free_gb:.1f} GB of disk are free; the environment and its downloads take {FREE_GB[device]} GB"
    return None


def notes(machine: Machine, device: str) -> list[str]:
    """What does not hinder and is better known beforehand."""
    found = []
    if device == "cpu" and machine.card is None and shutil.which("nvidia-smi"):
        found.append(
            "nvidia-smi is here and finds no card (what it says itself tells why): this is the set without one."
        )
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
    for command in ([sys.executable, "-m", "uv"] if find_spec("uv") else [], ["uv"] if shutil.which("uv") else []):
        if command:
            done = subprocess.run([*command, "--version"], capture_output=True, text=True)
            if done.returncode == 0 and numbers(done.stdout.partition(" ")[2]) >= UV:
                return command
    return None


def make_venv(folder: Path) -> None:
    """A virtual environment with pip in it. Debian and hosted notebooks leave ensurepip out; pip comes another way."""
    if has_ensurepip():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        return
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    if has_pip():
        install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    else:
        install = [*(find_uv() or ["uv"]), "pip", "install", "--quiet", "--python", python]
    subprocess.run([*install, "pip"], check=True)


# On top of a torch that is there


def installed() -> dict[str, str]:
    """Name and version of every package of this Python; read in a new process, which sees what was just added."""
    code = (
        "from importlib.metadata import distributions as d\n"
        "for p in d(): print(p.metadata['Name'].lower().replace('_', '-').replace('.', '-'), p.version)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    # Where a package is there twice, the first is the one that is imported.
    return dict(reversed([line.split() for line in done.stdout.splitlines()]))


def uv_command(scratch: Path) -> list[str]:
    """uv, which can leave out and overrule what packages ask for; fetched into `scratch` where it is not here."""
    found = find_uv()
    if found:
        return found
    if not has_pip():
        raise SystemExit(
            "neither pip nor uv is here: install one of them first, such as `sudo apt install python3-pip`"
        )
    pin = next(line for line in (ROOT / "requirements" / "cpu.txt").read_text().splitlines() if line.startswith("uv=="))
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-warn-script-location"]
    subprocess.run([sys.executable, "-m", "pip", "install", *quiet, "--target", str(scratch), pin], check=True)
    return [str(scratch / "bin" / "uv")]


def wanted(torch: Torch, have: dict[str, str]) -> tuple[list[str], list[str]]:
    """What to ask for, the ranges of pyproject.toml and what depends on what is here; and what to leave out."""
    import tomllib

    tables = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    ranges = tables["project"]["dependencies"] + tables["project"]["optional-dependencies"]["judge"]
    left_out = {*tables["tool"]["uv"]["exclude-dependencies"], *NOT_ON_TOP}
    if "torchao" in have:
        ranges.append("torchao>=0.16")  # PEFT 0.21 ends in an ImportError beside an older one
    if torch.cuda.startswith("12.8"):
        ranges.append("xformers==0.0.35")  # the one CUDA that it is built for
        left_out.remove("xformers")
    return ranges, sorted(left_out)


def read_torch() -> Torch | str:
    """The torch that is here, asked in a process of its own; where it does not import, the last line of why."""
    code = (
        "import torch, warnings; warnings.simplefilter('ignore'); there = torch.cuda.is_available()\n"
        "capability = torch.cuda.get_device_capability() if there else (0, 0)\n"
        "kernels = [a[3:].rstrip('af') for a in torch.cuda.get_arch_list() if a.startswith('sm_')]\n"
        "print(torch.__version__, torch.version.cuda, capability[0] * 10 + capability[1], *kernels)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    number, cuda, capability, *kernels = done.stdout.splitlines()[-1].split()
    return Torch(number, cuda, int(capability), tuple(map(int, kernels)))


def torch_hindrance(torch: Torch, card: Card | None) -> str | None:
    """Why the recipes cannot run on top of this torch, in one sentence; None where they can."""
    lowest, end = TORCHES
    supported = f"torch {dotted(lowest)} to {end[0]}.{end[1] - 1}"
    if not lowest <= numbers(torch.version)[:2] < end:
        return f"torch {torch.version} is here, and the recipes run on {supported}: install one, or use `make setup`"
    if torch.capability and torch.kernels and torch.capability < min(torch.kernels):
        name = card.name if card else "card"
        return f"torch {torch.version} holds no kernels for the {name}: take a T4 on Kaggle, a newer card elsewhere"
    if card and not torch.capability:
        return (
            f"torch {torch.version} (CUDA {torch.cuda}) does not reach the {card.name} (driver {dotted(card.driver)}): "
            "install a torch for that driver, or set CUDA_VISIBLE_DEVICES=-1 to do without the card"
        )
    return None


def install(uv: list[str], asked: tuple[list[str], list[str]], keep: dict[str, str], scratch: Path) -> None:
    """Add what `asked`, as `wanted` returns it, finds missing, at the versions of requirements/gpu.txt where they fit.

    What is here and in range stays as it is, and `keep` in any case.
    """
    files = {
        "wanted": asked[0],
        "excludes": asked[1],
        "overrides": list(OVERRIDES),
        "keep": [f"{name}=={number}" for name, number in keep.items()],
    }
    for name, lines in files.items():
        (scratch / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [*uv, "pip", "install", "--python", sys.executable, "--no-config"]
    for flag, name in (("-r", "wanted"), ("--excludes", "excludes"), ("--overrides", "overrides"), ("-c", "keep")):
        command += [flag, str(scratch / f"{name}.txt")]
    plan = subprocess.run([*command, "--dry-run"], capture_output=True, text=True)
    if plan.returncode:
        kept = ", ".join(files["keep"])
        raise SystemExit(f"{plan.stderr.strip()}\nNothing was changed: no set was found that leaves {kept} alone.")
    pins = dict(line.split("==") for line in (ROOT / "requirements" / "gpu.txt").read_text().split() if "==" in line)
    added = re.findall(r"^ \+ ([\w.-]+)==", plan.stderr, flags=re.MULTILINE)
    pinned = scratch / "pinned.txt"
    pinned.write_text("".join(f"{name}=={pins[name]}\n" for name in added if name in pins), encoding="utf-8")
    if subprocess.run([*command, "--quiet", "-c", str(pinned)], capture_output=True).returncode:
        print("The pinned versions do not fit beside what is here: newer ones inside the ranges are taken.", flush=True)
        subprocess.run([*command, "--quiet"], check=True)


def changes(before: dict[str, str], after: dict[str, str]) -> tuple[list[str], list[str]]:
    """The packages that were added, and those that moved, as `datasets 4.0.0 -> 4.8.5`."""
    moved = [f"{name} {old} -> {after.get(name)}" for name, old in before.items() if after.get(name) != old]
    return sorted(after.keys() - before.keys()), sorted(moved)


def report(before: dict[str, str]) -> None:
    """Say what was found, assert that nothing was moved that had to stay, and import what trains."""
    after = installed()
    added, moved = changes(before, after)
    print(f"{len(added)} packages added; moved: {', '.join(moved) or 'none'}.")
    lost = [name for name in KEPT if name in before and after.get(name) != before[name]]
    if lost:
        raise SystemExit(f"{', '.join(lost)} had to stay as they were, and did not: see the line above")
    print("Checking that it loads ...", flush=True)
    code = "import unsloth, trl, peft; print(unsloth.DEVICE_TYPE)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stderr.strip()}\nInstalled, and it does not import: the lines above say why.")
    sys.path.insert(0, str(ROOT))
    invalidate_caches()
    from recipes.common import machine

    device, fault = done.stdout.split()[-1], machine.vllm_fault()
    kept = ", ".join(f"{name} {after[name]}" for name in KEPT if name in after)
    seen = "" if device != "cpu" else ": no card is visible (on Colab and Kaggle, choose a T4 for this session)"
    print(f"Kept: {kept}. Unsloth trains on {device}{seen}.")
    print(f"Rollouts go through {'the model itself, since ' + fault if fault else 'vLLM'}.")
    print(f"Next: {sys.executable} recipes/gsm8k_grpo.py --smoke")


def install_here() -> None:
    fault = python_hindrance(tuple(sys.version_info[:3]))
    before = installed()
    torch: Torch | str = read_torch() if not fault and "torch" in before else ""
    if not fault and "torch" not in before:
        fault = f"{sys.executable} has no torch to build upon: install one for this machine, or use `make setup`"
    elif not fault and isinstance(torch, str):
        fault = f"torch {before['torch']} is here and does not import ({torch}): mend it, or use `make setup`"
    elif (
        not fault
        and sys.prefix == sys.base_prefix
        and Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").exists()
    ):
        fault = (
            f"{sys.executable} belongs to the system, which forbids installing into it: make an environment that sees "
            "its torch (`python3 -m venv --system-site-packages env`) and give PYTHON=env/bin/python"
        )
    elif isinstance(torch, Torch):
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1")
        fault = torch_hindrance(torch, None if hidden else read_card())
    if fault or isinstance(torch, str):
        raise SystemExit(f"make notebook stops before any download: {fault}.")
    print(f"On top of torch {torch.version} in {sys.prefix}: a minute and 0.3 GB", flush=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        keep = {package: before[package] for package in KEPT if package in before}
        install(uv_command(scratch), wanted(torch, before), keep, scratch)
    report(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="refuse in one sentence what cannot work, before any download")
    check.add_argument("--device", choices=("gpu", "cpu"), required=True)
    venv = commands.add_parser("venv", help="make a virtual environment with pip in it")
    venv.add_argument("folder", type=Path)
    commands.add_parser("here", help="install into the Python that runs this, on top of its torch")
    args = parser.parse_args()
    if args.command == "check":
        machine = read_machine(ROOT)
        if fault := hindrance(machine, args.device):
            raise SystemExit(f"make setup stops before any download: {fault}.")
        for note in notes(machine, args.device):
            print(note)
    elif args.command == "venv":
        make_venv(args.folder)
    else:
        install_here()


if __name__ == "__main__":
    main()
