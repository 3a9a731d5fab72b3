"""How fast the rewards are on one core, the first half of `make bench`.

`tags_reward` and `correctness_reward` together, each parsing on its own as in training, against TRL's
`accuracy_reward` and `think_format_reward`. All score the same conversational completions of 500 characters,
good and bad ones mixed, and take turns, so that a busy machine slows all alike. TRL's two fail early on our
tags, which flatters them: each is measured again on the same completions in its own notation, `<think>` and
`\\boxed{}`.
"""

import random
import statistics
import time
from collections.abc import Callable, Sequence

from recipes.bench.gauge import aligned
from rewards.format import tags_reward
from rewards.numeric import correctness_reward
from rewards.tags import ANSWER_CLOSE, ANSWER_OPEN, REASONING_CLOSE, REASONING_OPEN, render

TARGET = 100_000  # completions a second
COMPLETIONS = 2_000
CHARACTERS = 500
ROUNDS = 7

# Kinds of completion out of twenty, much as a model in training writes them.
KINDS = ["plain"] * 11 + ["dressed"] * 4 + ["hedged", "chatty", "untagged", "untagged", "truncated"]


def build_completions(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """`count` different completions of `CHARACTERS` characters each, and their gold numbers.

    Three in ten of the well-formed ones are wrong.
    """
    rng = random.Random(seed)
    completions, golds = [], []
    for index in range(count):
        gold = rng.randint(2, 5_000)
        answer = gold if rng.random() < 0.7 else gold + rng.randint(1, 9)
        reasoning = ""
        while len(reasoning) < CHARACTERS:
            a, b = rng.randint(2, 99), rng.randint(2, 99)
            reasoning += f"Every week she buys {a} eggs and sells {b} of them, so {a} - {b} = {a - b} are left.\n"

        kind = KINDS[index % len(KINDS)]
        dressed = rng.choice([f"${answer:,}", f"{answer} eggs", f"{answer}.00", f"The answer is {answer}."])
        stated = {"dressed": dressed, "hedged": f"{answer} or {answer + 1}"}.get(kind, str(answer))
        after = "\nI hope that helps!" if kind == "chatty" else ""
        space = CHARACTERS - len(render("", stated) + after)
        completion = render(reasoning[:space].rstrip().ljust(space, "."), stated) + after
        if kind == "untagged":
            completion = reasoning[:CHARACTERS]
        elif kind == "truncated":
            completion = render(reasoning, stated)[:CHARACTERS]
        completions.append(completion)
        golds.append(str(gold))
    return completions, golds


def in_trl_notation(completion: str) -> str:
    """The completion as TRL's rewards expect it: the reasoning in `<think>`, the answer in `\\boxed{}`."""
    for ours, theirs in (
        (f"{REASONING_OPEN}\n", "<think>\n"),
        (f"\n{REASONING_CLOSE}\n", "\n</think>\n"),
        (f"{ANSWER_OPEN}\n", "$\\boxed{"),
        (f"\n{ANSWER_CLOSE}", "}$"),
    ):
        completion = completion.replace(ours, theirs)
    return completion


def conversational(completions: Sequence[str]) -> list[list[dict[str, str]]]:
    """Plain completions in the shape in which the trainer hands them to a reward."""
    return [[{"role": "assistant", "content": completion}] for completion in completions]


def main() -> int:
    """Print the table; 0 where the target is met, 1 where not."""
    from trl.rewards import accuracy_reward, think_format_reward

    texts, golds = build_completions(COMPLETIONS)
    ours, theirs = conversational(texts), conversational([in_trl_notation(text) for text in texts])

    def tags_and_number() -> None:
        tags_reward(ours)
        correctness_reward(ours, answer=golds)

    contenders: dict[str, Callable[[], object]] = {
        "tags_reward + correctness_reward": tags_and_number,
        "TRL think_format_reward": lambda: think_format_reward(ours),
        "TRL think_format_reward, <think>": lambda: think_format_reward(theirs),
        "TRL accuracy_reward": lambda: accuracy_reward(ours, solution=golds),
        "TRL accuracy_reward, \\boxed{}": lambda: accuracy_reward(theirs, solution=golds),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for name, score in [*contenders.items()] * ROUNDS:
        began = time.process_time()  # of one core, however busy the others are: no contender has threads
        score()
        seconds[name].append(time.process_time() - began)
    rates = [COMPLETIONS / statistics.median(times) for times in seconds.values()]

    own_rate = rates[0]
    print(f"{COMPLETIONS:,} completions of {CHARACTERS} characters, one core, median of {ROUNDS} rounds")
    rows = [[name, f"{rate:,.0f}", f"{own_rate / rate:.1f}x"] for name, rate in zip(seconds, rates, strict=True)]
    print(*aligned([["", "per second", "ours is"], *rows]), sep="\n")
    print(f"target {TARGET:,} a second: {'met' if own_rate >= TARGET else 'MISSED'}")
    return 0 if own_rate >= TARGET else 1


if __name__ == "__main__":
    raise SystemExit(main())
