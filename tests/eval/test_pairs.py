"""Held-out pairs as a policy sees them: log-probabilities and KL against what torch says, and the rewards of both."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from eval.metrics import PREFERENCE, compare, summarise
from eval.pairs import PairLogps, pair_logps, preference_scores, token_kl
from recipes.common.adapters import base

PAIRS = [
    ("What is 2 + 2?", "4", "It is five, as far as anybody knows."),
    ("Name a colour.", "Blue is one, and so is green, and there are many more.", "No."),
    ("How many apples are left of 12 when 5 are eaten and another 3 are given away?", "There are 4 left.", "3"),
]


@pytest.fixture(scope="module")
def pairs() -> Any:
    from datasets import Dataset

    def said(role: str, column: int) -> list[list[dict[str, str]]]:
        return [[{"role": role, "content": pair[column]}] for pair in PAIRS]

    return Dataset.from_dict(
        {"prompt": said("user", 0), "chosen": said("assistant", 1), "rejected": said("assistant", 2)}
    )


@pytest.fixture(scope="module")
def untrained(load_lora: Any, tiny: Path) -> tuple[Any, Any]:
    return load_lora(tiny)


@pytest.fixture(scope="module")
def moved(load_lora: Any, tiny: Path) -> tuple[Any, Any]:
    """The tiny model with an adapter that training has moved, here by chance."""
    model, tokenizer = load_lora(tiny)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    return model, tokenizer


def answer_logits(model: Any, tokenizer: Any, prompt: Any, answer: Any) -> tuple[torch.Tensor, list[int]]:
    """Logits (tokens, vocabulary) that predict the tokens of an answer and the end of its turn, and those tokens."""
    start = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    text = f"{start}{answer[0]['content']}<|im_end|>\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    own = len(ids) - len(tokenizer(start, add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, -own - 1 : -1].float(), ids[-own:]


@pytest.mark.parametrize(("batch_size", "tolerance"), [(1, 1e-5), (4, 2e-3)])  # another shape, other bfloat16 rounding
def test_log_probabilities_are_those_of_the_logits(
    batch_size: int, tolerance: float, moved: tuple[Any, Any], pairs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.pairs.BATCH", batch_size)
    found = pair_logps(*moved, pairs)
    for pair, row in zip(found, pairs, strict=True):
        for side in ("chosen", "rejected"):
            logits, tokens = answer_logits(*moved, row["prompt"], row[side])
            expected = sum(logits[i].log_softmax(-1)[token].item() for i, token in enumerate(tokens))
            assert getattr(pair, f"{side}_tokens") == len(tokens)
            assert getattr(pair, side) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize(("batch_size", "tolerance"), [(1, 1e-4), (4, 2e-2)])
def test_kl_is_the_one_of_torch_averaged_over_the_chosen_response(
    batch_size: int, tolerance: float, moved: tuple[Any, Any], pairs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = moved
    monkeypatch.setattr("eval.pairs.BATCH", batch_size)
    found = token_kl(model, tokenizer, pairs, lambda: base(model))
    for kl, row in zip(found, pairs, strict=True):
        policy, _ = answer_logits(model, tokenizer, row["prompt"], row["chosen"])
        with base(model):
            reference, _ = answer_logits(model, tokenizer, row["prompt"], row["chosen"])
        expected = kl_divergence(Categorical(logits=policy), Categorical(logits=reference)).mean().item()
        assert expected > 0.01
        assert kl == pytest.approx(expected, rel=tolerance)


def test_the_policy_is_the_model_and_the_reference_what_the_context_makes_of_it(
    moved: tuple[Any, Any], pairs: Any
) -> None:
    """KL(policy || reference) is not KL(reference || policy), and a model does not differ from itself."""
    model, tokenizer = moved

    @contextmanager
    def adapter_on() -> Iterator[None]:
        model.base_model.enable_adapter_layers()
        yield
        model.base_model.disable_adapter_layers()

    there = token_kl(model, tokenizer, pairs, lambda: base(model))
    with base(model):
        back = token_kl(model, tokenizer, pairs, adapter_on)
    assert all(abs(one - other) > 1e-4 for one, other in zip(there, back, strict=True))
    assert token_kl(model, tokenizer, pairs, nullcontext) == [0.0] * 3


@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_untrained_adapter_is_at_no_distance_at_all(
    batch_size: int, untrained: tuple[Any, Any], pairs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.pairs.BATCH", batch_size)
    model, tokenizer = untrained
    assert token_kl(model, tokenizer, pairs, lambda: base(model)) == [0.0] * 3
    with base(model):
        reference = pair_logps(model, tokenizer, pairs)
    assert pair_logps(model, tokenizer, pairs) == reference


def test_a_response_longer_than_one_slice_of_positions_is_averaged_over_all_of_them(
    moved: tuple[Any, Any], pairs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = moved
    whole = token_kl(model, tokenizer, pairs, lambda: base(model))
    monkeypatch.setattr("eval.pairs.POSITIONS", 3)
    assert token_kl(model, tokenizer, pairs, lambda: base(model)) == pytest.approx(whole, rel=1e-5)


def test_a_response_that_the_limit_cuts_off_is_left_out(untrained: tuple[Any, Any], pairs: Any) -> None:
    model, tokenizer = untrained
    prompts = [
        len(ids) for ids in tokenizer.apply_chat_template(pairs["prompt"][:], add_generation_prompt=True)["input_ids"]
    ]
    limit = sorted(prompts)[1] + 1  # one token of the second, all of the third prompt is cut
    logps = pair_logps(model, tokenizer, pairs, max_length=limit)
    kl = token_kl(model, tokenizer, pairs, lambda: base(model), max_length=limit)
    scores = preference_scores(logps, beta=0.1, per_token=True)
    for prompt, pair, distance, own in zip(prompts, logps, kl, scores, strict=True):
        assert max(pair.chosen_tokens, pair.rejected_tokens) <= max(0, limit - prompt)
        assert (distance is None) == (own[PREFERENCE] is None) == (prompt >= limit)
    assert [own["reward_margin"] for own in scores].count(None) == 1


BEFORE = [PairLogps(-10.0, -12.0, 5, 4), PairLogps(-3.0, -3.0, 2, 3), PairLogps(-7.0, -6.0, 7, 2)]
AFTER = [PairLogps(-8.0, -13.0, 5, 4), PairLogps(-4.0, -3.5, 2, 3), PairLogps(-9.0, -8.0, 7, 2)]


def records(name: str, scores: list[dict[str, float | None]], **changes: Any) -> list[dict[str, Any]]:
    shared = {"stage": name, "kind": "greedy", "sample": 0, "question": "?", "gold": "!", "completion": "."}
    measured = {"tokens": 1, "truncated": False, "reward": None}
    return [shared | measured | {"index": index, "scores": own} | changes for index, own in enumerate(scores)]


def test_rewards_are_gains_over_the_reference() -> None:
    before = preference_scores(BEFORE, beta=0.1)
    assert [(own[PREFERENCE], own["reward_margin"]) for own in before] == [(0.5, 0.0)] * 3
    assert [(own["chosen_logp"], own["rejected_logp"]) for own in before] == [(-10, -12), (-3, -3), (-7, -6)]
    after = preference_scores(AFTER, beta=0.1, reference=records("before", before))
    assert [own[PREFERENCE] for own in after] == [1.0, 0.0, 0.5]  # the last pair fell by two nats on either side
    assert [own["reward_margin"] for own in after] == pytest.approx([0.3, -0.05, 0.0])  # 0.1 * (2 - -1), ...
    assert [own["chosen_logp"] for own in after] == [-8, -4, -9]


def test_without_a_reference_rewards_are_means_per_token_at_every_stage() -> None:
    scores = preference_scores(BEFORE, beta=2.0, per_token=True)
    assert [(own["chosen_logp"], own["rejected_logp"]) for own in scores] == [(-2, -3), (-1.5, -1), (-1, -3)]
    assert [own["reward_margin"] for own in scores] == [2.0, -1.0, 4.0]
    assert [own[PREFERENCE] for own in scores] == [1.0, 0.0, 1.0]


def test_a_pair_without_a_token_is_neither_right_nor_wrong() -> None:
    cut = PairLogps(0.0, -3.0, 0, 2)
    before = records("before", preference_scores([cut, *BEFORE], beta=0.1))
    after = records("after", preference_scores([cut, *AFTER], beta=0.1, reference=before))
    assert set(after[0]["scores"].values()) == {None}
    assert summarise(after, correct=PREFERENCE, format=None)["ungraded"] == 1


def test_stages_are_compared_by_the_preferences_they_hold() -> None:
    pairs = BEFORE * 4, AFTER * 4
    before = records("before", preference_scores(pairs[0], beta=0.1))
    after = records("after", preference_scores(pairs[1], beta=0.1, reference=before))
    summary = summarise(before, correct=PREFERENCE, format=None)
    assert (summary["accuracy"], summary["n"], summary["scores"]["reward_margin"]) == (0.5, 12, 0.0)
    found = compare(before, after, correct=PREFERENCE, format=None)
    assert (found["accuracy"]["gained"], found["accuracy"]["lost"], found["accuracy"]["delta"]) == (4, 4, 0.0)
    assert found["scores"]["reward_margin"]["delta"] == pytest.approx(0.25 / 3, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:2], "hold 2 pairs and this stage 3"),
        (lambda rows: [*rows, rows[0] | {"index": 3}], "hold 4 pairs and this stage 3"),
        (lambda rows: [row | {"index": row["index"] + 1} for row in rows], "numbered differently"),
        (lambda rows: [row | {"kind": "sampled"} for row in rows], "hold 0 pairs"),
        (lambda rows: [row | {"scores": {"f1": 1.0}} for row in rows], "pair 0: .* no chosen_logp, found f1"),
        (
            lambda rows: [row | {"scores": dict.fromkeys(row["scores"])} for row in rows],
            "pair 0 has log-probabilities now and had none",
        ),
    ],
)
def test_records_of_other_pairs_are_no_reference(change: Any, message: str) -> None:
    reference = change(records("before", preference_scores(BEFORE, beta=0.1)))
    with pytest.raises(ValueError, match=message):
        preference_scores(AFTER, beta=0.1, reference=reference)
