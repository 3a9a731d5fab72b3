"""What a model thinks of texts that it did not write: the loss of held-out answers, and the odds between options.

Chat templates are applied as in training, so that the loss measured is the loss trained.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rewards.contract import Messages
from rewards.memory import Batches

if TYPE_CHECKING:
    import torch
    from datasets import Dataset


def completion_nll(
    model: Any, tokenizer: Any, dataset: "Dataset", *, max_length: int | None = None, batch_size: int = 8
) -> list[dict[str, float]]:
    """Negative log-likelihood of every `completion` after its `prompt`, the end of the turn included.

    Rows are cut at `max_length` tokens, as in training. Returns one dict a row: "nll", in nats, summed over the
    completion's tokens, and "nll_tokens", their number; exp(sum / sum) over rows is the perplexity. Raises ValueError
    as `encode`.
    """
    import torch

    rows = encode(tokenizer, dataset, max_length)

    def read(batch: Sequence[int]) -> list[dict[str, float]]:
        scores = []
        for index, logits in zip(batch, forward(model, tokenizer, [rows[i][0] for i in batch]), strict=True):
            ids, start = rows[index]
            targets = torch.tensor(ids[start:], dtype=torch.long, device=logits.device)
            predictions = logits[start - 1 : len(ids) - 1].float().log_softmax(-1)
            nll = -predictions.gather(1, targets[:, None]).sum().item()
            scores.append({"nll": nll, "nll_tokens": float(len(targets))})
        return scores

    return by_length(read, [ids for ids, _ in rows], batch_size)


def option_logprobs(
    model: Any, tokenizer: Any, prompts: Sequence[Messages], options: Sequence[Sequence[str]]
) -> list[list[float]]:
    """Log-probability, in nats, of each option as the first token of the answer to each prompt.

    The token is the one that training writes there: after "Assistant:" that is " B", and after a line break "B". One
    pass a prompt, whatever the number of options. Raises ValueError where two options begin with the same token, or one
    has several.
    """
    encoded = [_option_tokens(tokenizer, prompt, own) for prompt, own in zip(prompts, options, strict=True)]

    def read(batch: Sequence[int]) -> list[list[float]]:
        found = []
        for index, logits in zip(batch, forward(model, tokenizer, [encoded[i][0] for i in batch]), strict=True):
            ids, tokens = encoded[index]
            logprobs = logits[len(ids) - 1].float().log_softmax(-1)
            found.append([logprobs[token].item() for token in tokens])
        return found

    return by_length(read, [ids for ids, _ in encoded], 8)


def _option_tokens(tokenizer: Any, prompt: Messages, options: Sequence[str]) -> tuple[list[int], list[int]]:
    """The tokens before the options of a prompt, as they are trained on, and the token of each option."""
    answers = [[*prompt, {"role": "assistant", "content": option}] for option in options]
    rows = tokenizer.apply_chat_template(answers, return_dict=False)
    at = next((place for place, tokens in enumerate(zip(*rows, strict=False)) if len({*tokens}) > 1), 0)
    tokens = [row[at] for row in rows]
    for option, token, row in zip(options, tokens, rows, strict=True):
        if tokens.count(token) > 1 or row[at + 1 :] != rows[0][at + 1 :]:
            raise ValueError(f"{option!r} is not one token of its own in {tokenizer.name_or_path}: take other options")
    return rows[0][:at], tokens


def encode(tokenizer: Any, dataset: "Dataset", max_length: int | None) -> list[tuple[list[int], int]]:
    """Token ids of every `prompt` with its `completion`, cut at `max_length`, and the prompt's length before the cut.

    Raises ValueError where the template writes a completion that does not begin with the prompt: none of its tokens
    can then be said to be the completion's.
    """
    rows = []
    for prompt, completion in zip(dataset["prompt"], dataset["completion"], strict=True):
        start = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template([*prompt, *completion], return_dict=False)
        if whole[: len(start)] != start:
            raise ValueError(
                f"the chat template of {tokenizer.name_or_path} changes the prompt when an answer follows it: its "
                "loss over the answer alone cannot be measured"
            )
        rows.append((whole[:max_length], len(start)))
    return rows


def by_length(read: Callable[[Sequence[int]], Sequence[Any]], rows: Sequence[Sequence[int]], size: int) -> list[Any]:
    """`read(indices)` of all `rows`, in their order: at most `size` at once, and fewer where memory runs out.

    Read together are rows of like lengths, shortest first: a batch pads to its longest row.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    found = dict(zip(order, Batches(size).run(read, order), strict=True))
    return [found[index] for index in range(len(rows))]


def forward(model: Any, tokenizer: Any, rows: list[list[int]]) -> "torch.Tensor":
    """Logits (rows, tokens of the longest, vocabulary), in evaluation mode; padding stands on the right."""
    import torch

    padded = tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt").to(model.device)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            logits = model(**padded).logits
    finally:
        model.train(was_training)
    return logits[:, -max(map(len, rows)) :]  # prompt learning puts its virtual tokens before them
