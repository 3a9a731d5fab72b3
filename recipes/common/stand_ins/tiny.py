"""A random model of a few hundred thousand parameters with a tokenizer of its own: for `--smoke` and tests.

It knows nothing, so no figure of it means anything; it only walks the whole path in seconds, without a hub. So does a
PairRM of its kind, for whatever judges or rewards.
"""

import json
import string
import zlib
from pathlib import Path
from typing import Any

from eval.files import built_once
from recipes.common.stand_ins.smollm2 import cache_root
from rewards import pairrm

VERSION = 2  # part of the folders' names: change it with anything below
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SAMPLES = Path(__file__).resolve().parents[3] / "data" / "samples" / "gsm8k_train.jsonl"


# What the published config of PairRM says beside its sizes and the ids of its tokens.
PAIRRM: dict[str, Any] = {
    "n_tasks": 1,
    "drop_out": 0.05,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "max_relative_positions": -1,
    "max_position_embeddings": 512,
    "position_biased_input": False,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
}
PAIRRM_SIZES = {  # DeBERTa-v3-large's
    "vocab_size": 128_100,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}


def tiny_folder(cache: Path | None = None) -> Path:
    """The tiny model's folder in `cache` (`cache_root()` unless given), made on first use."""
    made_of = zlib.crc32(SAMPLES.read_bytes())  # its vocabulary: another sample makes another model
    return built_once((cache or cache_root()) / f"tiny-{VERSION}-{made_of:08x}", _write)


def tiny_pairrm_folder(cache: Path | None = None) -> Path:
    """The folder of a tiny PairRM (rewards/pairrm.py) in `cache`, made likewise: the reward of PPO under `--smoke`."""
    return built_once((cache or cache_root()) / f"tiny-pairrm-{VERSION}", write_pairrm)


def write_pairrm(folder: Path, *, seed: int = 0, **config: Any) -> None:
    """Save a random PairRM to `folder`: its class, config and prefix tokens, of two layers unless `config` says more.

    It reads every printable ASCII character as a token, and its logits are of about size 1. `config` overrides what is
    published and the sizes.
    """
    import unsloth  # noqa: F401, I001  it must come before transformers
    import torch
    from transformers import DebertaV2Config, DebertaV2Tokenizer

    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    pieces = [(piece, 0.0) for piece in special] + [(piece, -3.0) for piece in ("▁", *string.printable.strip())]
    tokenizer = DebertaV2Tokenizer(vocab=pieces)
    prefixes = pairrm.PREFIXES | {"cand_prefix_id": "<|candidate|>"}
    tokenizer.add_special_tokens({"additional_special_tokens": [*prefixes.values()]})
    settings = {
        **PAIRRM,
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "initializer_range": 0.3,  # at the usual 0.02 every logit is about 0
        "sep_token_id": tokenizer.sep_token_id,
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in prefixes.items()},
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pairrm.model_class()(DebertaV2Config(**settings | config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write(folder: Path) -> None:
    import unsloth  # noqa: F401, I001  it must come before transformers
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    rows = (json.loads(line) for line in SAMPLES.read_text(encoding="utf-8").splitlines())
    bpe.train_from_iterator(
        (row["question"] + "\n" + row["answer"] for row in rows),
        trainers.BpeTrainer(
            vocab_size=1024,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,  # bitsandbytes quantises nothing narrower
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,  # as a judge it reads long prompts, a character or three a token
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
