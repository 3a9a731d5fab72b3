"""The benchmark's arithmetic and its model; the measurement itself is `make bench`."""

import json
from pathlib import Path

from recipes.bench.training_speed import NEVER_WRITTEN, endless_model, judge


def test_a_bar_is_judged_by_the_medians() -> None:
    seconds = {"SFT step": {"recipe": [1.0, 1.5, 90.0], "trl": [2.0], "unsloth": [1.4]}}
    rows = {(row["whose"], row["peer"]): (row["ratio"], row["met"]) for row in judge(seconds)}
    assert rows == {("recipe", "trl"): (0.75, True), ("recipe", "unsloth"): (1.071, False)}


def test_what_was_not_measured_is_not_judged() -> None:
    assert judge({}) == []
    assert judge({"evaluation": {"vllm": [1.0]}}) == []


def test_the_endless_model_has_one_end_token_and_it_is_no_chat_token(tmp_path: Path) -> None:
    folder = endless_model(tmp_path)
    config, generation, tokenizer, words = (
        json.loads((folder / name).read_text(encoding="utf-8"))
        for name in ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")
    )
    (never,) = [token["id"] for token in words["added_tokens"] if token["content"] == NEVER_WRITTEN]
    assert config["eos_token_id"] == generation["eos_token_id"] == never
    assert tokenizer["eos_token"] == NEVER_WRITTEN
    assert NEVER_WRITTEN not in tokenizer["chat_template"]
    assert never not in (config["bos_token_id"], config["pad_token_id"])
    assert (folder / "model.safetensors").stat().st_size > 200_000_000
