"""PairRM, a ranker of 0.4 billion parameters that reads two responses side by side: it compares, or is a reward.

Architecture: LLM-Blender (arXiv 2306.02561, section 3), on transformers' own DeBERTa-v2. DeBERTa-v3-large reads prompt,
first response and second response as one text; a head of two layers scores either response from the hidden states at
the token that begins the prompt and the one that begins the response; the logit is the score of the first less that of
the second. The input is that of the model card of `llm-blender/PairRM-hf`. Weights: MIT licence; of the repository only
the safetensors are fetched, no pickle. Real weights not loaded here yet: what is tested is the names of their tensors,
and everything else on a small random model.

PairRM was trained on openai/webgpt_comparisons and on UltraFeedback, among others: it must not be the only judge of a
model that was trained on either, with PairRM as its reward or without.
"""

import json
import logging
import math
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from rewards.contract import Completion, Messages, Prefer, Reward
from rewards.memory import Batches
from rewards.tags import completion_text

SOURCE = "llm-blender/PairRM-hf"
PREFIXES = {
    "source_prefix_id": "<|source|>",
    "cand1_prefix_id": "<|candidate1|>",
    "cand2_prefix_id": "<|candidate2|>",
}
MAX_SOURCE, MAX_LENGTH = 1224, 2048  # tokens; what the prompt leaves of the second, the responses share
TURNS = "Finish the following coversation in each i-th turn by filling in <Response i> with your response."  # sic

# A batch is of at most so many tokens: the longest input is one by itself. Beside the 1.6 GiB of weights, two rows of
# 900 tokens take 0.9 GiB and one of 2,040 takes 1.9 (on a CPU, with weights of the published shapes that mean nothing).
BATCH_TOKENS = MAX_LENGTH


def model_class() -> Any:
    """The class of the published model: `model(input_ids, attention_mask)` are the logits, one for each row.

    A positive logit says that the first response is better. Rows are padded on the right, and each holds the three
    prefix tokens once. Their ids, the head's dropout and how many scores it gives a response stand in the config.
    """
    import torch
    from transformers import DebertaV2Model, DebertaV2PreTrainedModel

    class PairRM(DebertaV2PreTrainedModel):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.pretrained_model = DebertaV2Model(config)
            self.head_layer = torch.nn.Sequential(
                torch.nn.Dropout(config.drop_out),
                torch.nn.Linear(2 * config.hidden_size, config.hidden_size),
                torch.nn.Tanh(),
                torch.nn.Dropout(config.drop_out),
                torch.nn.Linear(config.hidden_size, config.n_tasks),
            )
            self.post_init()

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            states = self.pretrained_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            rows = torch.arange(len(input_ids), device=input_ids.device)
            source, first, second = (
                states[rows, (input_ids == getattr(self.config, name)).int().argmax(dim=1)] for name in PREFIXES
            )
            left, right = (self.head_layer(torch.cat([source, response], dim=-1)) for response in (first, second))
            return (left - right).mean(dim=-1)

    return PairRM


def load(source: str) -> "Judge":
    """PairRM in float32, on the GPU where there is one: from the hub, or a folder with config, weights and tokenizer.

    Raises ValueError where the hub cannot be reached, there are no safetensors, tensors are missing, unexpected or of
    another shape, or the tokenizer does not know the tokens that begin prompt and responses.
    """
    import torch
    from transformers import AutoTokenizer

    folder = fetch(source)
    log = logging.getLogger("transformers.modeling_utils")
    log.disabled = True  # it prints a table of what the sentence below says
    try:
        model, found = model_class().from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True
        )
    finally:
        log.disabled = False
    for kind in ("missing", "unexpected", "mismatched"):
        if names := sorted(str(name) for name in found[f"{kind}_keys"]):
            raise ValueError(
                f"the weights of {source} are not PairRM's: {len(names)} {kind}, {names[0]} first; copy or fetch them "
                "again"
            )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.truncation_side = tokenizer.padding_side = "right"
    for name, token in PREFIXES.items():
        expected = [tokenizer.cls_token_id, getattr(model.config, name)]
        if (ids := tokenizer.encode(token))[:2] != expected:
            raise ValueError(
                f"the tokenizer of {source} reads {token} as {ids}, expected it to begin with {expected}, [CLS] and "
                f"the config's {name}: take the tokenizer that was saved with the model"
            )
    return Judge(model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer)


def prefer(source: str) -> Prefer:
    """PairRM between two responses to a prompt, a text or messages.

    Fetched now, before a recipe trains for hours, and loaded at the first call. It reads every pair in the order given:
    `win_rate` asks for both, decides as if the logits, which are log-odds, were averaged, and counts how often the
    order changes PairRM's mind. Raises ValueError as `load`.
    """
    folder = str(fetch(source))
    load_once = cache(load)

    def compare(prompts: Sequence[str | Messages], first: Sequence[str], second: Sequence[str]) -> list[float]:
        # The sigmoid, without overflow.
        return [0.5 + 0.5 * math.tanh(logit / 2) for logit in load_once(folder).logits(prompts, first, second)]

    return compare


def reward(judge: "Judge") -> Reward:
    """PairRM as a reward of PPO or GRPO: `pairrm_reward(prompts, completions, reference)`.

    Returns the logit of each completion against the fixed response to its prompt in the column `reference`, a list of
    texts: any number, 0 where PairRM finds both as good, neither clipped nor scaled. The completion is always read
    first: half the work of both orders, and what PairRM feels for the first place is the same for all. Prompts are
    texts or messages, completions texts or lists of one assistant message. Raises ValueError as `Judge.logits`.
    """

    def pairrm_reward(
        prompts: Sequence[str | Messages],
        completions: Sequence[Completion],
        reference: Sequence[str],
        **kwargs: object,
    ) -> list[float | None]:
        return [*judge.logits(prompts, [completion_text(completion) for completion in completions], reference)]

    return pairrm_reward


def fetch(source: str) -> Path:
    """The folder of a PairRM: `source` itself, or where the hub's copy is kept, fetched where it is not.

    Raises ValueError where the hub cannot be reached, and for a folder without PairRM's config and safetensors.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        wanted = ["*.json", "*.model", "*.safetensors"]  # nothing pickled
        try:
            folder = Path(snapshot_download(source, allow_patterns=wanted))
        except Exception as error:  # the network, the hub, the name or the disk, under any of a dozen types
            reason = f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".")
            raise ValueError(
                f"{source} could not be fetched from the hub ({reason}): the first load needs the network, so connect, "
                "give a folder with its config, safetensors and tokenizer, or train a reward model of your own with "
                "recipes/ultrafeedback_reward.py and give its adapter folder"
            ) from error
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if missing := [name for name in (*PREFIXES, "n_tasks", "drop_out") if name not in config]:
        raise ValueError(f"{source} holds no PairRM (a config.json with {missing[0]}): give {SOURCE} or a copy of it")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{source} holds no safetensors: other weights are pickles, which are not read; fetch it again"
        )
    return folder


class Judge:
    """PairRM and its tokenizer. `load` makes one.

    A prompt is text, or messages that end with the user's. A single message stands for itself; several are written as
    published for conversations, and the model's earlier answers in them belong to both responses. A system message,
    which PairRM's training had none of, is put before the first of the user's. Long prompts and responses lose their
    ends: a prompt what is over 1,224 tokens, a response half of what the prompt leaves of 2,048, prefix, [CLS] and
    [SEP] included; so where earlier answers fill that half, the responses cannot be told apart.

    What is read together does not change a logit by more than rounding: each row is cut by itself, and rows are
    batched with those of similar length.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        marks = ["<|candidate|>", *PREFIXES.values(), tokenizer.cls_token, tokenizer.sep_token]
        self._marks = re.compile("|".join(map(re.escape, marks)))

    def logits(self, prompts: Sequence[str | Messages], first: Sequence[str], second: Sequence[str]) -> list[float]:
        """By how much PairRM, which reads `first` before `second`, finds the first response the better one.

        The log-odds of P(first better) as trained, in one order only: it may favour a position. Raises ValueError for
        lists of different sizes, and for a prompt whose turns do not alternate and end with the user's.
        """
        import torch

        rows = [tuple(self.encode(*row)) for row in zip(prompts, first, second, strict=True)]
        batches: list[list[tuple[int, ...]]] = []
        for row in sorted(set(rows), key=lambda row: (len(row), row)):  # equal rows are equal to the last digit
            if not batches or (len(batches[-1]) + 1) * len(row) > BATCH_TOKENS:
                batches.append([])
            batches[-1].append(row)

        def read(batch: Sequence[tuple[int, ...]]) -> list[float]:
            # As long as the longest row: published are 2,048, of which columns of nothing but padding are dropped.
            padded = self.tokenizer.pad({"input_ids": [list(row) for row in batch]}, return_tensors="pt")
            padded = padded.to(self.model.device)
            with torch.inference_mode():
                return self.model(padded["input_ids"], padded["attention_mask"]).tolist()

        logits: dict[tuple[int, ...], float] = {}
        for batch in batches:
            logits.update(zip(batch, Batches(len(batch)).run(read, batch), strict=True))
        return [logits[row] for row in rows]

    def encode(self, prompt: str | Messages, first: str, second: str) -> list[int]:
        """The ids of one row: [CLS] prefix text [SEP], three times over, at most 2,048 in all.

        Texts that hold these tokens themselves would move what the head reads: they are replaced by a space, as
        llm-blender does with [SEP].
        """
        source, start = _as_text(prompt)
        ids = self._segment("source_prefix_id", source, MAX_SOURCE)
        limit = (MAX_LENGTH - len(ids)) // 2
        one = self._segment("cand1_prefix_id", start + first, limit)
        return ids + one + self._segment("cand2_prefix_id", start + second, limit)

    def _segment(self, prefix: str, text: str, limit: int) -> list[int]:
        clean = self._marks.sub(" ", text)
        return self.tokenizer.encode(PREFIXES[prefix] + clean, max_length=limit, truncation=True)


def _as_text(prompt: str | Messages) -> tuple[str, str]:
    """What PairRM reads as the prompt, and what both responses begin with."""
    if isinstance(prompt, str):
        return prompt, ""
    system, turns = "", prompt
    if prompt and prompt[0]["role"] == "system":
        system, turns = prompt[0]["content"] + "\n", prompt[1:]
    roles = [message["role"] for message in turns]
    if not len(roles) % 2 or roles != [("user", "assistant")[i % 2] for i in range(len(roles))]:
        raise ValueError(
            f"PairRM: a prompt has the roles {', '.join(message['role'] for message in prompt) or 'of no message'}, "
            "expected user and assistant in turn, a user's message last"
        )
    asked, answered = ([message["content"] for message in turns[start::2]] for start in (0, 1))
    asked[0] = system + asked[0]
    if not answered:
        return asked[0], ""
    inputs = [f"USER: {text}\nAssistant: <Response {i}>" for i, text in enumerate(asked, start=1)]
    earlier = [f"<Response {i}>: {text}\n" for i, text in enumerate(answered, start=1)]
    return TURNS + "\n".join(inputs), "".join(earlier) + f"<Response {len(asked)}>: "
