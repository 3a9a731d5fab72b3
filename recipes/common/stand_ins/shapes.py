"""Models of random weights in the shapes of the model table: what speed, memory and kernels need, without a download.

A random model writes noise, but it computes what the published one does: as many multiplications, in the same matrices
and dtypes, from as many bytes. `random_folder()` writes one as the hub would hold it, in 16 bits or in NF4 as Unsloth's
uploads are, one file of a GiB at a time: no whole model is ever in memory.

Its tokenizer is SmolLM2's with the shape's number of entries, so that every id the model can sample has a text.
"""

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval.files import built_once
from recipes.common.model_table import GIB, MODELS, ModelSpec, Shape
from recipes.common.stand_ins.smollm2 import EOS, PAD, converted_folder

TINY = ModelSpec(
    alias="tiny",
    hub_id="tiny",
    context=8192,
    eos_token=EOS,
    pad_token=PAD,
    shape=Shape(layers=4, hidden=256, heads=4, kv_heads=2, head_dim=64, intermediate=768, vocab=49_152, tied=True),
)
"""A Llama of 16 million parameters with the embedded model's vocabulary, for machines without a GPU."""

SHARD_BYTES = GIB


def by_name(name: str) -> ModelSpec:
    """The shape of that name: "tiny", or an alias of the model table in any case.

    Raises:
        ValueError: there is none.
    """
    known = {TINY.alias: TINY} | {alias: spec for alias, spec in MODELS.items() if spec.shape}
    if spec := known.get(name.lower()):
        return spec
    closest = difflib.get_close_matches(name.lower(), known, n=2)
    hint = f" (did you mean {' or '.join(closest)}?)" if closest else ""
    raise ValueError(f"no shape named {name!r}{hint}: give one of {', '.join(known)}")


def random_folder(spec: ModelSpec, parent: Path, *, in_4bit: bool) -> Path:
    """The folder of a random model of this shape in `parent`, `<alias>` or `<alias>-nf4`, made on first use.

    The same call writes the same bytes on the same machine with as many threads, and the NF4 model is the 16-bit one
    quantised. Processes that call at the same time wait for one build. It imports transformers: whoever needs Unsloth
    imports that before.

    Measured on one CPU core: SmolLM2-135M in NF4 takes 12 s; Qwen2.5-1.5B in 16 bits 26 s and 1.6 GB of memory, 0.5 of
    them for the imports. With a GPU, where the weights are then made and quantised: not yet measured.

    Args:
        spec: its alias, shape and context are what is read.
        in_4bit: quantise the projections to NF4 with double quantisation.
    Raises:
        ValueError: the shape or the context is unknown, or the folder or the tokenizer's cache cannot be written.
    """
    from safetensors import SafetensorError

    folder = parent / (f"{spec.alias}-nf4" if in_4bit else spec.alias)
    try:
        return built_once(folder, lambda empty: _write_model(empty, spec, in_4bit))
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"cannot write the random {folder.name} to {parent}: {getattr(error, 'strerror', None) or error}; free "
            f"{spec.weight_gib(in_4bit):.2f} GiB there, or give another folder"
        ) from error


def meta_model(spec: ModelSpec) -> Any:
    """The transformers model of this shape, its weights on torch's "meta" device: names and sizes without memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**_config(spec)), dtype=torch.bfloat16)


def _config(spec: ModelSpec) -> dict[str, Any]:
    """The published configuration as far as it decides what is computed, under transformers' names."""
    shape = spec.shape
    if shape is None or spec.context is None:
        raise ValueError(f"the shape or the context of {spec.alias} is unknown; give an alias of the model table")
    config: dict[str, Any] = {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": spec.context,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": 1,  # SmolLM2's
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if shape.positions:
        positions = shape.positions - 2  # transformers adds two
        return config | {"model_type": "opt", "ffn_dim": shape.intermediate, "max_position_embeddings": positions}
    config |= {
        "intermediate_size": shape.intermediate,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
    }
    if shape.norms_per_layer == 4:
        # Five of six layers look back only that far.
        return config | {"model_type": "gemma3_text", "sliding_window": 512, "query_pre_attn_scalar": shape.head_dim}
    # Mistral is a Llama in all that is computed here, and so is Unsloth's copy of Phi-4.
    return config | {"model_type": "qwen2" if shape.qkv_bias else "llama"}


def _write_model(folder: Path, spec: ModelSpec, in_4bit: bool) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import BitsAndBytesConfig

    model = meta_model(spec)
    model.config.architectures = [type(model).__name__]
    if in_4bit:
        model.config.quantization_config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    _write_tokenizer(folder, model.config.vocab_size, model.config.max_position_embeddings)

    shards: list[list[str]] = []
    total = 0
    for shard in _shards(_tensors(model, in_4bit)):
        total += sum(tensor.nbytes for tensor in shard.values())
        shards.append(list(shard))
        save_file(shard, folder / f"{len(shards)}.safetensors", metadata={"format": "pt"})
        shard.clear()  # while the next one is filled
    places: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):  # their number is known only now
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        (folder / f"{number}.safetensors").rename(folder / file)
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def _tensors(model: Any, in_4bit: bool) -> Iterator[dict[str, Any]]:
    """The model's weights in the CPU's memory, one at a time; a quantised one with what belongs to it."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)
    norm = 0.0 if model.config.model_type == "gemma3_text" else 1.0  # Gemma multiplies by 1 + weight
    head = model.get_output_embeddings()
    projections = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    for name, parameter in model.named_parameters():
        weight = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device)
        if weight.dim() == 1:
            weight.fill_(0.0 if name.endswith(".bias") else norm)
        else:
            weight.normal_(0.0, 0.02, generator=generator)
        stored = _in_nf4(name, weight) if in_4bit and name in projections else {name: weight}
        yield {part: tensor.cpu() for part, tensor in stored.items()}


def _in_nf4(name: str, weight: Any) -> dict[str, Any]:
    """The weight quantised, under the names under which bitsandbytes' Linear4bit saves it."""
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    return {name: packed} | {f"{name}.{part}": value for part, value in state.as_dict(packed=True).items()}


def _shards(weights: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """`weights` collected into files' worth: at most SHARD_BYTES, or one weight that is larger by itself."""
    shard: dict[str, Any] = {}
    size = 0
    for parts in weights:
        added = sum(tensor.nbytes for tensor in parts.values())
        if shard and size + added > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard |= parts
        size += added
    yield shard


def _write_tokenizer(folder: Path, size: int, context: int) -> None:
    """SmolLM2's tokenizer with exactly `size` entries; 262,144 of them load in 1.7 s."""
    source = converted_folder()
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    bpe = tokenizer["model"]
    unmerged = len(bpe["vocab"]) - len(bpe["merges"])  # special tokens and bytes
    # Each merge makes one entry, in the order of the ids, of entries before it: the last ones are no part of others.
    bpe["vocab"] = {token: i for token, i in bpe["vocab"].items() if i < size}
    bpe["merges"] = bpe["merges"][: size - unmerged]
    # No merge makes these, so no text holds them. Not as added tokens: 80,000 of those load in 7 s.
    bpe["vocab"] |= {f"<unused{i}>": i for i in range(len(bpe["vocab"]), size)}
    settings = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["model_max_length"] = context
    for name, content in (("tokenizer.json", tokenizer), ("tokenizer_config.json", settings)):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
