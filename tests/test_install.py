"""What the set-up refuses, each in one sentence and before any download, and what the set on top of a torch decides.

The set itself is installed by hand: `make notebook` in an environment with a torch of another's choice.
"""

import ast
import re
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
L4 = Card("NVIDIA L4", "580.95.05", (8, 9))
GOOD = Machine("Linux x86_64", (3, 12, 3), L4, 100.0, 16.0, True, True, True)
# Of published listings. Drivers before 510 know no compute_cap.
SMI = {
    "colab": "echo '7.5, 550.54.15, Tesla T4'",
    "kaggle": "echo '6.0, 580.82.07, Tesla P100-PCIE-16GB'",
    "volta": """case "$*" in *compute_cap*) echo 'Field "compute_cap" is not a valid field to query.'; exit 2;; esac
        echo '470.57.02, Tesla V100-SXM2-16GB'""",
    "new": "echo '8.9, 580.65.06, NVIDIA GeForce RTX 4090'",
    "none": "echo 'NVIDIA-SMI has failed.'; exit 9",
    "none, without exit code": "echo 'No devices were found'",
    "an error, without exit code": "echo 'NVIDIA-SMI has failed, because it could not communicate with the driver.'",
    "an empty line": "echo",
    "killed": "kill -SEGV $$",
    "a warning first": "echo 'WARNING: infoROM is corrupted at gpu 0000:01:00.0'; echo '8.9, 580.65.06, NVIDIA L4'",
    "unknown driver": "echo '[N/A], [N/A], Tesla T4'",
    "no text": "printf '7.5, 580.65.06, Tesla T4 \\377\\n'",
    "two, the better last": "echo '6.0, 580.65.06, Tesla P100-PCIE-16GB'; echo '8.0, 580.65.06, NVIDIA A100'",
    "two of an old driver": """case "$*" in *compute_cap*) exit 2;; esac
        echo '470.57.02, Tesla V100-SXM2-16GB'; echo '470.57.02, NVIDIA A100'""",
    "cannot be started": None,
}


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`on_path(name)` puts the nvidia-smi of that name in front."""

    def put(name: str) -> None:
        script = SMI[name]
        (tmp_path / "nvidia-smi").write_bytes(b"\x7fELF" if script is None else f"#!/bin/sh\n{script}\n".encode())
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


@pytest.mark.parametrize(
    ("smi", "card"),
    [
        ("new", Card("NVIDIA GeForce RTX 4090", "580.65.06", (8, 9))),
        ("volta", Card("Tesla V100-SXM2-16GB", "470.57.02", (7, 0))),
        ("a warning first", Card("NVIDIA L4", "580.65.06", (8, 9))),
        ("unknown driver", Card("Tesla T4", "[N/A]", None)),
        ("no text", Card("Tesla T4 \ufffd", "580.65.06", (7, 5))),
        ("two, the better last", Card("NVIDIA A100", "580.65.06", (8, 0))),
        ("two of an old driver", Card("NVIDIA A100", "470.57.02", None)),
        *((name, None) for name in ("none", "none, without exit code", "an error, without exit code", "an empty line")),
        *((name, None) for name in ("killed", "cannot be started")),
    ],
)
def test_what_nvidia_smi_says_is_read(on_path: Any, smi: str, card: Card | None) -> None:
    on_path(smi)
    assert install.read_card() == card


def test_a_card_is_not_refused_for_what_is_not_known_of_it() -> None:
    for card in (L4, replace(L4, driver="[N/A]"), replace(L4, capability=None)):
        assert install.card_hindrance(card) is None
    assert "has driver 470.57.02, and" in str(install.card_hindrance(replace(L4, driver="470.57.02")))


def test_a_card_that_nvidia_smi_does_not_find_is_said(on_path: Any) -> None:
    on_path("none")
    machine = install.read_machine(ROOT)
    assert machine.card is None and "finds no card" in " ".join(install.notes(machine, "cpu"))
    assert "No card answers here" in " ".join(install.notes(machine, "gpu"))


def test_a_program_that_hangs_dies_or_does_not_start_is_one_line_and_has_no_colours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Jupyter sets both variables, and uv's plan in colours has no line that begins with " + "."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("CLICOLOR_FORCE", "1")
    done = install.run(["sh", "-c", "echo $FORCE_COLOR$CLICOLOR_FORCE$NO_COLOR"])
    assert done.stdout == "1\n"
    assert install.run(["sh", "-c", "echo $PATH"]).stdout.endswith(":/usr/lib/wsl/lib\n")
    assert install.why(install.run(["sh", "-c", "exec sleep 60"], 0.2)) == "no answer within 0 seconds"
    assert install.why(install.run(["sh", "-c", "kill -KILL $$"])) == "it was killed by signal 9"
    assert "/no/such" in install.why(install.run(["/no/such"]))


@pytest.mark.parametrize(
    ("stderr", "line"),
    [
        (
            "error: Failed to install: x\n  Caused by: y\n  Caused by: No space left on device\n",
            "No space left on device",
        ),
        ("error: x\ncause: y\ncause: No space left on device", "No space left on device"),
        ("  × Failed to fetch: `simple/`\n  ├─▶ a\n  ╰─▶ dns error\n", "index could not be reached (dns error)"),
        ("hint: Packages were unavailable because the network was disabled.", "could not be reached"),
        ("Error: [Errno 30] Read-only file system: '.venv'", "[Errno 30] Read-only file system: '.venv'"),
        (
            "ERROR: No matching distribution found for uv\nWARNING: there is a newer pip",
            "No matching distribution found",
        ),
        ("", "no reason given"),
    ],
)
def test_why_a_program_failed(stderr: str, line: str) -> None:
    assert line in install.why(subprocess.CompletedProcess([], 1, "", stderr))
    with pytest.raises(SystemExit, match=r"^It failed: .*\. Mend that and run the same again\.$"):
        install.must(subprocess.CompletedProcess([], 1, "", stderr), "It failed")


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ("answer = [1, 'a']", [1, "a"]),
        ("print('a warning', end=''); answer = 7", 7),
        ("raise ImportError('libcudart.so.13:\\n  cannot open')", "ImportError: libcudart.so.13: cannot open"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("import os; os._exit(0)", "it ended before it answered"),
        ("import os; os.kill(os.getpid(), 9)", "it was killed by signal 9"),
        ("import torch; answer = 'ours' if 'here' in dir(torch) else 'right'", "right"),
    ],
)
def test_another_process_is_asked(body: str, answer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that each Python imports at its start may print; the current folder may hold a torch."""
    (tmp_path / "torch.py").write_text("here = True")
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "sitecustomize.py").write_text("print('hello')\n")
    (tmp_path / "start" / "torch.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "start"))
    monkeypatch.chdir(tmp_path)
    assert install.ask(body) == answer


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"system": "Darwin arm64"}, "this is Darwin arm64: take a machine or"),
        ({"system": "Windows AMD64"}, "this is Windows AMD64: use WSL2"),
        ({"python": (3, 10, 12)}, r"Python 3\.11 to 3\.13 is needed, and .* is 3\.10\.12: name another with PYTHON="),
        ({"python": (3, 14, 0)}, r"Python 3\.11 to 3\.13 is needed"),
        ({"can_make_venv": False}, r"sudo apt install python3\.12-venv`, or install uv"),
        ({"compiler": False}, r"finds no C compiler: `sudo apt install build-essential"),
        ({"headers": False}, r"finds no Python\.h of Python 3\.12: .*python3\.12-dev"),
        ({"free_gb": 13.96}, r"13\.9 GB of disk are free; the environment and its downloads take 14 GB"),
    ],
)
def test_what_a_machine_lacks_is_one_sentence(change: dict[str, Any], words: str) -> None:
    fault = install.hindrance(replace(GOOD, **change), "gpu")
    assert fault and re.search(words, fault) and "\n" not in fault


def test_without_a_card_no_card_and_no_compiler_is_asked_for() -> None:
    bare = replace(GOOD, card=Card("Tesla T4", "550.54", (7, 5)), compiler=False, headers=False, free_gb=5.0)
    assert install.hindrance(GOOD, "gpu") is None and install.hindrance(bare, "cpu") is None
    assert (
        install.notes(GOOD, "cpu") == [] and "2.0 GB of memory" in install.notes(replace(GOOD, memory_gb=2.0), "cpu")[0]
    )


def test_an_old_python_gets_as_far_as_the_sentence() -> None:
    """The file is read by whatever `python3` is: it holds no syntax of 3.9 or later."""
    ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 8))


def test_an_old_python_gets_as_far_as_the_sentence_of_a_recipe() -> None:
    """Whatever it imports first imports `rewards`, which is read by Python 3.8, as are the recipes."""
    rooms = [ROOT / room / "__init__.py" for room in ("rewards", "data", "eval", "recipes")]
    for path in (*rooms, *(ROOT / "recipes").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))
        if path in rooms[1:]:
            names = [name.name for node in tree.body if isinstance(node, ast.Import) for name in node.names]
            assert "rewards" in names, path


def test_an_old_python_is_told_which_is_needed() -> None:
    code = "import sys; sys.version_info = (3, 10, 13, 'final', 0); import data"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("Python 3.11 to 3.13 is needed, and ") and "3.10.13: `make setup" in done.stderr


@pytest.mark.parametrize(
    ("variables", "compiler"), [({}, True), ({"CC": ""}, True), ({"CC": "/no/such"}, False), ({"PATH": "/no"}, False)]
)
def test_the_compiler_is_looked_for_as_triton_does(
    variables: dict[str, str], compiler: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gcc").write_text("#!/bin/sh\n")
    (tmp_path / "gcc").chmod(0o755)
    for name, value in {"PATH": str(tmp_path), **variables}.items():
        monkeypatch.setenv(name, value)
    assert install.read_machine(tmp_path).compiler == compiler


def test_an_environment_that_is_there_is_counted_as_free(tmp_path: Path) -> None:
    bare = install.read_machine(tmp_path).free_gb
    (tmp_path / ".venv").mkdir()
    with open(tmp_path / ".venv" / "sparse", "wb") as file:
        file.truncate(10**13)
    assert install.read_machine(tmp_path).free_gb > bare + 9_000


@pytest.mark.parametrize("ensurepip", [True, False])
def test_an_environment_has_pip_where_ensurepip_is_missing(
    ensurepip: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Colab and Ubuntu's python3 leave ensurepip out; the pip that is here copies itself from the same place."""
    monkeypatch.setattr(install, "has_ensurepip", lambda: ensurepip)
    install.make_venv(tmp_path / "env", "cpu")
    done = subprocess.run(
        [tmp_path / "env" / "bin" / "python", "-m", "pip", "--version"], capture_output=True, text=True
    )
    assert done.returncode == 0 and str(tmp_path / "env") in done.stdout


def test_an_environment_of_another_python_or_device_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(install, "has_ensurepip", lambda: False)
    monkeypatch.setattr(install, "has_pip", lambda: False)
    monkeypatch.setattr(install, "find_uv", lambda: ["true"])
    env, packages = (
        tmp_path / "env",
        tmp_path / "env" / "lib" / "python{}.{}".format(*sys.version_info) / "site-packages",
    )
    for device, mine_stays in (("cpu", None), ("cpu", True), ("gpu", False), ("gpu", True)):
        install.make_venv(env, device)
        assert mine_stays is None or (packages / "mine.py").exists() == mine_stays
        assert ("made anew" in capsys.readouterr().out) == (mine_stays is False)
        (packages / "mine.py").touch()
    (env / ".made-for").write_text("gpu 3.11.0 /another")
    install.make_venv(env, "gpu")
    assert not (packages / "mine.py").exists()


def test_what_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = [sys.executable, SCRIPT, "venv", tmp_path / "file", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "could not be made" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("setup DEVICE=typo", 'DEVICE is gpu or cpu, and "typo" is neither'),
        ("setup DEVICE=", 'DEVICE is gpu or cpu, and "" is neither'),
        ("setup PYTHON=/no/such", 'PYTHON="/no/such" does not start: name a Python'),
        ("setup PYTHON=", 'PYTHON="" does not start: name a Python'),
        ("notebook PYTHON=/no/such", 'PYTHON="/no/such" does not start: name a Python'),
    ],
)
def test_make_says_what_it_was_not_given(arguments: str, words: str, tmp_path: Path) -> None:
    for name in ("Makefile", "requirements"):
        (tmp_path / name).symlink_to(ROOT / name)
    command = ["make", *arguments.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and words in done.stderr and not (tmp_path / ".venv").exists()


def test_make_asks_for_a_card_once_and_only_where_it_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Makefile", "requirements"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho asked >> {tmp_path}/asked\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for target, device, times in (("help", None, 0), ("setup", None, 1), ("setup", "cpu", 1)):
        if device:
            monkeypatch.setenv("DEVICE", device)
        command = ["make", "-n", target]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        asked = tmp_path / "asked"
        assert (len(asked.read_text().split()) if asked.exists() else 0) == times
        if target == "setup":  # a stamp of another device would call a mixed environment finished
            order = (f"check --device {device or 'gpu'}", "rm -f .venv/.ready-*", "install.py venv .venv")
            assert [*map(done.stdout.index, order)] == sorted(map(done.stdout.index, order))


T4 = Card("Tesla T4", "550.54.15", (7, 5))
COLAB = Torch("2.11.0+cu128", "12.8", 75, "sm_75 sm_80 sm_86 sm_90a sm_100f sm_120")


@pytest.mark.parametrize(
    ("torch", "words"),
    [
        (replace(COLAB, capability=60), "Tesla T4 (compute capability 6.0) is older than 7.0, where Triton"),
        (replace(COLAB, capability=60, kernels="sm_50 sm_60"), "is older than 7.0"),
        (
            replace(COLAB, capability=120, kernels="sm_75 sm_80 sm_90"),
            "torch 2.11.0+cu128 holds no kernels for the Tesla T4",
        ),
        (replace(COLAB, capability=70), "holds no kernels"),
        (replace(COLAB, cuda="None"), "reaches a card without CUDA, which no recipe was tried on"),
        (replace(COLAB, capability=0), "(CUDA 12.8) does not reach the Tesla T4 (driver 550.54.15): install a torch"),
    ],
)
def test_a_torch_that_will_not_do(torch: Torch, words: str) -> None:
    assert words in str(install.torch_hindrance(torch, T4))


def test_a_torch_that_will_do() -> None:
    assert install.torch_hindrance(COLAB, T4) is None
    assert install.torch_hindrance(replace(COLAB, capability=89), T4) is None  # runs what was made for 8.6
    assert install.torch_hindrance(replace(COLAB, capability=130, kernels="sm_90 compute_120"), T4) is None
    here = install.read_torch()
    assert isinstance(here, Torch) and install.torch_hindrance(here, None) is None


def test_what_is_asked_for_on_top() -> None:
    on_colab, left_out = install.wanted(COLAB, {"torchao": "0.10.0"}, set())
    assert {"torchao>=0.16", "xformers==0.0.35"} <= set(on_colab) and "xformers" not in left_out
    beside_cuda_13, left_out = install.wanted(replace(COLAB, cuda="13.0"), {}, {"torch", "numpy", "rich"})
    assert len(beside_cuda_13) == len(on_colab) - 2 and not [line for line in beside_cuda_13 if "vllm" in line]
    assert {"xformers", "torchvision", "triton", "torch", "numpy"} <= set(left_out) and "rich" not in left_out


@pytest.mark.parametrize(
    ("package", "number", "words"),
    [
        ("torch", "2.9.1+cu128", "torch 2.9.1+cu128 is here, and 2.11 or newer and below 2.14 is needed: install one"),
        ("torch", "2.14.0", "torch 2.14.0 is here"),
        ("torch", "2.11.0a0+eb65b36914.nv26.02", "torch 2.11.0a0+eb65b36914.nv26.02 is here"),
        ("numpy", "1.26.4", "numpy 1.26.4 is here, and 2.0 or newer and below 3 is needed"),
        ("pandas", "3.1.0", "pandas 3.1.0 is here"),
        ("torch", "2.11.0+cu128", None),
        ("torch", "2.12.0.dev20260301", None),
        ("numpy", "2.0.2", None),
    ],
)
def test_what_stays_has_to_be_in_range(package: str, number: str, words: str | None) -> None:
    said = install.outside({package: number}, install.wanted(COLAB, {}, set())[0])
    assert said is None if words is None else words in str(said)


def test_here_asks_for_a_compiler_and_disk_and_leave_to_write(tmp_path: Path) -> None:
    def fault(machine: Machine, packages: Path = tmp_path, torch: Torch | str = COLAB) -> str:
        return str(install.here_hindrance({"torch": "2.11.0"}, torch, machine, packages))

    assert fault(GOOD) == "None"
    assert "finds no C compiler" in fault(replace(GOOD, compiler=False))
    assert fault(replace(GOOD, compiler=False, card=None)) == "None"
    assert "1.9 GB of disk are free" in fault(replace(GOOD, free_gb=1.99))
    assert "does not import (libfoo): mend it" in fault(GOOD, torch="libfoo")
    assert "-m venv --system-site-packages env`) and give PYTHON=" in fault(GOOD, tmp_path / "not there")


# The install itself, beside a stand-in for uv


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.setattr(install.sysconfig, "get_path", lambda name: str(folder))
    return folder


def add(tmp_path: Path, plan: str, then: str = "exit 0") -> None:
    """Install with a uv that notes how it is called, plans `plan` and ends as `then` says."""
    uv = tmp_path / "uv"
    quoted = plan.replace("\n", "\\n")
    uv.write_text(
        f"""#!/bin/sh
        echo "$*" >> {tmp_path}/calls; cat {tmp_path}/pinned.txt >> {tmp_path}/calls
        case "$*" in *--dry-run*) printf '{quoted}' >&2; exit 0;; esac
        {then}"""
    )
    uv.chmod(0o755)
    install.install([str(uv)], (["trl>=1.15"], ["triton"]), {"torch": "2.11.0"}, tmp_path)


def test_pins_are_taken_for_what_is_added(packages: Path, tmp_path: Path) -> None:
    add(tmp_path, " - trl==1.0\n + trl==9.9\n + unpinned==1\n")
    first, *_, last = (tmp_path / "calls").read_text().split("--color never")
    pin = next(line for line in (ROOT / "requirements" / "gpu.txt").read_text().split() if line.startswith("trl=="))
    assert pin in last and pin not in first and "unpinned" not in last and "--dry-run" not in last
    assert list(packages.iterdir()) == []


def test_nothing_is_installed_over_what_has_to_stay(packages: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^Nothing was changed: torch would be, and torch==2\.11\.0 have to stay"):
        add(tmp_path, " + trl==1.15\n + torch==2.13\n", "echo installed; exit 3")
    assert (tmp_path / "calls").read_text().count("--dry-run") == 1


def test_what_an_install_that_was_cut_off_leaves_is_mended(packages: Path, tmp_path: Path, capsys: Any) -> None:
    """uv takes a package for whole as soon as its entry is there, and reads none beside an entry without METADATA."""
    with pytest.raises(
        SystemExit, match=r"^make notebook did not come to its end: No space left on device\. Mend that"
    ):
        add(
            tmp_path,
            " + trl==1.15\n + peft==0.21\n",
            "echo 'error: x\n  Caused by: No space left on device' >&2; exit 2",
        )
    for name, text in (("trl-1.15.dist-info", None), ("peft-0.21.dist-info", ""), ("whole-1.dist-info", "Name: whole")):
        (packages / name).mkdir()
        if text is not None:
            (packages / name / "METADATA").write_text(text)
    (tmp_path / "calls").unlink()
    add(tmp_path, " + trl==1.15\n ~ peft==0.21\n")
    assert "--reinstall-package=trl --reinstall-package=peft" in (tmp_path / "calls").read_text()
    assert [path.name for path in packages.iterdir()] == ["whole-1.dist-info"]
    assert capsys.readouterr().out.count("left by an install that was cut off") == 2


def test_packages_of_elsewhere_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """uv does not see what a virtual environment takes from the Python under it; nor a folder of PYTHONPATH."""
    for name, metadata in (("torch", "Name: Torch\nVersion: 2.11.0\n"), ("half", None)):
        (tmp_path / f"{name}-2.11.0.dist-info").mkdir()
        if metadata:
            (tmp_path / f"{name}-2.11.0.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\n{metadata}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    have, foreign = install.installed()
    assert have["torch"] == "2.11.0" and foreign == {"torch"} and "half" not in have and "numpy" in have


def test_what_moved_is_told() -> None:
    before, after = {"datasets": "4.0.0", "torch": "2.11.0"}, {"datasets": "4.8.5", "torch": "2.11.0", "trl": "1.15.0"}
    assert install.changes(before, after) == (["trl"], ["datasets 4.0.0 -> 4.8.5"])


def test_one_truth_on_pythons() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    first, end = install.PYTHONS
    assert f'requires-python = ">={install.dotted(first)},<{install.dotted(end)}"' in project


def test_outside_the_environment_a_recipe_says_what_to_do() -> None:
    """`-S` hides every package, as a system's Python does."""
    for command in (["recipes/gsm8k_grpo.py", "--help"], ["-m", "recipes.tools.judge_agreement"]):
        done = subprocess.run([sys.executable, "-S", *command], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert "make setup" in done.stderr and "make notebook" in done.stderr and "tyro" in done.stderr
