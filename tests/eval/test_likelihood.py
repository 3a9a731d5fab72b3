"""What a model thinks of texts: batches that halve where memory runs out, and lose nothing."""

from pathlib import Path
from typing import Any

import pytest

from eval.likelihood import completion_nll, option_logprobs

QUESTIONS = ["Hi", "How many apples does Tom have, who had 3 and buys 4 more?", "2 + 2?", "Why?", "Who was it then?"]


@pytest.fixture
def small_card(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model with room for so many rows, its tokenizer, and the sizes of the batches it was given."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    given: list[int] = []

    def build(room: int) -> tuple[Any, Any, list[int]]:
        def refuse(module: Any, args: Any, kwargs: Any) -> None:
            given.append(len(kwargs["input_ids"]))
            if given[-1] > room:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        given.clear()
        model._forward_pre_hooks.clear()
        model.register_forward_pre_hook(refuse, with_kwargs=True)
        return model, AutoTokenizer.from_pretrained(tiny), given

    return build


def test_the_loss_is_the_same_where_memory_runs_out(small_card: Any) -> None:
    from datasets import Dataset

    chats = [({"role": "user", "content": text}, {"role": "assistant", "content": text[::-1]}) for text in QUESTIONS]
    rows = Dataset.from_list([{"prompt": [asked], "completion": [answer]} for asked, answer in chats])
    model, tokenizer, given = small_card(room=8)
    whole = completion_nll(model, tokenizer, rows)
    assert given == [5]
    halved = completion_nll(*small_card(room=1)[:2], rows)
    assert given == [5, 2, 1, 1, 1, 1, 1]
    for one, other in zip(whole, halved, strict=True):
        assert other["nll"] == pytest.approx(one["nll"], rel=1e-5) and other["nll_tokens"] == one["nll_tokens"]


def test_odds_of_options_are_the_same_where_memory_runs_out(small_card: Any) -> None:
    prompts, options = [[{"role": "user", "content": text}] for text in QUESTIONS], [["A", "B"]] * len(QUESTIONS)
    whole = option_logprobs(*small_card(room=8)[:2], prompts, options)
    halved = option_logprobs(*small_card(room=2)[:2], prompts, options)
    for one, other in zip(whole, halved, strict=True):
        assert other == pytest.approx(one, rel=1e-5)
