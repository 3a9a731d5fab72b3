"""The odds between options: of the tokens that training writes, whatever the template puts before an answer."""

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
