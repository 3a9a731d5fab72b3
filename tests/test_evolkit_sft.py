"""EvolKit on OPT: the end of an answer is supervised once, and a model trained with the recipe stops."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from data import evolkit
from recipes import evolkit_sft
from recipes.common import adapters
from recipes.common.model_table import BASE_TEMPLATE, MODELS
from recipes.common.supervision import audit


@pytest.fixture(scope="module")
def small_opt(unsloth: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OPT of 0.2 million random weights with OPT's special tokens and a byte-level vocabulary like its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    texts = [row["question"] + " " + row["answer"] for row in evolkit.load("train", source="sample").to_list()]
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet)
    )
    spec = MODELS["opt-1.3b"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=spec.eos_token,
        eos_token=spec.eos_token,
        pad_token=spec.pad_token,
        chat_template=BASE_TEMPLATE,
    )
    config = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        word_embed_proj_dim=64,
        ffn_dim=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        dropout=0.0,
    )
    assert (config.bos_token_id, config.pad_token_id, config.eos_token_id) == (2, 1, 2)
    folder = tmp_path_factory.mktemp("opt")
    OPTForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def conversations(folder: Path) -> str:
    """A source of eight short conversations, all of them for training."""
    colours = ["red", "blue", "green", "black", "white", "brown", "pink", "grey"]
    turns = [[{"from": "human", "value": f"Say {c}."}, {"from": "gpt", "value": f"{c}!"}] for c in colours]
    rows = "".join(json.dumps({"conversations": own}) + "\n" for own in turns)
    (folder / "train.jsonl").write_text(rows, encoding="utf-8")
    return str(folder)


def test_the_end_of_the_answer_is_supervised_once(small_opt: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(small_opt)
    chat = [{"role": "user", "content": "Say red."}, {"role": "assistant", "content": "red!"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert text == "</s>Human: Say red.\n\nAssistant: red!</s>"
    again = tokenizer.apply_chat_template([*chat, chat[0]], tokenize=False, add_generation_prompt=True)
    assert again == text + "\n\nHuman: Say red.\n\nAssistant:"
    start = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, return_dict=False)
    assert tokenizer.apply_chat_template(chat, return_dict=False)[: len(start)] == start


def test_a_trained_model_stops(small_opt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = evolkit_sft.evolkit.load  # what is trained on is asked afterwards, which no source may do
    monkeypatch.setattr(evolkit_sft.evolkit, "load", lambda split, **options: load("train", **options))
    audits: list[dict[str, Any]] = []
    monkeypatch.setattr(adapters, "audit", lambda *a, **kw: audits.append(audit(*a, **kw)))
    args = replace(
        evolkit_sft.ON_CPU,
        model=str(small_opt),
        adapter="full",
        source=conversations(tmp_path),
        learning_rate=3e-3,
        max_steps=60,
        max_answer=12,
        max_length=64,
        output_dir=str(tmp_path / "runs"),
    )
    evolkit_sft.main(args)
    (folder,) = (tmp_path / "runs").glob("evolkit_sft/*/*")
    before, after = json.loads((folder / "results.json").read_text(encoding="utf-8"))["stages"]
    assert audits[0]["rows"] == 8 and not any(audits[0]["flaws"].values())
    assert before["truncation_rate"] == 1.0 and after["truncation_rate"] == 0.0
    assert after["perplexity"] < 2 < before["perplexity"]
    assert after["scores"]["rouge_l_reward"] > 0.7 and after["scores"]["bleu_reward"] > 0.5


def test_rows_longer_than_the_model_are_refused(tmp_path: Path) -> None:
    args = replace(evolkit_sft.ON_CPU, model="opt-1.3b", max_length=2048, output_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"exceed the 2048 of opt-1\.3b"):
        evolkit_sft.main(args)
