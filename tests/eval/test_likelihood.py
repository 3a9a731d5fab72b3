"""What a model thinks of texts: the odds between options are of the tokens that training writes, and batches that halve
where memory runs out lose nothing."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from eval.likelihood import completion_nll, option_logprobs

LETTERS = ["A", "B", "C", "D"]
# Vicuna's way (a space before the answer), Mistral's, ChatML's (a line break) and one with nothing between.
TEMPLATES = {
    "space": ("Human: {} Assistant:", " {}</s>", True),
    "bracket": ("[INST] {} [/INST]", " {}</s>", True),
    "line break": ("<user>\n{}\n<assistant>\n", "{}</s>\n", False),
    "nothing": ("<user>{}<assistant>", "{}</s>", False),
}


def tokenizer(name: str) -> Any:
    """A byte-level BPE, small, that has " A" and "A" each as one token, with the template of that name."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([f"x {letter}" for letter in LETTERS for _ in range(9)], trainer)
    before, after, _ = TEMPLATES[name]
    (start, end), (lead, close) = before.split("{}"), after.split("{}")
    template = (
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        f"{{{{ {start!r} + message['content'] + {end!r} }}}}"
        f"{{% else %}}{{{{ {lead!r} + message['content'] + {close!r} }}}}{{% endif %}}{{% endfor %}}"
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="</s>", pad_token="</s>", chat_template=template, name_or_path="here"
    )


@pytest.fixture(scope="module")
def model(unsloth: ModuleType) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.5,  # so that tokens differ
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_options_odds_are_those_of_the_token_that_training_writes(name: str, model: Any) -> None:
    from datasets import Dataset

    own, spaced = tokenizer(name), TEMPLATES[name][2]
    prompts = [[{"role": "user", "content": text}] for text in ("x", "Which of these is it?", "y z")]
    options = [LETTERS, LETTERS[:3], LETTERS[:2]]
    found = option_logprobs(model, own, prompts, options)
    assert [len(odds) for odds in found] == [4, 3, 2]
    # The loss of an answer cut off after its letter is the letter's own.
    for prompt, letters, odds in zip(prompts, options, found, strict=True):
        for letter, logprob in zip(letters, odds, strict=True):
            row = {"prompt": [prompt], "completion": [[{"role": "assistant", "content": letter}]]}
            start = own.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
            whole = own.apply_chat_template([*prompt, *row["completion"][0]], return_dict=False)
            assert own.decode(whole[len(start)]) == (f" {letter}" if spaced else letter)
            (loss,) = completion_nll(model, own, Dataset.from_dict(row), max_length=len(start) + 1)
            assert loss["nll_tokens"] == 1 and loss["nll"] == pytest.approx(-logprob, abs=1e-5)


@pytest.mark.parametrize("options", [["A", "AB"], ["A", "A"], ["heat", "cold"]])
def test_options_that_are_not_one_token_each_are_refused(options: list[str], model: Any) -> None:
    own = tokenizer("space")
    with pytest.raises(ValueError, match="is not one token of its own in here: take other options"):
        option_logprobs(model, own, [[{"role": "user", "content": "x"}]], [options])


# Where memory runs out

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
