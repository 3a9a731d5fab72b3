"""One file is one experiment, named `<dataset>_<method>.py`; what they all need is in `recipes.common`."""
