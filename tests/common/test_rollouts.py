"""Which engine is chosen, and that generating on merged weights is the adapter's text and leaves no trace."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data.prompts import math_messages
from eval.sampling import ModelSampler
from recipes.common import machine
from recipes.common.callbacks import attach
from recipes.common.rollouts import Rollouts, choose

PROMPTS = [math_messages(f"Ana has {n} pears and buys {n + 2} more. How many has she?") for n in range(24)]
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 1, "seed": 0}


def test_without_vllm_auto_takes_the_model_and_says_so(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(machine, "vllm_fault", lambda: "vLLM is not installed")
    assert choose("auto", load_in_4bit=False) == "model"
    assert capsys.readouterr().out == "Rollouts go through the model itself, since vLLM is not installed.\n"
    with pytest.raises(ValueError, match="--rollouts vllm does not work here, since vLLM is not installed"):
        choose("vllm", load_in_4bit=False)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty package called vllm that is found before any other, here and in processes started from here."""
    (tmp_path / "vllm").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    machine.vllm_fault.cache_clear()
    yield tmp_path / "vllm" / "__init__.py"
    machine.vllm_fault.cache_clear()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise ImportError('libcudart.so.13: cannot open shared object file')", "libcudart.so.13: cannot open"),
        ("import os; os._exit(7)", "exit code 7"),
        ("import os; os._exit(0)", "exit code 0 before its end"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("import os; os.kill(os.getpid(), 11)", "killed by signal 11"),
        (
            "import sys, atexit; atexit.register(print, 'warning', file=sys.stderr); raise OSError('a\\nb')",
            "(OSError: a b)",
        ),
        ("", "it holds no compiled kernels"),
    ],
)
def test_a_vllm_that_does_not_load_is_left_alone(stand_in: Path, capsys: Any, source: str, reason: str) -> None:
    """A wheel for CUDA 13 beside CUDA 12.8, as on Colab, is found by name and dies at import (vLLM 0.27.1)."""
    stand_in.write_text(source)
    assert choose("auto", load_in_4bit=False) == "model"
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith("Rollouts go through the model itself, since the vLLM that is installed does not load (")
    assert reason in said and "make setup-vllm" not in said


def test_a_vllm_that_hangs_is_left_alone(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.write_text("import time; time.sleep(600)")
    start = machine.subprocess.run
    monkeypatch.setattr(machine.subprocess, "run", lambda *args, **how: start(*args, **{**how, "timeout": 0.2}))
    assert "does not load (no end within" in str(machine.vllm_fault())


def test_a_folder_called_vllm_is_no_vllm(stand_in: Path) -> None:
    assert str(machine.vllm_fault()).startswith("vLLM is not installed")


def test_a_torch_in_the_current_folder_is_not_imported(
    stand_in: Path, tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.write_text("import torch; raise ValueError(torch.__name__)")
    folder = tmp_path_factory.mktemp("here")
    (folder / "torch.py").write_text("raise ValueError('a file of the user')")
    monkeypatch.chdir(folder)
    assert "(ValueError: torch)" in str(machine.vllm_fault())


def test_make_setup_vllm_is_advised_in_its_own_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    for prefix, advice in ((machine.REPOSITORY / ".venv", True), (Path("/usr"), False)):
        machine.vllm_fault.cache_clear()
        monkeypatch.setattr(sys, "prefix", str(prefix))
        assert ("make setup-vllm" in str(machine.vllm_fault())) == advice
    machine.vllm_fault.cache_clear()


def test_where_unsloth_starts_no_engine_the_model_writes(
    load_lora: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Unsloth drops vLLM by itself for some models and cards, and leaves no `vllm_engine`."""
    monkeypatch.setattr(machine, "has_gpu", lambda: True)
    model, tokenizer = load_lora(tiny)
    rollouts = Rollouts("vllm", model, tokenizer, 64)
    assert rollouts.engine == "model" and isinstance(rollouts.sampler, ModelSampler)
    assert "without vLLM" in capsys.readouterr().out
    assert model.generation_config.remove_invalid_values  # as on every GPU where the model writes
    assert len(rollouts.sampler.sample(PROMPTS[:2], **GREEDY)) == 2


def test_a_trainers_engine_ends_completions_where_the_sampler_does(load_lora: Any, tiny: Path) -> None:
    model, tokenizer = load_lora(tiny)
    model.generation_config.eos_token_id = 7
    engine = SimpleNamespace(generation_kwargs={"seed": 1})
    Rollouts("model", model, tokenizer, 64).attach(SimpleNamespace(vllm_generation=engine))
    assert engine.generation_kwargs == {"seed": 1, "stop_token_ids": sorted({7, tokenizer.eos_token_id})}


@pytest.mark.skipif(machine.has_gpu(), reason="a GPU generates through Unsloth's own fast path")
def test_merged_generation_writes_the_adapters_text_and_restores_every_bit(load_lora: Any, tiny: Path) -> None:
    import torch

    model, tokenizer = load_lora(tiny)
    for _ in range(2):  # the second must not merge a second time
        sampler = Rollouts("model", model, tokenizer, 64).sampler
    plain = sampler.sample(PROMPTS, **GREEDY)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    addresses = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    merged = sampler.sample(PROMPTS, **GREEDY)

    unmerged = type(model).generate.__get__(model)
    tokenizer.padding_side = "left"
    encoded = tokenizer.apply_chat_template(
        PROMPTS, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    )
    ids = unmerged(**encoded, max_new_tokens=1, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    texts = tokenizer.batch_decode(ids[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    # Rounding may turn a near-tie of this random model; a forgotten or doubled adapter turns most of them.
    assert sum(m.text == t for m, t in zip(merged, texts, strict=True)) >= 20
    assert sum(m.text == p.text for m, p in zip(merged, plain, strict=True)) < 12, "the adapter changed too little"
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.data_ptr() == addresses[name], "a copy stayed behind"
    assert trainable == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_an_error_while_generating_restores_the_weights(load_lora: Any, tiny: Path) -> None:
    model, tokenizer = load_lora(tiny)
    Rollouts("model", model, tokenizer, 64)
    addresses = [parameter.data_ptr() for parameter in model.parameters()]
    with pytest.raises(AttributeError):
        model.generate(**{"input_ids": 7})
    assert [parameter.data_ptr() for parameter in model.parameters()] == addresses


def test_trainers_get_their_adapter_back_in_float32(load_lora: Any, tiny: Path) -> None:
    """TRL casts the adapter of a 4-bit model to bfloat16."""
    import torch

    class Trained:
        def __init__(self, model: Any) -> None:
            self.model = model

        def remove_callback(self, callback: Any) -> None: ...
        def add_callback(self, callback: Any) -> None: ...

    model, _ = load_lora(tiny)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    unused: dict[str, Any] = {"log": lambda *_: None, "time_left": lambda: 1.0}
    attach(Trained(model), "grpo", **unused)  # type: ignore[arg-type]
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
        parameter.requires_grad_(True)
    attach(Trained(model), "sft", **unused)  # type: ignore[arg-type]
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}, "a model trained whole keeps its precision"
