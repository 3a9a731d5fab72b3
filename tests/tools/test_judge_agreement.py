"""What `judge_agreement` says of judges whose bias is known: each is a real server on loopback with a scripted mind."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes.bench.judge_speed import serve
from recipes.tools import judge_agreement as judge
from rewards import judge as judge_module
from rewards.judge import MAX_ANSWER_CHARACTERS, Judge
from rewards.tags import render

PROBLEMS = 24
RIGHT = {number for number in range(PROBLEMS) if number % 3 == 0}
Mind = Callable[[str], int]


def record(number: int, **changed: Any) -> dict[str, Any]:
    """Problem `number`: the gold answer is "the gold N", and every third completion says so."""
    answer = f"the gold {number}" if number in RIGHT else f"a miss {number}{' indeed' * (number % 5)}"
    return {
        "stage": "after",
        "kind": "greedy",
        "index": number,
        "sample": 0,
        "question": f"What is asked in problem {number}?",
        "gold": f"The gold {number}",
        "completion": render("Because.", answer),
        "tokens": 9,
        "truncated": False,
        "scores": {"exact_match_reward": float(number in RIGHT), "f1_reward": None},
        "reward": 1.0,
    } | changed


@pytest.fixture
def completions(tmp_path: Path) -> Path:
    """Two stages of a run; of the last, two completions cannot be asked about and one could not be graded."""
    records = [record(number, stage="before", completion="nothing") for number in range(PROBLEMS)]
    records += [record(number) for number in range(PROBLEMS)]
    records += [record(number, kind="sampled", sample=1, completion="nothing") for number in range(PROBLEMS)]
    records.append(record(90, completion="no tags"))
    records.append(record(91, completion=render("Because.", "x" * (MAX_ANSWER_CHARACTERS + 1))))
    records.append(record(92, scores={"exact_match_reward": None, "f1_reward": None}))
    path = tmp_path / "completions.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails is tried again at once."""

    def connect(*args: Any, **kwargs: Any) -> Judge | None:
        found = judge_module.connect(*args, **kwargs)
        if found:
            found.backoff = 0.01
        return found

    monkeypatch.setattr(judge, "connect", connect)


def number_in(prompt: str) -> int:
    return int(re.findall(r"problem (\d+)", prompt)[-1])


def honest(prompt: str) -> int:
    return 9 if number_in(prompt) in RIGHT else 1


def loves_length(prompt: str) -> int:
    return 8 if "whole sentence" in prompt else 2


def contrary(prompt: str) -> int:
    return 10 - honest(prompt)


def mind(score: Mind, same: Callable[[str], bool]) -> Callable[[dict[str, Any]], str]:
    """A judge that scores by `score`, and says by `same` whether two answers say the same."""

    def answer(request: dict[str, Any]) -> str:
        (prompt,) = [message["content"] for message in request["messages"]]
        if "two answers" in prompt:
            return json.dumps({"same": same(prompt)})
        return json.dumps({"reason": "So it is.", "score": score(prompt)})

    return answer


def says_same(prompt: str) -> bool:
    return number_in(prompt) in RIGHT


def gold_stands_first(prompt: str) -> bool:
    return re.search(r"First answer: .*The gold", prompt) is not None


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["recipes.tools.judge_agreement", *arguments])
    return judge.main()


def found_by(
    answer: Callable[[dict[str, Any]], str], path: Path, monkeypatch: pytest.MonkeyPatch, *more: str
) -> dict[str, Any]:
    with serve(answer) as address:
        assert run(monkeypatch, "--from", str(path), "--judge", address, *more) == 0
    return json.loads(path.with_name("judge.json").read_text(encoding="utf-8"))


def test_an_honest_judge(completions: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    found = found_by(mind(honest, says_same), completions, monkeypatch)
    assert (found["stage"], found["answers"], found["left_out"]) == ("after", PROBLEMS, 2)
    reward = found["rewards"]["rag_correctness"]
    assert (reward["n"], reward["right"], reward["wrong"], reward["failed"]) == (24, 8, 16, 0)
    assert (reward["accuracy"], reward["kappa"], reward["auc"]) == (1.0, 1.0, 1.0)
    assert reward["ci95"] == [0.862, 1.0]
    assert (reward["right_mean"], reward["wrong_mean"]) == (0.9, 0.1)
    assert reward["length"] == {
        "added_characters": len(judge.LONGER) - 2,
        "right": {"n": 8, "delta": 0.0, "ci95": [0.0, 0.0]},
        "wrong": {"n": 16, "delta": 0.0, "ci95": [0.0, 0.0]},
        "spearman_among_wrong": None,
    }
    cost = reward["cost"]
    assert (cost["answers"], cost["requests"], cost["cached"]) == (24, 24, 0)
    assert cost["prompt_tokens_per_request"] + cost["reply_tokens_per_request"] > 20
    assert cost["seconds_per_request"] > 0
    position = found["position"]
    assert (position["n"], position["flipped"], position["ci95"]) == (24, 0.0, [0.0, 0.138])
    assert position["same_gold_first"] == position["same_answer_first"] == pytest.approx(8 / 24, abs=1e-4)
    printed = capsys.readouterr().out
    assert "agrees with the rule on 100.0 % (95 % CI 86.2 to 100.0, n = 24, kappa 1.00, auc 1.00)" in printed
    assert "turned 0.0 % of the verdicts (95 % CI 0.0 to 13.8, n = 24" in printed


def test_a_second_look_asks_nobody(completions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(mind(honest, says_same)) as address:
        arguments = ["--from", str(completions), "--judge", address]
        assert run(monkeypatch, *arguments) == 0
        first = json.loads(completions.with_name("judge.json").read_text(encoding="utf-8"))
        assert run(monkeypatch, *arguments) == 0
    second = json.loads(completions.with_name("judge.json").read_text(encoding="utf-8"))
    cost = second["rewards"]["rag_correctness"].pop("cost")
    assert (cost["requests"], cost["cached"], cost["seconds_per_request"]) == (0, 24, None)
    first["rewards"]["rag_correctness"].pop("cost")
    assert first == second


def test_a_judge_that_loves_length(
    completions: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    reward = found_by(mind(loves_length, says_same), completions, monkeypatch)["rewards"]["rag_correctness"]
    assert (reward["accuracy"], reward["kappa"], reward["auc"]) == (pytest.approx(16 / 24, abs=1e-4), 0.0, 0.5)
    assert reward["length"]["right"] == {"n": 8, "delta": 0.6, "ci95": [0.6, 0.6]}
    assert reward["length"]["wrong"] == {"n": 16, "delta": 0.6, "ci95": [0.6, 0.6]}
    assert "right answers +0.600 (95 % CI +0.600 to +0.600) and wrong answers +0.600" in capsys.readouterr().out


def test_longer_wrong_answers_that_score_higher(completions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def counts_words(prompt: str) -> int:
        return min(10, prompt.count("indeed"))

    reward = found_by(mind(counts_words, says_same), completions, monkeypatch)["rewards"]["rag_correctness"]
    assert reward["length"]["spearman_among_wrong"] > 0.9
    assert reward["length"]["wrong"]["delta"] == 0.0


def test_a_judge_that_flips_with_position(completions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    position = found_by(mind(honest, gold_stands_first), completions, monkeypatch)["position"]
    assert (position["n"], position["flipped"]) == (24, 1.0)
    assert (position["same_gold_first"], position["same_answer_first"]) == (1.0, 0.0)


def test_a_contrary_judge(completions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = found_by(mind(contrary, says_same), completions, monkeypatch)["rewards"]["rag_correctness"]
    assert (reward["accuracy"], reward["auc"]) == (0.0, 0.0) and reward["kappa"] < 0


def test_what_fails_is_left_out_and_counted(completions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sometimes(request: dict[str, Any]) -> str:
        text = mind(honest, says_same)(request)
        return "I would rather not say." if number_in(request["messages"][0]["content"]) in (3, 4) else text

    found = found_by(sometimes, completions, monkeypatch)
    reward = found["rewards"]["rag_correctness"]
    assert (reward["n"], reward["right"], reward["failed"], reward["accuracy"]) == (22, 7, 2, 1.0)
    assert (reward["length"]["right"]["n"], reward["length"]["wrong"]["n"]) == (7, 15)
    assert (found["position"]["n"], found["position"]["failed"]) == (22, 2)


def test_a_judge_that_never_answers_stops_it_in_a_sentence(
    completions: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with serve(lambda request: "Who knows?") as address:
        assert run(monkeypatch, "--from", str(completions), "--judge", address) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not completions.with_name("judge.json").exists()


@pytest.mark.parametrize(
    ("scores", "right", "expected"),
    [
        ([0.9, 0.8], [True, True], {"accuracy": 1.0, "kappa": None, "auc": None, "wrong_mean": None}),
        ([0.9, 0.1], [True, True], {"accuracy": 0.5, "kappa": 0.0, "auc": None}),
        ([0.5, 0.4, 0.6, 0.4], [True, False, False, True], {"accuracy": 0.5, "kappa": 0.0, "auc": 0.375}),
        ([], [], {"n": 0, "accuracy": None, "ci95": None, "kappa": None, "auc": None, "right_mean": None}),
    ],
)
def test_agreement(scores: list[float], right: list[bool], expected: dict[str, Any]) -> None:
    found = judge.agreement(scores, right, 0.5)
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--judge", "http://127.0.0.1:9"], "127.0.0.1:9"),
        (["--judge", "none"], "is nobody"),
        (["--judge", "gpt"], "gpt"),
        (["--judge", "local"], "model"),
        (["--judge", "none", "--stage", "later"], "expected records of stage 'later', found before, after"),
        (["--judge", "none", "--rule", "f1_reward"], "none of the others has a f1_reward"),
        (["--judge", "none", "--stage", "before"], "24 do not parse and none of the others"),
        (["--judge", "none", "--stage", "before", "--kind", "sampled"], "holds no sampled records"),
        (["--judge", "none", "--rule", "bleu"], "no score is named 'bleu', these are: exact_match_reward, f1_reward"),
        (["--judge", "none", "--from", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_sentence(
    completions: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: list[str],
    sentence: str,
) -> None:
    assert run(monkeypatch, "--from", str(completions), *arguments) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said and "\n" not in said


@pytest.mark.parametrize("line", ["[]", '{"stage": "after"}', "7"])
def test_a_line_that_is_no_record_is_named(completions: Path, line: str) -> None:
    completions.write_text(json.dumps(record(0)) + f"\n{line}\n", encoding="utf-8")
    says = r"(: expected a record as a run writes it| is damaged \(it is not an object\))"
    with pytest.raises(ValueError, match=rf"completions\.jsonl, line 2{says}"):
        judge.read_answers(completions, stage=None, kind="greedy", rule="exact_match_reward", limit=None)


def test_a_line_that_a_kill_cut_off_is_left_out(completions: Path) -> None:
    completions.write_text(json.dumps(record(0)) + '\n{"stage": "af', encoding="utf-8")
    _, answers, _ = judge.read_answers(completions, stage=None, kind="greedy", rule="exact_match_reward", limit=None)
    assert [answer.text for answer in answers] == ["the gold 0"]


def test_no_more_problems_than_asked_for(completions: Path) -> None:
    _, answers, _ = judge.read_answers(completions, stage=None, kind="greedy", rule="exact_match_reward", limit=5)
    assert [answer.right for answer in answers] == [True, False, False, True, False]
