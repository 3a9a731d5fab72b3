"""A random model of a few hundred thousand parameters with a tokenizer of its own: for `--smoke` and tests.

It knows nothing, so no figure of it means anything; it only walks the whole path in seconds, without a hub.
"""

import json
import os
import shutil
from pathlib import Path

from recipes.common.smollm2 import cache_root

VERSION = 1  # part of the folder's name: change it with anything below
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SAMPLES = Path(__file__).resolve().parents[2] / "data" / "samples" / "gsm8k_train.jsonl"


def tiny_folder(cache: Path | None = None) -> Path:
    """The tiny model's folder in `cache` (`cache_root()` unless given), made on first use."""
    folder = (cache or cache_root()) / f"tiny-{VERSION}"
    if folder.is_dir():  # appears by one rename, so it is whole
        return folder
    building = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    _write(building)
    try:
        os.replace(building, folder)
    except OSError:  # another process was faster
        shutil.rmtree(building)
    return folder


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
        max_position_embeddings=1024,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
