"""The losses of TRL's trainers, with the settings of the recipes, against the formulas of the papers.

The other side of a comparison scores each text alone: no padding, no mask, no batch and nothing of TRL's. Losses agree
to 1e-4, and so do their gradients, which would show a constant that is none (KTO's reference point).
"""

import importlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from data.preferences import unpaired
from recipes.common.preference import rendered, switch_off_reference
from recipes.common.supervision import split_row

SEEDS = [0, 1, 2]
BATCH_SIZES = [1, 3, 8]
MAX_LENGTH = 64  # tokens; one answer of `pairs` is cut there
LABEL_WEIGHTS = (0.7, 1.3)
WORDS = ["the", "cost", "of", "seven", "apples", "left", "in", "a", "bag"]

Row = dict[str, Any]
Build = Callable[..., Any]


def pairs(seed: int, words: Sequence[str] = WORDS) -> list[Row]:
    """Eight pairs at random, of which one has an answer beyond `MAX_LENGTH`."""
    chance = random.Random(seed)

    def message(role: str, length: int) -> list[dict[str, str]]:
        return [{"role": role, "content": " ".join(chance.choices(words, k=length))}]

    def pair(length: int) -> Row:
        answers = [message("assistant", chance.randint(1, 10)), message("assistant", length)]
        chance.shuffle(answers)
        return {"prompt": message("user", chance.randint(1, 8)), "chosen": answers[0], "rejected": answers[1]}

    rows = [pair(chance.randint(1, 10)) for _ in range(7)]
    rows.insert(chance.randrange(8), pair(2 * MAX_LENGTH))
    return rows


def settings(method: str, **changes: Any) -> dict[str, Any]:
    """What the recipe's trainer config says of its method, `changes` being of the recipe's arguments; in float32."""
    from transformers import TrainingArguments

    recipe = importlib.import_module(f"recipes.ultrafeedback_{method}")
    args = replace(recipe.ON_CPU, max_length=MAX_LENGTH, **changes)
    run = SimpleNamespace(trainer_settings=lambda phase: {"output_dir": phase})
    config = getattr(recipe, f"{method}_config")(args, run, *[LABEL_WEIGHTS] * (method == "kto"))
    any_method = {field.name for field in fields(TrainingArguments)} - {"per_device_train_batch_size"}
    own = {field.name: getattr(config, field.name) for field in fields(config) if field.name not in any_method}
    return own | {"bf16": False}


@pytest.fixture(scope="module")
def build(preference_trainer: Any, tiny: Path) -> Build:
    """`build(method, rows, **changes)`: TRL's trainer as the recipe sets it, with random adapters."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)

    def build(method: str, rows: list[Row], **changes: Any) -> Any:
        if method in ("orpo", "simpo"):
            rows = rendered(Dataset.from_list(rows), tokenizer, MAX_LENGTH).to_list()
        torch.manual_seed(0)
        trainer = preference_trainer(method, tokenizer, rows, **settings(method, **changes))
        draw_adapters(trainer.model, seed=0)
        return trainer

    return build


def draw_adapters(model: Any, seed: int) -> None:
    """Set every adapter to weights of its own, so that policy, reference and base model all differ."""
    torch.manual_seed(seed)
    for name, weights in model.named_parameters():
        if "lora_" in name:
            weights.data.normal_(std=0.3)  # at 1, attention is all on one token and has no gradient


@contextmanager
def adapter_of_reference(model: Any) -> Iterator[None]:
    if "ref" in model.peft_config:
        model.set_adapter("ref")
        yield
        model.set_adapter("default")
    else:
        with model.disable_adapter():
            yield


def logps(model: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """Log-probability of each token of the answer, as far as `MAX_LENGTH` leaves any."""
    ids = torch.tensor([(prompt + answer)[:MAX_LENGTH]])
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, :-1].double()
    return logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[len(prompt) - 1 :, 0]


@dataclass(frozen=True)
class Answer:
    """Log-probability of each of its tokens."""

    policy: Tensor
    reference: Tensor

    @property
    def log_ratio(self) -> Tensor:
        """Of the whole answer's probabilities under policy and reference."""
        return self.policy.sum() - self.reference.sum()


def score(model: Any, texts: Sequence[tuple[list[int], list[int]]]) -> list[Answer]:
    with torch.no_grad(), adapter_of_reference(model):
        reference = [logps(model, *text) for text in texts]
    return [Answer(logps(model, *text), known) for text, known in zip(texts, reference, strict=True)]


def mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()


def log_sigmoid(x: Tensor) -> Tensor:
    return x.sigmoid().log()


def compare(trainer: Any, batch: dict[str, Any], expected: Tensor) -> dict[str, float]:
    """Assert that TRL's loss of a batch is `expected` and that both have the same gradient; what TRL logs."""
    loss = trainer.compute_loss(trainer.model, batch)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-4)
    trained = [weights for weights in trainer.model.parameters() if weights.requires_grad]
    for one, other in zip(torch.autograd.grad(loss, trained), torch.autograd.grad(expected, trained), strict=True):
        assert one.abs().max() > 1e-3
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    trainer.log({"loss": loss.item()})
    return trainer.state.log_history[-1]


def assert_logged(logged: dict[str, float], name: str, chosen: list[Tensor], rejected: list[Tensor]) -> None:
    """The log has means over the batch; nothing where a batch has no such answer, as KTO's may."""
    for side, values in (("chosen", chosen), ("rejected", rejected)):
        if values:
            assert logged[f"{name}/{side}"] == pytest.approx(mean(values).item(), rel=1e-5, abs=1e-4)
        else:
            assert f"{name}/{side}" not in logged
    if name == "rewards" and chosen and rejected:
        margin = mean(chosen) - mean(rejected)
        assert logged["rewards/margins"] == pytest.approx(margin.item(), rel=1e-5, abs=1e-4)


def accuracy(chosen: list[Tensor], rejected: list[Tensor]) -> float:
    return sum(bool(good > bad) for good, bad in zip(chosen, rejected, strict=True)) / len(chosen)


def sampled(trainer: Any, seed: int) -> Iterator[tuple[list[Row], dict[str, Any]]]:
    """Batches of several sizes: the rows that the trainer has tokenised, and what its collator makes of them."""
    rows, chance = trainer.train_dataset.to_list(), random.Random(seed)
    for size in BATCH_SIZES:
        picked = chance.sample(rows, min(size, len(rows)))
        yield picked, trainer.data_collator(picked)


def dpo(chosen: list[Answer], rejected: list[Answer], beta: float) -> Tensor:
    """arXiv 2305.18290, eq. 7."""
    return mean(
        [-log_sigmoid(beta * good.log_ratio - beta * bad.log_ratio) for good, bad in zip(chosen, rejected, strict=True)]
    )


def ipo(chosen: list[Answer], rejected: list[Answer], beta: float) -> Tensor:
    """arXiv 2310.12036, eq. 17 with tau = beta, and log-ratios per token, as its authors told TRL they had them."""

    def per_token(answer: Answer) -> Tensor:
        return answer.policy.mean() - answer.reference.mean()

    margins = [per_token(good) - per_token(bad) for good, bad in zip(chosen, rejected, strict=True)]
    return mean([(margin - 1 / (2 * beta)) ** 2 for margin in margins])


def dpo_with_sft(chosen: list[Answer], rejected: list[Answer], beta: float) -> Tensor:
    """DPO and 0.3 x SFT's loss: the mean over the chosen tokens of a batch, in which a long answer weighs more."""
    return dpo(chosen, rejected, beta) - 0.3 * torch.cat([answer.policy for answer in chosen]).mean()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("formula", "changes"), [(dpo, {}), (ipo, {"loss": "ipo"}), (dpo_with_sft, {"sft_weight": 0.3})]
)
def test_dpo(formula: Callable[..., Tensor], changes: dict[str, Any], seed: int, build: Build) -> None:
    trainer = build("dpo", pairs(seed), **changes)
    beta = trainer.args.beta

    def check() -> None:
        for rows, batch in sampled(trainer, seed):
            chosen, rejected = (
                score(trainer.model, texts) for texts in zip(*(split_row(row, "pair") for row in rows), strict=True)
            )
            logged = compare(trainer, batch, formula(chosen, rejected, beta))
            # Sums over an answer's tokens, whatever the loss: IPO's too, which is of means.
            rewards = [[beta * answer.log_ratio for answer in side] for side in (chosen, rejected)]
            assert_logged(logged, "rewards", *rewards)
            assert logged["rewards/accuracies"] == pytest.approx(accuracy(*rewards))
            assert_logged(logged, "logps", *([answer.policy.sum() for answer in side] for side in (chosen, rejected)))

    check()  # against a copy of the adapter, as with --start-from
    switch_off_reference(trainer)
    check()


def kto(answers: list[Answer], mismatched: list[Answer], labels: list[bool], beta: float) -> Tensor:
    """arXiv 2402.01306, section 4.1: a mean of lambda_y - v(x, y), whose reference point has no gradient."""
    point = reference_point(mismatched).clamp(min=0).detach()
    desirable, undesirable = LABEL_WEIGHTS
    return mean(
        [
            desirable * (1 - (beta * (answer.log_ratio - point)).sigmoid())
            if label
            else undesirable * (1 - (beta * (point - answer.log_ratio)).sigmoid())
            for answer, label in zip(answers, labels, strict=True)
        ]
    )


def reference_point(mismatched: list[Answer]) -> Tensor:
    return mean([answer.log_ratio for answer in mismatched])


def kto_batches(trainer: Any) -> Iterator[tuple[dict[str, Any], list[bool], list[Answer], list[Answer]]]:
    """The trainer's batches in order; labels; answers to their own prompts and to those of the rows after them."""
    rows, size = trainer.train_dataset.to_list(), trainer.args.per_device_train_batch_size
    for index, batch in enumerate(trainer.get_train_dataloader()):
        block = rows[index * size : (index + 1) * size]
        texts = [(row["prompt_ids"], row["completion_ids"]) for row in block]
        shifted = [(prompt, texts[i - 1][1]) for i, (prompt, _) in enumerate(texts)]
        yield batch, [row["label"] for row in block], score(trainer.model, texts), score(trainer.model, shifted)


def unpaired_rows(seed: int) -> list[Row]:
    from datasets import Dataset

    return unpaired(Dataset.from_list(pairs(seed))).to_list()


@pytest.mark.parametrize("seed", SEEDS)
def test_kto(seed: int, build: Build) -> None:
    rows = unpaired_rows(seed)  # two batches, of which every other row is desirable
    rows += [row | {"label": True} for row in rows[:8]] + [row | {"label": False} for row in rows[8:]]
    trainer = build("kto", rows)
    beta = trainer.args.beta

    def check() -> None:
        for batch, labels, answers, mismatched in kto_batches(trainer):
            logged = compare(trainer, batch, kto(answers, mismatched, labels, beta))
            assert logged["kl"] == pytest.approx(max(0.0, reference_point(mismatched).item()), rel=1e-5, abs=1e-4)
            sides = [[x for x, its in zip(answers, labels, strict=True) if its == label] for label in (True, False)]
            assert_logged(logged, "rewards", *([beta * answer.log_ratio for answer in side] for side in sides))
            assert_logged(logged, "logps", *([answer.policy.sum() for answer in side] for side in sides))

    check()
    switch_off_reference(trainer)
    check()


def test_ktos_reference_point_is_never_negative(build: Build) -> None:
    trainer = build("kto", unpaired_rows(0)[:8])
    points = []
    for seed in range(4):
        draw_adapters(trainer.model, seed)
        ((batch, labels, answers, mismatched),) = kto_batches(trainer)
        compare(trainer, batch, kto(answers, mismatched, labels, trainer.args.beta))
        points.append(reference_point(mismatched).item())
    assert min(points) < -1 and max(points) > 1


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_log_probabilities_computed_before_training_change_no_loss(method: str, build: Build) -> None:
    rows, losses = unpaired_rows(0) if method == "kto" else pairs(0), []
    for precompute in (False, True):
        trainer = build(method, rows, precompute_ref=precompute)
        assert ("ref_logps" in trainer.train_dataset[0] or "ref_chosen_logps" in trainer.train_dataset[0]) == precompute
        switch_off_reference(trainer)
        batch = trainer.data_collator(trainer.train_dataset.to_list()[:8])
        losses.append(trainer.compute_loss(trainer.model, batch).item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0] != pytest.approx({"dpo": 0.693, "kto": 0.5}[method], abs=0.01)


def assert_logged_per_token(
    logged: dict[str, float], chosen: list[Tensor], rejected: list[Tensor], beta: float
) -> None:
    means = [[answer.mean() for answer in side] for side in (chosen, rejected)]
    assert_logged(logged, "rewards", *([beta * value for value in side] for side in means))
    assert logged["rewards/accuracies"] == pytest.approx(accuracy(*means))
    assert_logged(logged, "logps", *means)


def orpo(chosen: list[Tensor], rejected: list[Tensor], chosen_texts: list[Tensor], beta: float) -> Tensor:
    """arXiv 2403.07691, eqs. 6 and 7 with lambda = beta; SFT's term is of `chosen_texts`, prompts included."""

    def odds(answer: Tensor) -> Tensor:  # eqs. 3 and 4
        p = answer.mean().exp()
        return p / (1 - p)

    ratios = [odds(good) / odds(bad) for good, bad in zip(chosen, rejected, strict=True)]
    return -torch.cat(chosen_texts).mean() + beta * mean([-log_sigmoid(ratio.log()) for ratio in ratios])


def learn(trainer: Any) -> None:
    """Make the answers likely. Under random weights none is, and odds are no more than probabilities."""
    batch = trainer.data_collator(trainer.train_dataset.to_list())
    base = [weights for name, weights in trainer.model.named_parameters() if "lora_" not in name]
    optimizer = torch.optim.Adam([weights.requires_grad_() for weights in base], lr=0.1)
    for _ in range(15):
        optimizer.zero_grad()
        trainer.compute_loss(trainer.model, batch).backward()
        optimizer.step()
    for weights in base:
        weights.requires_grad_(False)
    trainer.log({"loss": 0.0})  # TRL logs a mean over the batches since the last line


@pytest.mark.parametrize("seed", SEEDS)
def test_orpo(seed: int, build: Build) -> None:
    trainer = build("orpo", pairs(seed, WORDS[:2]))
    model, beta = trainer.model, trainer.args.beta
    learn(trainer)
    for rows, batch in sampled(trainer, seed):
        texts = list(zip(*(split_row(row, "labelled pair") for row in rows), strict=True))
        chosen, rejected = ([logps(model, *text) for text in side] for side in texts)
        whole = [logps(model, prompt[:1], prompt[1:] + answer) for prompt, answer in texts[0]]
        logged = compare(trainer, batch, orpo(chosen, rejected, whole, beta))
        assert_logged_per_token(logged, chosen, rejected, beta)


def simpo(chosen: list[Tensor], rejected: list[Tensor], beta: float, gamma: float, sft_weight: float) -> Tensor:
    """arXiv 2405.14734, eq. 6, and CPO's SFT term, the mean over the chosen tokens of a batch."""
    margins = [beta * good.mean() - beta * bad.mean() - gamma for good, bad in zip(chosen, rejected, strict=True)]
    return mean([-log_sigmoid(margin) for margin in margins]) - sft_weight * torch.cat(chosen).mean()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("sft_weight", [0.0, 0.3])
def test_simpo(sft_weight: float, seed: int, build: Build) -> None:
    trainer = build("simpo", pairs(seed), beta=2.0, gamma=1.6, sft_weight=sft_weight)
    for rows, batch in sampled(trainer, seed):
        texts = zip(*(split_row(row, "labelled pair") for row in rows), strict=True)
        chosen, rejected = ([logps(trainer.model, *text) for text in side] for side in texts)
        logged = compare(trainer, batch, simpo(chosen, rejected, 2.0, 1.6, sft_weight))
        assert_logged_per_token(logged, chosen, rejected, 2.0)


def bradley_terry(chosen: Tensor, rejected: Tensor) -> Tensor:
    """arXiv 2203.02155, section 3.5, and 0.01 x the squared sum of a pair's rewards (arXiv 2312.09244)."""
    return (-log_sigmoid(chosen - rejected) + 0.01 * (chosen + rejected) ** 2).mean()


@pytest.mark.parametrize("seed", SEEDS)
def test_reward(seed: int, build: Build) -> None:
    trainer = build("reward", pairs(seed))
    assert len(trainer.train_dataset) == 7  # the pair with the long answer is left out and not cut
    trunk = trainer.model.get_base_model()

    def reward(ids: list[int]) -> Tensor:
        return trunk.score(trunk.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1])[0].double()

    for rows, batch in sampled(trainer, seed):
        chosen, rejected = (torch.stack([reward(row[side]) for row in rows]) for side in ("chosen_ids", "rejected_ids"))
        logged = compare(trainer, batch, bradley_terry(chosen, rejected))
        rewards = torch.cat([chosen, rejected])
        expected = {
            "accuracy": (chosen > rejected).double().mean(),
            "margin": (chosen - rejected).mean(),
            "mean_reward": rewards.mean(),
            "min_reward": rewards.min(),
            "max_reward": rewards.max(),
        }
        assert {name: logged[name] for name in expected} == pytest.approx(
            {name: value.item() for name, value in expected.items()}, abs=1e-4
        )
