"""Which half precision a model computes in, on a card that has no bfloat16: a T4, which torch is told that it has."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes.common.stand_ins.tiny import tiny_folder
from rewards.local_judge import LocalModel
from rewards.precision import fp16_unsafe, half_precision
from rewards.reward_model import load_trunk


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`card(bf16=False)`: torch says that it has one, and what it computes in; a model that is put there stays here."""
    import torch
    from transformers import PreTrainedModel

    def card(*, bf16: bool) -> None:
        def supported(including_emulation: bool = True) -> bool:
            return bf16 or including_emulation  # as on a T4: slowly, it does

        whole = PreTrainedModel.from_pretrained.__func__

        def here(cls: Any, *args: Any, device_map: Any = None, **settings: Any) -> Any:
            assert device_map in ("cuda", None)
            return whole(cls, *args, device_map="cpu", **settings)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
        monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(here))
        monkeypatch.setattr(PreTrainedModel, "to", lambda model, *_: model)

    return card


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Gemma with the tiny model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig

    folder = tmp_path_factory.mktemp("gemma")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder())
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Gemma3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("bf16", "unsafe", "expected"),
    [(True, False, "bfloat16"), (True, True, "bfloat16"), (False, False, "float16"), (False, True, "float32")],
)
def test_a_card_decides(card: Callable[..., None], bf16: bool, unsafe: bool, expected: str) -> None:
    card(bf16=bf16)
    assert half_precision(fp16_unsafe=unsafe) == expected


@pytest.mark.parametrize("unsafe", [False, True])
def test_without_a_card_it_is_bfloat16(unsafe: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert half_precision(fp16_unsafe=unsafe) == "bfloat16"


@pytest.mark.parametrize(
    ("kind", "unsafe"), [("gemma", True), ("gemma2", True), ("gemma3", True), ("gemma3_text", True), ("llama", False)]
)
def test_gemmas_activations_leave_float16s_range(kind: str, unsafe: bool) -> None:
    assert fp16_unsafe(kind) is unsafe


CARDS = pytest.mark.parametrize(
    ("bf16", "llama", "gemmas"), [(True, "bfloat16", "bfloat16"), (False, "float16", "float32")]
)


def dtypes(model: Any) -> set[str]:
    return {
        str(weight.dtype).removeprefix("torch.") for name, weight in model.named_parameters() if "score" not in name
    }


@CARDS
def test_a_reward_models_trunk_and_a_judge_are_loaded_in_it(
    card: Callable[..., None], gemma: Path, bf16: bool, llama: str, gemmas: str
) -> None:
    card(bf16=bf16)
    for folder, expected in ((tiny_folder(), llama), (gemma, gemmas)):
        trunk = load_trunk(str(folder), load_in_4bit=False)
        assert dtypes(trunk) == {expected} and str(trunk.score.weight.dtype) == "torch.float32"
        assert dtypes(LocalModel(str(folder))._model) == {expected}


@CARDS
def test_four_bits_compute_in_it(
    card: Callable[..., None], gemma: Path, tmp_path: Path, bf16: bool, llama: str, gemmas: str
) -> None:
    """Quantised here, or before by somebody who computed in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    theirs = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    models = {"llama": (tiny_folder(), llama), "gemma": (gemma, gemmas)}
    for kind, (folder, _) in models.items():
        AutoModelForCausalLM.from_pretrained(folder, quantization_config=theirs).save_pretrained(tmp_path / kind)
    card(bf16=bf16)
    for kind, (folder, expected) in models.items():
        for source, load_in_4bit in ((folder, True), (tmp_path / kind, False)):
            layer = load_trunk(str(source), load_in_4bit=load_in_4bit).model.layers[0].mlp.up_proj
            assert type(layer).__name__ == "Linear4bit" and str(layer.compute_dtype) == f"torch.{expected}"
