"""What preference recipes share: adapters to start from, the reference, and pairs as text."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes.common.cli import explain
from recipes.common.preference import (
    reference_name,
    reference_policy,
    rendered,
    start_from,
    switch_off_reference,
    watch,
)
from recipes.common.stand_ins.tiny import CHATML
from recipes.common.supervision import audit_pairs, split_row

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


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


# Where training starts


@pytest.fixture(scope="module")
def adapter(load_lora: Any, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder of a moved adapter of the tiny model, and the model that it was saved from."""
    folder = tmp_path_factory.mktemp("adapter")
    model, _ = load_lora(tiny)
    move(model)
    model.save_pretrained(folder)
    return folder, model


@pytest.fixture(scope="module")
def fresh(load_lora: Any, tiny: Path) -> Any:
    return load_lora(tiny)[0]


def test_training_goes_on_from_an_adapter(adapter: tuple[Path, Any], load_lora: Any, tiny: Path) -> None:
    (folder, earlier), (model, _) = adapter, load_lora(tiny)
    untrained, names = logits(model), trainable(model)
    start_from(model, str(folder))
    assert logits(model) == logits(earlier) != untrained
    assert trainable(model) == names and all(".default." in name for name in names)


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        (folder / CONFIG).write_text(json.dumps(config | changes), encoding="utf-8")

    return edit


def edit_weights(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)

    return edit


def wider(weights: dict[str, Any]) -> dict[str, Any]:
    return {name: weight.repeat(1, 2) if "lora_A" in name else weight for name, weight in weights.items()}


def deeper(weights: dict[str, Any]) -> dict[str, Any]:
    return weights | {name.replace(".layers.1.", ".layers.2."): weight.clone() for name, weight in weights.items()}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda folder: (folder / WEIGHTS).unlink(), rf"has no {WEIGHTS}: give the adapter folder of a finished run$"),
        (lambda folder: (folder / CONFIG).unlink(), rf"has no {CONFIG}: give the adapter folder"),
        (edit_config(r=8), "has r 8 .* this recipe trains 16: give --lora-rank and --model as they were"),
        (edit_config(lora_alpha=32), "has lora_alpha 32 .* this recipe trains 16.* or merge it into its model"),
        (edit_config(use_rslora=True), "has use_rslora True .* trains False"),
        (edit_config(use_dora=True), "has use_dora True .* trains False"),
        (edit_config(target_modules=["v_proj", "q_proj"]), r"has target_modules \['q_proj', 'v_proj'\] .* trains \['d"),
        (edit_config(peft_type="PROMPT_TUNING", r=None), "has peft_type PROMPT_TUNING .* trains LORA"),
        (edit_config(task_type="SEQ_CLS"), "has task_type SEQ_CLS .* trains CAUSAL_LM"),
        (edit_weights(wider), r"does not fit .* \(size mismatch for .*torch\.Size.*\): give the model it was trained"),
        (
            edit_weights(lambda weights: {name: w for name, w in weights.items() if ".layers.1." not in name}),
            r"does not fit .* \(no weights for .*layers\.1\..*\): give the model it was trained on$",
        ),
        (
            edit_weights(deeper),
            r"does not fit .* \(weights for .*layers\.2\..*, which it lacks\): give the model it was trained on$",
        ),
    ],
    ids=[
        *("no weights", "no config", "rank", "alpha", "rank-stabilised", "dora", "layers", "virtual tokens", "reward"),
        *("wider", "shallower", "deeper"),
    ],
)
def test_an_adapter_that_does_not_fit_is_one_sentence(
    edit: Callable[[Path], None], message: str, adapter: tuple[Path, Any], fresh: Any, tmp_path: Path
) -> None:
    for file in (CONFIG, WEIGHTS):
        (tmp_path / file).write_bytes((adapter[0] / file).read_bytes())
    edit(tmp_path)
    with pytest.raises(ValueError, match=message) as refused:
        start_from(fresh, str(tmp_path))
    sentence = str(refused.value)
    assert sentence.startswith(f"--start-from {tmp_path} ") and "\n" not in sentence
    assert explain(refused.value) == sentence


def test_no_folder_at_all_is_one_sentence(fresh: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"nowhere has no {WEIGHTS}: give the adapter folder of a finished run$"):
        start_from(fresh, str(tmp_path / "nowhere"))


def test_an_adapter_of_an_older_peft_fits(adapter: tuple[Path, Any], fresh: Any, tmp_path: Path) -> None:
    """Its config lacks what PEFT has learnt since."""
    (tmp_path / WEIGHTS).write_bytes((adapter[0] / WEIGHTS).read_bytes())
    config = json.loads((adapter[0] / CONFIG).read_text(encoding="utf-8"))
    del config["use_dora"], config["use_rslora"]
    (tmp_path / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    start_from(fresh, str(tmp_path))


# The reference


def test_the_reference_has_a_name() -> None:
    assert reference_name(None) == "the model, its adapter switched off"
    assert reference_name("runs/sft/adapter") == "a frozen copy of the adapter that training starts from"


@pytest.fixture
def tokenizer(tiny: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny)


def pair(question: str, chosen: str = "It is four.", rejected: str = "It is five, as far as I know.") -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


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
    watch(trainer, None if own_kl else Dataset.from_list(PAIRS), remedy="less of it")
    added = [type(callback).__name__ for callback in trainer.callback_handler.callbacks]
    assert [name for name in added if name not in before] == ["LikelihoodWatch", "KLProbe"][: 2 - own_kl]


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
    assert f"1 of 3 pairs are left out: their prompt alone fills {lengths[0] + 1} tokens\n" in capsys.readouterr().out
    assert ["two and two" in row["prompt"] for row in kept] == [True, False]
    # One token is room enough: the trainer divides by the number of them.
    trainer = preference_trainer("orpo", tokenizer, kept.to_list(), max_length=lengths[0] + 1)
    assert [len(response) for _, response in split_row(trainer.train_dataset[0], "labelled pair")] == [1, 1]
    assert len(rendered(rows(PAIRS), tokenizer, lengths[0])) == 1
