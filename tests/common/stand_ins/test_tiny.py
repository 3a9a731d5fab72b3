"""The tiny PairRM: what `--smoke` of the PPO recipes has as its reward."""

from pathlib import Path
from typing import Any

import pytest

from recipes.common.stand_ins.tiny import PAIRRM, tiny_folder, tiny_pairrm_folder


def test_a_pairrm_is_made_once_and_then_found(unsloth: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_pairrm_folder(tmp_path / "cache")
    written = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert set(written) == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert tiny_pairrm_folder(tmp_path / "cache") == folder != tiny_folder(tmp_path / "cache")
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == written
    names = {folder.name, tiny_folder(tmp_path / "cache").name}
    assert {entry.name for entry in (tmp_path / "cache").iterdir()} == names | {f"{name}.lock" for name in names}
    monkeypatch.setenv("TUNEBOOK_CACHE", str(tmp_path / "cache"))
    assert tiny_pairrm_folder() == folder


def test_it_is_a_pairrm_that_tells_noise_apart(unsloth: Any, tmp_path: Path) -> None:
    """Whatever the tiny model writes: any bytes, or nothing."""
    from rewards import pairrm

    judge = pairrm.load(str(tiny_pairrm_folder(tmp_path)))
    assert {name: getattr(judge.model.config, name) for name in PAIRRM} == PAIRRM | {"pos_att_type": ["p2c", "c2p"]}
    texts = ["", "\ufffd\x00\n\té", "Blue.", "blue"]
    found = judge.logits(["Why?"] * 4, texts, ["Because."] * 4)
    assert len(set(found)) == 4 and 0.05 < max(map(abs, found)) < 20
    assert sum(weight.numel() for weight in judge.model.parameters()) < 50_000
