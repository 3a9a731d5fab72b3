"""Seven ways to fine-tune one model, loaded alike, so that a comparison of them differs in nothing else.

| adapter       | trains                                                     | loaded through          |
|---------------|------------------------------------------------------------|-------------------------|
| lora          | a low-rank update of every projection (arXiv 2106.09685)   | Unsloth, 16-bit weights |
| qlora         | the same over weights in NF4 (arXiv 2305.14314)            | Unsloth, 4-bit weights  |
| dora          | the same, direction and magnitude apart (arXiv 2402.09353) | Unsloth, 16-bit weights |
| full          | every weight, in 16 bit                                    | Unsloth                 |
| prompt-tuning | embeddings before the prompt (arXiv 2104.08691)            | transformers and PEFT   |
| p-tuning      | the same, written by a small network (arXiv 2103.10385)    | transformers and PEFT   |
| prefix-tuning | keys and values before every layer (arXiv 2101.00190)      | transformers and PEFT   |

The last three are stock-loaded because Unsloth's patched forward takes neither virtual tokens nor past key values.
Imports torch, so recipes import `load` after unsloth, inside functions.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from eval.methods import Adapter
from recipes.common import machine
from recipes.common.model_table import ModelSpec
from recipes.common.models import repair_tokenizer, weights_source
from recipes.common.rollouts import contiguous_head

PROMPT_LEARNING = ("p-tuning", "prefix-tuning", "prompt-tuning")
# What the virtual tokens of prefix tuning start as: the keys and values of real text. Random ones, PEFT's default,
# wreck the model first and spend their training on the repair.
PREFIX_TEXT = "Read the question with care and answer it as briefly and exactly as you can, with nothing around it. "


def load(
    adapter: Adapter, spec: ModelSpec, *, max_seq_length: int, rank: int, virtual_tokens: int, seed: int
) -> tuple[Any, Any]:
    """The model, ready to train with `adapter`, and its tokenizer.

    Args:
        adapter: one of the seven.
        spec: the model; its `lora_targets` are what LoRA, QLoRA and DoRA adapt.
        max_seq_length: longest row in tokens, virtual ones not counted.
        rank: of LoRA, QLoRA and DoRA; alpha is the same.
        virtual_tokens: of the prompt-learning adapters.
        seed: of the adapter's initial weights.
    """
    model, tokenizer = (
        _prompt_learning(adapter, spec, virtual_tokens, seed)
        if adapter in PROMPT_LEARNING
        else _through_unsloth(adapter, spec, max_seq_length, rank, seed)
    )
    if not machine.has_gpu():
        contiguous_head(model)
    return model, tokenizer


def _through_unsloth(adapter: Adapter, spec: ModelSpec, max_seq_length: int, rank: int, seed: int) -> tuple[Any, Any]:
    from unsloth import FastLanguageModel

    in_4bit = adapter == "qlora"
    model, tokenizer = FastLanguageModel.from_pretrained(
        weights_source(spec, in_4bit),
        revision=spec.revision,
        max_seq_length=max_seq_length,
        load_in_4bit=in_4bit,
        full_finetuning=adapter == "full",
    )
    repair_tokenizer(tokenizer, spec)
    if adapter != "full":
        model = FastLanguageModel.get_peft_model(
            model,
            r=rank,
            lora_alpha=rank,
            lora_dropout=0.0,
            use_dora=adapter == "dora",
            target_modules=list(spec.lora_targets),
            use_gradient_checkpointing="unsloth" if machine.has_gpu() else False,
            random_state=seed,
        )
    return model, tokenizer


def base(model: Any) -> AbstractContextManager[Any]:
    """The model without its adapter for the length of a `with`: what every adapter is compared with.

    An untrained LoRA is the base model, but untrained virtual tokens are not. A full model is as it is.
    """
    return model.disable_adapter() if hasattr(model, "peft_config") else nullcontext()


def _prompt_learning(adapter: Adapter, spec: ModelSpec, virtual_tokens: int, seed: int) -> tuple[Any, Any]:
    import torch
    import unsloth  # noqa: F401 - before trl, whose training it mends on a CPU
    from peft import (
        PrefixTuningConfig,
        PromptEncoderConfig,
        PromptTuningConfig,
        PromptTuningInit,
        get_peft_model,
        initialize_kv_prefix_from_text,
    )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = weights_source(spec, load_in_4bit=False)
    half = (
        torch.bfloat16
        if not machine.has_gpu() or torch.cuda.is_bf16_supported(including_emulation=False)
        else torch.float16
    )
    model = AutoModelForCausalLM.from_pretrained(
        source, revision=spec.revision, dtype=half, device_map="cuda" if machine.has_gpu() else None
    )
    tokenizer = AutoTokenizer.from_pretrained(source, revision=spec.revision)
    repair_tokenizer(tokenizer, spec)
    torch.manual_seed(seed)
    shared: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": virtual_tokens}
    if adapter == "prompt-tuning":
        return get_peft_model(
            model, PromptTuningConfig(**shared, prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB)
        ), tokenizer
    if adapter == "p-tuning":
        return get_peft_model(
            model, PromptEncoderConfig(**shared, encoder_hidden_size=model.config.hidden_size)
        ), tokenizer
    model = get_peft_model(model, PrefixTuningConfig(**shared))
    words = len(tokenizer(PREFIX_TEXT, add_special_tokens=False)["input_ids"])
    repeated = PREFIX_TEXT * (1 + virtual_tokens // words)
    initialize_kv_prefix_from_text(model, tokenizer, text=repeated, use_chat_template=False)
    return model, tokenizer
