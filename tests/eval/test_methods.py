"""What is known of methods and adapters holds together, and what trainers log is what it says."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest

from eval.methods import ADAPTERS, METHODS, Adapter, method_of, phase_of, spelled_out

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*_*.py"))


def test_every_recipe_has_a_method_that_is_known() -> None:
    assert {path.stem.rpartition("_")[2] for path in RECIPES if path.stem != "__init__"} <= METHODS.keys()


@pytest.mark.parametrize("phase", METHODS)
def test_a_record_holds_together(phase: str) -> None:
    method = METHODS[phase]
    headings, titles = [column.heading for column in method.columns], [curve.title for curve in method.curves]
    assert len(set(headings)) == len(headings) and len(set(titles)) == len(titles)
    for column in method.columns:
        assert column.legend and "\n" not in column.legend
        assert f"{0.5:{column.number}}"
    drawn = {key for curve in method.curves for key in curve.keys}
    assert {method.cut_off, method.flat, method.margin} - {None} <= drawn
    assert all(key.count("*") <= 1 and (len(curve.keys) == 1 or "*" not in key) for curve in method.curves
               for key in curve.keys)  # fmt: skip
    assert method.margin or not method.zero_margin_at_first


def test_a_method_that_is_not_known_has_a_loss() -> None:
    method = method_of("rloo")
    assert (method.title, [column.heading for column in method.columns]) == ("RLOO", ["loss"])
    assert [(curve.title, curve.keys) for curve in method.curves] == [("RLOO: loss", ("loss",))]
    assert method.with_trl and not method.scores_texts and method.rows is None


def test_a_phase_is_named_by_the_folder_of_its_trainer() -> None:
    trainer = SimpleNamespace(args=SimpleNamespace(output_dir="outputs/x/checkpoints/warm_start"))
    assert phase_of(trainer) == "warm start"


def test_a_star_stands_for_one_name_and_no_path() -> None:
    logged = ["rewards/a/mean", "rewards/a/std", "rewards/a/b/mean", "rewards//mean", "other/rewards/a/mean"]
    assert spelled_out("rewards/*/mean", logged) == {"a": "rewards/a/mean"}
    assert spelled_out("loss", logged) == {"loss": "loss"}


def test_every_adapter_is_described() -> None:
    assert set(ADAPTERS) == set(get_args(Adapter))
    assert [name for name, adapter in ADAPTERS.items() if not adapter.title] == ["full"]
    assert all(re.search("adapter", adapter.title) for adapter in ADAPTERS.values() if adapter.title)
