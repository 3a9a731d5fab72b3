"""How often a judge prefers the tuned model's response to the base model's, and how much of that is length.

Judges like long answers, and preference training makes answers long. A win rate is therefore printed beside the mean
length of both sides, and once more as it would be at equal length.
"""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from eval.metrics import bootstrap_mean, interval_text, rounded
from eval.results import WinRate
from rewards.contract import Prefer

MIN_PAIRS = 20  # below, two coefficients are little but ridge
# Of 0.01, 0.1 and 1, tried on simulated pairs whose winner length all but decides: about half the variance of 0.01,
# and less of the pull towards the plain rate than 1 (of 200 pairs with a plain rate of 0.93 and a true one of 0.50 at
# equal length, 0.55 and not 0.66).
RIDGE = 0.1


def win_rate(
    prompts: Sequence[Any],
    before: Sequence[str],
    after: Sequence[str],
    prefer: Prefer,
    *,
    tokens: tuple[Sequence[int], Sequence[int]] | None = None,
) -> WinRate | None:
    """Let `prefer` compare the responses of the tuned model, `after`, with those of the base, `before`.

    Each pair is judged twice, either response standing first once, and the two probabilities are averaged: above 0.5
    the tuned response wins, below it loses. The same text twice is a tie that nobody is asked about. `tokens` are the
    lengths of `before` and of `after`; without them, words are counted. Returns numbers ready for JSON, or None where
    the judge failed on every pair:

    - "n"; "wins", "ties", "losses" of the tuned responses; "rate", in which a tie counts half, with "ci95", a
      bootstrap over pairs (None for one pair); "unjudged", the pairs that the judge failed on, which are not in "n"
    - "length_controlled_rate" with "length_controlled_ci95": see `at_equal_length`
    - "order_disagreement": the share of judged pairs in which whichever response stood first won, or whichever stood
      second; None where no pair was judged
    - "before_mean_length", "after_mean_length" and their "length_unit", words or tokens

    Raises ValueError for no pairs, sides of different sizes, and a judge whose answers are no probabilities of all
    pairs.
    """
    lengths = tokens or tuple([len(text.split()) for text in side] for side in (before, after))
    sizes = [len(prompts), len(before), len(after), *map(len, lengths)]
    if not prompts or len(set(sizes)) != 1:
        raise ValueError(
            f"win rate: expected a response and a length of both sides for every prompt, got {sizes[0]} prompts, "
            f"{sizes[1]} and {sizes[2]} responses, {sizes[3]} and {sizes[4]} lengths"
        )
    asked = [i for i in range(len(prompts)) if before[i] != after[i]]
    questions, base, tuned = ([column[i] for i in asked] for column in (prompts, before, after))
    tuned_first, base_first = _ask(prefer, questions, tuned, base), _ask(prefer, questions, base, tuned)
    outcomes, turned = dict.fromkeys(range(len(prompts)), 0.5), 0
    for i, for_tuned, for_base in zip(asked, tuned_first, base_first, strict=True):
        if for_tuned is None or for_base is None:
            del outcomes[i]
            continue
        # The mean (for_tuned + 1 - for_base) / 2 against 0.5, without its rounding.
        outcomes[i] = ((for_tuned > for_base) - (for_tuned < for_base) + 1) / 2
        turned += (for_tuned - 0.5) * (for_base - 0.5) > 0
    if not outcomes:
        return None
    points, counts = list(outcomes.values()), Counter(outcomes.values())
    judged = len(asked) - (unjudged := len(prompts) - len(points))
    old, new = ([side[i] for i in outcomes] for side in lengths)
    controlled = at_equal_length(points, [b - a for a, b in zip(old, new, strict=True)])
    return {
        "n": len(points),
        "unjudged": unjudged,
        "wins": counts[1.0],
        "ties": counts[0.5],
        "losses": counts[0.0],
        "rate": round(fmean(points), 4),
        "ci95": rounded(bootstrap_mean(points)),
        "length_controlled_rate": round(controlled[0], 4) if controlled else None,
        "length_controlled_ci95": rounded(controlled[1:] if controlled else None),
        "order_disagreement": round(turned / judged, 4) if judged else None,
        "before_mean_length": round(fmean(old), 1),
        "after_mean_length": round(fmean(new), 1),
        "length_unit": "tokens" if tokens else "words",
    }


def at_equal_length(points: Sequence[float], differences: Sequence[float]) -> tuple[float, float, float] | None:
    """The win rate if both sides were as long, and the ends of its 95 % interval, all in (0, 1).

    Logistic regression of the outcome on tanh(difference / standard deviation of the differences), read at 0: the
    length-controlled win rate of AlpacaEval 2 (arXiv 2404.04475, section 3) without its terms for the difficulty of
    the instruction, which need many models. A weak ridge on both coefficients keeps them finite where length alone
    separates wins from losses. The interval is Wald's, on the logit: of 2,000 simulated comparisons of each of 54
    kinds, with 20 to 200 pairs, it held the true rate in 94 to 99 %.

    `points` are 1.0 for a win, 0.5 for a tie, 0.0 for a loss; `differences` the length of the tuned response less that
    of the base, in any unit. None for fewer than `MIN_PAIRS` pairs, and where one side is the longer one throughout:
    that says nothing about equal lengths.
    """
    import numpy as np
    from scipy.optimize import minimize
    from scipy.special import expit

    if len(points) < MIN_PAIRS or min(differences) > 0 or max(differences) < 0:
        return None
    outcomes, longer = np.asarray(points, dtype=float), np.asarray(differences, dtype=float)
    features = np.stack([np.ones_like(longer), np.tanh(longer / (longer.std() or 1.0))], axis=1)

    def objective(weights: Any) -> tuple[float, Any]:
        """Negative log-likelihood with its ridge, and the gradient."""
        logits = features @ weights
        loss = np.logaddexp(0, logits).sum() - outcomes @ logits + RIDGE / 2 * weights @ weights
        return loss, features.T @ (expit(logits) - outcomes) + RIDGE * weights

    weights = minimize(objective, np.zeros(2), jac=True).x
    shares = expit(features @ weights)
    curvature = (features.T * (shares * (1 - shares))) @ features + RIDGE * np.eye(2)
    reach = 1.96 * np.sqrt(np.linalg.inv(curvature)[0, 0])
    rate, low, high = expit(weights[0] + np.array([0.0, -reach, reach]))
    return float(rate), float(low), float(high)


def describe(found: WinRate) -> str:
    """One sentence, without a full stop, on what `win_rate` returned: the rate never without both mean lengths."""
    unit = found["length_unit"]
    controlled, disagreement = found["length_controlled_rate"], found["order_disagreement"]
    details = [
        interval_text(found["ci95"], ".1f", 100),
        f"{found['wins']} wins, {found['ties']} ties, {found['losses']} losses",
        f"{found['after_mean_length']:.1f} {unit} on average against the base's {found['before_mean_length']:.1f}",
    ]
    if controlled is not None:
        ends = interval_text(found["length_controlled_ci95"], ".1f", 100)
        details.append(f"{100 * controlled:.1f} % at equal length, {ends}")
    if found["unjudged"]:
        details.append(f"{found['unjudged']} pairs without a verdict left out")
    if disagreement is not None:
        details.append(f"the order changed the judge's mind in {100 * disagreement:.0f} % of pairs")
    return f"tuned over base responses: win rate {100 * found['rate']:.1f} % ({'; '.join(filter(None, details))})"


def _ask(prefer: Prefer, prompts: Sequence[Any], first: Sequence[str], second: Sequence[str]) -> list[float | None]:
    answers = list(prefer(prompts, first, second)) if prompts else []
    if len(answers) != len(prompts):
        raise ValueError(f"the judge gave {len(answers)} answers on {len(prompts)} pairs, expected one for each")
    for number, answer in enumerate(answers):
        if answer is not None and not 0 <= answer <= 1:
            raise ValueError(f"the judge's answer on pair {number} is {answer}, expected a probability from 0 to 1")
    return answers
