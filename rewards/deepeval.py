"""Judged rewards by DeepEval: correctness by a rubric of our own (GEval), and its summarisation and relevancy metrics.

DeepEval writes the prompts, asks through our `Judge` and counts the verdicts. Every answer gets a metric object of its
own, run synchronously in a worker thread. Nothing is sent anywhere else and no file is written.

| reward                    | reads                    | requests an answer                                       |
|---------------------------|--------------------------|----------------------------------------------------------|
| `rag_correctness_reward`  | question, gold answers   | 1                                                        |
| `summarization_reward`    | question, passages       | 3, and 2 for all answers to a question together          |
| `answer_relevancy_reward` | question                 | 2                                                        |
"""

import os
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from rewards.contract import Failure, Reward
from rewards.judge import Ask, Case, Judge, Rubric, fence, judged_reward

if TYPE_CHECKING:
    from pydantic import BaseModel

CORRECTNESS_STEPS = [
    "The Expected Output lists every accepted answer to the question in the Input.",
    "Score 10 if the Actual Output gives one of them, in whatever words, and nothing that contradicts it.",
    "Score 5 if it gives a part of one, or gives one with further claims that may be wrong.",
    "Score 0 if it gives another answer, several to choose from, or none.",
]
RUBRIC_VERSION = "1"  # change it with the steps above, the question below or how replies are read
EXTRACTED = ("statements", "claims", "truths")  # fields of DeepEval's replies that its later prompts quote
UNEXPLAINED: dict[str, Any] = {"eval_mode": "llm", "include_reason": False}

# DeepEval's switches, read when it is imported; a value of the user's own stays.
SWITCHES = {
    "DEEPEVAL_TELEMETRY_OPT_OUT": "1",
    "DEEPEVAL_DISABLE_DOTENV": "1",  # it would load .env files of the current folder into the environment
}


def rag_correctness_reward(judge: Judge) -> Reward:
    """Whether the answer block gives an accepted answer, by DeepEval's GEval with `CORRECTNESS_STEPS`. Range [0, 1].

    1.0: one of `answer` and `aliases`, in whatever words. Between: a part of one, or one with doubtful claims.
    0.0: another answer or none; or, without asking, no parse or more than 1,000 characters.
    None: no gold answer, or no verdict of the judge (see `rewards.judge`).
    """

    def grade(ask: Ask, case: Case) -> float:
        metrics, shown = _library()
        read = [shown.INPUT, shown.ACTUAL_OUTPUT, shown.EXPECTED_OUTPUT]
        settings = {"name": "Correctness", "evaluation_steps": CORRECTNESS_STEPS, "evaluation_params": read}
        golds = " or ".join(fence(gold) for gold in case.golds)
        return _measure(metrics.GEval, ask, case, settings, input=fence(case.question), expected_output=golds)

    return _reward(judge, "rag_correctness_reward", ("question", "answer", "golds"), grade)


def summarization_reward(judge: Judge) -> Reward:
    """The answer block as a summary of the passages, by DeepEval's SummarizationMetric. Range [0, 1].

    The lower of two shares: of the answer's claims, those that the passages bear out; and of one assessment question,
    whether the answer answers what was asked (1 or 0). It needs no gold answer, so it says nothing of truth.

    1.0: every claim is borne out and the question is answered. 0.0: none is, or it is not, or the passages do not
    answer it either; or, without asking, no parse or more than 1,000 characters.
    None: the prompt shows no passages, or no verdict of the judge (see `rewards.judge`).
    """

    def grade(ask: Ask, case: Case) -> float:
        # DeepEval's own questions ask for all that ten passages say, of which a good answer says one thing.
        asked = {"assessment_questions": [f"Does the text answer the question {fence(case.question)}?"]}
        passages, metric = fence("\n\n".join(case.passages)), _library()[0].SummarizationMetric
        return _measure(metric, ask, case, UNEXPLAINED | asked, input=passages)

    return _reward(judge, "summarization_reward", ("question", "answer", "passages"), grade)


def answer_relevancy_reward(judge: Judge) -> Reward:
    """How much of the answer block has to do with the question, by DeepEval's AnswerRelevancyMetric. Range [0, 1].

    The share of its statements that are relevant; whether they are true is not asked.

    1.0: all are. 0.0: none is; or, without asking, no parse or more than 1,000 characters.
    None: no verdict of the judge (see `rewards.judge`).
    """

    def grade(ask: Ask, case: Case) -> float:
        metric = _library()[0].AnswerRelevancyMetric
        return _measure(metric, ask, case, UNEXPLAINED, input=fence(case.question))

    return _reward(judge, "answer_relevancy_reward", ("question", "answer"), grade)


def _reward(judge: Judge, name: str, reads: tuple[str, ...], grade: Callable[[Ask, Case], float]) -> Reward:
    return judged_reward(judge, Rubric(name, f"{RUBRIC_VERSION}, deepeval {version('deepeval')}", reads, grade))


def _library() -> tuple[Any, Any]:
    """DeepEval's metrics, and its names for the parts of a case."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    from deepeval import metrics
    from deepeval.test_case import SingleTurnParams

    return metrics, SingleTurnParams


def _measure(make: Any, ask: Ask, case: Case, settings: dict[str, Any], **shown: str) -> float:
    """The score of the answer by the metric that `make` makes with these settings, beside what else is shown."""
    from deepeval.errors import ContextWindowExceededError
    from deepeval.test_case import LLMTestCase

    metric = make(model=_model()(ask), async_mode=False, **settings)
    try:
        return float(metric.measure(LLMTestCase(actual_output=fence(case.answer), **shown), _show_indicator=False))
    except ContextWindowExceededError as error:  # DeepEval's own wording for a failure that speaks of the context
        raise Failure(str(error.__cause__)) from error


@cache
def _model() -> Any:
    """The class of models that DeepEval wants: made of an `Ask`, for one metric."""
    from deepeval.models import DeepEvalBaseLLM

    class Model(DeepEvalBaseLLM):
        def __init__(self, ask: Ask) -> None:
            super().__init__()
            self.ask = ask
            self.items = 0  # in the list that the judge wrote last

        def load_model(self) -> Any:
            return self

        def get_model_name(self) -> str:
            return "judge"

        def generate_with_schema(self, prompt: str, schema: "type[BaseModel]") -> "BaseModel":
            # DeepEval's own method takes a TypeError of ours for a model that knows no schemas, and asks again.
            reply = self.ask(prompt, _strict(schema, self.items))
            # The next prompt holds what was extracted from the answer, which is the answer's word once more.
            extracted = {field: texts for field, texts in reply if field in EXTRACTED}
            self.items = sum(map(len, extracted.values())) or self.items
            return reply.model_copy(update={field: [fence(text) for text in extracted[field]] for field in extracted})

        generate = a_generate = generate_with_schema  # abstract, and not asked by metrics that run synchronously

    return Model


@cache
def _strict(schema: "type[BaseModel]", items: int) -> "type[BaseModel]":
    """`schema` with what DeepEval's prompts ask for and its schemas leave open: scores from 0 to 10, no empty lists
    (an answer without statements would be wholly relevant), one verdict for each of `items`, yes or no. Reasons are
    nowhere read, so they may be left out."""
    from typing import Annotated, Literal

    from pydantic import Field, create_model

    fields = schema.model_fields
    limits: dict[str, Any] = {
        "score": (float, Field(ge=0, le=10)),
        "reason": (str, ""),
        "answers": (list[Literal["yes", "no"]], Field(min_length=1, max_length=1)),
        **dict.fromkeys(EXTRACTED, (list[Annotated[str, Field(min_length=1)]], Field(min_length=1))),
    }
    if "verdicts" in fields:
        limits["verdicts"] = (fields["verdicts"].annotation, Field(min_length=items, max_length=items))
    return create_model(schema.__name__, __base__=schema, **{name: limits[name] for name in fields if name in limits})
