"""The reward by Evidently: its own descriptor and prompt, a judge that says what the test wants."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from rewards.contract import Failure, Reply
from rewards.evidently import evidently_correctness_reward
from rewards.judge import Judge


class Scripted:
    name = "scripted"

    def __init__(self, said: str | Failure) -> None:
        self.said = said
        self.prompts: list[str] = []

    def reply(self, prompt: str, schema: type[BaseModel]) -> Reply:
        self.prompts.append(prompt)
        if isinstance(self.said, Failure):
            raise self.said
        return Reply(self.said)


def run(judge: Judge, *answers: str) -> list[float | None]:
    completions = [f"<reasoning>I read it.</reasoning><answer>{answer}</answer>" for answer in answers]
    row: dict[str, Any] = {"question": "Where?", "answer": "Paris", "aliases": ["Paris", "Lutetia"], "passages": []}
    columns = {name: [value] * len(answers) for name, value in row.items()}
    return evidently_correctness_reward(judge)(completions=completions, **columns)


@pytest.mark.parametrize(("category", "reward"), [("CORRECT", 1.0), ("INCORRECT", 0.0), ("UNKNOWN", None)])
def test_the_category_is_the_score(tmp_path, category, reward):
    backend = Scripted(f'{{"category": "{category}"}}')
    judge = Judge(backend, cache=tmp_path)
    assert run(judge, "in {Paris}") == [reward]
    assert judge.counts.judged == 1 and judge.counts.failed == 0
    assert run(judge, "in {Paris}") == [reward]
    (prompt,) = backend.prompts
    assert "You are an impartial expert evaluator." in prompt
    assert '-----reference_starts-----\n"Paris" or "Lutetia"\n-----reference_finishes-----' in prompt
    assert '___text_starts_here___\n"in \\u007bParis\\u007d"\n___text_ends_here___' in prompt


@pytest.mark.parametrize("said", ['{"category": "MAYBE"}', '{"verdict": "CORRECT"}', "CORRECT"])
def test_other_replies_are_no_verdict(tmp_path, said):
    backend = Scripted(said)
    judge = Judge(backend, cache=tmp_path)
    judge.backoff = 0.01
    assert run(judge, "Paris") == [None]
    assert len(backend.prompts) == 3, "Evidently's own second try is on top of the judge's three"


def test_a_failure_and_a_spent_budget_are_what_they_are(tmp_path):
    judge = Judge(Scripted(Failure("no such model")), cache=tmp_path, max_calls=1)
    assert run(judge, "Paris") == [None]
    assert (judge.counts.failed, judge.counts.last_failure) == (1, "no such model")
    assert run(judge, "Paris") == [None]
    assert (judge.counts.failed, judge.counts.unasked, judge.counts.requests) == (1, 1, 1)


def test_two_judges_do_not_mix(tmp_path):
    yes, no = Scripted('{"category": "CORRECT"}'), Scripted('{"category": "INCORRECT"}')
    judges = [Judge(backend, cache=tmp_path / str(i)) for i, backend in enumerate((yes, no))]
    answers = [f"answer {n}" for n in range(12)]
    with ThreadPoolExecutor(2) as workers:
        scores = [task.result() for task in [workers.submit(run, judge, *answers) for judge in judges]]
    assert scores == [[1.0] * 12, [0.0] * 12]
    assert len(yes.prompts) == len(no.prompts) == 12


def test_every_event_loop_is_closed_and_none_is_this_threads(tmp_path: Path, monkeypatch):
    run(Judge(Scripted('{"category": "CORRECT"}'), cache=tmp_path / "a"), "Paris")  # imports included
    loops = []
    make = asyncio.new_event_loop

    def remembered() -> asyncio.AbstractEventLoop:
        loops.append(make())
        return loops[-1]

    monkeypatch.setattr(asyncio, "new_event_loop", remembered)
    before = asyncio.get_event_loop_policy()._local.__dict__.copy()  # type: ignore[attr-defined]
    assert run(Judge(Scripted('{"category": "CORRECT"}'), cache=tmp_path / "b"), "Paris", "Lyon") == [1.0, 1.0]
    assert len(loops) == 2 and all(loop.is_closed() for loop in loops)
    assert asyncio.get_event_loop_policy()._local.__dict__ == before  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("judge")]
    # A loop that is running here already, as in a notebook, does not disturb it.
    monkeypatch.undo()

    async def inside() -> list[float | None]:
        return run(Judge(Scripted('{"category": "CORRECT"}'), cache=tmp_path / "c"), "Paris")

    assert asyncio.run(inside()) == [1.0]
