"""A trained reward model, `recipes/ultrafeedback_reward.py`'s: it compares two responses, or is a reward.

It gives every response a score of its own, so that the order in which two are shown cannot matter, and
P(first better) = sigmoid(score of the first - score of the second) (Bradley and Terry; arXiv 2203.02155, section 3.5).
As the reward of a policy on the same base model it is no second model in memory, but an adapter and a head.
"""

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

from rewards.contract import Completion, Messages, Prefer, Reward
from rewards.memory import Batches
from rewards.precision import fp16_unsafe, half_precision
from rewards.tags import completion_text

ADAPTER = "reward"  # what the reward model's LoRA is called on the policy's trunk
HEAD = "base_model.model.score.weight"
BATCH = 8  # texts read at once


def load_trunk(source: str, *, revision: str | None = None, load_in_4bit: bool) -> Any:
    """A language model whose output head is replaced by one that writes a score, untrained, in float32.

    The head computes in float32 whatever the trunk is in and the trainer's autocast asks for: a reward is one number,
    and what bfloat16 leaves of it, 3 digits, is no more than the difference between two answers.

    `source` is the folder or hub id of a causal language model, in 16 or 4 bits; `load_in_4bit` quantises to NF4 what
    is not yet. Raises ValueError where it lacks weights of the trunk.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, BitsAndBytesConfig

    config = AutoConfig.from_pretrained(source, revision=revision, num_labels=1)
    half = half_precision(fp16_unsafe=fp16_unsafe(config.model_type))
    extra = {}
    if quantised := getattr(config, "quantization_config", None):  # its list of what stays in 16 bits has no "score"
        quantised["bnb_4bit_compute_dtype"] = half  # not that of who quantised it
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
            source,
            revision=revision,
            config=config,
            dtype=half,
            device_map="cuda" if torch.cuda.is_available() else None,
            output_loading_info=True,
            **extra,
        )
    finally:
        log.disabled = False
    if missing := sorted(set(found["missing_keys"]) - {"score.weight"}):
        raise ValueError(f"{source} lacks {len(missing)} weights, {missing[0]} first: copy or fetch the model again")
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # repacks its weights when it evaluates, and trains no more
            module.support_avx512bf16_for_cpu = False

    model.score = _head(model.score.weight)
    return model


def load(folder: str) -> tuple[Any, Any]:
    """The reward model whose adapter is in `folder`, and its tokenizer; on a GPU over 4-bit weights.

    Raises ValueError where the folder holds no reward model, or its base model cannot be loaded.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer

    path, config = Path(folder).expanduser(), adapter_config(folder)
    source = config["base_model_name_or_path"]
    try:
        trunk = load_trunk(source, revision=config.get("revision"), load_in_4bit=torch.cuda.is_available())
    except OSError as error:
        reason = f"cannot be loaded ({str(error).splitlines()[0]})"
        raise ValueError(f"{source}, the base model of {folder}, {reason}: fetch it first") from error
    tokenizer = AutoTokenizer.from_pretrained(str(path))
    trunk.config.pad_token_id = tokenizer.pad_token_id
    return PeftModel.from_pretrained(trunk, str(path)).eval(), tokenizer


def score(
    model: Any, tokenizer: Any, prompts: Sequence[Messages], responses: Sequence[str], *, max_length: int = 1024
) -> list[float]:
    """The reward of each response to its prompt: any number, and only differences between them mean something.

    Longer texts are cut at `max_length` tokens. Batches are of similar lengths, and padded on the right.
    """
    return _score(lambda batch: model(**batch.to(model.device)).logits[:, 0], tokenizer, prompts, responses, max_length)


def prefer(folder: str) -> Prefer:
    """The reward model in `folder` between two responses to a prompt, which is messages.

    The model is loaded at the first call; that the folder holds one is checked now, before a recipe trains for hours.
    Raises ValueError as `load`.
    """
    adapter_config(folder)
    load_once = cache(load)

    def compare(prompts: Sequence[Messages], first: Sequence[str], second: Sequence[str]) -> list[float]:
        model, tokenizer = load_once(folder)
        one, other = (score(model, tokenizer, prompts, side) for side in (first, second))
        return [0.5 + 0.5 * math.tanh((a - b) / 2) for a, b in zip(one, other, strict=True)]  # no overflow

    return compare


def reward(folder: str, model: Any = None) -> Reward:
    """The reward model in `folder` as `reward_model_reward(prompts, completions)`: any number, unclipped and unscaled.

    Prompts are messages, completions lists of one assistant message. Texts are cut at 1,024 tokens.

    `model` is the policy, a PeftModel over a causal language model. Where it stands on the reward model's own base
    model it carries it too: as a frozen adapter "reward" beside its own and a head of one row, which a call switches to
    and back, leaving the active adapter and all flags as they were; texts are then also cut at the policy's own window.
    Save the policy with `selected_adapters`. Otherwise, which is printed with the reason, a second trunk is loaded.

    Raises ValueError as `load`, and where the adapter's weights are not those of its config.
    """
    why = _why_apart(adapter_config(folder), model) if model is not None else None
    if why:
        print(f"The reward model in {folder} takes memory of its own beside the policy's: {why}.")
    scores = partial(score, *load(folder)) if model is None or why else _on_trunk(folder, model)

    def reward_model_reward(
        prompts: Sequence[Messages], completions: Sequence[Completion], **kwargs: object
    ) -> list[float | None]:
        return [*scores(prompts, [completion_text(completion) for completion in completions])]

    return reward_model_reward


def adapter_config(folder: str) -> dict[str, Any]:
    """The adapter config in `folder`; ValueError where it is not a reward model's, or its weights are cut off."""
    from safetensors import SafetensorError, safe_open

    file = Path(folder).expanduser() / "adapter_config.json"
    weights = file.with_name("adapter_model.safetensors")
    try:
        config = json.loads(file.read_bytes().decode("utf-8")) if file.is_file() else {}
        if weights.is_file():
            with safe_open(weights, framework="numpy"):  # reads the header, and asks whether all of the rest is there
                pass
    except (ValueError, RecursionError, OSError, SafetensorError) as error:
        raise ValueError(f"the adapter in {folder} is damaged ({error}): copy or train it again") from error
    if not isinstance(config, dict) or config.get("task_type") != "SEQ_CLS":
        raise ValueError(
            f"{folder} holds no reward model (an adapter with task type SEQ_CLS): give the adapter folder of a run of "
            "recipes/ultrafeedback_reward.py"
        )
    return config


def _why_apart(config: dict[str, Any], policy: Any) -> str | None:
    """Why a reward model with this adapter config cannot share the policy's trunk; None where it can."""
    own = policy.active_peft_config
    theirs = config["base_model_name_or_path"], config.get("revision") or "main"
    ours = own.base_model_name_or_path, own.revision or "main"
    if Path(theirs[0]).expanduser().resolve() == Path(ours[0]).expanduser().resolve() and theirs[1] == ours[1]:
        return None
    return f"it stands on {theirs[0]} ({theirs[1]}), and the policy on {ours[0]} ({ours[1]})"


def _on_trunk(folder: str, policy: Any) -> Callable[[Sequence[Messages], Sequence[str]], list[float]]:
    """Put the reward model in `folder` on the policy's trunk. Returns its scores, a function of prompts and responses.

    Raises ValueError where the weights are missing, unexpected or of another shape.
    """
    import torch
    from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    path = Path(folder).expanduser()
    file = path / "adapter_model.safetensors"
    weights = load_file(file) if file.is_file() else {}
    config = LoraConfig.from_pretrained(str(path))
    config.task_type, config.modules_to_save, config.inference_mode = "CAUSAL_LM", None, True
    policy.add_adapter(ADAPTER, config)
    expected = get_peft_model_state_dict(policy, adapter_name=ADAPTER, save_embedding_layers=False)
    shapes = {name: weight.shape for name, weight in expected.items()}
    shapes[HEAD] = torch.Size([1, policy.config.get_text_config().hidden_size])
    found = {name: weight.shape for name, weight in weights.items()}
    if wrong := sorted(name for name in shapes | found if shapes.get(name) != found.get(name)):
        raise ValueError(
            f"the adapter in {folder} is not what its config says: {len(wrong)} weights are missing, unexpected or of "
            f"another shape, {wrong[0]} first; copy or train it again"
        )
    head = _head(weights.pop(HEAD).to(policy.device))
    set_peft_model_state_dict(policy, weights, adapter_name=ADAPTER)
    tokenizer = AutoTokenizer.from_pretrained(str(path))
    decoder = policy.get_base_model().get_decoder()
    window = min(1024, getattr(decoder, "max_seq_length", 1024))  # Unsloth drops what is beyond, and with it the end

    def read(batch: Any) -> Any:
        batch = batch.to(policy.device)
        states = decoder(**batch, use_cache=False).last_hidden_state
        last = batch["attention_mask"].sum(dim=1) - 1
        return head(states[torch.arange(len(last), device=last.device), last])[:, 0]

    def scores(prompts: Sequence[Messages], responses: Sequence[str]) -> list[float]:
        with _judging(policy):
            return _score(read, tokenizer, prompts, responses, window)

    return scores


@contextmanager
def _judging(policy: Any) -> Iterator[None]:
    """The policy as the reward model on its trunk: evaluating, and afterwards as it was."""
    from trl.trainer.utils import use_adapter

    # PEFT trains the adapter that it switches to, and freezes all others.
    weights = [(weight, weight.requires_grad) for weight in policy.parameters()]
    training = [module for module in policy.modules() if module.training]
    policy.eval()
    try:
        with use_adapter(policy, ADAPTER):
            yield
    finally:
        for weight, trained in weights:
            weight.requires_grad_(trained)
        for module in training:
            module.training = True


def _score(
    read: Callable[[Any], Any], tokenizer: Any, prompts: Sequence[Messages], responses: Sequence[str], max_length: int
) -> list[float]:
    """`score` by `read`, which gives the reward at the last token of each row of a batch padded on the right."""
    import torch

    chats = [[*prompt, {"role": "assistant", "content": text}] for prompt, text in zip(prompts, responses, strict=True)]
    rows = [ids[:max_length] for ids in tokenizer.apply_chat_template(chats, return_dict=False)]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))

    def rate(batch: Sequence[int]) -> list[float]:
        padded = tokenizer.pad({"input_ids": [rows[i] for i in batch]}, padding_side="right", return_tensors="pt")
        with torch.inference_mode():
            return read(padded).float().tolist()

    found = dict(zip(order, Batches(BATCH).run(rate, order), strict=True))
    return [found[index] for index in range(len(rows))]


def _head(weight: Any) -> Any:
    """A linear layer with this weight (1, hidden), in float32 also under autocast."""
    import torch

    class Head(torch.nn.Linear):
        def forward(self, states: Any) -> Any:
            with torch.autocast(states.device.type, enabled=False):
                return super().forward(states.float())

    head = Head(weight.shape[1], 1, bias=False, device=weight.device, dtype=torch.float32)
    head.weight.data.copy_(weight)
    return head
