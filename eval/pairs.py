"""What a policy thinks of held-out pairs, a chosen and a rejected response to one prompt: whether its reward ranks them
right, by how much, and how far the policy has moved from its reference.

The reward is the one that the method trains, `beta * (log policy - log reference)` of a response (DPO, arXiv
2305.18290, section 4), or `beta` times the mean log-probability of its tokens where there is no reference (SimPO,
arXiv 2405.14734, section 2.2; ORPO ranks by the same mean).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval.likelihood import by_length, completion_nll, encode, forward
from eval.metrics import PREFERENCE
from eval.results import Record, Records

if TYPE_CHECKING:
    from datasets import Dataset

SCORES = (PREFERENCE, "reward_margin", "chosen_logp", "rejected_logp")
BATCH = 4  # rows read at once
POSITIONS = 64  # in float32 at once: over 128,000 words of vocabulary, 33 MB for each of a few copies


@dataclass(frozen=True, slots=True)
class PairLogps:
    """Log-probabilities of both responses of a pair, in nats, summed over their tokens, and how many these are."""

    chosen: float
    rejected: float
    chosen_tokens: int
    rejected_tokens: int


def pair_logps(model: Any, tokenizer: Any, dataset: "Dataset", *, max_length: int | None = None) -> list[PairLogps]:
    """Log-probability of every `chosen` and every `rejected` after its `prompt`, the end of the turn included.

    Prompt and response together are cut at `max_length` tokens, as in training: 0 tokens where the prompt fills it.
    Raises ValueError as `eval.likelihood.encode`.
    """
    chosen, rejected = (
        completion_nll(model, tokenizer, _answers(dataset, side), max_length=max_length, batch_size=BATCH)
        for side in ("chosen", "rejected")
    )
    return [
        PairLogps(-good["nll"], -bad["nll"], int(good["nll_tokens"]), int(bad["nll_tokens"]))
        for good, bad in zip(chosen, rejected, strict=True)
    ]


def preference_scores(
    logps: Sequence[PairLogps], *, beta: float, reference: Sequence[Record] | None = None, per_token: bool = False
) -> list[dict[str, float | None]]:
    """The scores of every pair, by name, for `eval.sampling.evaluate(..., extra=...)`:

    - "preference_accuracy": 1.0 where the chosen response has the higher reward, 0.0 the lower, 0.5 both the same
    - "reward_margin": the chosen response's reward less the rejected one's
    - "chosen_logp", "rejected_logp", in nats: of the whole response, or with `per_token` the mean of its tokens

    All are None for a pair of which a response has no token left: neither right nor wrong.

    `logps` are the pairs as this stage's policy sees them, and `beta` is the method's, which scales rewards and no
    ranking. `reference` has the records of the stage in which the policy was the reference, one greedy record a pair
    with these scores; None in that stage itself, where every reward is 0 and every pair a tie. With `per_token` the
    method has no reference, and `reference` is not read. Raises ValueError where it holds other pairs than `logps`, or
    was measured otherwise.

    >>> before, after = PairLogps(-8.0, -7.0, 4, 5), PairLogps(-7.0, -9.0, 4, 5)
    >>> preference_scores([before], beta=0.1)[0]["preference_accuracy"]
    0.5
    >>> preference_scores([after], beta=0.1, per_token=True)[0]["chosen_logp"]
    -1.75
    """
    known = None if per_token or reference is None else _logps_of(reference, len(logps))
    scores: list[dict[str, float | None]] = []
    for index, pair in enumerate(logps):
        if not (pair.chosen_tokens and pair.rejected_tokens):
            scores.append(dict.fromkeys(SCORES))
            continue
        chosen, rejected = pair.chosen, pair.rejected
        if per_token:
            chosen, rejected = chosen / pair.chosen_tokens, rejected / pair.rejected_tokens
            margin = beta * (chosen - rejected)
        elif known is None:
            margin = 0.0
        else:
            old_chosen, old_rejected = known[index]
            if old_chosen is None or old_rejected is None:
                raise ValueError(
                    f"pair {index} has log-probabilities now and had none in the reference's records: measure both "
                    "stages with the same tokenizer and --max-length"
                )
            margin = beta * ((chosen - old_chosen) - (rejected - old_rejected))
        ranked = ((margin > 0) - (margin < 0) + 1) / 2
        scores.append(dict(zip(SCORES, (ranked, margin, chosen, rejected), strict=True)))
    return scores


def measure_pairs(
    model: Any,
    tokenizer: Any,
    dataset: "Dataset",
    *,
    beta: float,
    before: Sequence[Record] | None,
    reference: Callable[[], AbstractContextManager[Any]],
    max_length: int | None = None,
    per_token: bool = False,
) -> list[dict[str, float | None]]:
    """`preference_scores` of the held-out pairs, and "kl_per_token", how far the policy has moved (`token_kl`).

    `before` has the records of the stage before training; None in that stage itself, where the policy is the reference.
    Not so with `per_token`: training may start away from the model that the KL is then taken to. The rest is as for the
    functions named, which also say what is raised.
    """
    logps = pair_logps(model, tokenizer, dataset, max_length=max_length)
    scores = preference_scores(logps, beta=beta, reference=before, per_token=per_token)
    moved: Sequence[float | None] = [0.0] * len(scores)
    if before is not None or per_token:
        moved = token_kl(model, tokenizer, dataset, reference, max_length=max_length)
    return [{**own, "kl_per_token": kl} for own, kl in zip(scores, moved, strict=True)]


def reward_records(dataset: "Dataset", chosen: Sequence[float], rejected: Sequence[float], *, stage: str) -> Records:
    """The records of a stage of a reward model, which scores held-out pairs and writes nothing.

    `chosen` and `rejected` are the rewards of both responses to the `question` of each row, which also has `answer`.
    """
    return [
        {
            "stage": stage,
            "kind": "greedy",
            "index": index,
            "sample": 0,
            "question": row["question"],
            "gold": row["answer"],
            "completion": "",
            "tokens": 0,
            "truncated": False,
            "scores": {
                PREFERENCE: ((good > bad) - (good < bad) + 1) / 2,
                "reward_margin": good - bad,
                "chosen_reward": good,
                "rejected_reward": bad,
            },
            "reward": None,
        }
        for index, (row, good, bad) in enumerate(zip(dataset, chosen, rejected, strict=True))
    ]


def token_kl(
    model: Any,
    tokenizer: Any,
    dataset: "Dataset",
    reference: Callable[[], AbstractContextManager[Any]],
    *,
    max_length: int | None = None,
) -> list[float | None]:
    """KL(policy || reference) of the next token, in nats, averaged over the tokens of every `chosen` response.

    Exact: over the whole vocabulary at each position, the response read and not sampled. Never negative, and 0.0
    where the two agree to the bit, as with an untrained LoRA. None where `max_length` leaves no token of the response.
    `reference` opens a context in which `model` is the reference, by `recipes.common.adapters.base` its adapter
    switched off. Raises ValueError as `eval.likelihood.encode`.
    """
    from torch.nn.functional import kl_div

    rows = encode(tokenizer, _answers(dataset, "chosen"), max_length)

    def read(batch: Sequence[int]) -> list[float | None]:
        padded = [rows[index][0] for index in batch]
        policy = forward(model, tokenizer, padded)
        with reference():
            base = forward(model, tokenizer, padded)
        return [kl(*rows[index], *logits) for index, *logits in zip(batch, policy, base, strict=True)]

    def kl(ids: list[int], start: int, own: Any, others: Any) -> float | None:
        if start >= len(ids):
            return None
        answer = slice(start - 1, len(ids) - 1)
        nats = sum(
            kl_div(q.float().log_softmax(-1), p.float().log_softmax(-1), log_target=True, reduction="sum").item()
            for p, q in zip(own[answer].split(POSITIONS), others[answer].split(POSITIONS), strict=True)
        )
        return max(0.0, nats / (len(ids) - start))  # rounding can make -1e-9 of next to nothing

    return by_length(read, [ids for ids, _ in rows], BATCH)


def _answers(dataset: "Dataset", side: str) -> "Dataset":
    """The pairs' prompts with the responses of one side as completions."""
    return dataset.select_columns(["prompt", side]).rename_column(side, "completion")


def _logps_of(reference: Sequence[Record], n: int) -> dict[int, tuple[float | None, float | None]]:
    """{pair: (chosen_logp, rejected_logp)} of the greedy records, which must be those of pairs 0 to n - 1."""
    greedy = {record["index"]: record["scores"] for record in reference if record["kind"] == "greedy"}
    if greedy.keys() != set(range(n)):
        raise ValueError(
            f"the reference's records hold {len(greedy)} pairs and this stage {n}, or they are numbered differently: "
            "evaluate both stages on the same held-out pairs"
        )
    for index, scores in greedy.items():
        if missing := [name for name in SCORES[2:] if name not in scores]:
            raise ValueError(
                f"pair {index}: the reference's record has no {missing[0]}, found {', '.join(scores) or 'no score'}: "
                "expected the records of a preference recipe"
            )
    return {index: (scores["chosen_logp"], scores["rejected_logp"]) for index, scores in greedy.items()}
