"""Run by test_house.py in a process of its own: starts recipes as one does who asks for help, then as one who trains.

python tests/start_driver.py MODEL OUTPUT RECIPE...

Prints, as the last line, for each recipe: the code and the words that its `--help` ends with, which heavy packages and
how many modules have been imported by then, and those that Unsloth patches and that are there before it where a run
comes to import it.
"""

import importlib
import io
import json
import runpy
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from recipes.common.cli import smoke_args  # noqa: E402
from tests.house import HEAVY  # noqa: E402


class Reached(BaseException):
    """A run has come to import Unsloth."""


class Guard:
    def find_spec(self, name: str, *_: object) -> None:
        if name == "unsloth":
            raise Reached


def ask_for_help(name: str) -> dict[str, object]:
    script = str(ROOT / "recipes" / f"{name}.py")
    sys.argv, code = [script, "--help"], None
    with redirect_stdout(io.StringIO()) as printed:
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            code = end.code
    heavy = sorted(HEAVY & set(sys.modules))
    return {"code": code, "help": printed.getvalue(), "heavy": heavy, "modules": len(sys.modules)}


def before_unsloth(name: str, model: str, output: str) -> list[str] | None:
    """Of the packages that Unsloth patches, those that are imported before it; None for a run that does without it."""
    recipe = importlib.import_module(f"recipes.{name}")
    try:
        args = smoke_args(recipe.ON_CPU, recipe.SMOKE)
        recipe.main(replace(args, model=model, smoke=True, output_dir=output))
    except Reached:
        return sorted({"peft", "transformers", "trl"} & set(sys.modules))
    return None


def main() -> None:
    model, output, *names = sys.argv[1:]
    found = {name: ask_for_help(name) for name in names}
    sys.meta_path.insert(0, Guard())  # type: ignore[arg-type]
    for name in names:
        found[name]["early"] = before_unsloth(name, model, output)
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main()
