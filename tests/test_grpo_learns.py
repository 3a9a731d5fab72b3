"""The learning test: GRPO, configured by the recipe, teaches a nano model what its reward pays for.

The proof that recipe, trainer, Unsloth's patches and the run folder work together: a shape that fits and a loss
that falls are not one. Its control is a reward that says nothing, from which nothing may be learned.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from eval.sampling import ModelSampler, evaluate
from recipes import gsm8k_grpo
from recipes.common.run import Run


def constant_reward(completions: Sequence[Any], **kwargs: Any) -> list[float]:
    return [1.0] * len(completions)


def train(
    nano: Any, model: Any, tokenizer: Any, reward: Callable[..., list[float]], folder: Path, *, steps: int
) -> Run:
    """`steps` updates of 10 problems x 8 completions, through the recipe's config and the run folder."""
    from trl import GRPOTrainer

    args = replace(
        gsm8k_grpo.ON_CPU,
        model=str(nano.folder),
        learning_rate=5e-3,
        max_steps=steps,
        prompts_per_step=10,
        num_generations=8,
        output_dir=str(folder),
    )
    run = Run.open("nano_grpo", args, correct="correctness_reward", format="structure_reward")
    dataset = nano.dataset()
    run.stages["before"] = evaluate(
        ModelSampler(model, tokenizer),
        dataset.add_column("question", dataset["answer"]),
        [reward],
        [1.0],
        stage="before",
        samples=1,
        temperature=1.0,
        max_tokens=8,
        seed=0,
    )
    config = gsm8k_grpo.grpo_config(args, run, "model")
    config.reward_weights = [1.0]
    assert run.training.train(GRPOTrainer(model, [reward], config, train_dataset=dataset, processing_class=tokenizer))
    return run


def adapter_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if "lora_" in name}


def test_grpo_raises_the_reward_far_beyond_noise(nano: Any, load_lora: Any, tmp_path: Path) -> None:
    model, tokenizer = load_lora(nano.folder)
    before = nano.solved(model, tokenizer)
    run = train(nano, model, tokenizer, nano.successor_reward, tmp_path, steps=30)
    after = nano.solved(model, tokenizer)

    assert before[0] / before[1] < 0.2
    assert after[0] / after[1] > 0.8
    assert nano.interval(*after)[0] > nano.interval(*before)[1]
    rewards = [line["reward"] for line in run.training.metrics()]
    assert len(rewards) == 30
    assert rewards[0] < 0.3 and rewards[-1] > 0.8


def test_a_reward_that_says_nothing_teaches_nothing(nano: Any, load_lora: Any, tmp_path: Path) -> None:
    model, tokenizer = load_lora(nano.folder)
    before, weights = nano.solved(model, tokenizer), adapter_of(model)
    run = train(nano, model, tokenizer, constant_reward, tmp_path, steps=10)
    after = nano.solved(model, tokenizer)

    assert [line["frac_reward_zero_std"] for line in run.training.metrics()] == [1.0] * 10
    low, high = nano.interval(*before)
    assert low <= after[0] / after[1] <= high
    # Not even the optimiser's own noise: groups without a difference are groups without a gradient.
    assert all(torch.equal(value, weights[name]) for name, value in adapter_of(model).items())
