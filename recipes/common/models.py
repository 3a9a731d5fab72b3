"""From the name that a user gives to a model in memory: `resolve`, `load`, and what must be mended on the way."""

import difflib
import hashlib
import json
import re
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.files import MEND, fingerprint, read_json
from recipes.common import machine
from recipes.common.model_table import (
    BASE_TEMPLATE,
    FUSED_PROJECTIONS,
    MODELS,
    OPT_PROJECTIONS,
    PROJECTIONS,
    ModelSpec,
    Shape,
)
from rewards import precision

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MADE_OF = {".safetensors", ".json", ".jinja", ".model", ".txt"}  # weights, configs, tokenizer, template
ON_HUB = "the hub's "  # and a hub id: names of an identity that this machine knows once its cache has the weights
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# Names under which published vocabularies keep a token for padding. What ends a text is the last resort: a model
# trained with it as padding may be told not to learn the end.
PAD_TOKENS = ("<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|pad|>", "<|endoftext|>", "<unk>")
# `strftime_now("%d %b %Y")` in a template: the clock, as transformers hands it to Llama 3.2's, SmolLM3's and others.
CLOCK = re.compile(r"""strftime_now\(\s*(?P<quote>["'])(?P<format>[^"']*)(?P=quote)\s*\)""")
TEMPLATE_DATE = date(2024, 7, 26)  # what Llama 3.1 and 3.2 write where they are told no date
SYSTEM_TO_USER = (
    "{%- if messages[0]['role'] == 'system' and messages[1] is defined %}{%- set messages = [{'role': 'user', "
    "'content': messages[0]['content'] + '\n\n' + messages[1]['content']}] + messages[2:] %}{%- endif %}"
)
# What an adapter must share with the one that it is loaded into; of another alpha it would become another model.
SAME = ("peft_type", "task_type", "r", "lora_alpha", "use_rslora", "use_dora", "target_modules")


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


def weights_identity(spec: ModelSpec, load_in_4bit: bool) -> dict[str, str]:
    """By which base weights are known again, without loading them: of a folder, the fingerprint of each file that a
    model is made of; of a hub id, the names that the cache has for the contents of its weights, which a new model card
    leaves alone, and nothing before its first download."""
    if spec.embedded:
        from recipes.common.stand_ins.smollm2 import CONVERTER, GGUF_SHA256

        return {"SmolLM2": f"{GGUF_SHA256[:16]}, converter {CONVERTER}"}
    source = weights_source(spec, load_in_4bit)
    if (folder := Path(source).expanduser()).is_dir():
        return folder_identity(folder)
    from huggingface_hub import constants

    cached = Path(constants.HF_HUB_CACHE) / f"models--{source.replace('/', '--')}"
    ref = cached / "refs" / (spec.revision or "main")
    commit = ref.read_text().strip() if ref.is_file() else spec.revision
    weights = sorted((cached / "snapshots" / (commit or "main")).glob("*.safetensors"))
    if not weights:
        return {}
    blobs = " ".join(f"{path.name} {path.resolve().name}" for path in weights)
    return {f"{ON_HUB}{source}": hashlib.sha256(blobs.encode()).hexdigest()[:16]}


def folder_identity(folder: Path) -> dict[str, str]:
    """The fingerprint of each file in `folder` that a model or an adapter is made of."""
    files = sorted(path for path in folder.iterdir() if path.suffix in MADE_OF and path.is_file())
    return {path.name: fingerprint(path) for path in files}


def open_source(spec: ModelSpec, load_in_4bit: bool) -> tuple[str, str | None]:
    """What Unsloth loads where it is given `weights_source`, and the revision: for what is loaded without Unsloth.

    On a GPU that is, of a gated model, Unsloth's copy, which asks for no account; a revision of the original is none of
    the copy.
    """
    source = weights_source(spec, load_in_4bit)
    if machine.has_gpu() and not load_in_4bit:
        from unsloth.models.mapper import MAP_TO_UNSLOTH_16bit

        source = MAP_TO_UNSLOTH_16bit.get(source.lower(), source)
    return source, spec.revision if source == spec.hub_id else None


def half_precision(spec: ModelSpec) -> str:
    """What `spec` trains in on this machine, as torch calls it: "bfloat16", "float16" or, where that is unsafe and
    there is no bfloat16, "float32"."""
    return precision.half_precision(fp16_unsafe=spec.fp16_unsafe)


def load(args: Any, spec: ModelSpec, *, max_seq_length: int, engine: str = "model") -> tuple[Any, Any]:
    """The model with a new LoRA adapter (or, of `--adapter full`, none), and its tokenizer, through Unsloth.

    Args:
        args: the recipe's; read are the flags of ModelArgs and the seed, `start_from` and `adapter` where it has them.
        spec: the model that they name.
        max_seq_length: longest row in tokens.
        engine: of the rollouts, "model" or "vllm", which Unsloth starts together with the model on a GPU.

    Raises:
        ValueError: the adapter of `--start-from` does not fit, or the tokenizer lacks a token.
    """
    from unsloth import FastLanguageModel

    adapter = getattr(args, "adapter", "lora")
    starts_vllm = {"fast_inference": True, "max_lora_rank": args.lora_rank, "gpu_memory_utilization": 0.8}
    model, tokenizer = FastLanguageModel.from_pretrained(
        weights_source(spec, args.load_in_4bit),
        revision=spec.revision,
        load_in_4bit=args.load_in_4bit,
        full_finetuning=adapter == "full",
        max_seq_length=max_seq_length,
        **(starts_vllm if engine == "vllm" and machine.has_gpu() else {}),
    )
    repair_tokenizer(tokenizer, spec)
    if adapter == "full":
        return model, tokenizer
    model = FastLanguageModel.get_peft_model(
        model,
        r=args.lora_rank,
        lora_alpha=args.lora_alpha or args.lora_rank,
        lora_dropout=args.lora_dropout,
        use_dora=adapter == "dora",
        target_modules=lora_targets(args, spec, model),
        use_gradient_checkpointing="unsloth" if machine.has_gpu() else False,
        random_state=args.seed,
    )
    if start := getattr(args, "start_from", None):
        start_from(model, start)
    return model, tokenizer


def start_from(model: Any, folder: str) -> None:
    """Load the LoRA adapter in `folder` into the new one of `model`: training goes on from it.

    Raises:
        ValueError: no adapter there, or one of another kind, rank or scale, of other layers or of another model.
    """
    from peft import set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(folder).expanduser()
    for file in (WEIGHTS, CONFIG):
        if not (path / file).is_file():
            raise ValueError(f"--start-from {folder} has no {file}: give the adapter folder of a finished run")
    found, own = read_json(path / CONFIG), model.peft_config["default"]
    if not isinstance(found, dict):
        raise ValueError(f"{path / CONFIG} is damaged (it is not an object): {MEND}")
    for field in SAME:
        theirs, ours = _plain(found.get(field, False)), _plain(getattr(own, field))
        if theirs != ours:
            raise ValueError(
                f"--start-from {folder} has {field} {theirs} in its {CONFIG}, and this recipe trains {ours}: give "
                "--lora-rank and --model as they were, or merge it into its model and give that as --model"
            )
    try:
        outcome = set_peft_model_state_dict(model, load_file(path / WEIGHTS))
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path / WEIGHTS} is damaged ({error}): {MEND}") from error
    except RuntimeError as error:
        wrong = str(error).splitlines()[-1].strip()
    else:
        missing = [f"no weights for {name}" for name in outcome.missing_keys if ".default." in name]
        unknown = [f"weights for {name}, which it lacks" for name in outcome.unexpected_keys]
        wrong = " and ".join(missing[:1] + unknown[:1])
    if wrong:
        raise ValueError(
            f"--start-from {folder} does not fit {own.base_model_name_or_path} ({wrong}): give the model it was "
            "trained on"
        )


def lora_targets(args: Any, spec: ModelSpec, model: Any) -> list[str]:
    """The layers that LoRA adapts: `--lora-target-modules`, or every projection of the model.

    Raises:
        ValueError: the model has no layer of a name that the flag gives; PEFT passes over it where others fit.
    """
    if not args.lora_target_modules:
        return list(spec.lora_targets)
    layers = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    if unknown := [name for name in args.lora_target_modules if name not in layers]:
        raise ValueError(
            f"--lora-target-modules: {spec.alias} has no layer named {unknown[0]}; its projections are "
            f"{', '.join(spec.lora_targets)}"
        )
    return list(args.lora_target_modules)


def repair_tokenizer(tokenizer: "PreTrainedTokenizerBase", spec: ModelSpec) -> None:
    """Set the special tokens and the chat template that `spec` asks for, in place, and mend what no recipe works with.

    That is: no padding token; no chat template; a template that refuses a system message, which then opens the first
    user message; and one that writes today's date, which would be another prompt tomorrow. Each is said in a line.

    Raises:
        ValueError: the vocabulary has no such token (setting it would add one without an embedding), nothing ends a
            text, or the template refuses a question.
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
    if tokenizer.eos_token is None:
        raise ValueError(f"the tokenizer of {spec.alias} has no eos_token, so that no answer could end: set one in it")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = next((name for name in PAD_TOKENS if name in vocab), tokenizer.eos_token)
        print(f"The tokenizer of {spec.alias} has no padding token: {tokenizer.pad_token} pads.")
    if spec.chat_template is not None:
        tokenizer.chat_template = spec.chat_template
    _repair_template(tokenizer, spec)


def _repair_template(tokenizer: "PreTrainedTokenizerBase", spec: ModelSpec) -> None:
    if not tokenizer.chat_template:
        print(f"The tokenizer of {spec.alias} has no chat template: Human and Assistant are written in front of turns.")
        tokenizer.chat_template = BASE_TEMPLATE
    if not isinstance(tokenizer.chat_template, str):  # several by name, as Command R has them
        tokenizer.chat_template = tokenizer.get_chat_template()
    pinned = CLOCK.sub(lambda call: repr(TEMPLATE_DATE.strftime(call["format"])), tokenizer.chat_template)
    if pinned != tokenizer.chat_template:
        print(
            f"The chat template of {spec.alias} writes the date: in this and every run it is {TEMPLATE_DATE:%d %b %Y}."
        )
        tokenizer.chat_template = pinned
    user = {"role": "user", "content": "What is two and two?"}
    if refusal := _refusal(tokenizer, [user]):
        raise ValueError(f"the chat template of {spec.alias} refuses a question from a user ({refusal}): set another")
    if _refusal(tokenizer, [{"role": "system", "content": "Add."}, user]):
        print(f"The chat template of {spec.alias} refuses system messages: they open the first user message.")
        tokenizer.chat_template = SYSTEM_TO_USER + tokenizer.chat_template


def _refusal(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]]) -> str | None:
    from jinja2 import TemplateError

    try:
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except TemplateError as error:
        return str(error)
    return None


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
        fp16_unsafe=precision.fp16_unsafe(config["model_type"]),
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
        tied=config.get("tie_word_embeddings", gemma),
        qkv_bias=kind == "qwen2",
        qk_norm=gemma or kind == "qwen3",
        norms_per_layer=4 if gemma else 2,
    )


def _plain(value: Any) -> Any:
    """A field of a PEFT config as its JSON has it, lists in order."""
    return sorted(value) if isinstance(value, list | set) else getattr(value, "value", value)
