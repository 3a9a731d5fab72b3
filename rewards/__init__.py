"""Rewards: one idea per module; a pure scorer on strings under a thin wrapper in the trainer's shape."""

import sys

# Our other packages import this one first: an older Python would end in a traceback somewhere below.
if sys.version_info < (3, 11):  # noqa: UP036
    version = ".".join(map(str, sys.version_info[:3]))
    sys.exit(
        f"Python 3.11 to 3.13 is needed, and {sys.executable} is {version}: `make setup PYTHON=/path/to/python3` makes "
        "an environment of another, and .venv/bin/python then starts the recipes."
    )
