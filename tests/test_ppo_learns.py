"""The learning test of PPO: configured by its recipe, it teaches a nano model what a reward pays for, from chance to
nine tenths of it all, with three seeds of three. Its control is a reward that says nothing."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.sampling import ModelSampler
from recipes import ultrafeedback_ppo
from recipes.common.run import Run


def constant_reward(completions: Sequence[Any], **kwargs: Any) -> list[float]:
    return [1.0] * len(completions)


def train(nano: Any, model: Any, tokenizer: Any, reward: Any, folder: Path, **changes: Any) -> Run:
    """16 updates of 10 problems x 8 completions, through the recipe's config and the run folder."""
    from datasets import concatenate_datasets

    from recipes.common.ppo import PPOTrainer

    sizes = {"max_steps": 16, "batch_size": 80, "minibatch_size": 80, "ppo_epochs": 4, "max_completion_length": 4}
    rates = {"learning_rate": 2e-3, "value_learning_rate": 2e-3}  # at 5e-3 one seed of three lost a digit again
    args = replace(ultrafeedback_ppo.ON_CPU, model=str(nano.folder), output_dir=str(folder), **sizes | rates | changes)
    run = Run.open("nano_ppo", args, correct=None, format=None)
    config = ultrafeedback_ppo.ppo_config(args, run)
    config.micro_batch_size = 80
    rows = concatenate_datasets([nano.dataset()] * 8)
    sampler = ModelSampler(model, tokenizer, batch_size=80)
    assert run.training.train(
        PPOTrainer(model, reward, config, sampler, train_dataset=rows, processing_class=tokenizer)
    )
    return run


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_ppo_earns_nine_tenths_of_the_reward(nano: Any, load_lora: Any, tmp_path: Path, seed: int) -> None:
    model, tokenizer = load_lora(nano.folder)
    frozen = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
    before = nano.solved(model, tokenizer)
    run = train(nano, model, tokenizer, nano.successor_reward, tmp_path, seed=seed)
    after = nano.solved(model, tokenizer)

    assert before[0] / before[1] < 0.2
    assert after[0] / after[1] >= 0.9
    lines = run.training.metrics()
    assert len(lines) == 16
    assert lines[0]["score"] < 0.3
    assert sum(line["score"] for line in lines[-5:]) / 5 >= 0.9
    assert lines[0]["kl"] == 0 and {line["ratio_error"] for line in lines} == {0}
    assert all(torch.equal(value, frozen[name]) for name, value in model.named_parameters() if name in frozen)


def test_a_reward_that_says_nothing_teaches_nothing(nano: Any, load_lora: Any, tmp_path: Path) -> None:
    model, tokenizer = load_lora(nano.folder)
    before = nano.solved(model, tokenizer)
    train(nano, model, tokenizer, constant_reward, tmp_path, max_steps=10)
    after = nano.solved(model, tokenizer)

    # Whitening makes a signal of any noise, but one without a direction: a tenth is right, as before.
    assert abs(after[0] / after[1] - before[0] / before[1]) < 0.1
