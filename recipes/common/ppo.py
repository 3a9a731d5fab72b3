"""PPO that fits one card: one trunk in memory, and four models on it.

The policy is a LoRA adapter, "default". The reference is the trunk with that adapter switched off or, where training
starts from an adapter, a frozen copy of it, "ref". The value function is an adapter of its own, "value", under a head
that writes one number a token. A reward model trained on the same trunk is a fourth adapter (rewards/reward_model.py).
Policy and value share no trained weight, so their losses are differentiated one after the other: the activations of one
pass are all that is ever held, and either has a learning rate of its own where the papers weigh two losses.

One step of `PPOTrainer` is one update: rollouts, rewards, and `ppo_epochs` over them in minibatches. It is a
`transformers.Trainer`, whose callbacks, trackers and checkpoints work as everywhere.

Formulas: PPO, arXiv 1707.06347; for language models Ziegler et al. 2019, arXiv 1909.08593; details that decide whether
it works, Huang et al. 2024, arXiv 2403.17031. Imports transformers: recipes import it inside functions, after unsloth.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments
from trl.trainer.utils import entropy_from_logits, pad, selective_log_softmax, use_adapter

from eval.sampling import Completion, Sampler, evaluate
from recipes.common.args import PPOArgs
from recipes.common.callbacks import NotFinite
from recipes.common.grpo import Policy
from recipes.common.models import WEIGHTS
from recipes.common.preference import freeze_reference, reference_policy
from rewards.contract import Reward

if TYPE_CHECKING:
    from datasets import Dataset

VALUE = "value"  # the adapter, and the file of a checkpoint that holds it

# Formulas. Tensors are [completions, tokens], padded on the right; `mask` is True on a completion's tokens, its end
# token included, of which there is at least one.


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask`."""
    return values[mask].mean()


def whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """`values` scaled to variance 1 over all that `mask` holds, of all completions at once; 0 elsewhere.

    Moved to mean 0 too, unless `shift_mean` is False: rewards keep their mean, for a shifted one would pay for length.
    """
    found = values[mask]
    mean, variance = found.mean(), found.var() if len(found) > 1 else found.new_zeros(())
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask, whitened if shift_mean else whitened + mean, 0)


def kl_penalty(logp: Tensor, reference_logp: Tensor, estimator: Literal["k1", "k3"]) -> Tensor:
    """What a sampled token tells of KL(policy || reference), in nats.

    Both estimators are unbiased. k1, the log ratio, is what Ziegler et al. take off the reward; k3 is never negative
    and varies less (Schulman 2020, joschu.net/blog/kl-approx.html).
    """
    log_ratio = reference_logp - logp
    return -log_ratio if estimator == "k1" else torch.expm1(log_ratio) - log_ratio


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, coefficient: float) -> Tensor:
    """The reward of each token: its KL penalty, and at a completion's last token what the completion scored."""
    rewards = torch.where(mask, -coefficient * kl, 0)
    rows = torch.arange(len(mask), device=mask.device)
    rewards[rows, mask.sum(dim=1) - 1] += scores
    return rewards


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantages (arXiv 1506.02438, equation 16) and returns, the value function's targets; 0 outside.

    Over a completion's tokens only: nothing comes after its last one, and padding has no value.
    """
    rewards, values = torch.where(mask, rewards, 0), torch.where(mask, values, 0)
    following = torch.cat([values[:, 1:], values.new_zeros(len(values), 1)], dim=1)
    errors = rewards + gamma * following - values
    advantages, carried = torch.zeros_like(values), values.new_zeros(len(values))
    for t in reversed(range(values.shape[1])):
        carried = errors[:, t] + gamma * lam * carried
        advantages[:, t] = carried
    return advantages, advantages + values


def policy_loss(logp: Tensor, old_logp: Tensor, advantages: Tensor, clip_range: float) -> tuple[Tensor, Tensor]:
    """The clipped surrogate loss of each token (arXiv 1707.06347, equation 7), and where clipping decides it."""
    ratio = (logp - old_logp).exp()
    free, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(free, clipped), clipped > free


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float) -> tuple[Tensor, Tensor]:
    """Half the squared error of each token's value, clipped around the old one (arXiv 2403.17031), and where clipping
    decides it."""
    near = values.clamp(old_values - clip_range, old_values + clip_range)
    free, clipped = (values - returns) ** 2, (near - returns) ** 2
    return 0.5 * torch.maximum(free, clipped), clipped > free


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 where values foretell returns, 0 where they do no better than a constant, below where worse; nan where all
    returns are equal."""
    found = returns[mask]
    if found.max() == found.min():
        return math.nan
    return float(1 - (found - values[mask]).var(correction=0) / found.var(correction=0))


def adapt(coefficient: float, kl: float, target: float) -> float:
    """The next KL coefficient: the proportional controller of arXiv 1909.08593, section 2.2.

    `kl` and `target` in nats a completion.
    """
    error = min(max((kl - target) / target, -0.2), 0.2)
    return coefficient * (1 + 0.1 * error)


@dataclass
class PPOConfig(TrainingArguments):
    """Of `PPOTrainer`. `per_device_train_batch_size` is the number of completions of an update, one for each prompt;
    `learning_rate` is the policy's."""

    remove_unused_columns: bool = False  # the reward may read any
    value_learning_rate: float = 1e-5
    ppo_epochs: int = 4
    """Passes over the completions of an update"""
    minibatch_size: int = 16
    """Completions of an optimiser step"""
    micro_batch_size: int = 8
    """Completions that are differentiated at once"""
    max_completion_length: int = 128
    temperature: float = 1.0
    """Of the rollouts and, as it must be, of the log-probabilities that are trained"""
    kl_coefficient: float = 0.05
    kl_estimator: Literal["k1", "k3"] = "k1"
    target_kl: float | None = None
    """Nats a completion that the coefficient is adapted to; None keeps it fixed"""
    max_update_kl: float | None = None
    """Nats a token by which the policy may move in one update, before the rest of it is left out"""
    clip_range: float = 0.2
    value_clip_range: float = 0.2
    gamma: float = 1.0
    lam: float = 0.95
    score_clip: float | None = None
    """Largest magnitude of a completion's score"""
    whiten_rewards: bool = False
    missing_end_penalty: float = 1.0
    """Taken off the score of a completion that the length limit cut off"""
    mask_truncated: bool = False
    """Learn nothing from those"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.minibatch_size % self.micro_batch_size:
            raise ValueError(
                f"a minibatch of {self.minibatch_size} is no multiple of the {self.micro_batch_size} completions that "
                "are differentiated at once: change either"
            )
        if self.temperature <= 0:
            raise ValueError(f"PPO samples at a temperature above 0, not at {self.temperature}")


@dataclass
class MicroBatch:
    """Completions of similar length, read together in every pass of an update, so that rounding is the same in all."""

    rows: Tensor
    """Where they stand in the update: [b]"""
    ids: Tensor
    """Prompts, padded on the left, and completions, padded on the right: [b, prompt + width]"""
    attention: Tensor
    """True where `ids` is no padding"""
    width: int
    """Tokens of the longest completion"""

    @property
    def completions(self) -> Tensor:
        return self.ids[:, -self.width :]


class PPOTrainer(Trainer):
    """PPO with a policy, a reference and a value function on one trunk; see the module.

    Args:
        model: a PEFT model whose adapter "default" is the policy. It gets an adapter and a head for its value.
        reward: `reward(prompts, completions, **columns) -> list[float | None]`, as for GRPO; any number. None leaves
            a completion out.
        args: see `PPOConfig`.
        sampler: writes the rollouts; it must sample from the whole distribution, as those of eval/sampling.py do.
        train_dataset: `prompt`, messages, and what the reward reads.
        processing_class: the tokenizer.
    """

    args: PPOConfig
    optimizer: Any

    def __init__(
        self,
        model: Any,
        reward: Reward,
        args: PPOConfig,
        sampler: Sampler,
        *,
        train_dataset: Any,
        processing_class: Any,
        **kwargs: Any,
    ) -> None:
        add_value_function(model, args.seed)
        switch_off_dropout(model)
        self.reward, self.sampler = reward, sampler
        self.kl_coefficient = args.kl_coefficient
        self.figures: dict[str, float] = {}
        self.tokens = 0
        self.moved = False  # whether this update has changed a weight yet
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            processing_class=processing_class,
            data_collator=lambda rows: {"rows": rows},
            **kwargs,
        )

    # One update

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """An update but for the optimiser's last step, which is left to `Trainer`, as are schedule and logging."""
        rows, args = inputs["rows"], self.args
        written = self._roll_out([row["prompt"] for row in rows])
        scores, graded = self._score(rows, written)
        model.train()
        batches = self._micro_batches(rows, written)
        old_logp, entropy = self._stack(batches, self._policy)
        with reference_policy(self.model):
            (reference_logp,) = self._stack(batches, lambda batch: (self._logp(batch),))
        (values,) = self._stack(batches, lambda batch: (self._values(batch),))

        lengths = torch.tensor([completion.tokens for completion in written], device=old_logp.device)
        mask = torch.arange(old_logp.shape[1], device=lengths.device) < lengths[:, None]
        truncated = torch.tensor([completion.truncated for completion in written], device=lengths.device)
        final = scores if args.score_clip is None else scores.clamp(-args.score_clip, args.score_clip)
        final = final - args.missing_end_penalty * truncated
        kl = kl_penalty(old_logp, reference_logp, args.kl_estimator)
        rewards = token_rewards(final, kl, mask, self.kl_coefficient)
        learned = graded & ~truncated if args.mask_truncated else graded
        if not learned.any():
            raise ValueError(
                f"nothing to learn from in update {self.state.global_step + 1}: of {len(rows)} completions "
                f"{int(truncated.sum())} were cut off at {args.max_completion_length} tokens and "
                f"{int((~graded).sum())} could not be graded; allow longer completions, or mend the reward"
            )
        used = mask & learned[:, None]
        if args.whiten_rewards:
            rewards = whiten(rewards, used, shift_mean=False)
        advantages, returns = gae(rewards, values, mask, gamma=args.gamma, lam=args.lam)
        advantages = whiten(advantages, used)
        log_ratio = torch.where(mask, old_logp - reference_logp, 0)
        self.tokens += sum(int(batch.attention.sum()) for batch in batches)
        self.figures = {
            "score": float(scores[graded].mean()),
            "score_std": float(scores[graded].std(correction=0)),
            "kl": float(masked_mean(kl, mask)),
            "kl_per_completion": float(log_ratio.sum(dim=1).mean()),
            "kl_coefficient": self.kl_coefficient,
            "entropy": float(masked_mean(entropy, mask)),
            "explained_variance": explained_variance(values, returns, used),
            "length": float(lengths.float().mean()),
            "truncated": float(truncated.float().mean()),
            "ungraded": int((~graded).sum()),
            "num_tokens": self.tokens,
        }
        if args.target_kl is not None:
            self.kl_coefficient = adapt(self.kl_coefficient, self.figures["kl_per_completion"], args.target_kl)
        old = {"logp": old_logp, "values": values, "advantages": advantages, "returns": returns, "mask": used}
        return self._learn(batches, old)

    def _roll_out(self, prompts: list[Any]) -> list[Completion]:
        size, written = self.sampler.batch_size, []
        for start in range(0, len(prompts), size):
            # Seeded by the update, so that one that is made again after a kill is made alike.
            seed = self.args.seed + 100_003 * (self.state.global_step + 1) + start
            written += self.sampler.sample(
                prompts[start : start + size],
                temperature=self.args.temperature,
                max_tokens=self.args.max_completion_length,
                seed=seed,
            )
        return written

    def _score(self, rows: list[dict[str, Any]], written: Sequence[Completion]) -> tuple[Tensor, Tensor]:
        """What the reward gives each completion, 0 where it gives None, and whether it gave any: [b] each."""
        columns = {name: [row[name] for row in rows] for name in rows[0] if name not in ("prompt", "completion")}
        messages = [[{"role": "assistant", "content": completion.text}] for completion in written]
        found = self.reward(prompts=[row["prompt"] for row in rows], completions=messages, **columns)
        if len(found) != len(rows):
            raise ValueError(f"the reward gave {len(found)} scores for {len(rows)} completions, expected one for each")
        if wrong := [score for score in found if score is not None and not math.isfinite(score)]:
            raise ValueError(f"the reward gave a completion {wrong[0]}, expected a finite number or None: mend it")
        scores = torch.tensor([float(score or 0.0) for score in found], device=self.args.device)
        return scores, torch.tensor([score is not None for score in found], device=self.args.device)

    def _micro_batches(self, rows: list[dict[str, Any]], written: Sequence[Completion]) -> list[MicroBatch]:
        asked = self.processing_class.apply_chat_template(
            [row["prompt"] for row in rows], add_generation_prompt=True, return_dict=False
        )
        order = sorted(range(len(rows)), key=lambda row: len(asked[row]) + written[row].tokens)
        return [
            self._micro_batch(chosen, [asked[row] for row in chosen], [written[row].ids for row in chosen])
            for start in range(0, len(order), self.args.micro_batch_size)
            for chosen in [order[start : start + self.args.micro_batch_size]]
        ]

    def _micro_batch(self, rows: list[int], asked: list[list[int]], written: list[tuple[int, ...]]) -> MicroBatch:
        prompts = pad([torch.tensor(ids) for ids in asked], padding_value=-1, padding_side="left")
        completions = pad([torch.tensor(ids) for ids in written], padding_value=-1)
        ids = torch.cat([prompts, completions], dim=1).to(self.args.device)
        attention = ids >= 0
        return MicroBatch(
            rows=torch.tensor(rows, device=ids.device),
            ids=ids.where(attention, self.processing_class.pad_token_id),
            attention=attention,
            width=completions.shape[1],
        )

    def _stack(self, batches: Sequence[MicroBatch], read: Callable[[MicroBatch], tuple[Tensor, ...]]) -> list[Tensor]:
        """What `read` finds for every token of every completion, [completions, longest], without a gradient."""
        size = sum(len(batch.rows) for batch in batches), max(batch.width for batch in batches)
        stacked: list[Tensor] = []
        with torch.no_grad():
            for batch in batches:
                found = read(batch)
                stacked = stacked or [tokens.new_zeros(size) for tokens in found]
                for whole, tokens in zip(stacked, found, strict=True):
                    whole[batch.rows, : batch.width] = tokens
        return stacked

    def _policy(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Log-probability of each token of the completions and entropy before it, in nats: [b, width] each."""
        logits = self._logits(batch)
        return selective_log_softmax(logits, batch.completions), entropy_from_logits(logits)

    def _logp(self, batch: MicroBatch) -> Tensor:
        """The former alone, for less time: [b, width]."""
        return selective_log_softmax(self._logits(batch), batch.completions)

    def _logits(self, batch: MicroBatch) -> Tensor:
        output = self.model(
            input_ids=batch.ids, attention_mask=batch.attention, logits_to_keep=batch.width + 1, use_cache=False
        )
        logits = output.logits[:, -batch.width - 1 : -1].float()
        return logits if self.args.temperature == 1 else logits / self.args.temperature  # spare a copy

    def _values(self, batch: MicroBatch) -> Tensor:
        """What is still to come before each token of the completions is written: [b, width]."""
        base = self.model.get_base_model()
        with use_adapter(self.model, VALUE):
            # On a GPU, Unsloth's decoder heeds the padding because a pass through the whole model came before.
            with self.accelerator.autocast():
                states = base.get_decoder()(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False)
            return self.model.value_head(states.last_hidden_state[:, -batch.width - 1 : -1].float()).squeeze(-1)

    def _learn(self, batches: list[MicroBatch], old: dict[str, Tensor]) -> Tensor:
        """Every epoch and minibatch but for the last step of the optimiser; returns the mean loss."""
        args = self.args
        found: list[dict[str, float]] = []
        self.moved = False
        for minibatch in self._minibatches([batch for batch in batches if old["mask"][batch.rows].any()]):
            if found:
                if args.max_grad_norm > 0:
                    self._clip_grad_norm(self.model)
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.moved = True
            found.append(self._differentiate(minibatch, old))
            for name in ("policy_loss", "value_loss"):
                self._expect_finite(found[-1][name], name.replace("_", " "))
            # As in CleanRL, the minibatch that shows it is the last to be learned from.
            if args.max_update_kl is not None and found[-1]["approx_kl"] > args.max_update_kl:
                break
        means = {name: sum(line[name] for line in found) / len(found) for name in found[0]}
        once = {"approx_kl": found[-1]["approx_kl"], "ratio_error": found[0]["ratio_error"], "minibatches": len(found)}
        self.figures |= means | once
        return torch.tensor(means["policy_loss"] + means["value_loss"], device=args.device)

    def _minibatches(self, batches: list[MicroBatch]) -> Iterator[list[MicroBatch]]:
        generator = torch.Generator().manual_seed(self.args.seed + self.state.global_step)
        together = max(1, self.args.minibatch_size // self.args.micro_batch_size)
        for _ in range(self.args.ppo_epochs):
            order = torch.randperm(len(batches), generator=generator).tolist()
            for start in range(0, len(order), together):
                yield [batches[i] for i in order[start : start + together]]

    def _differentiate(self, batches: list[MicroBatch], old: dict[str, Tensor]) -> dict[str, float]:
        """Add the gradients of one minibatch, in which every token weighs the same; returns its means over tokens."""
        args, masks = self.args, [old["mask"][batch.rows, : batch.width] for batch in batches]
        count = sum(int(mask.sum()) for mask in masks)  # at least one: what has none was left out
        sums = dict.fromkeys(("policy_loss", "value_loss", "clip_fraction", "value_clip_fraction", "approx_kl"), 0.0)
        ratio_error = 0.0
        for batch, mask in zip(batches, masks, strict=True):
            logp0, values0, advantages, returns = (
                old[name][batch.rows, : batch.width] for name in ("logp", "values", "advantages", "returns")
            )
            logp = self._logp(batch)
            losses, clipped = policy_loss(logp, logp0, advantages, args.clip_range)
            loss = losses[mask].sum() / count
            self.accelerator.backward(loss)
            sums["policy_loss"] += float(loss.detach())
            sums["clip_fraction"] += float(clipped[mask].sum()) / count
            logp, logp0 = logp.detach()[mask], logp0[mask]
            sums["approx_kl"] += float(kl_penalty(logp0, logp, "k3").sum()) / count
            ratio_error = max(ratio_error, float((logp - logp0).expm1().abs().max()))
            del logp, losses  # and with them the activations, before there are others
            with use_adapter(self.model, VALUE):  # also for its backward pass, where checkpoints are computed again
                losses, clipped = value_loss(self._values(batch), values0, returns, args.value_clip_range)
                loss = losses[mask].sum() / count
                self.accelerator.backward(loss)
            sums["value_loss"] += float(loss.detach())
            sums["value_clip_fraction"] += float(clipped[mask].sum()) / count
        return {**sums, "ratio_error": ratio_error}

    # What `Trainer` asks for

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            optimizer, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            policy, value = trained_parameters(self.model)
            groups = [{"params": policy}, {"params": value, "lr": self.args.value_learning_rate}]
            self.optimizer = optimizer(groups, weight_decay=self.args.weight_decay, **settings)
        return self.optimizer

    def _clip_grad_norm(self, model: Any) -> Tensor:
        """Policy and value apart, since a large error of one must not shrink the step of the other; returns the norm of
        the policy's gradient."""
        self.accelerator.unscale_gradients()
        policy, value = (
            torch.nn.utils.clip_grad_norm_(parameters, self.args.max_grad_norm)
            for parameters in trained_parameters(self.model)
        )
        if self.accelerator.scaler is None:  # which leaves such a step out; see `callbacks.FiniteSteps`
            self._expect_finite(float(policy), "policy gradient")
            self._expect_finite(float(value), "value gradient")
        self.figures["value_grad_norm"] = float(value)
        return policy

    def _expect_finite(self, value: float, what: str) -> None:
        if not math.isfinite(value):
            raise NotFinite(what, self.state.global_step + 1, before_update=not self.moved)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log({**logs, **self.figures} if "loss" in logs else logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # of a batch that is not tokens yet there is nothing to count

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        folder = Path(output_dir or self.args.output_dir)
        self.model.save_pretrained(str(folder), selected_adapters=["default"])
        adapter = get_peft_model_state_dict(self.model, adapter_name=VALUE)
        rest = {
            "value_head.weight": self.model.value_head.weight,
            "kl_coefficient": torch.tensor(self.kl_coefficient, dtype=torch.float64),
            "num_tokens": torch.tensor(self.tokens),
        }
        save_file({**adapter, **rest}, folder / f"{VALUE}.safetensors")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        folder = Path(resume_from_checkpoint)
        set_peft_model_state_dict(self.model, load_file(folder / WEIGHTS))
        value = load_file(folder / f"{VALUE}.safetensors")
        self.kl_coefficient, self.tokens = float(value.pop("kl_coefficient")), int(value.pop("num_tokens"))
        self.model.value_head.weight.data.copy_(value.pop("value_head.weight"))
        set_peft_model_state_dict(self.model, value, adapter_name=VALUE)


def prepare(
    args: PPOArgs, policy: Policy, train: "Dataset", test: "Dataset", rated_by: Callable[[Any], Reward]
) -> tuple["Dataset", "Dataset", Reward]:
    """What training and evaluation read: the rows whose prompts fit, with references for PairRM, and the reward.

    With `--start-from`, the adapter as it is now becomes the reference policy.
    """
    if args.start_from:
        freeze_reference(policy.model)
    refer = partial(add_references, args.pairrm_reference, policy.rollouts.sampler, args.max_completion_length)
    train, test = policy.fitting(train), policy.fitting(test)
    return refer(train, "train"), refer(test, "held out"), rated_by(policy.model)


def trainer(policy: Policy, reward: Reward, config: PPOConfig, train: "Dataset") -> PPOTrainer:
    """`PPOTrainer`, which rolls out through this policy's engine."""
    sampler = policy.rollouts.sampler
    return PPOTrainer(policy.model, reward, config, sampler, train_dataset=train, processing_class=policy.tokenizer)


def add_references(
    source: Literal["dataset", "greedy"], sampler: Sampler, max_tokens: int, dataset: "Dataset", name: str
) -> "Dataset":
    """`dataset` with the column `reference`, the response to each prompt that PairRM compares a completion with.

    "dataset": the column `answer`. "greedy": what the policy writes now, before training; again when a run is resumed,
    and the same. `name` is what the progress line calls the dataset.
    """
    if source == "dataset":
        return dataset.add_column("reference", dataset["answer"][:])
    stage = f"greedy references, {name}"
    written = evaluate(sampler, dataset, [], [], stage=stage, max_tokens=max_tokens, seed=0)
    return dataset.add_column("reference", [record["completion"] for record in written])


def add_value_function(model: Any, seed: int) -> None:
    """Give `model` an adapter of the policy's shape and a head, both in float32, as its value function.

    The head starts at zero: the first update's baseline is 0, and not the noise of a random one.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.add_adapter(VALUE, model.peft_config["default"])
    model.set_adapter("default")
    hidden = model.get_base_model().config.get_text_config().hidden_size
    head = torch.nn.Linear(hidden, 1, bias=False, device=model.device)
    torch.nn.init.zeros_(head.weight)
    model.value_head = head
    for parameter in trained_parameters(model)[1]:
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)  # for those who count what is trained; PEFT sees to it when it switches


def switch_off_dropout(model: Any) -> None:
    """All of it: noise between two passes of one policy would look like a step (arXiv 2403.17031)."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "activation_dropout"):  # OPT's and others' are mere numbers
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def trained_parameters(model: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Those of the policy and those of the value function."""
    policy, value = [], [model.value_head.weight]
    for name, parameter in model.named_parameters():
        if ".default." in name:
            policy.append(parameter)
        elif f".{VALUE}." in name:
            value.append(parameter)
    return policy, value
