"""What the set-up refuses, each in one sentence and before any download, and what the set on top of a torch decides.

The set itself is installed by hand: `make notebook` in an environment with a torch of another's choice.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from requirements import install
from requirements.install import Card, Machine, Torch

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "requirements" / "install.py"
L4 = Card("NVIDIA L4", (580, 95, 5), (8, 9))
GOOD = Machine("Linux x86_64", (3, 12, 3), L4, 100.0, 16.0, True, True, True)
# Of published listings: name, driver, compute capability ("[N/A]" and an unknown field as old drivers answer).
CARDS = {
    "colab": ("Tesla T4", "550.54.15", "7.5"),
    "kaggle": ("Tesla P100-PCIE-16GB", "580.82.07", "6.0"),
    "volta": ("Tesla V100-SXM2-16GB", "470.256.02", None),
    "new": ("NVIDIA GeForce RTX 4090", "580.65.06", "8.9"),
}


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`on_path(card)` puts an nvidia-smi in front that knows one card, or "none" of them."""

    def put(card: str) -> None:
        name, driver, capability = CARDS.get(card, ("", "", None))
        known = {"driver_version,name": f"{driver}, {name}", "compute_cap": capability}
        cases = "".join(f'*"{query}"*) echo "{answer}";;' for query, answer in known.items() if answer)
        script = f'#!/bin/sh\ncase "$*" in {cases} *) echo "Field is not a valid field to query."; exit 2;; esac\n'
        if card == "none":
            script = "#!/bin/sh\necho 'NVIDIA-SMI has failed.'; exit 9\n"
        (tmp_path / "nvidia-smi").write_text(script)
        (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return put


def check(device: str = "gpu") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, "check", "--device", device]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ("colab", ["Tesla T4 has driver 550.54.15", "580.65 or newer", "make notebook", "make setup DEVICE=cpu"]),
        ("kaggle", ["Tesla P100-PCIE-16GB (compute capability 6.0)", "no kernels", "take a T4"]),
        ("volta", ["Tesla V100-SXM2-16GB (compute capability 7.0)", "no kernels"]),
    ],
)
def test_a_card_that_cannot_work_is_refused(on_path: Any, card: str, words: list[str]) -> None:
    on_path(card)
    done = check()
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert [word for word in ["make setup stops before any download", *words] if word not in done.stderr] == []


def test_a_card_that_works_passes(on_path: Any) -> None:
    on_path("new")
    assert install.read_card() == Card("NVIDIA GeForce RTX 4090", (580, 65, 6), (8, 9))
    assert install.card_hindrance(Card("NVIDIA GeForce RTX 4090", (580, 65, 6), None)) is None


def test_a_card_that_nvidia_smi_does_not_find_is_said(on_path: Any) -> None:
    on_path("none")
    assert install.read_card() is None
    assert "finds no card" in " ".join(install.notes(install.read_machine(ROOT), "cpu"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"system": "Darwin arm64"}, "this is Darwin arm64: on Windows use WSL2"),
        ({"python": (3, 10, 12)}, r"Python 3\.11 to 3\.13 is needed, and .* is 3\.10\.12: name another with PYTHON="),
        ({"python": (3, 14, 0)}, r"Python 3\.11 to 3\.13 is needed"),
        ({"can_make_venv": False}, r"sudo apt install python3\.12-venv`, or install uv"),
        ({"compiler": False}, r"finds no C compiler: `sudo apt install build-essential"),
        ({"headers": False}, r"finds no Python\.h of Python 3\.12: .*python3\.12-dev"),
        ({"free_gb": 9.96}, r"10\.0 GB of disk are free; the environment and its downloads take 14 GB"),
    ],
)
def test_what_a_machine_lacks_is_one_sentence(change: dict[str, Any], words: str) -> None:
    import re

    fault = install.hindrance(replace(GOOD, **change), "gpu")
    assert fault and re.search(words, fault) and "\n" not in fault


def test_without_a_card_no_card_and_no_compiler_is_asked_for() -> None:
    bare = replace(GOOD, card=Card("Tesla T4", (550, 54), (7, 5)), compiler=False, headers=False, free_gb=5.0)
    assert install.hindrance(GOOD, "gpu") is None and install.hindrance(bare, "cpu") is None
    assert (
        install.notes(GOOD, "cpu") == [] and "2.0 GB of memory" in install.notes(replace(GOOD, memory_gb=2.0), "cpu")[0]
    )


def test_an_old_python_gets_as_far_as_the_sentence() -> None:
    """The file is read by whatever `python3` is: it holds no syntax of 3.9 or later."""
    import ast

    ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 8))


@pytest.mark.parametrize("ensurepip", [True, False])
def test_an_environment_has_pip_where_ensurepip_is_missing(
    ensurepip: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Colab and Ubuntu's python3 leave ensurepip out; the pip that is here copies itself from the same place."""
    monkeypatch.setattr(install, "has_ensurepip", lambda: ensurepip)
    install.make_venv(tmp_path / "env")
    done = subprocess.run(
        [tmp_path / "env" / "bin" / "python", "-m", "pip", "--version"], capture_output=True, text=True
    )
    assert done.returncode == 0 and str(tmp_path / "env") in done.stdout


T4 = Card("Tesla T4", (550, 54, 15), (7, 5))
COLAB = Torch("2.11.0+cu128", "12.8", 75, (75, 80, 86, 90, 100, 120))


@pytest.mark.parametrize(
    ("torch", "words"),
    [
        (replace(COLAB, version="2.9.1+cu128"), "torch 2.9.1+cu128 is here, and the recipes run on torch 2.11 to 2.13"),
        (replace(COLAB, version="2.14.0"), "torch 2.14.0 is here"),
        (replace(COLAB, capability=60), "torch 2.11.0+cu128 holds no kernels for the Tesla T4: take"),
        (replace(COLAB, capability=0), "(CUDA 12.8) does not reach the Tesla T4 (driver 550.54.15): install a torch"),
    ],
)
def test_a_torch_that_will_not_do(torch: Torch, words: str) -> None:
    assert words in str(install.torch_hindrance(torch, T4))


def test_a_torch_that_will_do() -> None:
    assert install.torch_hindrance(COLAB, T4) is None
    here = install.read_torch()
    assert isinstance(here, Torch) and install.torch_hindrance(here, None) is None


def test_what_is_asked_for_on_top() -> None:
    on_colab, left_out = install.wanted(COLAB, {"torchao": "0.10.0"})
    assert {"torchao>=0.16", "xformers==0.0.35"} <= set(on_colab) and "xformers" not in left_out
    beside_cuda_13, left_out = install.wanted(replace(COLAB, cuda="13.0"), {})
    assert len(beside_cuda_13) == len(on_colab) - 2 and not [line for line in beside_cuda_13 if "vllm" in line]
    assert {"xformers", "torchvision", "triton"} <= set(left_out)


def test_what_moved_is_told() -> None:
    before, after = {"datasets": "4.0.0", "torch": "2.11.0"}, {"datasets": "4.8.5", "torch": "2.11.0", "trl": "1.15.0"}
    assert install.changes(before, after) == (["trl"], ["datasets 4.0.0 -> 4.8.5"])


def test_the_pins_end_where_the_set_on_top_does() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (low, high), (first, end) = install.TORCHES, install.PYTHONS
    assert f'"torch>={install.dotted(low)},<{install.dotted(high)}"' in project
    assert f'requires-python = ">={install.dotted(first)},<{install.dotted(end)}"' in project


def test_outside_the_environment_a_recipe_says_what_to_do() -> None:
    """`-S` hides every package, as a system's Python does."""
    for command in (["recipes/gsm8k_grpo.py", "--help"], ["-m", "recipes.tools.judge_agreement"]):
        done = subprocess.run([sys.executable, "-S", *command], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert "make setup" in done.stderr and "make notebook" in done.stderr and "tyro" in done.stderr
