"""A pair for every model family, tokenised by TRL's preference trainers: how it begins, how it ends, what is learnt.

No hub is needed: each tokenizer is a small one with its family's special tokens, its way of splitting text and its
habit of adding BOS; SmolLM2's is the real one. Templates that the table does not set are written out here.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from eval.methods import METHODS
from recipes.common.model_table import MODELS, ModelSpec
from recipes.common.models import repair_tokenizer, weights_source
from recipes.common.supervision import audit_pairs, split_row

QUESTION = "What is two and two?"
CHOSEN, REJECTED = "It is four.", "It is five."

# How Llama 3 and Qwen2.5 cut a text before the byte-level pass: a colon takes the newlines after it along.
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
LLAMA3_TEMPLATE = (
    "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
QWEN_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n" + QWEN_SYSTEM + "<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_level(*special: str, begin: str | None = None, words: str | None = None, **settings: Any) -> Any:
    """A byte-level BPE of 400 tokens; `begin` is the token that it writes before every text, as its post-processor."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    if words is None:
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(words), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([f"Human: {QUESTION}\n\nAssistant: {CHOSEN}\n\n"] * 3, trainer)
    if begin:
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, bpe.token_to_id(begin))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **settings)


def zephyr() -> Any:
    """As SentencePiece does it: a space before each stretch of text, bytes for what has no token, `<s>` before all."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127))]
    vocab = {token: i for i, token in enumerate(tokens)}
    bpe = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bpe.add_special_tokens(special)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    # As HuggingFaceH4 published it: pad is the end, and the template leaves `<s>` to the tokenizer.
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        chat_template="{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + "
        "eos_token + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    )


def llama3_base() -> Any:
    special = ("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_250|>")
    return byte_level(
        *special, begin=special[0], words=LLAMA3_WORDS, bos_token=special[0], eos_token=special[1], pad_token=special[1]
    )


def llama3_instruct() -> Any:
    special = (
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|finetune_right_pad_id|>",
    )
    return byte_level(
        *special,
        begin=special[0],
        words=LLAMA3_WORDS,
        bos_token=special[0],
        eos_token=special[1],
        chat_template=LLAMA3_TEMPLATE,
    )


def qwen() -> Any:
    return byte_level(
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_pad|>"),
        words=LLAMA3_WORDS,
        eos_token="<|im_end|>",
        pad_token="<|vision_pad|>",  # as in Unsloth's copies
        chat_template=QWEN_TEMPLATE,
    )


def phi4() -> Any:
    special = ("<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>", "<|dummy_87|>")
    return byte_level(*special, bos_token=special[0], eos_token=special[0], pad_token=special[0])


def opt() -> Any:
    return byte_level("<pad>", "</s>", begin="</s>", bos_token="</s>", eos_token="</s>", pad_token="<pad>")


def smollm2() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(weights_source(MODELS["smollm2-135m"], load_in_4bit=False))


@dataclass(frozen=True)
class Family:
    """What a trainer must make of `QUESTION` and one of the answers."""

    tokenizer: Callable[[], Any]
    prompt: str
    answer: str
    """Between the prompt and the end token stands `answer`, filled in."""
    after: str = ""
    """White space after the end token."""


HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
FAMILIES = {
    # Decoded, a space before each stretch of text: SentencePiece's. It is in Zephyr's training text too.
    "zephyr-sft": Family(zephyr, f"<s> <|system|>\n</s> \n<|user|>\n{QUESTION}</s> \n<|assistant|>\n", "{}</s>"),
    "llama-3-8b": Family(llama3_base, f"<|begin_of_text|>Human: {QUESTION}\n\nAssistant:", " {}<|end_of_text|>"),
    "llama-3.2-3b": Family(
        llama3_instruct,
        f"<|begin_of_text|>{HEADER.format('user')}{QUESTION}<|eot_id|>{HEADER.format('assistant')}",
        "{}<|eot_id|>",
    ),
    "qwen2.5-1.5b": Family(
        qwen,
        f"<|im_start|>system\n{QWEN_SYSTEM}<|im_end|>\n<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n",
        "{}<|im_end|>",
        after="\n",
    ),
    "phi-4": Family(
        phi4, f"<|im_start|>user<|im_sep|>{QUESTION}<|im_end|><|im_start|>assistant<|im_sep|>", "{}<|im_end|>"
    ),
    "opt-1.3b": Family(opt, f"</s>Human: {QUESTION}\n\nAssistant:", " {}</s>"),
    "smollm2-135m": Family(
        smollm2,
        f"<|im_start|>system\n{SMOLLM2_SYSTEM}<|im_end|>\n<|im_start|>user\n{QUESTION}<|im_end|>\n"
        "<|im_start|>assistant\n",
        "{}<|im_end|>",
        after="\n",
    ),
}

# What ORPO's and CPO's trainers add, and no other does, because they look at the first and the last token only: an
# end token after the newline that ChatML writes behind its own, and a BOS that Phi-4 names and never saw in training.
ADDED = {
    "qwen2.5-1.5b": ("", "<|im_end|>"),
    "smollm2-135m": ("", "<|im_end|>"),
    "phi-4": ("<|endoftext|>", ""),
}


@functools.cache
def repaired(name: str) -> Any:
    tokenizer = FAMILIES[name].tokenizer()
    repair_tokenizer(tokenizer, MODELS[name])
    return tokenizer


def pair(chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": QUESTION}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


@pytest.mark.parametrize("method", ["dpo", "kto", "reward", "orpo", "simpo"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_pair_begins_and_ends_as_the_model_expects(name: str, method: str, preference_trainer: Any) -> None:
    family, tokenizer = FAMILIES[name], repaired(name)
    trainer = preference_trainer(method, tokenizer, [pair(CHOSEN, REJECTED)] * 2)
    before, after = ADDED.get(name, ("", "")) if method in ("orpo", "simpo") else ("", "")
    prompt = before + family.prompt
    answers = {family.answer.format(text) + family.after + after for text in (CHOSEN, REJECTED)}
    if method == "reward":  # it tokenises prompt and answer as one
        prompt, answers = "", {prompt + answer for answer in answers}

    texts = [text for row in trainer.train_dataset for text in split_row(row, METHODS[method].rows)]
    assert len(texts) == 4
    assert len({tuple(ids) for ids, _ in texts}) == 1  # chosen and rejected answer the same prompt tokens
    assert {tokenizer.decode(ids) for ids, _ in texts} == {prompt}
    assert {tokenizer.decode(response) for _, response in texts} == answers
    for ids, response in texts:
        # Tokens, and not letters that look like them.
        if tokenizer.bos_token:
            assert (ids + response).count(tokenizer.bos_token_id) == (prompt + min(answers)).count(tokenizer.bos_token)
        written = [token for token in response if tokenizer.decode([token]).strip()]
        assert written[-1] == tokenizer.eos_token_id
    assert set(audit_pairs(trainer)["flaws"].values()) == {0}


@pytest.mark.parametrize("name", FAMILIES)
def test_no_answer_changes_the_tokens_of_its_prompt(name: str, preference_trainer: Any) -> None:
    rows = [pair("12", ": no"), pair("(a) yes", "- no"), pair("", "é")]
    trainer = preference_trainer("dpo", repaired(name), rows)
    asked = repaired(name).apply_chat_template(rows[0]["prompt"], add_generation_prompt=True, return_dict=False)
    assert {tuple(prompt) for row in trainer.train_dataset for prompt, _ in split_row(row, "pair")} == {tuple(asked)}


def test_zephyrs_published_template_leaves_out_the_bos(preference_trainer: Any) -> None:
    trainer = preference_trainer("dpo", zephyr(), [pair(CHOSEN, REJECTED)] * 2)
    with pytest.raises(ValueError, match=r"^no BOS in 2 of 2 rows, .*begin the chat template with <s>"):
        audit_pairs(trainer)


def test_texts_rendered_before_the_trainer_get_a_second_bos(preference_trainer: Any) -> None:
    tokenizer, row = repaired("llama-3-8b"), pair(CHOSEN, REJECTED)
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
    rows = [{"prompt": prompt, "chosen": f" {CHOSEN}", "rejected": f" {REJECTED}"}] * 2
    for method in ("dpo", "kto", "reward"):
        with pytest.raises(ValueError, match=r"^double BOS in \d of \d rows, .*the tokenizer adds its own"):
            audit_pairs(preference_trainer(method, tokenizer, rows))
    for method in ("orpo", "simpo"):
        assert set(audit_pairs(preference_trainer(method, tokenizer, rows))["flaws"].values()) == {0}


# What no recipe works with is mended

SYSTEM, ASKED = {"role": "system", "content": "Add."}, {"role": "user", "content": "2 + 2?"}
TURNS = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
# As Gemma 2's and the first Mistral's: no system message.
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TURNS
)
# As Llama 3.2's, SmolLM3's and gpt-oss's.
DATED = (
    "{% if strftime_now is defined %}Today: {{ strftime_now('%d %b %Y') }} or "
    '{{strftime_now( "%Y-%m-%d" )}}\n{% endif %}'
)


def mended(template: str | None, **settings: Any) -> Any:
    tokenizer = byte_level("<pad>", "</s>", **settings)
    tokenizer.chat_template = template
    repair_tokenizer(tokenizer, ModelSpec(alias="theirs", hub_id="org/theirs"))
    return tokenizer


def test_a_template_that_refuses_system_messages_reads_them_with_the_question(capsys: Any) -> None:
    tokenizer = mended(NO_SYSTEM, eos_token="</s>", pad_token="<pad>")
    assert "refuses system messages: they open the first user message" in capsys.readouterr().out
    answer = {"role": "assistant", "content": "4"}
    text = tokenizer.apply_chat_template([SYSTEM, ASKED, answer, ASKED], tokenize=False)
    assert text == "[user] Add.\n\n2 + 2?\n[assistant] 4\n[user] 2 + 2?\n"
    assert tokenizer.apply_chat_template([ASKED], tokenize=False) == "[user] 2 + 2?\n"


def test_a_template_that_writes_the_date_writes_the_same_tomorrow(capsys: Any) -> None:
    tokenizer = mended(DATED + TURNS, eos_token="</s>", pad_token="<pad>")
    assert "writes the date: in this and every run it is 26 Jul 2024" in capsys.readouterr().out
    assert tokenizer.apply_chat_template([ASKED], tokenize=False) == "Today: 26 Jul 2024 or 2024-07-26\n[user] 2 + 2?\n"
    assert "strftime_now(" not in tokenizer.chat_template  # and so it is saved beside the adapter


@pytest.mark.parametrize(("special", "pads"), [(["<pad>", "</s>"], "<pad>"), (["</s>"], "</s>")])
def test_a_missing_padding_token_is_one_of_the_vocabulary(special: list[str], pads: str, capsys: Any) -> None:
    tokenizer = byte_level(*special, eos_token="</s>")
    tokenizer.chat_template, size = TURNS, len(tokenizer)
    repair_tokenizer(tokenizer, ModelSpec(alias="theirs", hub_id="org/theirs"))
    assert tokenizer.pad_token == pads and len(tokenizer) == size
    assert capsys.readouterr().out == f"The tokenizer of theirs has no padding token: {pads} pads.\n"


def test_without_a_template_turns_are_named(capsys: Any) -> None:
    tokenizer = mended(None, eos_token="</s>", pad_token="<pad>")
    assert "has no chat template" in capsys.readouterr().out
    assert tokenizer.apply_chat_template([SYSTEM, ASKED], tokenize=False, add_generation_prompt=True) == (
        "Add.\n\nHuman: 2 + 2?\n\nAssistant:"
    )


def test_what_cannot_be_mended_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="theirs has no eos_token"):
        mended(TURNS, pad_token="<pad>")
    with pytest.raises(ValueError, match=r"refuses a question from a user \(tools only\)"):
        mended("{{ raise_exception('tools only') }}", eos_token="</s>", pad_token="<pad>")


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_is_mended_where_nothing_is_wrong(name: str, capsys: Any) -> None:
    repair_tokenizer(FAMILIES[name].tokenizer(), MODELS[name])
    assert capsys.readouterr().out == ""
