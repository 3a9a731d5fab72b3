"""House rules that a machine can check (design of the house); what each looks for stands in house.py, and why here.

Every rule is shown sources that break it and sources that keep it: one that finds nothing would pass as well.
"""

import ast
import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tests import house

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("recipes", "rewards", "data", "eval")
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
RECIPES = sorted(path for path in (ROOT / "recipes").glob("*.py") if path.name != "__init__.py")
PATH_LINE = "sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root first: runs from a clone"
# Split by bars, so that this file is not its own first finding.
BARRED = "pypi|.org python|hosted npm|js. deb.|debian download.|pytorch /wo|rk/ /ro|ot/"
ADDRESSES = BARRED.replace("|", "").split()
# Flags that a definition names and that a recipe which reaches it may lack.
NOT_TO_PASS: dict[str, set[str]] = {
    "recipes.ultrafeedback_reward": {"compare-with"},  # of the recipes that take what this one trains
    # Told where the recipe has the new name and not the old one.
    "recipes.common.cli.RENAMED": {
        *("warmup-steps", "sft-steps", "warmup-learning-rate", "sft-learning-rate", "judge", "compare-with")
    },
    "recipes.common.models.start_from": {"start-from"},  # called where there is one, as the next
    "recipes.common.args.split_batch": {"per-device-train-batch-size", "gradient-accumulation-steps"},
    "recipes.common.args.GRPOArgs": {"prompts-per-step", "num-generations"},  # a type that PPO's policy names too
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def dotted(path: Path) -> str:
    return relative(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


SOURCES = {dotted(path): path.read_text(encoding="utf-8") for path in MODULES}
RECIPE_SOURCES = {path.stem: SOURCES[dotted(path)] for path in RECIPES}
# Subclasses of trainer classes need their base class at import. Only functions may import these modules in turn.
TRAINER_SIDE = {
    name for name, source in SOURCES.items() if name.startswith("recipes.common.") and house.heavy_imports(source)
}


# The tree


@pytest.mark.parametrize("module", SOURCES)
def test_module_keeps_the_house_rules(module: str) -> None:
    source = SOURCES[module]
    if module not in TRAINER_SIDE:
        heavy = house.heavy_imports(source, also=TRAINER_SIDE)
        assert heavy == set(), "import these in the functions that need them: --help is instant"
    assert house.runs_foreign_code(source) == []
    assert house.upward_imports(module, source, SOURCES) == [], f"what is higher imports what is lower: {house.FLOORS}"
    assert house.programs(source) == [], "linters, types and these rules do not see into strings: make it a function"


def test_no_module_comes_back_to_itself_by_its_imports() -> None:
    assert house.circle(SOURCES) == []


def test_a_files_name_occurs_once_in_the_tree() -> None:
    names = Counter(path.name for path in (*MODULES, *(ROOT / "tests").rglob("*.py")))
    assert {name for name, times in names.items() if times > 1} <= {"__init__.py", "conftest.py"}


def test_every_room_is_checked() -> None:
    assert {house.top(module) for module in SOURCES} == {*ROOMS}


def test_no_file_names_a_registry_or_a_machine() -> None:
    """Where packages come from is the reader's setting, and paths of the authors' machines mean nothing."""
    ignored = {line.rstrip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()}
    findings, seen = [], 0
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in ignored | {".git"}]
        for path in (Path(folder, name) for name in files if name != ".git"):  # a file in a worktree
            text = path.read_bytes().decode("utf-8", errors="replace").lower()
            findings += [f"{relative(path)}: {address}" for address in ADDRESSES if address in text]
            seen += 1
    assert findings == []
    assert seen > len(MODULES)


# Recipes


@pytest.mark.parametrize("name", RECIPE_SOURCES)
def test_recipe_keeps_the_house_rules(name: str) -> None:
    source, faults = RECIPE_SOURCES[name], []
    lines, functions = source.splitlines(), house.functions(source)
    method = f"{name.rpartition('_')[2]}_config"
    if len(lines) > 160:
        faults.append(f"{len(lines)} lines, and 160 are allowed")
    if (long := house.length(functions["main"])) > 40:
        faults.append(f"main has {long} lines, and 40 are allowed: it is the story, the plumbing is in recipes/common")
    if unformatted := house.unformatted(source):
        faults.append(f"the formatter is kept off lines {unformatted}")
    if PATH_LINE not in lines:
        faults.append(f"it does not run from a clone without the line {PATH_LINE}")
    if not house.is_guarded(source):
        faults.append("it does not end in its guard, and what vLLM spawns would run it again")
    if method not in functions:
        faults.append(f"there is no {method}(args, run)")
    faults += house.docstring_faults(source, name)
    faults += [f"choices are in view, and this one is not: {choice}" for choice in house.hidden_choices(source)]
    faults += [
        f"Args inherits frozen dataclasses of flags, nothing else inherits: {c}" for c in house.class_faults(source)
    ]
    assert faults == []


def test_flags_are_dataclasses_of_fields() -> None:
    classes = [node for node in ast.parse(SOURCES["recipes.common.args"]).body if isinstance(node, ast.ClassDef)]
    flags = {node.name for node in classes}
    assert classes and [node.name for node in classes if not house.is_flag_class(node, flags, only_fields=False)] == []


def test_no_two_recipes_share_eight_lines_in_a_row() -> None:
    """Outside their configs and docstrings: such a run is plumbing, and copies of it drift apart."""
    shared = house.shared_runs(RECIPE_SOURCES)
    assert [f"{one} and {other}: {len(run)} from {run[0]!r}" for one, other, run in shared] == []


def test_recipes_do_not_grow_alike_again() -> None:
    """They had 737 different lines in 2,661. Choices are repeated, one value a line: that is the rest."""
    distinct, lines = house.distinct_lines(RECIPE_SOURCES.values())
    print(f"{distinct:,} of {lines:,} lines of {len(RECIPES)} recipes are distinct: {distinct / lines:.1%}")
    assert distinct >= 0.35 * lines


@pytest.fixture(scope="module")
def modules() -> dict[str, house.Module]:
    return house.read_modules(SOURCES)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_has_the_flags_that_it_tells_of(path: Path, modules: dict[str, house.Module]) -> None:
    """A message that says what to pass, and a recipe that does not take it: that is how copies drifted."""
    taken = {"help"}
    for field in fields(importlib.import_module(dotted(path)).Args):
        flag = field.name.replace("_", "-")
        taken |= {flag, f"no-{flag}"} if field.type is bool else {flag}
    told = house.flags_told(modules[dotted(path)])
    unknown = {flag: {place for place in told[flag] if flag not in NOT_TO_PASS.get(place, ())} for flag in told}
    assert {flag: places for flag, places in unknown.items() if places and flag not in taken} == {}


def test_flags_not_to_pass_are_told(modules: dict[str, house.Module]) -> None:
    told = [house.flags_told(modules[dotted(path)]) for path in RECIPES]
    for place, flags in NOT_TO_PASS.items():
        assert flags <= {flag for found in told for flag, places in found.items() if place in places}, place


@pytest.fixture(scope="module")
def starts(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """How each recipe starts where nothing is imported yet; a test's process has imported Unsloth long since."""
    command = [sys.executable, "tests/start_driver.py", tiny, tmp_path_factory.mktemp("starts")]
    done = subprocess.run(
        [*command, *RECIPE_SOURCES], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", RECIPE_SOURCES)
def test_help_is_instant(name: str, starts: dict[str, dict[str, Any]]) -> None:
    """It says what the recipe is and takes, and has imported nothing that takes long."""
    start, (first, *_) = starts[name], (ast.get_docstring(ast.parse(RECIPE_SOURCES[name])) or "").splitlines()
    assert start["code"] == 0 and start["heavy"] == []
    assert first[:60] in start["help"] and "--max-hours" in start["help"]
    assert start["modules"] < 450, "more modules than tyro, the flags and the standard library: what is new?"


@pytest.mark.parametrize("name", RECIPE_SOURCES)
def test_unsloth_is_imported_before_what_it_patches(name: str, starts: dict[str, dict[str, Any]]) -> None:
    assert starts[name]["early"] == []


# What each rule finds, and what it lets pass


def test_heavy_imports() -> None:
    guarded = "try:\n    import scipy\nexcept ImportError:\n    pass"
    allowed = "def f():\n    import torch\nif TYPE_CHECKING:\n    import vllm\nfrom .torch import x"
    assert house.heavy_imports("import torch.nn\n" + guarded) == {"torch.nn", "scipy"}
    assert house.heavy_imports("class A:\n    import trl") == {"trl"}
    assert house.heavy_imports("from a import b, c", also={"a.b"}) == {"a.b"}
    assert house.heavy_imports(allowed) == set()


def test_foreign_code() -> None:
    assert house.runs_foreign_code("import pickle") == ["pickle"]
    assert house.runs_foreign_code("x = torch.load(p, weights_only=True)") == ["torch.load"]
    assert house.runs_foreign_code("f(trust_remote_code=flag)") == ["trust_remote_code"]
    assert house.runs_foreign_code("f(trust_remote_code=False)") == []


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("rewards.qa", "def f():\n    from eval.sampling import Reward", ["eval.sampling"]),
        ("rewards.qa", "if TYPE_CHECKING:\n    import data.gsm8k", ["data.gsm8k"]),
        ("data.gsm8k", "from recipes import gsm8k_grpo", ["recipes"]),
        ("eval.report", "from recipes.common import machine", ["recipes.common"]),
        ("eval.report", "import_module('recipes.gsm8k_grpo')", ["recipes.gsm8k_grpo"]),
        ("eval.report", "run([python, '-m', f'recipes.{name}'])", ["recipes._"]),
        ("eval.report", "run([python, 'recipes/gsm8k_grpo.py'])", ["recipes.gsm8k_grpo"]),
        ("rewards.qa", "import_module('data.gsm8k')", ["data.gsm8k"]),
        ("recipes.common.run", "from recipes.arc_sft import Args", ["recipes.arc_sft"]),
        ("recipes.common.run", "from recipes.tools import plan", ["recipes.tools"]),
        ("recipes.arc_sft", "from recipes.gsm8k_grpo import Args", ["recipes.gsm8k_grpo"]),
        ("recipes.arc_sft", "from recipes import gsm8k_grpo", ["recipes"]),
        ("recipes.arc_sft", "from recipes.bench.card import Row", ["recipes.bench.card"]),
        ("rewards.qa", "from . import tags\nfrom ..eval import files", [".", ".."]),
    ],
)
def test_upward_imports_are_found(module: str, source: str, found: list[str]) -> None:
    assert house.upward_imports(module, source, {"data.gsm8k"}) == found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "eval.report",
            "from data import gsm8k\nfrom rewards.tags import parse\nfrom eval.files import x\nimport torch",
        ),
        ("rewards.qa", "x = 'data.jsonl', 'eval', 'recipes are below'\ny = 'see recipes/common/run.py'"),
        ("recipes.arc_sft", "from recipes.common import cli\nfrom recipes.common.run import Run\nfrom data import arc"),
        (
            "recipes.tools.plan",
            "from recipes import arc_sft\nfrom recipes.bench.card import Row\nx = f'recipes.{name}'",
        ),
        ("recipes.bench.card", "run([python, '-m', 'recipes.bench.card'])"),
        ("recipes.arc_sft", "run([python, '-m', 'recipes.arc_sft'])"),
    ],
)
def test_imports_downward_are_let_pass(module: str, source: str) -> None:
    assert house.upward_imports(module, source, {"recipes.common.run"}) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("X = '''\nimport sys\nfrom recipes.common import machine\n'''", "import sys"),
        ("X = 'import json; from eval import files; print(1)'", "import json; from eval import files; print(1)"),
        ("X = 'import sys, recipes.gsm8k_grpo'", "import sys, recipes.gsm8k_grpo"),
        ("X = 'from recipes import {recipe} as recipe'", "from recipes import {recipe} as recipe"),
        ("def f(n):\n    return run(f'from recipes import {n}')", "from recipes import _"),
        ("def f(n):\n    return f'{run(\"import eval.files\")}'", "import eval.files"),
        ("X = 'a = 1\\nif a:\\n    import rewards.qa'", "a = 1"),
        ("X = \"python -c 'import data'\"", "python -c 'import data'"),
        ("X = 'import importlib; importlib.import_module(\"recipes.arc_sft\")'", None),
    ],
)
def test_programs_in_strings_are_found(source: str, found: str | None) -> None:
    programs = house.programs(source)
    assert len(programs) == 1 and (found is None or programs == [found])


@pytest.mark.parametrize(
    "source",
    [
        '"""Usage:\n\n    python -m recipes.tools.plan\n    from recipes import arc_sft\n"""',
        "def f():\n    '''As in `import recipes`.'''\n    import recipes",
        "X = 'import torch; print(torch.__version__)'",
        "X = 'rewards come from data, and what they import counts', 'python -m recipes.tools.plan', 'recipes.arc_sft'",
    ],
)
def test_other_strings_are_let_pass(source: str) -> None:
    assert house.programs(source) == []


def test_circles() -> None:
    a, types = "from eval import b", "if TYPE_CHECKING:\n    from eval.a import A"
    assert {*house.circle({"eval.a": a, "eval.b": types})} == {"eval.a", "eval.b"}
    assert {*house.circle({"eval.a": a, "eval.b": "import eval.c", "eval.c": "def f():\n    import eval.a"})} == {
        *("eval.a", "eval.b", "eval.c")
    }
    assert house.circle({"eval.a": a, "eval.b": "import torch\nfrom eval.c import a", "eval.c": "x = 'eval.a'"}) == []


def test_what_keeps_the_formatter_off() -> None:
    assert house.unformatted("x = [\n    1,\n]  # fmt: skip\n# fmt: off\ny = 1  # fmt:skip") == [3, 4, 5]
    assert house.unformatted("x = '# fmt: skip'  # the format: skipped") == []


def test_guards_and_lengths() -> None:
    assert house.is_guarded('x = 1\nif __name__ == "__main__":\n    main()')
    assert not house.is_guarded("main()")
    assert house.length(house.functions("x = 1\n\n@d\ndef main(\n    a,\n):\n    return a\n\n\ny = 2")["main"]) == 4


def test_docstrings() -> None:
    good = '"""One sentence.\n\nMore.\n\n    python recipes/arc_sft.py --model x\n"""'
    assert house.docstring_faults(good, "arc_sft") == []
    for bad in (
        good.replace("sentence.", "sentence"),
        good.replace(".\n\nM", ".\nM"),
        good.replace("arc", "gsm8k"),
        good.replace("More", "More\n" * 17),
    ):
        assert len(house.docstring_faults(bad, "arc_sft")) == 1, bad
    assert len(house.docstring_faults("x = 1", "arc_sft")) == 2


def test_hidden_choices() -> None:
    given = ", ".join(f"{choice}=1" for choice in house.CHOICES)
    assert house.hidden_choices(f"def sft_config(args, run):\n    return C({given}, **run.settings)") == []
    assert house.hidden_choices("def main(args):\n    return C()") == []
    hidden = house.hidden_choices(f"def sft_config(args, run):\n    return C({given.replace('optim=', 'optimizer=')})")
    assert hidden == ["sft_config: optim"]


def test_classes() -> None:
    start = "from recipes.common.args import RunArgs\nfrom recipes.common.run import Run\n"
    args = '@dataclass(frozen=True, kw_only=True)\nclass Args(RunArgs):\n    x: int = 1\n    """A number"""\n'
    assert house.class_faults(start + args) == []
    assert house.class_faults(start + args.replace("(RunArgs)", "")) == []
    assert house.class_faults(start + args + "class Row(TypedDict):\n    x: int") == []
    assert house.class_faults(start + args + "class Mine(Run):\n    pass") == ["Mine"]
    assert house.class_faults(start + args + "class Mine(Args):\n    pass") == ["Mine"]
    assert house.class_faults(start + args.replace("RunArgs)", "RunArgs, Run)")) == ["Args"]
    assert house.class_faults(start + args.replace("RunArgs)", "Base)")) == ["Args"]
    assert house.class_faults(start + args.replace("(frozen=True, kw_only=True)", "")) == ["Args"]
    assert house.class_faults(start + args + "    def f(self): ...\n") == ["Args"]
    assert house.class_faults(start) == ["there is no Args"]


def recipe(body: str, *, config: str = "    return C(\n        a=1,\n    )\n") -> str:
    imports = "".join(f"import a{i}\n" for i in range(9))
    frame = f'"""Doc.\n\nMore.\n"""\n\n{imports}\nsys.path.insert(0, x)  # first\n\nfrom b import c\n\n'
    return f'{frame}{body}\n\ndef sft_config(args, run):\n{config}\n\nif __name__ == "__main__":\n    cli.start(main)\n'


def lines(start: str, count: int, indent: str = "") -> str:
    return "".join(f"{indent}{start}{i} = {i}\n" for i in range(count))


def test_shared_runs() -> None:
    def longest(one: str, other: str) -> list[int]:
        return [len(run) for _, _, run in house.shared_runs({"a": one, "b": other})]

    def main(body: str, name: str = "main") -> str:
        return recipe(f"def {name}(args):\n{body}")

    eight = lines("x", 8, "    ")
    assert longest(main(eight), main("    y = 1\n" + eight + "    z = 1\n")) == [8]
    nested = "    if y:\n" + lines("x", 8, "        ")
    assert longest(main(eight), main(nested, "load")) == [8]  # indented, they are the same
    # What says nothing does not part them: blank lines, comments, lone brackets.
    parted = eight.replace("    x4", "\n    # Why.\n    ()\n    x4").replace("= 5", "= 5  # of course")
    assert longest(main(eight), main(parted, "load")) == [8]
    # Seven are allowed, and so are eight with another line between them.
    assert longest(main(lines("x", 7, "    ")), main(lines("x", 7, "    "), "load")) == []
    assert longest(main(eight), main(eight.replace("    x4", "    y = 1\n    x4"), "load")) == []


def test_what_recipes_may_share() -> None:
    """The frame, docstrings and choices, and no run goes on across them."""
    config = "    return C(\n" + "".join(f"        k{i}={i},\n" for i in range(20)) + "    )\n"
    assert house.shared_runs({"a": recipe("x = 1", config=config), "b": recipe("y = 1", config=config)}) == []
    told = '@dataclass\nclass Args:\n    x: int = {}\n    """' + "One of many lines\n" * 20 + '    """\n'
    assert house.shared_runs({"a": recipe(told.format(1)), "b": recipe(told.format(2))}) == []
    assert house.shared_runs({name: recipe(lines("X", 20)) for name in "ab"}) == []
    four = "def {}(args):\n" + lines("x", 4, "    ")
    across = recipe(four.format("load") + "\nX = 1\n\n" + four.format("main").replace("x", "z"))
    assert house.shared_runs({"a": across, "b": across}) == []


def test_distinct_lines() -> None:
    assert house.distinct_lines(['"""Doc.\n\nx = 1\n"""\n\nx = 1\nif x:\n    x = 1\n', "x = 1\n# y\n"]) == (3, 5)


LIBRARY = '''
"""Not told: --docstring."""
from eval import files

LATER = "use --constant"
OLD = {"--old": "--new"}

def unused():
    raise ValueError("pass --unused")

def check(path):
    """Not told: --docstring."""
    if not path:
        raise ValueError(f"{path} is missing: " "pass " f"--check {path}, or --no-check")
    subprocess.run(["git", "--porcelain", "--untracked-files=no"])
    return files.write(path, LATER)

class Watch:
    def on_step(self):
        print("try `--method 0.1`, as in `python -m recipes.tools.plan --other`")
'''
FLAGS = '''
class RunArgs:
    max_hours: float = 1.0
    """Then --resume"""

class JudgeArgs:
    judge: str = "none"
    """Or --no-judge"""
'''
TELLER = '''
"""Does this (`--deep`).

    python recipes/a_sft.py --mine     # my own
    python -m recipes.tools.plan --other
    python recipes/b_sft.py --other
"""
from recipes.common import shelf
from recipes.common.args import RunArgs

class Args(RunArgs):
    adapter: str = "x"
    """As --field says"""

def main(args):
    from recipes.common.shelf import Watch

    """Not told: --docstring."""
    shelf.check(args.path)
    trainer.add(Watch())
'''


def test_flags_that_are_told() -> None:
    files = (
        "def write(path, text):\n    raise OSError('name another --output-dir')\ndef unused():\n    print('--unused x')"
    )
    sources = {
        "recipes.a_sft": TELLER,
        "recipes.common.shelf": LIBRARY,
        "recipes.common.args": FLAGS,
        "eval.files": files,
    }
    told = house.flags_told(house.read_modules(sources)["recipes.a_sft"])
    assert told == {
        **{flag: {"recipes.a_sft"} for flag in ("deep", "mine")},
        "field": {"recipes.a_sft.Args"},
        "resume": {"recipes.common.args.RunArgs"},
        **{flag: {"recipes.common.shelf.check"} for flag in ("check", "no-check")},
        "constant": {"recipes.common.shelf.LATER"},
        "method": {"recipes.common.shelf.Watch"},
        "output-dir": {"eval.files.write"},
    }
    # A module that is passed on as a whole may be asked for anything.
    sources["recipes.a_sft"] = "from recipes.common import shelf\nCHOICES = [shelf]"
    told = house.flags_told(house.read_modules(sources)["recipes.a_sft"])
    assert {"unused", "old", "new", "method"} <= {*told} and not {"docstring", "porcelain", "untracked-files"} & {*told}
