"""The learning test of preference methods: each ranks pairs that it never saw, with its recipe's own trainer config.

A nano model is pre-trained to repeat one of two digits: the first after an 8 ("8 3 5 ?" is 3), the second after a 9,
and either of them where it is not told. Told nothing, it is then taught on 42 pairs that the first is the better answer
of the two, and must rank the other 14.
"""

import importlib
import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from data.preferences import label_weights, unpaired
from eval.metrics import PREFERENCE
from eval.pairs import measure_pairs, reward_records
from recipes.common import models
from recipes.common.preference import reference_policy, rendered, switch_off_reference
from recipes.common.run import Run
from rewards import reward_model

SETS = [(a, b) for a in range(8) for b in range(a)]
random.Random(0).shuffle(SETS)
PAIRS = [pair for a, b in SETS for pair in ((a, b), (b, a))]  # with both orders, a liking for some digit is no skill
TAUGHT, HELD_OUT = PAIRS[:42], PAIRS[42:]
BOTH_WAYS = 0.2  # how far from one half an untrained ranking of 14 pairs may lie
# Method: recipe, what differs from its arguments for SmolLM2. A nano model bears larger steps than a real one.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpo": ("ultrafeedback_dpo", {"learning_rate": 2e-3}),
    "ipo": ("ultrafeedback_dpo", {"learning_rate": 2e-3, "loss": "ipo"}),
    "dpo with an SFT term": ("ultrafeedback_dpo", {"learning_rate": 2e-3, "sft_weight": 0.1}),
    "dpo on WebGPT": ("webgpt_dpo", {"learning_rate": 2e-3}),
    "kto": ("ultrafeedback_kto", {"learning_rate": 2e-3}),
    "orpo": ("ultrafeedback_orpo", {"learning_rate": 5e-3}),
    "simpo": ("ultrafeedback_simpo", {"learning_rate": 5e-3}),
    # A new head has to find out first what the model knows.
    "reward": ("ultrafeedback_reward", {"learning_rate": 1e-3, "max_steps": 400}),
}


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{text} ?"}]


def answer(digit: int) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": str(digit)}]


def rows(pairs: list[tuple[int, int]]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict(
        {
            "prompt": [user(f"{a} {b}") for a, b in pairs],
            "chosen": [answer(a) for a, _ in pairs],
            "rejected": [answer(b) for _, b in pairs],
            "question": [f"{a} {b}" for a, b in pairs],
            "answer": [str(a) for a, _ in pairs],
        }
    )


def trainer(recipe: ModuleType, args: Any, run: Run, model: Any, tokenizer: Any) -> Any:
    import trl
    from trl.experimental import cpo, orpo

    taught = rows(TAUGHT).select_columns(["prompt", "chosen", "rejected"])
    method = recipe.__name__.rpartition("_")[2]
    if method == "kto":
        singles = unpaired(rows(TAUGHT))
        config = recipe.kto_config(args, run, label_weights(singles["label"]))
        return trl.KTOTrainer(model, args=config, train_dataset=singles, processing_class=tokenizer)
    if method in ("orpo", "simpo"):
        build = orpo.ORPOTrainer if method == "orpo" else cpo.CPOTrainer
        config = getattr(recipe, f"{method}_config")(args, run)
        texts = rendered(taught, tokenizer, args.max_length)
        return build(model, args=config, train_dataset=texts, processing_class=tokenizer)
    if method == "reward":
        return trl.RewardTrainer(
            model, args=recipe.reward_config(args, run), train_dataset=taught, processing_class=tokenizer
        )
    return trl.DPOTrainer(model, args=recipe.dpo_config(args, run), train_dataset=taught, processing_class=tokenizer)


def accuracy(figures: list[dict[str, Any]]) -> float:
    return sum(own[PREFERENCE] for own in figures) / len(figures)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_ranks_pairs_it_never_saw(name: str, repeater: Any, tmp_path: Path) -> None:
    recipe_name, changes = METHODS[name]
    recipe = importlib.import_module(f"recipes.{recipe_name}")
    places = {"model": str(repeater.folder), "output_dir": str(tmp_path)}
    args = replace(recipe.ON_CPU, **places | {"max_steps": 40, "batch_size": 8, "max_length": 64} | changes)
    run = Run.open(recipe_name, args, correct=PREFERENCE, format=None)
    load = partial(models.load, max_seq_length=64) if name != "reward" else recipe.load_model
    model, tokenizer = load(args, run.spec)
    held_out = rows(HELD_OUT)
    before: list[dict[str, Any]] | None = None

    def figures() -> list[dict[str, Any]]:
        if recipe_name == "ultrafeedback_reward":
            sides = ([text[0]["content"] for text in held_out[side]] for side in ("chosen", "rejected"))
            chosen, rejected = (reward_model.score(model, tokenizer, held_out["prompt"], side) for side in sides)
            return [record["scores"] for record in reward_records(held_out, chosen, rejected, stage="any")]
        known = before and [{"kind": "greedy", "index": i, "scores": own} for i, own in enumerate(before)]
        return measure_pairs(
            model,
            tokenizer,
            held_out,
            beta=args.beta,
            before=known,
            reference=partial(reference_policy, model),
            per_token=recipe_name in ("ultrafeedback_orpo", "ultrafeedback_simpo"),
        )

    before = figures()
    built = trainer(recipe, args, run, model, tokenizer)
    if "ref" in model.peft_config:
        switch_off_reference(built)
    frozen = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
    assert run.training.train(built)
    after = figures()

    assert abs(accuracy(before) - 0.5) <= BOTH_WAYS
    assert accuracy(after) >= 0.9
    assert sum(own["reward_margin"] for own in after) > 0
    for parameter, value in model.named_parameters():
        assert parameter not in frozen or torch.equal(value, frozen[parameter]), f"{parameter} was frozen and changed"
