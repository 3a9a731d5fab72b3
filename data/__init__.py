"""Datasets and prompts: one module per dataset, no tokenisation and no torch anywhere in this package."""
