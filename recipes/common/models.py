"""From the name that a user gives to a model and its tokenizer."""

import difflib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.common.model_table import (
    BASE_TEMPLATE,
    FUSED_PROJECTIONS,
    MODELS,
    OPT_PROJECTIONS,
    PROJECTIONS,
    ModelSpec,
    Shape,
)
from rewards.precision import fp16_unsafe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def default_alias(gpu: bool) -> str:
    """The model a recipe takes when none is named."""
    return "llama-3.2-3b" if gpu else "smollm2-135m"


def resolve(name: str) -> ModelSpec:
    """What is known about the model a user named.

    Args:
        name: an alias in any case; a folder with config.json and safetensors; or a hub id "org/name", whose
            shape is unknown unless the table has that repository.
    Raises:
        ValueError: none of these, or a folder that cannot be loaded.
    """
    if spec := MODELS.get(name.lower()):
        return spec
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _local_spec(folder)
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        for spec in MODELS.values():
            if spec.hub_id.lower() == name.lower():
                return replace(spec, embedded=False)
        return ModelSpec(alias=name.split("/")[1], hub_id=name)
    closest = difflib.get_close_matches(name.lower(), MODELS, n=2)
    hint = f" (did you mean {' or '.join(closest)}?)" if closest else ""
    raise ValueError(
        f"no model named {name!r}{hint}: give one of {', '.join(MODELS)}, a hub id such as org/name, or an "
        "existing folder with config.json and safetensors"
    )


def weights_source(spec: ModelSpec, load_in_4bit: bool) -> str:
    """What to hand to `from_pretrained`: a folder or a hub id. Converts the embedded model on first use."""
    if spec.embedded:
        from recipes.common.stand_ins.smollm2 import converted_folder

        return str(converted_folder())
    return (load_in_4bit and spec.unsloth_4bit_id) or spec.hub_id


def repair_tokenizer(tokenizer: "PreTrainedTokenizerBase", spec: ModelSpec) -> None:
    """Set the special tokens and the chat template that `spec` asks for, in place.

    Raises:
        ValueError: the vocabulary has no such token; setting it would add one without an embedding.
    """
    vocab = tokenizer.get_vocab()
    for role, token in (("eos_token", spec.eos_token), ("pad_token", spec.pad_token)):
        if token is None:
            continue
        if token not in vocab:
            raise ValueError(
                f"the {role} of {spec.alias} is {token}, which the tokenizer {tokenizer.name_or_path} lacks; "
                "load the model with the tokenizer it was published with"
            )
        setattr(tokenizer, role, token)
    if spec.chat_template is not None:
        tokenizer.chat_template = spec.chat_template


def _local_spec(folder: Path) -> ModelSpec:
    config_file = folder / "config.json"
    if not config_file.is_file():
        if (folder / "adapter_config.json").is_file():
            raise ValueError(f"{folder} holds an adapter and not a model; merge it into its base model first")
        raise ValueError(f"{folder} has no config.json; a model folder is what save_pretrained writes")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{folder} has no *.safetensors; pickled weights (.bin, .pt) are not read, because they can run "
            "code: write the model again with save_pretrained"
        )
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{config_file} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ValueError(f"{config_file} names no model_type; save_pretrained writes one that does")
    return ModelSpec(
        alias=folder.resolve().name,
        hub_id=str(folder),
        context=config.get("max_position_embeddings"),
        lora_targets={"phi3": FUSED_PROJECTIONS, "opt": OPT_PROJECTIONS}.get(config["model_type"], PROJECTIONS),
        chat_template=BASE_TEMPLATE if config["model_type"] == "opt" else None,
        fp16_unsafe=fp16_unsafe(config["model_type"]),
        shape=_shape_from_config(config),
    )


def _shape_from_config(config: dict[str, Any]) -> Shape | None:
    """The shape, or None for an architecture or a variant that `Shape` does not describe."""
    kind = config["model_type"]
    needed = {"num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size"}
    if kind not in {"llama", "mistral", "phi3", "qwen2", "qwen3", "gemma3_text"} or needed - config.keys():
        return None
    if config.get("attention_bias") or config.get("mlp_bias"):
        return None
    gemma = kind == "gemma3_text"
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    return Shape(
        layers=config["num_hidden_layers"],
        hidden=hidden,
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or (256 if gemma else hidden // heads),
        intermediate=config["intermediate_size"],
        vocab=config["vocab_size"],
        # save_pretrained leaves out what is the class's default, and for Gemma that is True.
        tied_embeddings=config.get("tie_word_embeddings", gemma),
        qkv_bias=kind == "qwen2",
        qk_norm=gemma or kind == "qwen3",
        norms_per_layer=4 if gemma else 2,
    )
