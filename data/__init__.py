"""Datasets and prompts: one module per dataset, no tokenisation and no torch anywhere in this package."""

import rewards  # noqa: F401  refuses a Python that is too old
