"""A judged reward by Evidently: its descriptor `CorrectnessLLMEval`, asked through our `Judge`."""

from contextvars import ContextVar
from functools import cache
from importlib.metadata import version
from typing import Any, Literal

from rewards.contract import Failure, Reward
from rewards.judge import Ask, BudgetSpentError, Case, Judge, Rubric, fence, judged_reward

RUBRIC_VERSION = "1"  # change it with what the judge is shown or how its replies are read
SCORES = {"CORRECT": 1.0, "INCORRECT": 0.0, "UNKNOWN": None}

# Evidently makes its models itself, from two names, so the judge cannot be handed over as an argument.
_asking: ContextVar[Ask] = ContextVar("_asking")


def evidently_correctness_reward(judge: Judge) -> Reward:
    """Whether the answer block says the same as the gold answers, by Evidently's CorrectnessLLMEval. Range {0, 1}.

    One request an answer; the question is not shown.

    1.0: the verdict is CORRECT: the facts of `answer` and `aliases`, with no additions or omissions.
    0.0: it is INCORRECT; or, without asking, no parse or more than 1,000 characters.
    None: it is UNKNOWN, there is no gold answer, or no verdict of the judge (see `rewards.judge`).
    """
    words = f"{RUBRIC_VERSION}, evidently {version('evidently')}"
    return judged_reward(judge, Rubric("evidently_correctness_reward", words, ("answer", "golds"), _grade))


def _grade(ask: Ask, case: Case) -> float | None:
    import pandas as pd
    from evidently import DataDefinition, Dataset
    from evidently.descriptors import CorrectnessLLMEval

    row = {"answer": fence(case.answer), "reference": " or ".join(fence(gold) for gold in case.golds)}
    descriptor = CorrectnessLLMEval(
        "answer",
        target_output="reference",
        provider=_provider(),
        model="judge",
        include_reasoning=False,  # after the verdict it can only defend it
        alias="verdict",
    )
    token = _asking.set(ask)
    try:
        # Evidently runs and closes an event loop of this thread, which ends with the batch.
        dataset = Dataset.from_pandas(
            pd.DataFrame([row]),
            data_definition=DataDefinition(text_columns=list(row)),
            descriptors=[descriptor],
        )
    finally:
        _asking.reset(token)
    return SCORES[dataset.as_dataframe()["verdict"].iloc[0]]


@cache
def _provider() -> str:
    """Registers our judge with Evidently and returns the provider's name."""
    from evidently.llm.utils.wrapper import LLMResult, LLMWrapper, llm_provider
    from pydantic import BaseModel

    class Correctness(BaseModel):
        category: Literal["CORRECT", "INCORRECT", "UNKNOWN"]

    class Provider(LLMWrapper):
        def __init__(self, model: str, options: Any) -> None:
            self.ask = _asking.get()
            self.failure: Failure | BudgetSpentError | None = None

        async def complete(self, messages: list[Any], seed: int | None = None) -> LLMResult[str]:
            if self.failure:  # Evidently tries everything twice, and the judge has had its three attempts
                raise self.failure
            prompt = "\n\n".join(message.content for message in messages)
            try:
                return LLMResult(self.ask(prompt, Correctness).model_dump_json(), 0, 0)
            except (Failure, BudgetSpentError) as failure:
                self.failure = failure
                raise

    llm_provider("tunebook", None)(Provider)
    return "tunebook"
