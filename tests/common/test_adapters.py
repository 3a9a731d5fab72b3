"""Seven adapters: none answers by who else is in the batch, and rows that leave no room for an answer are left out."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from eval.sampling import ModelSampler
from recipes import arc_sft
from recipes.common import adapters
from recipes.common.adapters import Adapter
from recipes.common.models import resolve

WORDS = "Tom buys some apples and eats a few of them, and then Ana counts how many are left in the basket. "
PROMPTS = [
    [{"role": "user", "content": text}] for text in ("Hi", "2 + 2?", WORDS[:60], WORDS, 3 * WORDS, "Who was it?")
]
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 16, "seed": 1}


@pytest.fixture(scope="module")
def restless(tiny: Path, unsloth: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose next token hangs on all that came before; the tiny one repeats itself, whatever it read."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("restless")
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    config = LlamaConfig.from_pretrained(tiny)
    config.tie_word_embeddings, config.initializer_range = False, 0.3
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def load(adapter: Adapter, folder: Path) -> tuple[Any, Any]:
    """An adapter that training has moved, here by chance, and in float32 all that is not in 4 bits."""
    args = replace(arc_sft.ON_CPU, model=str(folder), adapter=adapter, lora_rank=8, virtual_tokens=6)
    model, tokenizer = adapters.load(args, resolve(str(folder)))
    model.config.dtype = "float32"  # Unsloth's generate casts to what the config says
    torch.manual_seed(0)
    for weight in model.parameters():
        if weight.dtype in (torch.bfloat16, torch.float16):
            weight.data = weight.data.float()
        if weight.requires_grad and adapter != "full":
            weight.data.add_(torch.randn_like(weight), alpha=0.2)
    return model, tokenizer


@pytest.mark.parametrize("adapter", get_args(Adapter))
def test_an_answer_does_not_depend_on_the_batch(adapter: Adapter, restless: Path) -> None:
    model, tokenizer = load(adapter, restless)
    together = ModelSampler(model, tokenizer).sample(PROMPTS, **GREEDY)
    alone = [ModelSampler(model, tokenizer).sample([prompt], **GREEDY)[0] for prompt in PROMPTS]
    assert together == alone
    if adapter != "full":
        with adapters.base(model):
            base = ModelSampler(model, tokenizer).sample(PROMPTS, **GREEDY)
        assert sum(a.ids != b.ids for a, b in zip(together, base, strict=True)) >= 4, "the adapter changed too little"


@pytest.mark.parametrize("adapter", get_args(Adapter))
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("training", [False, True])
def test_a_pass_does_not_depend_on_the_padding(adapter: Adapter, side: str, training: bool, restless: Path) -> None:
    model, tokenizer = load(adapter, restless)
    model.train(training)
    rows = tokenizer.apply_chat_template(PROMPTS, return_dict=False)
    padded = tokenizer.pad({"input_ids": rows}, padding_side=side, return_tensors="pt")
    with torch.no_grad():
        together = model(**padded).logits[:, -padded["input_ids"].shape[1] :].float()
        for ids, mask, logits in zip(rows, padded["attention_mask"], together, strict=True):
            alone = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits[0, -len(ids) :]
            # Rounding over a batch of another shape; the kernels of 4 bits compute in bfloat16.
            near = 5e-2 if adapter == "qlora" else 1e-4
            assert float((logits[mask.bool()] - alone).abs().max() / alone.std()) < near


def test_rows_without_room_for_an_answer_are_left_out(tiny: Path, unsloth: Any, capsys: Any) -> None:
    from datasets import Dataset

    args = replace(arc_sft.ON_CPU, model=str(tiny), max_length=80)
    model, tokenizer = adapters.load(args, resolve(str(tiny)))
    rows = [
        {"prompt": prompt, "completion": [{"role": "assistant", "content": "B"}], "question": text, "answer": "B"}
        for prompt in PROMPTS
        for text in [prompt[0]["content"]]
    ]
    assess = adapters.assessment(args, model, tokenizer, Dataset.from_list(rows), {}, max_tokens=8)
    assert "of 6 prompts are left out: longer than 72 tokens" in capsys.readouterr().out
    before, after = assess("before"), assess("after")
    assert {record["question"] for record in before} == {record["question"] for record in after}
    assert 3 * WORDS not in {record["question"] for record in before} and len(before) >= 4
