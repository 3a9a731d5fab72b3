"""A trained reward model, `recipes/ultrafeedback_reward.py`'s, as a judge between two responses.

It gives every response a score of its own, so that the order in which two are shown cannot matter, and
P(first better) = sigmoid(score of the first - score of the second) (Bradley and Terry; arXiv 2203.02155, section 3.5).
"""

import json
import logging
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

Messages = list[dict[str, str]]


def load_trunk(source: str, *, revision: str | None = None, load_in_4bit: bool) -> Any:
    """A language model whose output head is replaced by one that writes a score, untrained, in float32.

    The head computes in float32 whatever the trunk is in and the trainer's autocast asks for: a reward is one number,
    and what bfloat16 leaves of it, 3 digits, is no more than the difference between two answers.

    Args:
        source: folder or hub id of a causal language model, in 16 or 4 bits.
        load_in_4bit: quantise to NF4 what is not yet.

    Raises:
        ValueError: `source` lacks weights of the trunk.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, BitsAndBytesConfig

    on_gpu = torch.cuda.is_available()
    half = torch.bfloat16 if not on_gpu or torch.cuda.is_bf16_supported() else torch.float16
    config = AutoConfig.from_pretrained(source, revision=revision, num_labels=1)
    extra = {}
    if quantised := getattr(config, "quantization_config", None):  # its list of what stays in 16 bits has no "score"
        quantised["llm_int8_skip_modules"] = [*(quantised.get("llm_int8_skip_modules") or ["lm_head"]), "score"]
    elif load_in_4bit:
        extra["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=half,
            llm_int8_skip_modules=["score"],
        )
    log = logging.getLogger("transformers.modeling_utils")
    log.disabled = True  # it asks for a head to be trained, also where one that was is loaded next
    try:
        model, found = AutoModelForSequenceClassification.from_pretrained(
            source, revision=revision, config=config, dtype=half, device_map="cuda" if on_gpu else None,
            output_loading_info=True, **extra,
        )  # fmt: skip
    finally:
        log.disabled = False
    if missing := sorted(set(found["missing_keys"]) - {"score.weight"}):
        raise ValueError(f"{source} lacks {len(missing)} weights, {missing[0]} first: copy or fetch the model again")
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # repacks its weights when it evaluates, and trains no more
            module.support_avx512bf16_for_cpu = False

    class Head(torch.nn.Linear):
        def forward(self, states: Any) -> Any:
            with torch.autocast(states.device.type, enabled=False):
                return super().forward(states.float())

    head = Head(model.score.in_features, 1, bias=False, device=model.score.weight.device)
    head.weight.data.copy_(model.score.weight)
    model.score = head
    return model


def load(folder: str) -> tuple[Any, Any]:
    """The reward model whose adapter is in `folder`, and its tokenizer; on a GPU over 4-bit weights.

    Raises:
        ValueError: the folder holds no reward model, or its base model cannot be loaded.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer

    path, config = Path(folder).expanduser(), _config(folder)
    source = config["base_model_name_or_path"]
    try:
        trunk = load_trunk(source, revision=config.get("revision"), load_in_4bit=torch.cuda.is_available())
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{source}, the base model of {folder}, cannot be loaded ({reason}): fetch it first"
        ) from error
    tokenizer = AutoTokenizer.from_pretrained(str(path))
    trunk.config.pad_token_id = tokenizer.pad_token_id
    return PeftModel.from_pretrained(trunk, str(path)).eval(), tokenizer


def score(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Messages],
    responses: Sequence[str],
    *,
    max_length: int = 1024,
    batch_size: int = 8,
) -> list[float]:
    """The reward of each response to its prompt: any number, and only differences between them mean something.

    Longer texts are cut at `max_length` tokens. Batches are of similar lengths, and padded on the right.
    """
    import torch

    chats = [[*prompt, {"role": "assistant", "content": text}] for prompt, text in zip(prompts, responses, strict=True)]
    rows = [ids[:max_length] for ids in tokenizer.apply_chat_template(chats, return_dict=False)]
    rewards = [math.nan] * len(rows)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        padded = tokenizer.pad({"input_ids": [rows[i] for i in batch]}, padding_side="right", return_tensors="pt")
        with torch.inference_mode():
            logits = model(**padded.to(model.device)).logits
        for index, reward in zip(batch, logits[:, 0].float().tolist(), strict=True):
            rewards[index] = reward
    return rewards


def prefer(folder: str) -> Callable[[Sequence[Messages], Sequence[str], Sequence[str]], list[float]]:
    """A judge for `eval.winrate`: the probability that the first response to a prompt is better than the second.

    Prompts are messages. The model is loaded at the first call; that the folder holds one is checked now, before a
    recipe trains for hours. Raises ValueError as `load`.
    """
    _config(folder)
    load_once = cache(load)

    def compare(prompts: Sequence[Messages], first: Sequence[str], second: Sequence[str]) -> list[float]:
        model, tokenizer = load_once(folder)
        one, other = (score(model, tokenizer, prompts, side) for side in (first, second))
        return [0.5 + 0.5 * math.tanh((a - b) / 2) for a, b in zip(one, other, strict=True)]  # no overflow

    return compare


def _config(folder: str) -> dict[str, Any]:
    """The adapter config in `folder`; ValueError where it is not a reward model's."""
    file = Path(folder).expanduser() / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if config.get("task_type") != "SEQ_CLS":
        raise ValueError(
            f"{folder} holds no reward model (an adapter with task type SEQ_CLS): give the adapter folder of a run of "
            "recipes/ultrafeedback_reward.py"
        )
    return config
