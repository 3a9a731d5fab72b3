"""One file is one experiment, named `<dataset>_<method>.py`; what they all need is in `recipes.common`."""

import sys
from importlib.util import find_spec

import rewards  # noqa: F401  refuses a Python that is too old

# Asked of every recipe and command before anything is imported: a traceback that ends in "No module named tyro" helps
# nobody who has just cloned this.
_missing = [name for name in ("tyro", "unsloth", "trl", "datasets") if find_spec(name) is None]
if _missing:
    sys.exit(
        f"{sys.executable} lacks what the recipes need ({', '.join(_missing)}): run `make notebook` in a notebook or "
        "where torch is installed, else `make setup`, and then start them with .venv/bin/python."
    )
