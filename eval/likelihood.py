"""What a model thinks of texts that it did not write: the loss of held-out answers, and the odds between options.

Chat templates are applied as in training, so that the loss measured is the loss trained.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

Messages = list[dict[str, str]]


def completion_nll(
    model: Any, tokenizer: Any, dataset: "Dataset", *, max_length: int | None = None, batch_size: int = 8
) -> list[dict[str, float]]:
    """Negative log-likelihood of every `completion` after its `prompt`, the end of the turn included.

    Rows are cut at `max_length` tokens, as in training. Returns one dict a row: "nll", in nats, summed over the
    completion's tokens, and "nll_tokens", their number; exp(sum / sum) over rows is the perplexity. Raises ValueError
    where the template writes a completion that does not begin with the prompt, so that no token can be said to be the
    completion's.
    """
    import torch

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
    scores: list[dict[str, float]] = [{}] * len(rows)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index][0]))  # a batch pads to its longest row
    for at in range(0, len(order), batch_size):
        batch = order[at : at + batch_size]
        logits = _logits(model, tokenizer, [rows[index][0] for index in batch])
        for index, own in zip(batch, logits, strict=True):
            ids, start_length = rows[index]
            targets = torch.tensor(ids[start_length:], device=own.device)
            predictions = own[start_length - 1 : len(ids) - 1].float().log_softmax(-1)
            nll = -predictions.gather(1, targets[:, None]).sum().item()
            scores[index] = {"nll": nll, "nll_tokens": float(len(targets))}
    return scores


def option_logprobs(
    model: Any, tokenizer: Any, prompts: Sequence[Messages], options: Sequence[Sequence[str]], *, batch_size: int = 8
) -> list[list[float]]:
    """Log-probability, in nats, of each option as the first token of the answer to each prompt.

    One pass a prompt, whatever the number of options. Raises ValueError for an option that is not one token.
    """
    encoded = [tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=False) for p in prompts]
    tokens = {option: tokenizer(option, add_special_tokens=False)["input_ids"] for own in options for option in own}
    if longer := [option for option, ids in tokens.items() if len(ids) != 1]:
        raise ValueError(f"{longer[0]!r} is {len(tokens[longer[0]])} tokens of {tokenizer.name_or_path}, expected one")
    found: list[list[float]] = [[]] * len(encoded)
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    for at in range(0, len(order), batch_size):
        batch = order[at : at + batch_size]
        logits = _logits(model, tokenizer, [encoded[index] for index in batch])
        for index, own in zip(batch, logits, strict=True):
            logprobs = own[len(encoded[index]) - 1].float().log_softmax(-1)
            found[index] = [logprobs[tokens[option][0]].item() for option in options[index]]
    return found


def _logits(model: Any, tokenizer: Any, rows: list[list[int]]) -> Iterator["torch.Tensor"]:
    """The logits (tokens, vocabulary) of every row, in evaluation mode; padding stands on the right."""
    import torch

    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id, device=model.device)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=mask).logits
    finally:
        model.train(was_training)
    yield from logits[:, -longest:]  # prompt learning puts its virtual tokens before them
