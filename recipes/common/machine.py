"""What this machine is and has installed: read without importing torch, so that `--help` stays instant."""

import ctypes
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "unsloth", "unsloth_zoo", "datasets", "vllm")


@cache
def has_gpu() -> bool:
    """Whether an NVIDIA GPU is there and not hidden. 0.1 s at most where there is one, nothing where not."""
    # CUDA counts what stands before the first entry that names no card: "-1", "", "none", "NoDevFiles" hide them all.
    if not re.match(r"\s*(\d+|GPU-|MIG-)", os.environ.get("CUDA_VISIBLE_DEVICES", "0")):
        return False
    # WSL2 keeps it where PATH may not lead.
    found = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path="/usr/lib/wsl/lib")
    if not found:
        return False
    try:
        return subprocess.run([found, "-L"], capture_output=True, check=False, timeout=20).returncode == 0
    except subprocess.TimeoutExpired:
        print("nvidia-smi did not answer within 20 seconds: going on without a GPU.", file=sys.stderr)
    except OSError:
        pass  # it is there and cannot be started
    return False


def on_gpu(value: str, *, otherwise: str) -> str:
    """`value` where there is a GPU: for the few choices that a machine without one cannot make."""
    return value if has_gpu() else otherwise


# A wheel is found and yet dies at import where it was built for another CUDA or torch. Builds name their kernels
# differently; the CPU's holds variants beside them (_C_AVX2), of which one process takes one.
LOAD_VLLM = """
import importlib, pathlib
try:
    import vllm, torch  # its kernels need the libraries that torch brings
    folder = pathlib.Path(vllm.__file__).parent
    kernels = [name for name in ("_C", "_C_stable_libtorch") if list(folder.glob(name + ".*so"))]
    for name in kernels:
        importlib.import_module("vllm." + name)
    fault = "" if kernels else "it holds no compiled kernels"
except BaseException as error:
    fault = type(error).__name__ + ": " + " ".join(str(error).split())
print("\\nvLLM:" + fault, flush=True)
"""


@cache
def vllm_fault() -> str | None:
    """Why vLLM cannot be used here, to end a sentence with; None where it loads (the community's CPU build counts).

    Its kernels are loaded in a process of their own, which takes seconds and may print, hang or die. `make setup-vllm`
    is advised to those who use its environment alone: elsewhere vLLM has to be built for the torch that is there.
    """
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:  # a folder of that name is found as well
        ours = Path(sys.prefix).resolve() == REPOSITORY / ".venv"
        return "vLLM is not installed" + (": run `make setup-vllm`" if ours else "")
    command = [sys.executable, "-P", "-c", LOAD_VLLM]  # -P: the current folder may hold a torch
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=120)
    except subprocess.TimeoutExpired:
        return "the vLLM that is installed does not load (no end within 120 seconds)"
    told = [line for line in done.stdout.splitlines() if line.startswith("vLLM:")]
    if done.returncode < 0:
        reason = f"killed by signal {-done.returncode}"
    elif done.returncode or not told:
        reason = f"exit code {done.returncode} before its end"
    else:
        reason = told[-1].removeprefix("vLLM:")
    return f"the vLLM that is installed does not load ({reason[:200]})" if reason else None


def quiet_libraries() -> None:
    """Silence what a user cannot act on; call it before the libraries are imported."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # tokenising a few thousand rows
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # ORPO and CPO: pinned, and tested
    loud = ("bitsandbytes", "bitsandbytes.backends.cpu.ops", "huggingface_hub", "torch.distributed")
    for name in (*loud, "transformers.trainer_callback", "trl.experimental"):  # absent optional kernels, retries
        logging.getLogger(name).setLevel(logging.ERROR)


def keep_freed_memory() -> None:
    """Without a GPU, let glibc keep what a training step frees for the next one, from now on in this process.

    By default it gives large blocks back to the system, which hands them out again zeroed and page by page.
    """
    if has_gpu() or platform.libc_ver()[0] != "glibc":
        return
    libc, (trim_threshold, mmap_max) = ctypes.CDLL(None), (-1, -4)  # of malloc.h
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(mmap_max, 0)


def describe() -> str:
    """The machine class, without its name: `2 CPU cores, no GPU` or the name of the card."""
    if not has_gpu():
        return f"{os.cpu_count()} CPU cores ({platform.machine()}), no GPU"
    import torch

    card = torch.cuda.get_device_properties(0)
    return f"{card.name}, {card.total_memory / 2**30:.0f} GiB"


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide a result; absent ones are left out."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit this clone stands at, with `+changes` where files differ from it; None outside a clone."""
    try:
        head, status = (
            subprocess.run(["git", *command], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + ("+changes" if status.strip() else "")


def peak_memory_gib() -> dict[str, float]:
    """Peak resident memory of this process and, with a GPU, peak memory reserved on it, in GiB."""
    import resource

    # Kilobytes on Linux, bytes on macOS.
    unit = 2**30 if sys.platform == "darwin" else 2**20
    peak = {"resident": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 2)}
    if has_gpu():
        import torch

        peak["gpu"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
    return peak
