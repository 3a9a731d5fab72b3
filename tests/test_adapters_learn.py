"""The learning test of supervised fine-tuning: every adapter lowers the loss of answers it never saw.

A nano model is pre-trained to repeat one of two digits: the first after an 8 ("8 3 5 ?" is 3), the second after a 9,
and either of them where it is not told. It is then taught, on 42 pairs, that untold means the first, and must know it
of the other 14. That is within the reach of each adapter: of an update of the weights, and of a virtual token that does
the work of the 8.
"""

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from eval.likelihood import completion_nll
from recipes import arc_sft
from recipes.common import adapters
from recipes.common.adapters import PROMPT_LEARNING, Adapter
from recipes.common.run import Run

ROOT = Path(__file__).resolve().parents[1]
PAIRS = [(a, b) for a in range(8) for b in range(8) if a != b]
random.Random(0).shuffle(PAIRS)
TAUGHT, HELD_OUT = PAIRS[:42], PAIRS[42:]
LEARNING_RATES = {"prompt-tuning": 1e-2, "prefix-tuning": 3e-2, "p-tuning": 1e-3, "full": 1e-3}


def chat(text: str, answer: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{text} ?"}, {"role": "assistant", "content": str(answer)}]


def examples(pairs: list[tuple[int, int]]) -> Any:
    from datasets import Dataset

    chats = [chat(f"{a} {b}", a) for a, b in pairs]
    return Dataset.from_dict({"prompt": [chat[:1] for chat in chats], "completion": [chat[1:] for chat in chats]})


@pytest.fixture(scope="module")
def trained() -> dict[Adapter, tuple[Path, list[float]]]:
    """Folder of each saved adapter, and logits of the model that it was saved from."""
    return {}


def loss(model: Any, tokenizer: Any, pairs: list[tuple[int, int]]) -> float:
    rows = completion_nll(model, tokenizer, examples(pairs))
    return sum(row["nll"] for row in rows) / sum(row["nll_tokens"] for row in rows)


def train(adapter: Adapter, model: Any, tokenizer: Any, run: Run) -> None:
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(
        **run.trainer_settings("sft"),
        per_device_train_batch_size=7,
        learning_rate=LEARNING_RATES.get(adapter, 5e-3),
        completion_only_loss=True,
    )
    assert run.training.train(SFTTrainer(model, config, train_dataset=examples(TAUGHT), processing_class=tokenizer))


@pytest.mark.parametrize("adapter", get_args(Adapter))
def test_an_adapter_lowers_the_loss_of_held_out_answers(
    adapter: Adapter, repeater: Any, trained: dict[Adapter, tuple[Path, list[float]]], tmp_path: Path
) -> None:
    sizes = {"max_steps": 30, "max_length": 64, "lora_rank": 8, "virtual_tokens": 4, "seed": 1}
    args = replace(arc_sft.ON_CPU, model=str(repeater.folder), adapter=adapter, output_dir=str(tmp_path), **sizes)
    run = Run.open("nano_sft", args, correct=None, format=None)
    model, tokenizer = adapters.load(args, run.spec)
    with adapters.base(model):
        before = loss(model, tokenizer, HELD_OUT)
    frozen = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
    train(adapter, model, tokenizer, run)
    after = loss(model, tokenizer, HELD_OUT)

    assert after <= (0.9 if adapter in PROMPT_LEARNING else 0.8) * before
    assert bool(frozen) == (adapter != "full")
    for name, value in model.named_parameters():
        assert name not in frozen or torch.equal(value, frozen[name]), f"{name} was frozen and changed"

    saved = run.training.save_adapter("adapter", model, tokenizer)
    trained[adapter] = (saved, last_logits(model, tokenizer))


def last_logits(model: Any, tokenizer: Any) -> list[float]:
    ids = tokenizer.apply_chat_template(
        chat("3 5", 3)[:1], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    model.eval()
    with torch.inference_mode():
        return model(**ids).logits[0, -1].float().tolist()


def test_saved_adapters_are_the_same_in_a_fresh_process(trained: dict[Adapter, tuple[Path, list[float]]]) -> None:
    assert set(trained) == set(get_args(Adapter)), "needs the tests above"
    folders = {adapter: str(folder) for adapter, (folder, _) in trained.items()}
    script = Path(__file__).with_name("reload_driver.py")
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(folders)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    reloaded = json.loads(done.stdout.splitlines()[-1])
    for adapter, (_, logits) in trained.items():
        assert max(abs(a - b) for a, b in zip(reloaded[adapter], logits, strict=True)) <= 1e-5, adapter
