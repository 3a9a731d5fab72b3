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
Imports torch, so recipes call `load` inside functions, before they import trl.
"""

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from data.prompts import leave_out_long
from eval.likelihood import completion_nll
from eval.methods import Adapter
from eval.results import Records
from eval.sampling import ModelSampler, evaluate
from recipes.common import machine, models
from recipes.common.args import SFTArgs
from recipes.common.model_table import ModelSpec
from recipes.common.rollouts import contiguous_head
from recipes.common.supervision import audit
from rewards.contract import Reward

if TYPE_CHECKING:
    from datasets import Dataset

LEARNING_RATES: dict[Adapter, float] = {
    "lora": 2e-4,
    "qlora": 2e-4,
    "dora": 2e-4,
    "full": 2e-5,
    "prompt-tuning": 2e-2,  # at LoRA's rate those of prompt learning do not learn: many comparisons are unfair
    "prefix-tuning": 5e-3,
    "p-tuning": 1e-3,
}
PROMPT_LEARNING = ("p-tuning", "prefix-tuning", "prompt-tuning")
# What the virtual tokens of prefix tuning start as: the keys and values of real text. Random ones, PEFT's default,
# wreck the model first and spend their training on the repair.
PREFIX_TEXT = "Read the question with care and answer it as briefly and exactly as you can, with nothing around it. "


def load(args: SFTArgs, spec: ModelSpec) -> tuple[Any, Any]:
    """The model, ready to train with `--adapter` on rows of `--max-length` tokens, and its tokenizer."""
    model, tokenizer = (
        _prompt_learning(args, spec)
        if args.adapter in PROMPT_LEARNING
        else models.load(args, spec, max_seq_length=args.max_length)
    )
    if not machine.has_gpu():
        contiguous_head(model)
    return model, tokenizer


def assessment(
    args: SFTArgs,
    model: Any,
    tokenizer: Any,
    test: "Dataset",
    rewards: Mapping[Reward, float],
    *,
    max_tokens: int,
    extra: Callable[["Dataset"], Any] | None = None,
) -> Callable[..., Any]:
    """`evaluate` of held-out rows, but for its stage: a greedy completion of each, and the loss of its gold one.

    Rows whose prompt leaves no room for `max_tokens` in `--max-length` are left out of every stage, and a line says how
    many. Stage "before" is the model without its adapter. `extra` takes the place of the loss alone.
    """
    test = leave_out_long(test, tokenizer, args.max_length - max_tokens, flag="--max-length")
    sampler = ModelSampler(model, tokenizer)
    measure = extra or partial(completion_nll, model, tokenizer, max_length=args.max_length)
    assess = partial(
        evaluate, sampler, test, [*rewards], [*rewards.values()], max_tokens=max_tokens, seed=args.seed, extra=measure
    )

    def assess_stage(stage: str) -> Records:
        with base(model) if stage == "before" else nullcontext():
            return assess(stage=stage)

    return assess_stage


def trainer(args: SFTArgs, model: Any, tokenizer: Any, train: "Dataset", config: Any) -> Any:
    """TRL's `SFTTrainer` on `prompt` and `completion` of `train`, audited."""
    from trl import SFTTrainer

    rows = train.select_columns(["prompt", "completion"])
    built = SFTTrainer(model, config, train_dataset=rows, processing_class=tokenizer)
    audit(built, allow_unsupervised=args.allow_unsupervised, show_tokens=args.show_tokens)
    return built


def base(model: Any) -> AbstractContextManager[Any]:
    """The model without its adapter for the length of a `with`: what every adapter is compared with.

    An untrained LoRA is the base model, but untrained virtual tokens are not. A full model is as it is.
    """
    return model.disable_adapter() if hasattr(model, "peft_config") else nullcontext()


def _prompt_learning(args: SFTArgs, spec: ModelSpec) -> tuple[Any, Any]:
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

    source, revision = models.open_source(spec, load_in_4bit=False)
    model = AutoModelForCausalLM.from_pretrained(
        source,
        revision=revision,
        dtype=models.half_precision(spec),
        device_map="cuda" if machine.has_gpu() else None,
    )
    if "position_ids" in inspect.signature(model.forward).parameters:
        model.register_forward_pre_hook(_number_tokens, with_kwargs=True)
    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    models.repair_tokenizer(tokenizer, spec)
    torch.manual_seed(args.seed)
    shared: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": args.virtual_tokens}
    if args.adapter == "prompt-tuning":
        config = PromptTuningConfig(**shared, prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB)
        return get_peft_model(model, config), tokenizer
    if args.adapter == "p-tuning":
        config = PromptEncoderConfig(**shared, encoder_hidden_size=model.config.hidden_size)
        return get_peft_model(model, config), tokenizer
    model = get_peft_model(model, PrefixTuningConfig(**shared))
    words = len(tokenizer(PREFIX_TEXT, add_special_tokens=False)["input_ids"])
    repeated = PREFIX_TEXT * (1 + args.virtual_tokens // words)
    initialize_kv_prefix_from_text(model, tokenizer, text=repeated, use_chat_template=False)
    return model, tokenizer


def _number_tokens(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Before a forward pass: give each token a position after those before it that are no padding, where nobody has.

    PEFT (0.21.2) puts virtual tokens before the padding of a prompt padded on the left, and drops the positions that
    would make up for it: how far a prompt stood from them depended on the longest one in its batch.
    """
    mask, given = kwargs.get("attention_mask"), kwargs.get("position_ids")
    if given is None and mask is not None and mask.dim() == 2:
        read = kwargs["inputs_embeds"] if kwargs.get("inputs_embeds") is not None else kwargs["input_ids"]
        kwargs["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -read.shape[1] :]
    return args, kwargs
