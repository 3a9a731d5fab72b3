"""The prompt of every task, written once: training, evaluation and tests all read it here.

Every rollout pays for every prompt token, so the texts are short: the math prompt with its format example is
36 tokens in SmolLM2's vocabulary.
"""

from rewards.tags import FORMAT_EXAMPLE

SYSTEM_PROMPT = f"Solve the problem step by step. Reply in this format:\n{FORMAT_EXAMPLE}"


def math_messages(question: str) -> list[dict[str, str]]:
    """The conversation that asks one math question: a system and a user message (`role`, `content`)."""
    return [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": question}]
