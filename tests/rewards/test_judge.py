"""The judge's promises, most of them against a scripted server on a real socket."""

import json
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import unicodedata
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

import rewards.judge
from rewards.contract import Failure, Reply
from rewards.judge import (
    MAX_ANSWER_CHARACTERS,
    RECENT,
    BudgetSpentError,
    Case,
    Counts,
    Judge,
    Rubric,
    _read,
    connect,
    fence,
    judged_reward,
)

ROOT = Path(rewards.judge.__file__).parents[1]


class Score(BaseModel):
    score: float


def grade(ask: Any, case: Case) -> float | None:
    """Whatever the judge says, of the answer alone; -1 is "undecided"."""
    score = ask(f"How good is {fence(case.answer)}?", Score).score
    return None if score < 0 else score


RUBRIC = Rubric("test_reward", "1", ("question", "answer", "golds"), grade)


def cases(*answers: str) -> list[Case]:
    return [Case("Where?", answer, ("Paris",)) for answer in answers]


def judge_for(server: Any, cache: Path, **settings: Any) -> Judge:
    judge = connect(server.address, cache=cache, **settings)
    assert judge is not None
    judge.backoff = 0.01
    return judge


def parsed(answer: str) -> str:
    return f"<reasoning>I looked it up.</reasoning><answer>{answer}</answer>"


def columns(n: int, **changed: Any) -> dict[str, list[Any]]:
    row = {"question": "Where?", "answer": "Paris", "aliases": ["Paris"], "passages": ["Paris\nA city."]} | changed
    return {name: [value] * n for name, value in row.items()}


# The fence


@given(st.text(st.characters(codec=None), max_size=60))
def test_fence_is_one_json_string_and_gives_the_text_back(text):
    literal = fence(text)
    assert json.loads(literal) == text
    inside = literal[1:-1]
    assert not re.search(r'["<>\[\]{}|`]|\\(?!u[0-9a-f]{4})', inside)
    assert not re.search(r"([!#-/:;=?@^_~])\1", inside.replace(".", ""))
    assert all(c.isprintable() and unicodedata.category(c) != "Cf" for c in inside)
    assert len(inside.splitlines()) <= 1


@pytest.mark.parametrize("text", ["Beyoncé", "Łódź, in 1939", "東京", "It's 50% (of $3.5) - C# & more...", "हिन्दी"])
def test_fence_leaves_plain_text_readable(text):
    assert fence(text) == f'"{text}"'


@pytest.mark.parametrize(
    "text",
    [
        *("<|im_end|>", "[/INST]", "<end_of_turn>", "___text_ends_here___", "-----reference_finishes-----", "```"),
        *("##", "**", "{{ x }}", "\n", "\r", "\v", "\u2028", "\u2029"),
        *("\u200b", "\u202e", "\ufe0f", "\U000e0041", "\uff1c", "\u3164"),
    ],
)
def test_fence_hides_what_imitates_instructions(text):
    assert text not in fence(text)


# Connecting


def test_none_is_no_judge(tmp_path):
    assert connect("none", cache=tmp_path) is None


def test_address_with_and_without_v1(scripted, tmp_path):
    server = scripted(lambda body: {"score": 1})
    for address in (server.address, server.address + "/", server.address + "/v1"):
        judge = connect(address, cache=tmp_path)
        assert judge is not None and judge.name == f"{server.address}/v1 scripted"
        assert judge.ask("?", Score) == Score(score=1)


def test_a_model_that_is_not_listed_is_tried(scripted, tmp_path):
    def script(body):
        return {"score": 1} if body["model"] == "a/folder" else (404, b'{"error": {"message": "no such model"}}')

    server = scripted(script)
    judge = connect(server.address, model="a/folder", cache=tmp_path)
    assert judge is not None and judge.ask("?", Score).score == 1
    with pytest.raises(ValueError, match=r"'other' .*no such model.*lists scripted"):
        connect(server.address, model="other", cache=tmp_path)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("locl", {}, "the judge is 'locl': pass none, local, or the address"),
        ("local", {}, "name its folder or hub id"),
        ("http://user:secret@127.0.0.1:1", {}, "OPENAI_API_KEY"),
        ("http://127.0.0.1:1/v1?key=secret", {}, "OPENAI_API_KEY"),
        ("http://127.0.0.1:1/v1#secret", {}, "OPENAI_API_KEY"),
        ("none", {"timeout": 0}, "time-out is 0"),
    ],
)
def test_connect_refuses_in_one_sentence(tmp_path, name, settings, message):
    with pytest.raises(ValueError, match=message) as refusal:
        connect(name, cache=tmp_path, **settings)
    assert "\n" not in str(refusal.value) and "secret" not in str(refusal.value)


@pytest.mark.parametrize("settings", [{"max_calls": -1}, {"concurrency": 0}])
def test_numbers_out_of_range_are_refused(scripted, tmp_path, settings):
    server = scripted(lambda body: {"score": 1})
    with pytest.raises(ValueError, match=r"pass (0|1) or more"):
        connect(server.address, cache=tmp_path, **settings)


def test_no_server_is_refused_at_once(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
    started = time.monotonic()
    with pytest.raises(ValueError, match=f"no judge answers at {address}/v1 .*refused"):
        connect(address, cache=tmp_path)
    assert time.monotonic() - started < 3


def test_the_key_is_sent_and_never_told(scripted, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    server = scripted(lambda body: (400, b'{"error": {"message": "bad key sk-very-secret"}}'))
    judge = judge_for(server, tmp_path)
    assert server.keys == {"Bearer sk-very-secret"}
    assert judge.scores(RUBRIC, cases("Paris")) == [None]
    assert judge.counts.last_failure.startswith("HTTP 400") and "bad key ***" in judge.counts.last_failure
    assert "secret" not in judge.summary() + judge.name + "".join(capsys.readouterr())


def test_what_a_server_says_reaches_the_terminal_as_letters(scripted, tmp_path):
    server = scripted(
        lambda body: (400, b'{"error": {"message": "\\u001b[2Jno\\u0007such \\u001b]0;title\\u0007 model"}}')
    )
    judge = judge_for(server, tmp_path)
    assert judge.scores(RUBRIC, cases("Paris")) == [None]
    assert judge.counts.last_failure.isprintable() and "no such" in judge.counts.last_failure


# Requests


def test_what_is_asked(scripted, tmp_path):
    server = scripted(lambda body: {"score": 1})
    judge = judge_for(server, tmp_path)
    judge.scores(RUBRIC, cases("Paris"))
    body = json.loads(server.requests[0])
    assert body["temperature"] == 0 and body["max_tokens"] == 1024
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["score"]
    (message,) = body["messages"]
    assert message["role"] == "user" and message["content"].endswith('How good is "Paris"?')
    assert judge.counts.prompt_tokens == 7 and judge.counts.reply_tokens == 3 and judge.counts.seconds > 0


BROKEN: dict[str, Any] = {
    "429": (429, b'{"error": {"message": "slow down"}}'),
    "500": (500, b"oops"),
    "503": (503, b"{}"),
    "no json": (200, b'{"choices": [{"message": {"content": "I think 10"}}]}'),
    "truncated json": (200, b'{"choices": [{"message": {"content": "{\\"score\\": "}}]}'),
    "truncated body": (200, b'{"id": "1", "choi'),
    "no completion": (200, b'{"choices": []}'),
    "a list": (200, b"[]"),
    "wrong field": {"grade": 1},
    "hangs up": None,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_failures_that_may_pass_are_tried_twice_more(scripted, tmp_path, kind):
    replies = iter([BROKEN[kind], BROKEN[kind], {"score": 0.5}, *[BROKEN[kind]] * 3])
    server = scripted(lambda body: next(replies))
    judge = judge_for(server, tmp_path)
    assert judge.scores(RUBRIC, cases("Paris")) == [0.5]
    assert len(server.requests) == judge.counts.requests == 3
    assert judge.scores(RUBRIC, cases("London")) == [None]
    assert len(server.requests) == judge.counts.requests == 6
    assert judge.counts.failed == 1 and judge.counts.last_failure


@pytest.mark.parametrize(("asked", "waited"), [("0.3", 0.3), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)])
def test_a_busy_server_is_left_alone_as_long_as_it_asks(scripted, tmp_path, asked, waited):
    replies = iter([BROKEN["429"], {"score": 1}])
    server = scripted(lambda body: next(replies))
    server.retry_after = asked
    judge = judge_for(server, tmp_path)
    started = time.monotonic()
    assert judge.scores(RUBRIC, cases("Paris")) == [1]
    assert waited <= time.monotonic() - started < waited + 1


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_failures_for_good_are_not_tried_again(scripted, tmp_path, status):
    server = scripted(lambda body: (status, b'{"error": {"message": "context too long"}}'))
    judge = judge_for(server, tmp_path)
    assert judge.scores(RUBRIC, cases("Paris")) == [None]
    assert len(server.requests) == 1
    assert f"HTTP {status}" in judge.counts.last_failure and "context too long" in judge.counts.last_failure


def test_a_server_that_knows_no_schemas(scripted, tmp_path):
    def script(body):
        if "response_format" in body:
            return 400, b'{"error": {"message": "response_format json_schema is not supported"}}'
        return {"score": 1}

    server = scripted(script)
    judge = judge_for(server, tmp_path, concurrency=1)
    assert judge.scores(RUBRIC, cases("a", "b")) == [1, 1]
    assert len(server.requests) == 3


def test_a_slow_server_times_out(scripted, tmp_path):
    server = scripted(lambda body: {"score": 1})
    server.delay = 0.6
    judge = judge_for(server, tmp_path, timeout=0.1)
    assert judge.scores(RUBRIC, cases("Paris")) == [None]
    assert judge.counts.requests == 3 and judge.counts.last_failure == "no answer within 0.1 s"


def test_json_in_words_is_read(scripted, tmp_path):
    said = json.dumps('Sure!\n```json\n{"score": 1}\n```').encode()
    server = scripted(lambda body: (200, b'{"choices": [{"message": {"content": ' + said + b"}}]}"))
    assert judge_for(server, tmp_path).scores(RUBRIC, cases("Paris")) == [1]


THOUGHT = '<think>\nIs it {right}? I lean to {"score": 0}.\n</think>\n'
READ = {
    "thoughts": THOUGHT + '{"score": 1}',
    "thoughts that the prompt opened": THOUGHT.removeprefix("<think>") + '{"score": 1}',
    "thinking": THOUGHT.replace("think>", "thinking>") + '{"score": 1}',
    "thoughts, words and a fence": THOUGHT + 'Sure:\n```json\n{"score": 1}\n```\nI used {braces}.',
    "braces after it": '{"score": 1} The set {x | x > 0} and f() {} are fine.',
    "braces before it": 'The answer {Paris} is right: {"score": 1}',
    "the same twice": '{"score": 1}\nSo: { "score": 1.0 }',
    "another object": '{"note": "I am sure"} {"score": 1}',
    "a brace in a string": '{"score": 1, "why": "a } and a { and </think> stand in it"}',
    "line breaks": '{\n  "score": 1\n}\n',
}
UNREAD = {
    "nothing": "",
    "words": "It is right.",
    "thoughts alone": THOUGHT,
    "thoughts without an end": "<think>So {right}: " + '{"score": 1}',
    "two verdicts": '{"score": 0} or {"score": 1}',
    "two verdicts after thoughts": THOUGHT + '{"score": 0} Its answer said </think> {"score": 1}',
    "a broken object that quotes a verdict": '{"why": "it says {"score": 1}", "score": 0}',
    "cut off": '{"score": 1',
    "cut off after a verdict": '{"score": 1} {"score": ',
    "of Python": "{'score': 1}",
    "out of range": '{"score": "high"}',
    "deep": '{"a":' * 3_000,
}


@pytest.mark.parametrize("name", READ)
def test_the_verdict_of_a_judge_that_thinks_aloud_is_read(name):
    assert _read(READ[name], Score).score == 1


@pytest.mark.parametrize("name", UNREAD)
def test_a_reply_without_one_verdict_is_a_failure(name):
    with pytest.raises(Failure, match=r"the reply (is not the JSON asked for|has verdicts that differ)") as caught:
        _read(UNREAD[name], Score)
    assert caught.value.again


@pytest.mark.parametrize("piece", ["{", '{"', '{"a":', "{}", "<think>", "</think>", '{"score": 1}', "{ ", "[", '"'])
def test_hostile_replies_cost_little(piece, is_fast):
    def read(text):
        with suppress(Failure):
            _read(text, Score)

    for text in (piece * 5_000, "x" + piece * 5_000, THOUGHT + piece * 5_000):
        assert is_fast(lambda text=text: read(text))


def test_threads_are_bounded_and_used(scripted, tmp_path):
    server = scripted(lambda body: {"score": 1})
    server.delay = 0.2
    judge = judge_for(server, tmp_path, concurrency=8)
    before = threading.active_count()
    started = time.monotonic()
    assert judge.scores(RUBRIC, cases(*map(str, range(16)))) == [1] * 16
    assert server.most_busy == 8 and time.monotonic() - started < 1.6
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("judge")]
    assert threading.active_count() <= before + 8


def test_a_bug_in_a_rubric_stops_the_run(tmp_path):
    def broken(ask: Any, case: Case) -> float:
        raise KeyError("verdict")

    with pytest.raises(KeyError):
        Judge(Echo(), cache=tmp_path).scores(Rubric("r", "1", ("answer",), broken), cases("Paris"))


# Budget and failures


class Echo:
    """A judge in this process that replies with the number in the answer, and remembers who asked."""

    name = "echo"

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def reply(self, prompt: str, schema: type[BaseModel]) -> Reply:
        self.prompts.append(prompt)
        number = re.search(r'"(-?[0-9.]+)"', prompt)
        if number is None:
            raise Failure("no number")
        return Reply(f'{{"score": {number[1]}}}')


def test_the_budget_counts_every_request(scripted, tmp_path, capsys):
    server = scripted(lambda body: (500, b"{}"))
    judge = judge_for(server, tmp_path, max_calls=5)
    assert judge.scores(RUBRIC, cases("a", "b", "c")) == [None] * 3
    assert len(server.requests) == judge.counts.requests == 5
    assert judge.counts.unasked == 2 or judge.counts.unasked + judge.counts.failed == 3
    assert judge.scores(RUBRIC, cases("d")) == [None]
    assert len(server.requests) == 5
    assert capsys.readouterr().out.count("budget of 5 calls is spent") == 1


def test_a_spent_budget_still_reads_the_cache(tmp_path):
    echo = Echo()
    judge = Judge(echo, cache=tmp_path, max_calls=2)
    assert judge.scores(RUBRIC, cases("0.1", "0.2")) == [0.1, 0.2]
    assert judge.scores(RUBRIC, cases("0.3", "0.2")) == [None, 0.2]
    assert len(echo.prompts) == 2 and judge.counts.failed == 0
    with pytest.raises(BudgetSpentError):
        judge.ask("?", Score)


def test_a_dead_judge_stops_the_run(scripted, tmp_path):
    server = scripted(lambda body: (503, b'{"error": {"message": "model crashed"}}'))
    judge = judge_for(server, tmp_path, remedy="go on with --resume")
    started = time.monotonic()
    with pytest.raises(
        ValueError, match=r"failed on 20 of the last 20 answers.*50%.*HTTP 503.*crashed.*--resume"
    ) as stop:
        judge.scores(RUBRIC, cases(*map(str, range(200))))
    assert time.monotonic() - started < 5
    assert judge.name in str(stop.value) and "\n" not in str(stop.value)
    time.sleep(0.3)
    requests = len(server.requests)
    assert requests <= (20 + 16) * 3
    time.sleep(0.3)
    assert len(server.requests) == requests, "threads go on asking"


def test_only_recent_failures_count(tmp_path):
    judge = Judge(Echo(), cache=tmp_path)
    good = [f"0.{n}" for n in range(100, 100 + RECENT)]
    judge.scores(RUBRIC, cases(*good))
    assert judge.scores(RUBRIC, cases(*["x" * n for n in range(1, RECENT // 2 + 1)])) == [None] * (RECENT // 2)
    with pytest.raises(ValueError, match=f"{RECENT // 2 + 1} of the last {RECENT}"):
        judge.scores(RUBRIC, cases("y"))


def test_few_failures_and_a_share_of_one_never_stop(tmp_path):
    few, patient = (Judge(Echo(), cache=tmp_path / name) for name in "ab")
    few.max_failures, patient.max_failures = 0.0, 1.0
    assert few.scores(RUBRIC, cases(*["x" * n for n in range(1, 20)])) == [None] * 19
    assert patient.scores(RUBRIC, cases(*["x" * n for n in range(1, 90)])) == [None] * 89


# The cache


def test_a_warm_run_asks_nothing(tmp_path):
    cold, warm = Echo(), Echo()
    answers = cases("0.1", "-1", "0.1", "0.2")
    judge = Judge(cold, cache=tmp_path)
    assert judge.scores(RUBRIC, answers) == [0.1, None, 0.1, 0.2]
    assert len(cold.prompts) == 3 and judge.counts.judged == 3 and judge.counts.cached == 0
    judge = Judge(warm, cache=tmp_path)
    assert judge.scores(RUBRIC, answers) == [0.1, None, 0.1, 0.2]
    assert warm.prompts == [] and judge.counts == Counts(cached=4)


def test_failures_are_not_kept(tmp_path):
    judge = Judge(Echo(), cache=tmp_path)
    for _ in range(2):
        assert judge.scores(RUBRIC, cases("x")) == [None]
    assert judge.counts.failed == judge.counts.requests == 2


@pytest.mark.parametrize(
    ("rubric", "case", "again"),
    [
        (RUBRIC, Case("Where?", "0.1", ("Paris",)), False),
        (RUBRIC, Case("Where?", "0.1", ("Paris",), ("not read",)), False),
        (RUBRIC, Case("When?", "0.1", ("Paris",)), True),
        (RUBRIC, Case("Where?", "0.1", ("Paris", "Lutetia")), True),
        (Rubric("test_reward", "2", RUBRIC.reads, grade), Case("Where?", "0.1", ("Paris",)), True),
        (Rubric("other_reward", "1", RUBRIC.reads, grade), Case("Where?", "0.1", ("Paris",)), True),
    ],
)
def test_the_key_is_all_that_is_read(tmp_path, rubric, case, again):
    judge = Judge(Echo(), cache=tmp_path)
    judge.scores(RUBRIC, cases("0.1"))
    judge.scores(rubric, [case])
    assert judge.counts.requests == 1 + again
    other = Echo()
    other.name = "another judge"
    Judge(other, cache=tmp_path).scores(RUBRIC, cases("0.1"))
    assert len(other.prompts) == 1


def test_one_question_of_many_answers_is_asked_once(tmp_path):
    def grade_twice(ask: Any, case: Case) -> float:
        return ask('The shared "0.5"', Score).score + ask(f"{fence(case.answer)}", Score).score

    echo = Echo()
    rubric = Rubric("r", "1", ("answer",), grade_twice)
    assert Judge(echo, cache=tmp_path).scores(rubric, cases("0.1", "0.2", "0.3")) == [0.6, 0.7, 0.8]
    assert len(echo.prompts) == 4


ATTACK = b"cbuiltins\nexec\n(Vraise SystemExit('unpickled')\ntR."


@pytest.mark.parametrize("stored", [(4, ATTACK), (1, b"0.5"), (1, "NaN"), (1, "7"), (1, "{"), (3, None), (1, 1)])
def test_what_is_no_verdict_of_ours_is_asked_anew(tmp_path, stored):
    """Above all a pickle, which diskcache by itself would load."""
    echo = Echo()
    judge = Judge(echo, cache=tmp_path)
    judge.scores(RUBRIC, cases("0.1"))
    with sqlite3.connect(tmp_path / "cache.db") as database:
        database.execute("UPDATE Cache SET mode = ?, value = ?, filename = 'x'", stored)
    database.close()
    assert judge.scores(RUBRIC, cases("0.1")) == [0.1]
    assert len(echo.prompts) == 2


def test_an_unusable_cache_is_one_sentence(tmp_path):
    (tmp_path / "cache.db").write_bytes(b"no database" * 1000)
    with pytest.raises(ValueError, match=r"cannot be opened \(file is not a database\): delete"):
        Judge(Echo(), cache=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be opened"):
        Judge(Echo(), cache=tmp_path / "file")


def test_a_cache_that_fails_later_stops_nothing(tmp_path, capsys):
    judge = Judge(Echo(), cache=tmp_path)
    judge._cache.close()
    (tmp_path / "cache.db").write_bytes(b"no database" * 1000)
    assert judge.scores(RUBRIC, cases("0.1", "0.2")) == [0.1, 0.2]
    assert capsys.readouterr().out.count("cannot be written") == 1


WRITER = """
import sys
from pathlib import Path
from pydantic import BaseModel
from rewards.contract import Reply
from rewards.judge import Case, Judge, Rubric

class Same:
    name = "same"
    def reply(self, prompt, schema): return Reply('{"score": 0.25}')

class Score(BaseModel):
    score: float

rubric = Rubric("r", "1", ("answer",), lambda ask, case: ask(case.answer, Score).score)
judge = Judge(Same(), cache=Path(sys.argv[1]))
start = int(sys.argv[2])
for n in range(start, start + 300):
    assert judge.scores(rubric, [Case("", f"answer {n}")]) == [0.25]
"""


def test_two_processes_share_a_cache(tmp_path):
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), start], cwd=ROOT, stderr=subprocess.PIPE)
        for start in ("0", "150")
    ]
    for writer in writers:
        _, said = writer.communicate(timeout=60)
        assert writer.returncode == 0, said.decode()
    with sqlite3.connect(tmp_path / "cache.db") as database:
        assert database.execute("SELECT COUNT(*), COUNT(DISTINCT key) FROM Cache").fetchone() == (450, 450)
    database.close()


def test_a_warm_cache_asks_nothing(tmp_path):
    judge = Judge(Echo(), cache=tmp_path)
    reward = judged_reward(judge, RUBRIC)
    completions = [parsed(f"0.{n}") for n in range(500)]
    reward(completions=completions, **columns(500))
    assert judge.counts.requests > 0
    requests = judge.counts.requests
    reward(completions=completions, **columns(500))
    assert judge.counts.requests == requests


# The reward


def test_what_earns_nothing_is_not_asked(tmp_path):
    echo = Echo()
    reward = judged_reward(Judge(echo, cache=tmp_path), RUBRIC)
    unread = ["", "Paris", parsed(" "), parsed("\u200b..."), parsed("9" * (MAX_ANSWER_CHARACTERS + 1))]
    assert reward(completions=unread, **columns(len(unread))) == [0.0] * len(unread)
    assert echo.prompts == []
    assert reward.__name__ == "test_reward"
    fits = parsed("0." + "0" * (MAX_ANSWER_CHARACTERS - 2))
    assert reward(completions=[[{"role": "assistant", "content": fits}]], **columns(1)) == [0.0]
    assert len(echo.prompts) == 1


def test_rows_without_a_gold_answer_have_no_score(tmp_path):
    reward = judged_reward(Judge(Echo(), cache=tmp_path), RUBRIC)
    assert reward(completions=[parsed("0.5"), "no parse"], **columns(2, answer=" ", aliases=[])) == [None, None]
    assert reward(completions=[parsed("0.5")], **columns(1, answer="Paris", aliases=[])) == [0.5]


def test_none_becomes_its_groups_mean_in_training_alone(tmp_path):
    reward = judged_reward(Judge(Echo(), cache=tmp_path), RUBRIC)
    asked = [[{"role": "user", "content": question}] for question in ("a", "a", "b", "b", "a", "a")]
    completions = [parsed(text) for text in ("0.5", "fails", "fails", "fails again", "1.0")] + ["no parse"]
    plain = [0.5, None, None, None, 1.0, 0.0]
    assert reward(completions=completions, prompts=asked, **columns(6)) == plain
    filled = reward(completions=completions, prompts=asked, trainer_state=object(), **columns(6))
    assert filled == [0.5, 0.5, None, None, 1.0, 0.0]


def test_counts_are_logged_by_call(tmp_path):
    reward = judged_reward(Judge(Echo(), cache=tmp_path), RUBRIC)
    logged: list[dict[str, float]] = []
    for answers in (("0.1", "0.2", "fails"), ("0.1", "0.2", "0.3")):
        logged.append({})
        reward(completions=[parsed(a) for a in answers], log_metric=logged[-1].__setitem__, **columns(3))
    assert logged == [
        {"judge/calls": 3, "judge/cached": 0, "judge/failed": 1, "judge/unjudged": 1 / 3},
        {"judge/calls": 1, "judge/cached": 2, "judge/failed": 0, "judge/unjudged": 0.0},
    ]


def test_summary_says_what_happened(tmp_path):
    judge = Judge(Echo(), cache=tmp_path)
    judge.scores(RUBRIC, cases("0.1", "fails"))
    judge.scores(RUBRIC, cases("0.1"))
    line = r"judge echo: 1 verdicts in 2 requests of 0\.00 s, 1 more from the cache, 1 failed \(.*no number\)"
    assert re.fullmatch(line, judge.summary())
