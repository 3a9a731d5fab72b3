"""House rules that a machine can check; each says why where it fails."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("recipes", "rewards", "data", "eval")
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
RECIPES = sorted(path for path in (ROOT / "recipes").glob("*.py") if path.name != "__init__.py")
PATH_LINE = "sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root first: runs from a clone"
HEAVY = {
    *("accelerate", "bitsandbytes", "datasets", "deepeval", "evidently", "matplotlib", "pandas", "peft"),
    *("scipy", "sklearn", "torch", "transformers", "trl", "unsloth", "unsloth_zoo", "vllm"),
}
# Subclasses need their base class at import. Only functions may import this module in turn.
HEAVY_BY_NATURE = ROOT / "recipes" / "common" / "callbacks.py"
UNPICKLERS = {"cloudpickle", "dill", "joblib", "pickle", "shelve"}
# Split by bars, so that this file is not its own first finding.
BARRED = "pypi|.org python|hosted npm|js. deb.|debian download.|pytorch /wo|rk/ /ro|ot/"
ADDRESSES = BARRED.replace("|", "").split()


def imports(node: ast.AST) -> list[str]:
    """Dotted names that this one statement imports, as modules or from them; relative imports are our own."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when a module is imported: everything outside functions and `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from at_import(child)


def top(name: str) -> str:
    return name.split(".")[0]


def heavy_imports(source: str, also: Collection[str] = ()) -> set[str]:
    """Names from the heavy packages, or of the modules in `also`, that importing this source imports."""
    found = {name for node in at_import(ast.parse(source)) for name in imports(node)}
    return {name for name in found if top(name) in HEAVY or name in also}


def imports_a_recipe(source: str) -> bool:
    return any(top(name) == "recipes" for node in ast.walk(ast.parse(source)) for name in imports(node))


def runs_foreign_code(source: str) -> list[str]:
    """Ways to execute what a downloaded file says: unpickling, and `trust_remote_code=True`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        found += [name for name in imports(node) if name in UNPICKLERS]
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load":
            found.append("torch.load")
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            found += ["trust_remote_code"] * (ast.unparse(node.value) != "False")
    return found


def is_guarded(source: str) -> bool:
    """Whether the file ends in `if __name__ == "__main__":`: spawned workers execute its body again."""
    last = ast.parse(source).body[-1]
    return isinstance(last, ast.If) and ast.unparse(last.test) == "__name__ == '__main__'"


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def dotted(path: Path) -> str:
    return relative(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


# Subclasses of trainer classes live here. Only functions may import these modules.
TRAINER_SIDE = {
    dotted(path)
    for path in MODULES
    if relative(path).startswith("recipes/common/") and heavy_imports(path.read_text(encoding="utf-8"))
}

# Starts each recipe, and stops it where it comes to import Unsloth: which of the packages that this patches are there?
STOP_AT_UNSLOTH = """
import importlib, json, sys
from dataclasses import replace

class Reached(BaseException): ...

class Guard:
    def find_spec(self, name, *_):
        if name == "unsloth":
            raise Reached

sys.meta_path.insert(0, Guard())
early = {}
for name in sys.argv[3:]:
    recipe = importlib.import_module(f"recipes.{name}")
    args = replace(recipe.ON_CPU, **{**recipe.SMOKE, "model": sys.argv[2]}, smoke=True, output_dir=sys.argv[1])
    try:
        recipe.main(args)
    except Reached:
        early[name] = sorted({"peft", "transformers", "trl"} & set(sys.modules))
print("\\n" + json.dumps(early))
"""


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_module_keeps_the_house_rules(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    if dotted(path) not in TRAINER_SIDE:
        heavy = heavy_imports(source, also=TRAINER_SIDE)
        assert heavy == set(), "import these in the functions that need them: --help is instant"
    assert runs_foreign_code(source) == []
    if top(dotted(path)) != "recipes":
        assert not imports_a_recipe(source), "data flows from rewards, data and eval to recipes, never back"


@pytest.mark.parametrize("path", RECIPES, ids=relative)
def test_recipe_keeps_the_house_rules(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    assert len(lines) <= 200
    assert PATH_LINE in lines
    assert is_guarded(source)
    assert ast.get_docstring(ast.parse(source))


def test_unsloth_is_imported_before_what_it_patches(tiny: Path, tmp_path: Path) -> None:
    """Tests that run a recipe where Unsloth is imported already cannot show it."""
    command = [sys.executable, "-c", STOP_AT_UNSLOTH, tmp_path, tiny, *(path.stem for path in RECIPES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {path.stem: [] for path in RECIPES}


def test_every_room_is_checked() -> None:
    assert {top(dotted(path)) for path in MODULES} == {*ROOMS}


def test_no_file_names_a_registry_or_a_machine() -> None:
    """Where packages come from is the reader's setting, and paths of the authors' machines mean nothing."""
    ignored = {line.rstrip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()}
    findings, seen = [], 0
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in ignored | {".git"}]
        for path in (Path(folder, name) for name in files):
            text = path.read_bytes().decode("utf-8", errors="replace").lower()
            findings += [f"{relative(path)}: {address}" for address in ADDRESSES if address in text]
            seen += 1
    assert findings == []
    assert seen > len(MODULES)


def test_rules_find_what_they_forbid() -> None:
    guarded = "try:\n    import scipy\nexcept ImportError:\n    pass"
    allowed = "def f():\n    import torch\nif TYPE_CHECKING:\n    import vllm\nfrom .torch import x"
    assert heavy_imports("import torch.nn\n" + guarded) == {"torch.nn", "scipy"}
    assert heavy_imports("class A:\n    import trl") == {"trl"}
    assert heavy_imports("from a import b, c", also={"a.b"}) == {"a.b"}
    assert heavy_imports(allowed) == set()
    assert imports_a_recipe("def f():\n    from recipes.gsm8k_grpo import Args")
    assert runs_foreign_code("import pickle") == ["pickle"]
    assert runs_foreign_code("x = torch.load(p, weights_only=True)") == ["torch.load"]
    assert runs_foreign_code("f(trust_remote_code=flag)") == ["trust_remote_code"]
    assert runs_foreign_code("f(trust_remote_code=False)") == []
    assert is_guarded('x = 1\nif __name__ == "__main__":\n    main()')
    assert not is_guarded("main()")
