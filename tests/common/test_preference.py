"""What preference recipes share: the reference, what is checked and watched, and pairs as text."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from recipes import ultrafeedback_dpo
from recipes.common.args import AuditArgs
from recipes.common.models import resolve
from recipes.common.preference import (
    check_and_watch,
    load,
    reference_name,
    reference_policy,
    rendered,
    switch_off_reference,
)
from recipes.common.stand_ins.tiny import CHATML
from recipes.common.supervision import audit_pairs, split_row


def move(model: Any, seed: int = 0) -> None:
    """As training moves an adapter, here by chance."""
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".default." in name:
                weight.normal_(std=0.2)


def logits(model: Any) -> list[list[float]]:
    import torch

    with torch.no_grad():
        return model(input_ids=torch.arange(3, 40)[None]).logits[0].float().tolist()


def trainable(model: Any) -> set[str]:
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


# The reference


def test_the_reference_has_a_name() -> None:
    assert reference_name(None) == "the model, its adapter switched off"
    assert reference_name("runs/sft/adapter") == "a frozen copy of the adapter that training starts from"


@pytest.fixture
def tokenizer(tiny: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny)


@dataclass(frozen=True, kw_only=True)
class Checked(AuditArgs):
    """Of a preference recipe's flags, those that are read here."""

    start_from: str | None = None


def pair(question: str, chosen: str = "It is four.", rejected: str = "It is five, as far as I know.") -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


CHECKED = Checked()
PAIRS = [pair("What is two and two?"), pair("And what is that, when it is not known to everybody?"), pair("Well?")]


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_with_the_copy_gone_the_reference_is_the_base_model(
    method: str, preference_trainer: Any, tokenizer: Any
) -> None:
    trainer = preference_trainer(method, tokenizer, PAIRS)
    model = trainer.model.eval()
    base, names = logits(model), trainable(model)
    assert set(model.peft_config) == {"default", "ref"}
    switch_off_reference(trainer)
    assert set(model.peft_config) == {"default"} and trainable(model) == names
    assert not any(".ref." in name for name, _ in model.named_parameters())
    move(model)
    policy = logits(model)
    with reference_policy(model):
        assert logits(model) == base != policy
    assert logits(model) == policy and trainable(model) == names


def test_a_copy_that_is_kept_is_the_reference(preference_trainer: Any, tokenizer: Any) -> None:
    trainer = preference_trainer("dpo", tokenizer, PAIRS)
    model = trainer.model.eval()
    base, names = logits(model), trainable(model)
    move(model, seed=1)
    for name, weight in model.named_parameters():  # what the trainer does, here after the adapter has moved
        if ".default." in name:
            model.get_parameter(name.replace(".default.", ".ref.")).data.copy_(weight.data)
    copied = logits(model)
    move(model, seed=2)
    policy = logits(model)
    with reference_policy(model):
        assert logits(model) == copied
    assert base != copied != policy
    assert logits(model) == policy and trainable(model) == names


@pytest.mark.parametrize("own_kl", [False, True])
def test_a_run_is_watched_once(own_kl: bool, preference_trainer: Any, tokenizer: Any) -> None:
    from datasets import Dataset

    trainer = preference_trainer("dpo", tokenizer, PAIRS)
    before = {type(callback).__name__ for callback in trainer.callback_handler.callbacks}
    held_out = None if own_kl else Dataset.from_list(PAIRS)
    assert check_and_watch(CHECKED, trainer, held_out, remedy="less of it") is trainer
    added = [type(callback).__name__ for callback in trainer.callback_handler.callbacks]
    assert [name for name in added if name not in before] == ["LikelihoodWatch", "KLProbe"][: 2 - own_kl]


@pytest.mark.parametrize("start", [None, "runs/sft/adapter"])
def test_the_reference_is_what_training_starts_from(start: str | None, preference_trainer: Any, tokenizer: Any) -> None:
    trainer = preference_trainer("dpo", tokenizer, PAIRS)
    check_and_watch(replace(CHECKED, start_from=start), trainer, None, remedy="less of it")
    assert set(trainer.model.peft_config) == ({"default", "ref"} if start else {"default"})
    without = preference_trainer("orpo", tokenizer, rendered(rows(PAIRS), tokenizer, 256).to_list())
    check_and_watch(CHECKED, without, None, remedy="less of it")  # has no reference to switch off
    assert set(without.model.peft_config) == {"default"}


def test_the_rows_are_checked_first(preference_trainer: Any, tokenizer: Any, capsys: pytest.CaptureFixture) -> None:
    trainer = preference_trainer("dpo", tokenizer, [pair("Well?", chosen="Same.", rejected="Same.")] * 2)
    with pytest.raises(ValueError, match="--allow-unsupervised"):
        check_and_watch(CHECKED, trainer, None, remedy="less of it")
    check_and_watch(replace(CHECKED, allow_unsupervised=True, show_tokens=1), trainer, None, remedy="less of it")
    assert "Same." in capsys.readouterr().out


def test_the_policy_comes_back_after_an_error(preference_trainer: Any, tokenizer: Any) -> None:
    model = preference_trainer("dpo", tokenizer, PAIRS).model.eval()
    move(model)
    policy = logits(model)
    with pytest.raises(KeyError), reference_policy(model):
        raise KeyError
    assert logits(model) == policy


# Pairs as text


def rows(pairs: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(pairs)


@pytest.mark.parametrize("method", ["orpo", "simpo"])
@pytest.mark.parametrize("begin", ["", "<|endoftext|>"], ids=["no BOS", "BOS in the template"])
def test_the_trainer_reads_what_the_template_writes(
    begin: str, method: str, preference_trainer: Any, tokenizer: Any
) -> None:
    """With one end token, without the newline after it that makes the trainers add another, and no BOS of theirs."""
    tokenizer.bos_token, tokenizer.chat_template = "<|endoftext|>", begin + CHATML
    found = rendered(rows(PAIRS), tokenizer, 256)
    assert tokenizer.bos_token == (begin or None)
    trainer = preference_trainer(method, tokenizer, found.to_list())
    for row, own in zip(trainer.train_dataset, PAIRS, strict=True):
        texts = [tokenizer.decode(prompt + response) for prompt, response in split_row(row, "labelled pair")]
        sides = [
            tokenizer.apply_chat_template([*own["prompt"], *own[side]], tokenize=False)
            for side in ("chosen", "rejected")
        ]
        assert texts == [text.removesuffix("\n") for text in sides]
        assert [tokenizer.decode(prompt) for prompt, _ in split_row(row, "labelled pair")] == [
            tokenizer.apply_chat_template(own["prompt"], add_generation_prompt=True, tokenize=False)
        ] * 2
        for _, response in split_row(row, "labelled pair"):
            assert response.count(tokenizer.eos_token_id) == 1 and response[-1] == tokenizer.eos_token_id
    assert set(audit_pairs(trainer)["flaws"].values()) == {0}


def test_the_last_end_token_of_an_answer_is_the_templates(tokenizer: Any) -> None:
    said = "The token <|im_end|> ends a turn."
    (found,) = rendered(rows([pair("What ends a turn?", chosen=said)]), tokenizer, 256)
    assert found["chosen"] == f"{said}<|im_end|>"


def test_a_template_that_ends_no_answer_is_left_alone(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}" + (
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    (found,) = rendered(rows([pair("Well?")]), tokenizer, 256)
    assert found == {
        "prompt": "user: Well?\nassistant: ",
        "chosen": "It is four.\n",
        "rejected": "It is five, as far as I know.\n",
    }


def test_prompts_that_fill_the_limit_are_left_out_and_counted(
    preference_trainer: Any, tokenizer: Any, capsys: pytest.CaptureFixture
) -> None:
    lengths = [
        len(tokenizer.apply_chat_template(own["prompt"], add_generation_prompt=True)["input_ids"]) for own in PAIRS
    ]
    assert lengths[2] < lengths[0] < lengths[1]
    assert len(rendered(rows(PAIRS), tokenizer, lengths[1] + 1)) == 3
    assert "left out" not in capsys.readouterr().out
    kept = rendered(rows(PAIRS), tokenizer, lengths[0] + 1)
    assert f"1 of 3 prompts are left out: longer than {lengths[0]} tokens\n" in capsys.readouterr().out
    assert ["two and two" in row["prompt"] for row in kept] == [True, False]
    # One token is room enough: the trainer divides by the number of them.
    trainer = preference_trainer("orpo", tokenizer, kept.to_list(), max_length=lengths[0] + 1)
    assert [len(response) for _, response in split_row(trainer.train_dataset[0], "labelled pair")] == [1, 1]
    assert len(rendered(rows(PAIRS), tokenizer, lengths[0])) == 1


def test_held_out_prompts_without_room_for_an_answer_are_left_out(tiny: Path, capsys: pytest.CaptureFixture) -> None:
    """Unsloth's prefill breaks at a prompt that is longer than the model was loaded for, late in stage "before"."""
    held_out = rows([pair("Well?"), pair("Well? " * 60), pair("Why?")])
    args = replace(ultrafeedback_dpo.ON_CPU, model=str(tiny), max_length=64, max_completion_length=16)
    _, _, kept = load(args, resolve(str(tiny)), held_out)
    assert kept.to_list() == [held_out[0], held_out[2]]
    assert "1 of 3 prompts are left out: longer than 48 tokens\n" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no prompt has at most 0 tokens: raise --max-length"):
        load(replace(args, max_completion_length=64), resolve(str(tiny)), held_out)
