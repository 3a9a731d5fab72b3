"""PPO's arithmetic against the formulas of its papers, written once more as loops over floats.

The other side of a comparison has no tensors, no padding and no mask: a completion there is the list of its own tokens'
figures. Both agree to 1e-6, whatever the padding holds, and so do the gradients of both losses.
"""

import math
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

PADDINGS = [0.0, 1e9, math.nan, -math.inf]  # of a token that is not there, any figure may come
EXACT = {"rel": 1e-6, "abs": 1e-6}

Rows = list[list[float]]

both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


@pytest.fixture(scope="module")
def ppo(unsloth: ModuleType) -> ModuleType:
    """The module under test. It imports transformers, before which Unsloth must be imported."""
    from recipes.common import ppo

    return ppo


@dataclass(frozen=True)
class Batch:
    """Completions of these lengths: padded tensors for the functions, lists for the formulas."""

    lengths: list[int]
    width: int
    padding: float
    dtype: torch.dtype
    chance: random.Random

    @property
    def mask(self) -> Tensor:
        return torch.arange(self.width) < torch.tensor(self.lengths)[:, None]

    def draw(self, mean: float = 0.0, std: float = 1.0) -> Tensor:
        drawn = [[self.chance.gauss(mean, std) for _ in range(self.width)] for _ in self.lengths]
        return torch.tensor(drawn, dtype=self.dtype).masked_fill(~self.mask, self.padding)

    def rows(self, padded: Tensor) -> Rows:
        assert padded.shape == self.mask.shape
        return [row[:length] for row, length in zip(padded.tolist(), self.lengths, strict=True)]

    def assert_equal(self, padded: Tensor, expected: Rows) -> None:
        for found, wanted in zip(self.rows(padded), expected, strict=True):
            assert found == pytest.approx(wanted, **EXACT)

    def assert_equal_and_zero_elsewhere(self, padded: Tensor, expected: Rows) -> None:
        self.assert_equal(padded, expected)
        assert not padded[~self.mask].any()


def batches(dtype: torch.dtype) -> Iterator[Batch]:
    """Thirty batches of two to twelve rows; in every fifth all rows are of one token, in every fifth all are full."""
    for seed in range(30):
        chance = random.Random(seed)
        size, width = chance.randint(2, 12), chance.randint(1, 12)
        lengths = [chance.randint(1, width) for _ in range(size)]
        if seed % 5 < 2:
            lengths = [1 if seed % 5 else width] * size
        yield Batch(lengths, width, PADDINGS[seed % len(PADDINGS)], dtype, chance)


def each(formula: Callable[..., Any], *columns: Rows) -> Rows:
    """`formula` of each token's figures."""
    return [[formula(*token) for token in zip(*row, strict=True)] for row in zip(*columns, strict=True)]


def flat(rows: Rows) -> list[float]:
    return [value for row in rows for value in row]


def clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


# Over the response tokens of a batch


@both_dtypes
def test_masked_mean(ppo: ModuleType, dtype: torch.dtype) -> None:
    for batch in batches(dtype):
        values = batch.draw(mean=1.0).requires_grad_()
        mean = ppo.masked_mean(values, batch.mask)
        assert mean.shape == ()
        assert mean.item() == pytest.approx(statistics.fmean(flat(batch.rows(values))), **EXACT)
        (gradient,) = torch.autograd.grad(mean, values)
        share = 1 / sum(batch.lengths)
        batch.assert_equal_and_zero_elsewhere(gradient, [[share] * length for length in batch.lengths])


def whitened(rows: Rows, shift_mean: bool) -> Rows:
    """arXiv 2403.17031, whitening of rewards and advantages: one mean and one variance for the whole batch."""
    values = flat(rows)
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    kept = 0.0 if shift_mean else mean
    return each(lambda value: (value - mean) / math.sqrt(variance + 1e-8) + kept, rows)


@both_dtypes
@pytest.mark.parametrize(("mean", "std"), [(0.5, 1.0), (0.0, 1e-4)], ids=["usual", "where the 1e-8 counts"])
def test_whiten(ppo: ModuleType, dtype: torch.dtype, mean: float, std: float) -> None:
    for batch in batches(dtype):
        values = batch.draw(mean, std)
        rows = batch.rows(values)
        batch.assert_equal_and_zero_elsewhere(ppo.whiten(values, batch.mask), whitened(rows, shift_mean=True))
        unshifted = ppo.whiten(values, batch.mask, shift_mean=False)
        batch.assert_equal_and_zero_elsewhere(unshifted, whitened(rows, shift_mean=False))


def test_whitened_values_have_variance_one_and_mean_zero_or_their_own(ppo: ModuleType) -> None:
    for batch in batches(torch.float64):
        values = batch.draw(mean=30.0, std=20.0)  # beside which the 1e-8 is nothing
        for shift_mean, mean in ((True, 0.0), (False, statistics.fmean(flat(batch.rows(values))))):
            found = flat(batch.rows(ppo.whiten(values, batch.mask, shift_mean=shift_mean)))
            assert statistics.fmean(found) == pytest.approx(mean, **EXACT)
            assert statistics.variance(found) == pytest.approx(1.0, **EXACT)


def test_values_that_are_all_the_same_whiten_to_zero(ppo: ModuleType) -> None:
    values, mask = torch.full((2, 3), 0.5), torch.tensor([[True, True, True], [True, False, False]])
    assert ppo.whiten(values, mask).tolist() == [[0.0] * 3] * 2
    assert ppo.whiten(values, mask, shift_mean=False).tolist() == [[0.5] * 3, [0.5, 0.0, 0.0]]
    assert ppo.whiten(values[:1, :1], mask[:1, :1]).tolist() == [[0.0]]  # one token has no variance
    assert ppo.whiten(values[:1, :1], mask[:1, :1], shift_mean=False).tolist() == [[0.5]]


# KL and rewards


@both_dtypes
def test_kl_penalty(ppo: ModuleType, dtype: torch.dtype) -> None:
    """joschu.net/blog/kl-approx.html, with r = reference / policy."""

    def k1(logp: float, reference: float) -> float:
        return -math.log(math.exp(reference) / math.exp(logp))

    def k3(logp: float, reference: float) -> float:
        r = math.exp(reference) / math.exp(logp)
        return (r - 1) - math.log(r)

    for batch in batches(dtype):
        logp, reference = batch.draw(mean=-2.0), batch.draw(mean=-2.0)
        for name, formula in (("k1", k1), ("k3", k3)):
            found = ppo.kl_penalty(logp, reference, name)
            batch.assert_equal(found, each(formula, batch.rows(logp), batch.rows(reference)))


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_estimators_average_to_the_kl_from_policy_to_reference(ppo: ModuleType, estimator: str) -> None:
    torch.manual_seed(0)
    logp, reference = torch.randn(2, 50, 7, dtype=torch.float64).log_softmax(-1)  # 50 distributions of 7 tokens
    found = (logp.exp() * ppo.kl_penalty(logp, reference, estimator)).sum(-1)
    for mean, policy, other in zip(found.tolist(), logp.exp().tolist(), reference.exp().tolist(), strict=True):
        kl = sum(p * math.log(p / q) for p, q in zip(policy, other, strict=True))
        assert kl > 0.01
        assert mean == pytest.approx(kl, **EXACT)


@both_dtypes
def test_k3_is_never_negative_however_little_has_moved(ppo: ModuleType, dtype: torch.dtype) -> None:
    """The k3 of a log-probability that has moved by 1e-4 is 5e-9: float32 must not lose it beside a 1."""
    torch.manual_seed(0)
    logp = -5 * torch.rand(20, 1000, dtype=dtype)
    for size in (1e-8, 1e-6, 1e-4, 1e-2, 1.0, 10.0):
        assert ppo.kl_penalty(logp, logp + size * torch.randn_like(logp), "k3").min() >= 0
    moved = logp + 1e-4 * torch.randn_like(logp)
    found = ppo.kl_penalty(logp, moved, "k3").mean().item()
    assert found == pytest.approx(((moved - logp).double() ** 2 / 2).mean().item(), rel=1e-3)
    for estimator in ("k1", "k3"):
        assert not ppo.kl_penalty(logp, logp, estimator).any()


@both_dtypes
def test_token_rewards(ppo: ModuleType, dtype: torch.dtype) -> None:
    """arXiv 1909.08593, eq. 2, the penalty token by token and the score at the last one."""
    for batch in batches(dtype):
        coefficient = batch.chance.uniform(0.01, 0.5)
        kl, scores = batch.draw(), torch.tensor([batch.chance.gauss(1.0, 3.0) for _ in batch.lengths], dtype=dtype)
        expected = each(lambda value, beta=coefficient: -beta * value, batch.rows(kl))
        for row, score in zip(expected, scores.tolist(), strict=True):
            row[-1] += score
        batch.assert_equal_and_zero_elsewhere(ppo.token_rewards(scores, kl, batch.mask, coefficient), expected)


# Advantages


def advantages_and_returns(
    rewards: list[float], values: list[float], gamma: float, lam: float
) -> tuple[list[float], list[float]]:
    """arXiv 1506.02438, eq. 16: the sum itself, without its recursion; returns as in arXiv 2403.17031."""
    end = len(rewards)
    after = [*values[1:], 0.0]
    deltas = [rewards[t] + gamma * after[t] - values[t] for t in range(end)]
    advantages = [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, end)) for t in range(end)]
    return advantages, [advantage + value for advantage, value in zip(advantages, values, strict=True)]


def gae_of(ppo: ModuleType, batch: Batch, gamma: float, lam: float) -> tuple[Rows, Rows, Tensor, Tensor]:
    """Rewards, values and, from the module under test, their advantages and returns."""
    rewards, values = batch.draw(std=0.3), batch.draw(mean=0.2, std=0.5)
    found = ppo.gae(rewards, values, batch.mask, gamma=gamma, lam=lam)
    return batch.rows(rewards), batch.rows(values), *found


@both_dtypes
@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("gamma", [1.0, 0.99, 0.7])
def test_gae(ppo: ModuleType, dtype: torch.dtype, gamma: float, lam: float) -> None:
    for batch in batches(dtype):
        rewards, values, advantages, returns = gae_of(ppo, batch, gamma, lam)
        pairs = [advantages_and_returns(*row, gamma, lam) for row in zip(rewards, values, strict=True)]
        batch.assert_equal_and_zero_elsewhere(advantages, [expected for expected, _ in pairs])
        batch.assert_equal_and_zero_elsewhere(returns, [expected for _, expected in pairs])


@both_dtypes
def test_with_lambda_1_a_return_is_the_sum_of_the_rewards_to_come(ppo: ModuleType, dtype: torch.dtype) -> None:
    for batch in batches(dtype):
        rewards, _, _, returns = gae_of(ppo, batch, gamma=1.0, lam=1.0)
        batch.assert_equal(returns, [[sum(row[t:]) for t in range(len(row))] for row in rewards])


@both_dtypes
def test_with_lambda_0_an_advantage_is_the_error_of_one_step(ppo: ModuleType, dtype: torch.dtype) -> None:
    for batch in batches(dtype):
        rewards, values, advantages, _ = gae_of(ppo, batch, gamma=0.9, lam=0.0)
        nexts = [[*row[1:], 0.0] for row in values]
        batch.assert_equal(advantages, each(lambda r, v, after: r + 0.9 * after - v, rewards, values, nexts))


# Losses


def gradient(loss: Tensor, of: Tensor, batch: Batch) -> Tensor:
    """Of the sum over response tokens."""
    return torch.autograd.grad(loss[batch.mask].sum(), of, retain_graph=True)[0]


@both_dtypes
@pytest.mark.parametrize("clip_range", [0.1, 0.2, 0.5])
def test_policy_loss(ppo: ModuleType, dtype: torch.dtype, clip_range: float) -> None:
    """arXiv 1707.06347, eq. 7, which is to be maximised; no gradient where the clipped term is the smaller one."""

    def objective(logp: float, old_logp: float, advantage: float) -> float:
        ratio = math.exp(logp) / math.exp(old_logp)
        return min(ratio * advantage, clip(ratio, 1 - clip_range, 1 + clip_range) * advantage)

    def is_clipped(logp: float, old_logp: float, advantage: float) -> bool:
        ratio = math.exp(logp) / math.exp(old_logp)
        return ratio > 1 + clip_range if advantage > 0 else ratio < 1 - clip_range

    def slope(logp: float, old_logp: float, advantage: float) -> float:
        ratio = math.exp(logp) / math.exp(old_logp)
        return 0.0 if is_clipped(logp, old_logp, advantage) else ratio * advantage

    seen = set()
    for batch in batches(dtype):
        old_logp, advantages = batch.draw(mean=-2.0), batch.draw()
        logp = (old_logp + batch.draw(std=0.3)).requires_grad_()
        columns = [batch.rows(column) for column in (logp, old_logp, advantages)]
        loss, clipped = ppo.policy_loss(logp, old_logp, advantages, clip_range)
        batch.assert_equal(-loss, each(objective, *columns))
        batch.assert_equal(-gradient(loss, logp, batch), each(slope, *columns))
        assert clipped.dtype == torch.bool
        assert batch.rows(clipped) == each(is_clipped, *columns)
        seen.update(zip(flat(each(is_clipped, *columns)), [a > 0 for a in flat(columns[-1])], strict=True))
    assert len(seen) == 4  # clipped or not, for either sign of the advantage


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped", "slope"),
    [
        (1.5, 2.0, -2.4, True, 0.0),
        (1.5, -2.0, 3.0, False, 3.0),
        (0.5, 2.0, -1.0, False, -1.0),
        (0.5, -2.0, 1.6, True, 0.0),
        (1.1, 2.0, -2.2, False, -2.2),
        (1.5, 0.0, 0.0, False, 0.0),
    ],
)
def test_policy_loss_by_hand(
    ppo: ModuleType, ratio: float, advantage: float, loss: float, clipped: bool, slope: float
) -> None:
    """Both halves of figure 1 of arXiv 1707.06347, with a clip range of 0.2."""
    old_logp = torch.tensor([[-1.0]], dtype=torch.float64)
    logp = (old_logp + math.log(ratio)).requires_grad_()
    found, is_clipped = ppo.policy_loss(logp, old_logp, torch.full_like(old_logp, advantage), 0.2)
    assert found.item() == pytest.approx(loss)
    assert is_clipped.item() is clipped
    assert torch.autograd.grad(found.sum(), logp)[0].item() == pytest.approx(slope)


@both_dtypes
def test_at_a_ratio_of_exactly_1_the_loss_is_the_negative_advantage(ppo: ModuleType, dtype: torch.dtype) -> None:
    for batch in batches(dtype):
        old_logp, advantages = batch.draw(mean=-2.0), batch.draw()
        logp = old_logp.clone().requires_grad_()
        loss, clipped = ppo.policy_loss(logp, old_logp, advantages, 0.2)
        assert torch.equal(loss[batch.mask], -advantages[batch.mask])
        assert torch.equal(gradient(loss, logp, batch)[batch.mask], -advantages[batch.mask])
        assert not clipped[batch.mask].any()


@both_dtypes
@pytest.mark.parametrize("clip_range", [0.1, 0.2, 0.5])
def test_value_loss(ppo: ModuleType, dtype: torch.dtype, clip_range: float) -> None:
    """arXiv 2403.17031, value function clipping: no gradient where the value is beyond the range on the way to R."""

    def loss_of(value: float, old: float, wanted: float) -> float:
        return 0.5 * max((value - wanted) ** 2, (clip(value, old - clip_range, old + clip_range) - wanted) ** 2)

    def is_clipped(value: float, old: float, wanted: float) -> bool:
        return abs(clip(value, old - clip_range, old + clip_range) - wanted) > abs(value - wanted)

    def slope(value: float, old: float, wanted: float) -> float:
        return 0.0 if is_clipped(value, old, wanted) else value - wanted

    seen = set()
    for batch in batches(dtype):
        old, returns = batch.draw(std=0.3), batch.draw()
        values = batch.draw(std=0.3).requires_grad_()
        columns = [batch.rows(column) for column in (values, old, returns)]
        loss, clipped = ppo.value_loss(values, old, returns, clip_range)
        batch.assert_equal(loss, each(loss_of, *columns))
        batch.assert_equal(gradient(loss, values, batch), each(slope, *columns))
        assert clipped.dtype == torch.bool
        assert batch.rows(clipped) == each(is_clipped, *columns)
        seen.update(zip(flat(each(is_clipped, *columns)), flat(each(lambda v, o, _: v > o, *columns)), strict=True))
    assert len(seen) == 4  # clipped or not, upwards and downwards


@pytest.mark.parametrize(
    ("value", "wanted", "loss", "clipped", "slope"),
    [
        (1.5, 2.0, 0.5 * 0.8**2, True, 0.0),
        (1.5, -2.0, 0.5 * 3.5**2, False, 3.5),
        (0.5, 2.0, 0.5 * 1.5**2, False, -1.5),
        (0.5, -2.0, 0.5 * 2.8**2, True, 0.0),
        (1.1, 2.0, 0.5 * 0.9**2, False, -0.9),
        (1.0, 2.0, 0.5, False, -1.0),
    ],
)
def test_value_loss_by_hand(
    ppo: ModuleType, value: float, wanted: float, loss: float, clipped: bool, slope: float
) -> None:
    """The value was 1 at the rollout, the clip range is 0.2."""
    values = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
    found, is_clipped = ppo.value_loss(values, torch.ones_like(values), torch.full_like(values, wanted), 0.2)
    assert found.item() == pytest.approx(loss)
    assert is_clipped.item() is clipped
    assert torch.autograd.grad(found.sum(), values)[0].item() == pytest.approx(slope)


# What is logged, and what it steers


@both_dtypes
def test_explained_variance(ppo: ModuleType, dtype: torch.dtype) -> None:
    for batch in batches(dtype):
        returns = batch.draw(mean=1.0, std=2.0)
        values = 0.5 * returns + batch.draw(std=0.5)
        columns = [batch.rows(column) for column in (values, returns)]
        rest = flat(each(lambda value, wanted: wanted - value, *columns))
        expected = 1 - statistics.pvariance(rest) / statistics.pvariance(flat(columns[1]))
        found = ppo.explained_variance(values, returns, batch.mask)
        assert isinstance(found, float)
        assert found == pytest.approx(expected, **EXACT)


def test_explained_variance_by_hand(ppo: ModuleType) -> None:
    returns, mask = torch.tensor([[1.0, 2.0, 3.0], [4.0, 9.0, 9.0]]), torch.tensor([[True] * 3, [True, False, False]])
    assert ppo.explained_variance(returns, returns, mask) == 1.0
    assert ppo.explained_variance(returns + 3, returns, mask) == 1.0  # an offset is no variance
    assert ppo.explained_variance(torch.full_like(returns, 7.0), returns, mask) == 0.0
    assert ppo.explained_variance(-returns, returns, mask) == -3.0


@both_dtypes
@pytest.mark.parametrize("constant", [0.0, 0.1, -7.3, 1e4])
def test_nothing_explains_returns_that_are_all_the_same(ppo: ModuleType, dtype: torch.dtype, constant: float) -> None:
    for batch in batches(dtype):
        returns = torch.full((len(batch.lengths), batch.width), constant, dtype=dtype)
        assert math.isnan(ppo.explained_variance(batch.draw(), returns, batch.mask))


def test_adapt(ppo: ModuleType) -> None:
    """arXiv 1909.08593, section 2.2."""
    chance = random.Random(0)
    for _ in range(200):
        coefficient, target, kl = chance.uniform(0.01, 1), chance.uniform(0.1, 10), chance.uniform(-1, 20)
        error = clip((kl - target) / target, -0.2, 0.2)
        found = ppo.adapt(coefficient, kl, target)
        assert isinstance(found, float)
        assert found == pytest.approx(coefficient * (1 + 0.1 * error), rel=1e-12)


@pytest.mark.parametrize(
    ("kl", "factor"),
    [(6.6, 1.01), (5.4, 0.99), (7.2, 1.02), (7.3, 1.02), (1e9, 1.02), (4.8, 0.98), (0.0, 0.98), (-3.0, 0.98)],
)
def test_adapt_by_hand(ppo: ModuleType, kl: float, factor: float) -> None:
    """A target of 6 nats: a step of 2 % at most on both sides, and none at the target."""
    assert ppo.adapt(0.15, kl, 6.0) == pytest.approx(0.15 * factor, rel=1e-12)
    assert ppo.adapt(0.15, 6.0, 6.0) == 0.15


# Of all


def results(ppo: ModuleType, batch: Batch, kl: Tensor, values: Tensor) -> list[Tensor]:
    """Whatever has a mask, and both losses as they are used."""
    mask, scores = batch.mask, torch.ones(len(batch.lengths), dtype=batch.dtype)
    rewards = ppo.token_rewards(scores, kl, mask, 0.1)
    advantages, returns = ppo.gae(rewards, values, mask, gamma=0.99, lam=0.95)
    losses = [*ppo.policy_loss(kl, values, advantages, 0.2), *ppo.value_loss(values, kl, returns, 0.2)]
    return [
        rewards,
        advantages,
        returns,
        ppo.whiten(kl, mask),
        ppo.whiten(kl, mask, shift_mean=False),
        *(ppo.masked_mean(loss.to(batch.dtype), mask) for loss in losses),
        ppo.masked_mean(ppo.kl_penalty(kl, values, "k3"), mask),
        torch.tensor(ppo.explained_variance(values, kl, mask)),
    ]


@both_dtypes
def test_nothing_depends_on_what_the_padding_holds(ppo: ModuleType, dtype: torch.dtype) -> None:
    for batch in batches(dtype):
        kl, values = batch.draw(), batch.draw()
        expected = results(ppo, batch, kl, values)
        for padding in PADDINGS:
            filled = (tensor.masked_fill(~batch.mask, padding) for tensor in (kl, values))
            for found, wanted in zip(results(ppo, batch, *filled), expected, strict=True):
                assert torch.equal(found, wanted)


def test_a_completion_that_is_left_out_counts_for_nothing(ppo: ModuleType) -> None:
    """The trainer masks the whole row of one that could not be graded."""
    for batch in batches(torch.float64):
        mask, kept = batch.mask, torch.arange(len(batch.lengths)) > 0
        values, returns = batch.draw(), batch.draw()
        used = mask & kept[:, None]
        assert torch.equal(ppo.whiten(values, used)[kept], ppo.whiten(values[kept], mask[kept]))
        assert not ppo.whiten(values, used)[~kept].any()
        assert ppo.masked_mean(values, used) == ppo.masked_mean(values[kept], mask[kept])
        found = ppo.explained_variance(values, returns, used)
        assert found == pytest.approx(ppo.explained_variance(values[kept], returns[kept], mask[kept]), nan_ok=True)


def test_inputs_stay_as_they_are(ppo: ModuleType) -> None:
    for batch in batches(torch.float32):
        inputs = [tensor.nan_to_num() for tensor in (batch.draw(), batch.draw())]
        copies = [tensor.clone() for tensor in inputs]
        results(ppo, batch, *inputs)
        assert all(torch.equal(tensor, copy) for tensor, copy in zip(inputs, copies, strict=True))


@both_dtypes
def test_padding_gets_no_gradient(ppo: ModuleType, dtype: torch.dtype) -> None:
    for batch in batches(dtype):
        mask = batch.mask
        logp, old_logp, advantages = (batch.draw().masked_fill(~mask, padding) for padding in (-1.0, -1.5, 1e9))
        loss, _ = ppo.policy_loss(logp.requires_grad_(), old_logp, advantages, 0.2)
        expected = gradient(loss, logp, batch) / mask.sum()
        (found,) = torch.autograd.grad(ppo.masked_mean(loss, mask), logp)
        batch.assert_equal_and_zero_elsewhere(found, batch.rows(expected))
