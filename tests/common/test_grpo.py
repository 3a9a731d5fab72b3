"""What on-policy recipes share: prompts that the engine has no room for are left out and counted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data import gsm8k
from recipes import gsm8k_grpo, hotpotqa_grpo
from recipes.common.grpo import assessment, load_policy
from recipes.common.models import resolve

LONG = "How many apples has Tom? " * 40
ROOM = 150


@pytest.fixture(scope="module")
def policy(unsloth: Any, tiny: Path) -> Any:
    args = replace(gsm8k_grpo.ON_CPU, model=str(tiny), rollouts="model", max_completion_length=4)
    return load_policy(args, resolve(str(tiny)), max_prompt_length=ROOM)


@pytest.fixture
def own_rows() -> Any:
    """Own data: of four questions, one is too long for the engine."""
    from datasets import Dataset

    rows = [{"question": question, "answer": "#### 4"} for question in ("2 + 2?", LONG, "3 + 1?", "5 - 1?")]
    return Dataset.from_list([{**row, "prompt": gsm8k.math_messages(row["question"])} for row in rows])


def test_evaluation_leaves_long_problems_out_of_every_stage(policy: Any, own_rows: Any, capsys: Any) -> None:
    args = replace(gsm8k_grpo.ON_CPU, max_completion_length=4)
    assess = assessment(args, policy, own_rows, {}, samples=1, temperature=1.0)
    assert capsys.readouterr().out == f"1 of 4 prompts are left out: longer than {ROOM} tokens\n"
    for stage in ("before", "after"):
        assert {record["question"] for record in assess(stage=stage)} == {"2 + 2?", "3 + 1?", "5 - 1?"}


def test_training_leaves_them_out_too(policy: Any, own_rows: Any, tmp_path: Path, capsys: Any) -> None:
    from trl import GRPOConfig

    sizes = {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 4}
    config = GRPOConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, **sizes)
    trainer = policy.trainer(list(gsm8k_grpo.REWARDS), config, own_rows)
    assert LONG not in trainer.train_dataset["question"] and len(trainer.train_dataset) == 3
    assert "1 of 4 prompts are left out" in capsys.readouterr().out


def test_where_none_fits_the_flag_is_told(policy: Any, own_rows: Any, unsloth: Any, tiny: Path) -> None:
    with pytest.raises(ValueError, match=f"at most {ROOM} tokens: raise --max-prompt-length"):
        policy.fitting(own_rows.select([1]))
    assert (
        policy._replace(prompt_flag="--passage-tokens").prompt_flag
        == load_policy(
            replace(hotpotqa_grpo.ON_CPU, model=str(tiny), rollouts="model"), resolve(str(tiny)), max_prompt_length=8
        ).prompt_flag
    )
