"""`PPOTrainer` on the tiny model: what one update reads and differentiates, against plain loops over single completions
without padding, and what a run logs, keeps and resumes.

Rollouts are mostly written by the test, in what a sampler returns, so that lengths, ends and scores are known.
"""

import json
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from eval.sampling import Completion, Messages, ModelSampler

pytestmark = pytest.mark.usefixtures("unsloth")  # before transformers, which the trainer imports

LORA = {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj", "up_proj"]}
LENGTHS = [3, 9, 1, 6, 2, 8, 4, 5]  # of the completions, whose first is that of `ROWS[0]`
CUT = {1, 4}  # those that the limit cut off
SCORES = [1.0, -2.0, 0.5, 3.0, 4.0, -1.0, 0.0, 2.0]
ROWS = [
    {"prompt": [{"role": "user", "content": " ".join(["why"] * (1 + 3 * i % 5) + [str(i)])}], "score": score}
    for i, score in enumerate(SCORES)
]
FIGURES = {
    *("loss", "grad_norm", "learning_rate", "epoch", "step"),  # of every trainer
    *("score", "score_std", "kl", "kl_per_completion", "kl_coefficient", "entropy", "explained_variance"),
    *("length", "truncated", "ungraded", "num_tokens", "ratio_error", "policy_loss", "value_loss"),
    *("clip_fraction", "value_clip_fraction", "approx_kl", "minibatches", "value_grad_norm"),
}


def as_told(prompts: Sequence[Any], completions: Sequence[Any], score: Sequence[Any], **kwargs: Any) -> list[Any]:
    assert len(prompts) == len(completions) == len(score)
    return list(score)


class Scripted:
    """Writes the completion of a prompt of `ROWS`: `LENGTHS` random tokens, an end token among them unless `CUT`."""

    name = "scripted"
    batch_size = 5  # fewer than an update has

    def __init__(self, tokenizer: Any, cut: set[int] | frozenset[int]) -> None:
        self.written, self.seeds, chance = {}, [], random.Random(0)
        for i, (row, length) in enumerate(zip(ROWS, LENGTHS, strict=True)):
            ids = [chance.randrange(300, 900) for _ in range(length)]
            ids = ids if i in cut else [*ids[:-1], tokenizer.eos_token_id]
            self.written[row["prompt"][0]["content"]] = Completion(tokenizer.decode(ids), tuple(ids), i in cut)

    def sample(self, prompts: list[Messages], *, temperature: float, max_tokens: int, seed: int) -> list[Completion]:
        assert len(prompts) <= self.batch_size and max_tokens == max(LENGTHS)
        self.seeds.append(seed)
        return [self.written[prompt[0]["content"]] for prompt in prompts]


def randomise(model: Any, adapter: str, seed: int = 0) -> None:
    """Moves an adapter as far as training does in a long run, here by chance; with "value", the head too."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if f".{adapter}." in name or (adapter == "value" and "value_head" in name):
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.3)


def weights(model: Any, part: str = "") -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if part in name}


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """Relative to the length of each."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name] - tensor).norm() <= tolerance * tensor.norm() + 1e-9, name


@pytest.fixture(scope="module")
def load(unsloth: Any, tiny: Path) -> Callable[..., tuple[Any, Any]]:
    """`load(kind) -> (model, tokenizer)`: the tiny model in "32 bit", "16 bit" or "4 bit", with a fresh adapter."""

    def load(kind: str = "32 bit", **lora: Any) -> tuple[Any, Any]:
        model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
            str(tiny), max_seq_length=512, load_in_4bit=kind == "4 bit"
        )
        model = unsloth.FastLanguageModel.get_peft_model(
            model, **LORA | {"lora_dropout": 0.0} | lora, use_gradient_checkpointing=False, random_state=0
        )
        if kind == "32 bit":
            model.float()
            # The random model takes all tokens for about as likely, and no formula could be told from another.
            model.get_input_embeddings().weight.data *= 20
        return model, tokenizer

    return load


@pytest.fixture(scope="module")
def build(load: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """`build(model, tokenizer, **settings)`: a trainer of `ROWS`, in float32, with rollouts of `Scripted`.

    All eight completions are one minibatch in three ragged micro-batches: `training_step` then ends with the gradients
    of an update that is not made yet, and the policy is still the one that wrote.
    """
    folder = str(tmp_path_factory.mktemp("ppo"))

    def build(
        model: Any, tokenizer: Any, *, reward: Any = as_told, cut: Any = frozenset(), sampler: Any = None,
        callbacks: Any = None, **settings: Any,
    ) -> Any:  # fmt: skip
        from datasets import Dataset

        from recipes.common.ppo import PPOConfig, PPOTrainer

        defaults = {
            "output_dir": folder, "seed": 1, "max_steps": 2, "learning_rate": 1e-2, "value_learning_rate": 1e-2,
            "per_device_train_batch_size": 8, "minibatch_size": 9, "micro_batch_size": 3, "ppo_epochs": 1,
            "max_completion_length": max(LENGTHS), "save_strategy": "no", "logging_steps": 1, "report_to": "none",
            "disable_tqdm": True, "gradient_checkpointing": False,
        }  # fmt: skip
        return PPOTrainer(
            model, reward, PPOConfig(**defaults | settings), sampler=sampler or Scripted(tokenizer, cut),
            train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer, callbacks=callbacks,
        )  # fmt: skip

    return build


@pytest.fixture
def step(load: Any, build: Any) -> Callable[..., Any]:
    """`step(rows, **settings)`: a trainer in float32 after `training_step` on these rows; policy and value moved."""

    def step(rows: list[dict[str, Any]] = ROWS, *, policy: bool = True, value: bool = True, **settings: Any) -> Any:
        model, tokenizer = load()
        if policy:
            randomise(model, "default")
        trainer = build(model, tokenizer, **settings)
        if value:
            randomise(model, "value", seed=1)
        trainer.training_step(trainer.model, {"rows": rows})
        return trainer

    return step


# One update against loops


def forward(model: Any, ids: list[int], count: int, temperature: float) -> Tensor:
    """Log-probabilities [count, vocabulary] before each of the last `count` tokens."""
    logits = model(input_ids=torch.tensor([ids])).logits[0]
    return torch.log_softmax(logits[-count - 1 : -1] / temperature, dim=-1)


def by_hand(trainer: Any, gamma: float, lam: float) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Figures and gradients of the first minibatch, one completion at a time, from the formulas of the papers."""
    from trl.trainer.utils import use_adapter

    from recipes.common.preference import reference_policy

    model, args, tokenizer = trainer.model, trainer.args, trainer.processing_class
    rows: list[dict[str, Any]] = []
    for row in ROWS:
        written = trainer.sampler.written[row["prompt"][0]["content"]]
        ids = [*tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"], *written.ids]
        chosen, count = torch.tensor(written.ids), len(written.ids)
        with torch.no_grad():
            logps = forward(model, ids, count, args.temperature)
            with reference_policy(model):
                reference = forward(model, ids, count, args.temperature)
            with use_adapter(model, "value"):
                states = model.get_base_model().model(input_ids=torch.tensor([ids])).last_hidden_state[0]
            values = (states[-count - 1 : -1] @ model.value_head.weight[0]).tolist()
        take = (torch.arange(count), chosen)
        kl = (logps[take] - reference[take]).tolist()
        rewards = [-args.kl_coefficient * nats for nats in kl]
        rewards[-1] += row["score"] - args.missing_end_penalty * written.truncated
        advantages = []
        for t in range(count):
            errors = [
                rewards[s] + gamma * (values[s + 1] if s + 1 < count else 0.0) - values[s] for s in range(t, count)
            ]
            advantages.append(sum((gamma * lam) ** s * error for s, error in enumerate(errors)))
        rows.append({
            "ids": ids, "chosen": chosen, "kl": kl, "values": values, "advantages": advantages,
            "returns": [a + v for a, v in zip(advantages, values, strict=True)],
            "entropy": (-(logps.exp() * logps).sum(dim=-1)).tolist(),
        })  # fmt: skip
    flat = {
        name: torch.tensor([x for row in rows for x in row[name]])
        for name in ("kl", "entropy", "values", "advantages", "returns")
    }
    mean, std, count = flat["advantages"].mean(), flat["advantages"].std(), len(flat["kl"])
    error, returns = flat["returns"] - flat["values"], flat["returns"]
    near = flat["values"]  # nothing has moved, so that clipping does nothing
    figures = {
        "kl": float(flat["kl"].mean()),
        "kl_per_completion": float(flat["kl"].sum() / len(rows)),
        "entropy": float(flat["entropy"].mean()),
        "explained_variance": float(1 - error.var(correction=0) / returns.var(correction=0)),
        "policy_loss": 0.0,  # minus the mean of what was moved to mean 0
        "value_loss": float(0.5 * ((near - returns) ** 2).mean()),
    }

    model.zero_grad()
    for row in rows:
        whitened = (torch.tensor(row["advantages"]) - mean) / std
        logps = forward(model, row["ids"], len(row["chosen"]), args.temperature)
        (-(whitened * logps[torch.arange(len(row["chosen"])), row["chosen"]]).sum() / count).backward()
        with use_adapter(model, "value"):
            states = model.get_base_model().model(input_ids=torch.tensor([row["ids"]])).last_hidden_state[0]
            values = states[-len(row["chosen"]) - 1 : -1] @ model.value_head.weight[0]
            (0.5 * ((values - torch.tensor(row["returns"])) ** 2).sum() / count).backward()
    return figures, gradients(model)


def test_an_update_is_what_the_papers_say(step: Any) -> None:
    """At another temperature, where every token weighs the same and each loss reaches its own weights only."""
    trainer = step(temperature=0.5, gamma=0.9, lam=0.8, kl_coefficient=0.3, cut=CUT, missing_end_penalty=1.5)
    found, differentiated = dict(trainer.figures), gradients(trainer.model)
    expected, wanted = by_hand(trainer, gamma=0.9, lam=0.8)
    assert abs(expected["kl"]) > 0.1 and expected["entropy"] < 6.5  # of at most 6.93: it has moved
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert_close(differentiated, wanted, 1e-4)
    assert found["ratio_error"] == 0.0 and found["minibatches"] == 1
    assert (found["score"], found["length"]) == pytest.approx((sum(SCORES) / 8, sum(LENGTHS) / 8))
    assert found["score_std"] == pytest.approx(statistics.pstdev(SCORES))
    assert (found["truncated"], found["ungraded"]) == (0.25, 0)


def test_gradients_do_not_depend_on_the_micro_batches(step: Any) -> None:
    whole, *cut = (gradients(step(minibatch_size=9, micro_batch_size=size).model) for size in (9, 3, 1))
    assert len(whole) == 2 * 2 * 3 * 2 + 1  # A and B of three matrices in two layers, twice, and the head
    for pieces in cut:
        assert_close(pieces, whole)


def test_each_loss_reaches_its_own_weights_only(load: Any, build: Any) -> None:
    from recipes.common.ppo import trained_parameters

    model, tokenizer = load()
    randomise(model, "default")
    trainer = build(model, tokenizer, micro_batch_size=9)
    randomise(model, "value")
    backward, reached = trainer.accelerator.backward, []

    def recorded(loss: Tensor) -> None:
        model.zero_grad()
        backward(loss)
        reached.append(set(gradients(model)))

    trainer.accelerator.backward = recorded
    trainer.training_step(model, {"rows": ROWS})
    named = {id(weight): name for name, weight in model.named_parameters()}
    policy, value = ({named[id(weight)] for weight in part} for part in trained_parameters(model))
    assert reached == [policy, value] and not policy & value
    assert value - {"value_head.weight"} == {name.replace(".default.", ".value.") for name in policy}


def moved(trainer: Any, rows: list[dict[str, Any]] = ROWS) -> tuple[float, float]:
    """How far `training_step` moves policy and value: all minibatches but the last, whose step is `Trainer`'s."""
    from recipes.common.ppo import trained_parameters

    parts = trained_parameters(trainer.model)
    before = [[weight.detach().clone() for weight in part] for part in parts]
    trainer.create_optimizer()
    trainer.training_step(trainer.model, {"rows": rows})
    policy, value = (
        math.sqrt(sum(float((new - old).detach().square().sum()) for new, old in zip(part, earlier, strict=True)))
        for part, earlier in zip(parts, before, strict=True)
    )
    return policy, value


def test_every_minibatch_is_a_step_of_its_own_gradient(load: Any, build: Any, step: Any) -> None:
    model, tokenizer = load()
    randomise(model, "default")
    still = build(model, tokenizer, ppo_epochs=3, learning_rate=0.0, value_learning_rate=0.0, max_grad_norm=1e9)
    randomise(model, "value", seed=1)
    assert moved(still) == (0.0, 0.0)
    assert_close(gradients(model), gradients(step().model))  # of one minibatch, though there were three


def test_steps_are_clipped_and_each_part_has_its_learning_rate(load: Any, build: Any) -> None:
    def run(**settings: Any) -> tuple[float, float]:
        model, tokenizer = load()
        return moved(build(model, tokenizer, ppo_epochs=3, optim="sgd", **settings))

    policy, value = run(max_grad_norm=1e-3, learning_rate=1.0, value_learning_rate=0.0)
    assert 0 < policy <= 2.001e-3 and value == 0
    policy, value = run(max_grad_norm=1e-3, learning_rate=0.0, value_learning_rate=1.0)
    assert 1e-3 < value <= 2.001e-3 and policy == 0
    assert run(max_grad_norm=0.0, learning_rate=1.0)[0] > 1e-2  # not clipped, as in `Trainer`


@pytest.mark.parametrize("narrow", ["clip_range", "value_clip_range"])
def test_each_loss_is_clipped_to_its_own_range(narrow: str, load: Any, build: Any) -> None:
    wide = {"clip_range": 1e6, "value_clip_range": 1e6}
    trainer = build(*load(), ppo_epochs=3, **wide | {narrow: 1e-6})
    moved(trainer)
    shares = {
        "clip_range": trainer.figures["clip_fraction"],
        "value_clip_range": trainer.figures["value_clip_fraction"],
    }
    assert shares.pop(narrow) > 0.05 and list(shares.values()) == [0.0]


# What a completion earns. Where the value function is new and the policy the reference, a token's return is the score
# of its completion, discounted by the tokens that are left.


def returns_loss(scores: dict[int, float], gamma: float = 0.5) -> float:
    """The value function's loss where the completions in `scores` alone are learned from."""
    returns = [score * gamma**left for i, score in scores.items() for left in range(LENGTHS[i])]
    return 0.5 * sum(value**2 for value in returns) / len(returns)


@pytest.fixture
def first(step: Any) -> Callable[..., dict[str, float]]:
    """`first(**settings)`: the figures of a first update, of gamma 0.5 and lambda 1."""
    return lambda *rows, **settings: step(*rows, policy=False, value=False, gamma=0.5, lam=1.0, **settings).figures


def test_the_last_token_is_paid_and_pays_for_a_missing_end(first: Any) -> None:
    assert first()["value_loss"] == pytest.approx(returns_loss(dict(enumerate(SCORES))))
    found = first(cut=CUT, missing_end_penalty=1.5)
    paid = {i: score - 1.5 * (i in CUT) for i, score in enumerate(SCORES)}
    assert found["value_loss"] == pytest.approx(returns_loss(paid))
    assert found["score"] == pytest.approx(sum(SCORES) / 8) and found["truncated"] == 0.25


def test_a_clipped_score_is_clipped_before_the_penalty_and_only_in_training(first: Any) -> None:
    found = first(cut=CUT, score_clip=1.25)
    paid = {i: max(-1.25, min(1.25, score)) - (i in CUT) for i, score in enumerate(SCORES)}
    assert found["value_loss"] == pytest.approx(returns_loss(paid))
    assert found | {"value_loss": 0, "policy_loss": 0} == first(cut=CUT) | {"value_loss": 0, "policy_loss": 0}


def test_whitened_rewards_keep_their_mean(first: Any) -> None:
    found = first(whiten_rewards=True)
    rewards = torch.cat([torch.tensor([0.0] * (n - 1) + [s]) for n, s in zip(LENGTHS, SCORES, strict=True)])
    whitened = ((rewards - rewards.mean()) / rewards.std() + rewards.mean()).split(LENGTHS)
    squares = [
        sum(float(tokens[s]) * 0.5 ** (s - t) for s in range(t, len(tokens))) ** 2
        for tokens in whitened
        for t in range(len(tokens))
    ]
    assert found["value_loss"] == pytest.approx(0.5 * sum(squares) / len(squares), rel=1e-5)
    assert found["score"] == pytest.approx(sum(SCORES) / 8)


@pytest.mark.parametrize("why", ["cut off", "not graded"])
def test_a_completion_that_is_left_out_counts_for_nothing(why: str, step: Any) -> None:
    common: dict[str, Any] = {"cut": CUT, "whiten_rewards": True, "kl_coefficient": 0.3}
    rows = [row | {"score": None} if i in CUT else row for i, row in enumerate(ROWS)]
    if why == "cut off":
        trainer = step(**common, mask_truncated=True)
    else:
        trainer = step(rows, **common)
        assert trainer.figures["ungraded"] == 2
        assert trainer.figures["score"] == pytest.approx(sum(s for i, s in enumerate(SCORES) if i not in CUT) / 6)
    alone = step([row for i, row in enumerate(ROWS) if i not in CUT], **common)
    assert_close(gradients(trainer.model), gradients(alone.model), 2e-5)
    for figure in ("value_loss", "policy_loss", "explained_variance"):
        assert trainer.figures[figure] == pytest.approx(alone.figures[figure], rel=1e-4, abs=1e-6)
    assert step(**common).figures["value_loss"] != pytest.approx(alone.figures["value_loss"], rel=1e-2)


def test_a_minibatch_of_nothing_to_learn_from_is_left_out(load: Any, build: Any) -> None:
    trainer = build(*load(), cut=CUT, mask_truncated=True, minibatch_size=1, micro_batch_size=1, max_steps=1)
    trainer.train()
    (line,) = updates(trainer)
    assert line["minibatches"] == 6 and all(math.isfinite(value) for value in line.values())


@pytest.mark.parametrize(
    ("scores", "settings", "message"),
    [
        (
            SCORES,
            {"cut": set(range(8)), "mask_truncated": True},
            "^nothing to learn from in update 1: of 8 completions 8 were cut off at 9 tokens and 0 could not be "
            "graded; allow longer completions, or mend the reward$",
        ),
        ([None] * 8, {"cut": CUT}, "of 8 completions 2 were cut off at 9 tokens and 8 could not be graded"),
        ([*SCORES[:-1], math.nan], {}, "nan.*expected a finite number or None"),
        ([*SCORES[:-1], math.inf], {}, "inf.*expected a finite number or None"),
        (SCORES[:1], {}, "1 .*8"),
        ([*SCORES, 0.0], {}, "9 .*8"),
    ],
    ids=["all cut off", "none graded", "nan", "infinite", "too few", "too many"],
)
def test_what_cannot_be_learned_from_is_one_sentence(
    scores: list[Any], settings: dict[str, Any], message: str, step: Any
) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        step(reward=lambda **kwargs: scores, **settings)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", [int, bool])
def test_a_score_may_be_any_number(kind: type, first: Any) -> None:
    """As the number of words is, or whether a test passed."""
    found = first(reward=lambda completions, **kwargs: [kind(i % 3) for i in range(len(completions))])
    assert found["value_loss"] == pytest.approx(returns_loss({i: float(kind(i % 3)) for i in range(8)}))


# Noise


def opt(tokenizer: Any) -> Any:
    """A model of OPT's family, whose dropout is no module but an argument: 0.1 as published."""
    from peft import LoraConfig, get_peft_model
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=len(tokenizer), hidden_size=64, word_embed_proj_dim=64, ffn_dim=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=256, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    assert config.dropout == 0.1
    return get_peft_model(OPTForCausalLM(config), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))


@pytest.mark.parametrize("of", ["the adapters", "OPT"])
def test_dropout_is_off_in_policy_and_value(of: str, load: Any, build: Any) -> None:
    """Two updates from the same weights are the same, whatever noise was drawn between them."""
    model, tokenizer = load(lora_dropout=0.3)
    model = opt(tokenizer) if of == "OPT" else model
    randomise(model, "default")
    trainer = build(model, tokenizer)
    randomise(model, "value")
    found = []
    for _ in range(2):
        model.zero_grad()
        trainer.training_step(model, {"rows": ROWS})
        assert trainer.figures["ratio_error"] == 0.0
        found.append(gradients(model))
    assert same(*found)


def test_the_seed_decides_the_value_function(load: Any, build: Any) -> None:
    found = []
    for drawn in (1, 2):
        model, tokenizer = load()
        torch.manual_seed(drawn)  # what was drawn before the trainer is built
        found.append(weights(build(model, tokenizer, seed=7).model, ".value."))
    assert same(*found)


# A run


@dataclass
class Steps:
    """A callback's view of a run."""

    ended: list[int] = field(default_factory=list)
    logs: list[dict[str, Any]] = field(default_factory=list)
    stop_after: int | None = None

    def callback(self) -> Any:
        from transformers import TrainerCallback

        steps = self

        class Watching(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                steps.ended.append(state.global_step)
                if state.global_step == steps.stop_after:
                    control.should_save = control.should_training_stop = True

            def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
                steps.logs.append(dict(logs))

        return Watching()


@dataclass
class Trained:
    trainer: Any
    before: dict[str, Tensor]
    steps: Steps
    lines: list[dict[str, Any]]


def updates(trainer: Any) -> list[dict[str, Any]]:
    return [line for line in trainer.state.log_history if "loss" in line]


@pytest.fixture(scope="module", params=["16 bit", "4 bit"])
def trained(request: pytest.FixtureRequest, load: Any, build: Any) -> Trained:
    """Two updates of two epochs of two minibatches of two micro-batches."""
    model, tokenizer = load(request.param)
    kinds = {type(module).__name__ for name, module in model.named_modules() if name.endswith("base_layer")}
    assert kinds == {"Linear4bit" if request.param == "4 bit" else "Linear"}
    steps = Steps()
    trainer = build(
        model, tokenizer, callbacks=[steps.callback()], bf16=True, cut=CUT, ppo_epochs=2, minibatch_size=4,
        micro_batch_size=2,
    )  # fmt: skip
    before = weights(model)
    trainer.train()
    return Trained(trainer, before, steps, updates(trainer))


def test_an_update_starts_from_the_policy_that_wrote(trained: Trained) -> None:
    one, two = trained.lines
    assert one["ratio_error"] == two["ratio_error"] == 0.0
    assert one["kl"] == one["kl_per_completion"] == 0.0 != two["kl"]
    assert one["approx_kl"] > 0 and two["approx_kl"] > 0
    assert one["minibatches"] == two["minibatches"] == 4
    assert len(set(trained.trainer.sampler.seeds)) == 4  # of two calls an update


def test_policy_and_value_move_and_nothing_else(trained: Trained) -> None:
    after = dict(trained.trainer.model.named_parameters())
    assert after.keys() == trained.before.keys()
    for name, weight in after.items():
        is_trained = ".default." in name or ".value." in name or name == "value_head.weight"
        assert torch.equal(weight, trained.before[name]) != is_trained, name
        assert not is_trained or weight.dtype == torch.float32


def test_every_update_is_logged_and_seen_by_callbacks(trained: Trained) -> None:
    assert trained.steps.ended == [1, 2]
    for line, seen in zip(trained.lines, trained.steps.logs[:2], strict=True):
        assert line.keys() == FIGURES and seen.keys() >= FIGURES - {"step"}
        assert all(math.isfinite(value) for value in line.values())
        assert seen.items() <= line.items()
    prompts = trained.trainer.processing_class.apply_chat_template(
        [row["prompt"] for row in ROWS], add_generation_prompt=True, return_dict=False
    )
    read = sum(map(len, prompts)) + sum(LENGTHS)
    assert [line["num_tokens"] for line in trained.lines] == [read, 2 * read]


def test_an_update_stops_where_the_policy_has_moved_far_enough(load: Any, build: Any) -> None:
    """After the minibatch that shows it, which here is the second."""

    def run(**settings: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
        model, tokenizer = load()
        trainer = build(model, tokenizer, max_steps=1, minibatch_size=3, **settings)
        trainer.train()
        return updates(trainer)[0], weights(model)

    stopped, moved = run(ppo_epochs=3, max_update_kl=1e-9)
    whole, far = run(ppo_epochs=3, max_update_kl=None)
    free, further = run(ppo_epochs=3, max_update_kl=1e9)
    assert [line["minibatches"] for line in (stopped, whole, free)] == [2, 9, 9]
    assert same(far, further) and not same(far, moved)
    assert stopped["approx_kl"] < whole["approx_kl"]


def test_the_reference_may_be_the_adapter_at_the_start(load: Any, build: Any) -> None:
    from recipes.common.preference import freeze_reference

    model, tokenizer = load("16 bit")
    randomise(model, "default")
    freeze_reference(model)
    before = weights(model)
    trainer = build(model, tokenizer, bf16=True)
    trainer.train()
    one, two = updates(trainer)
    assert one["kl"] == one["kl_per_completion"] == one["ratio_error"] == 0.0 != two["kl"]
    for name, weight in weights(model, ".ref.").items():
        assert torch.equal(weight, before[name]) and torch.equal(weight, before[name.replace(".ref.", ".default.")])
    assert not same(weights(model, ".default."), {k: v for k, v in before.items() if ".default." in k})


# Checkpoints


@dataclass(frozen=True)
class Runs:
    unbroken: Any
    resumed: Any
    checkpoint: Path
    half: dict[str, Tensor]
    """Weights at the checkpoint"""
    coefficient: float
    """Of the update after it"""


@pytest.fixture(scope="module")
def runs(load: Any, build: Any, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Four updates at once, and two and two; the model writes for itself."""

    def run(folder: Path, *, drawn: int = 0, stop_after: int | None = None, resume: str | None = None) -> Any:
        model, tokenizer = load("16 bit")
        torch.manual_seed(drawn)
        trainer = build(
            model, tokenizer, sampler=ModelSampler(model, tokenizer, batch_size=4), bf16=True, output_dir=str(folder),
            max_steps=4, per_device_train_batch_size=6, minibatch_size=2, micro_batch_size=2, ppo_epochs=2,
            target_kl=0.02, callbacks=[Steps(stop_after=stop_after).callback()],
            reward=lambda completions, **kwargs: [len(c[0]["content"]) % 7 - 2.5 for c in completions],
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    unbroken = run(tmp_path_factory.mktemp("unbroken"))
    folder = tmp_path_factory.mktemp("broken")
    half = run(folder, stop_after=2)
    assert [line["step"] for line in updates(half)] == [1, 2]
    checkpoint = folder / "checkpoint-2"
    resumed = run(folder, drawn=1, resume=str(checkpoint))
    return Runs(unbroken, resumed, checkpoint, weights(half.model), half.kl_coefficient)


def test_a_checkpoint_holds_policy_value_and_coefficient_in_safetensors(runs: Runs) -> None:
    from safetensors.torch import load_file

    policy, value = (load_file(runs.checkpoint / f"{name}.safetensors") for name in ("adapter_model", "value"))
    assert json.loads((runs.checkpoint / "adapter_config.json").read_text(encoding="utf-8"))["r"] == LORA["r"]
    assert value.pop("kl_coefficient").item() == runs.coefficient
    for name, weight in runs.half.items():
        kept, adapter = (value, "value") if "value" in name else (policy, "default")
        if f".{adapter}." in name or "value_head" in name:
            assert torch.equal(kept.pop(name.replace(f".{adapter}.", ".")), weight), name
    assert not policy and not [name for name in value if name.endswith("weight")]
    assert not list(runs.checkpoint.rglob("ref/*")) and not (runs.checkpoint / "value").exists()


def test_the_coefficient_follows_the_kl(runs: Runs) -> None:
    """Down by 2 % an update where the KL is far below its target, and up where far above."""
    lines = updates(runs.unbroken)
    factors = [after["kl_coefficient"] / line["kl_coefficient"] for line, after in pairwise(lines)]
    expected = [1 + 0.1 * max(-0.2, min(0.2, line["kl_per_completion"] / 0.02 - 1)) for line in lines]
    assert lines[0]["kl_coefficient"] == 0.05 and factors == pytest.approx(expected[:-1])
    assert factors[0] == pytest.approx(0.98) and max(factors) > 1


def test_the_next_update_pays_by_the_adapted_coefficient(step: Any) -> None:
    trainer = step(kl_coefficient=0.3, target_kl=1e3)  # the KL is far below: 2 % less
    first = trainer.figures["value_loss"]
    trainer.training_step(trainer.model, {"rows": ROWS})
    assert trainer.figures["kl_coefficient"] == pytest.approx(0.3 * 0.98)
    expected = step(kl_coefficient=0.3 * 0.98).figures["value_loss"]
    assert trainer.figures["value_loss"] == pytest.approx(expected, rel=1e-5) != pytest.approx(first, rel=1e-4)


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(runs: Runs) -> None:
    assert same(weights(runs.unbroken.model), weights(runs.resumed.model))
    assert not same(weights(runs.unbroken.model, "value"), {k: v for k, v in runs.half.items() if "value" in k})
    assert runs.unbroken.kl_coefficient == runs.resumed.kl_coefficient != runs.coefficient


def test_a_resumed_run_logs_the_lines_of_one_that_did_not_stop(runs: Runs) -> None:
    whole, resumed = updates(runs.unbroken), updates(runs.resumed)
    assert [line["step"] for line in resumed] == [1, 2, 3, 4]
    assert len({line["score"] for line in whole}) > 1  # the model wrote, or there is nothing to seed
    assert whole == resumed
