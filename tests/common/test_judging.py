"""Which judge or reward a recipe's flags name, what it says of an easy question, and what its messages tell to do."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from recipes.bench.judge_speed import serve
from recipes.common import judging
from recipes.common.cli import explain
from recipes.common.stand_ins.tiny import tiny_folder
from rewards import comparers


@dataclass(frozen=True)
class Args:
    judge: str = "none"
    compare_with: str = "none"
    judge_model: str | None = None
    judge_max_calls: int | None = None
    model: str = "smollm2-135m"
    smoke: bool = False
    reward: str = "pairrm"
    output_dir: str = "outputs"


@pytest.fixture(autouse=True)
def verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept here alone, where no other test has left any."""
    monkeypatch.setattr(judging, "cache_root", lambda: tmp_path)
    monkeypatch.setattr("rewards.judge.ATTEMPTS", 1)


def knows(request: dict[str, Any]) -> str:
    """A judge that knows the river, as the rubric asks for it."""
    prompt = request["messages"][0]["content"]
    if "First answer" in prompt:
        return json.dumps({"better": "first" if 'First answer: "The Nile"' in prompt else "second"})
    return json.dumps({"reason": "", "score": 10 if "The Danube" not in prompt else 0})


def likes_the_first(request: dict[str, Any]) -> str:
    return json.dumps({"better": "first", "score": 5})


def test_nobody_and_no_llm(monkeypatch: pytest.MonkeyPatch) -> None:
    assert judging.connect(Args()) is None and judging.comparer(Args()) is None
    monkeypatch.setattr(comparers, "by_name", lambda name: f"by name: {name}")
    for name in ("pairrm", "outputs/x/adapter", "locall"):
        assert judging.comparer(Args(compare_with=name)) == f"by name: {name}"


def test_a_judge_that_can_tell(capsys: pytest.CaptureFixture) -> None:
    with serve(knows) as address:
        assert judging.connect(Args(judge=address)) is not None
        prefer = judging.comparer(Args(compare_with=address))
        line = f"Judge {address}/v1 scripted: of an easy question, the right answer scores 1.0 and a wrong one 0.0"
        assert capsys.readouterr().out.splitlines() == [line, line]
        assert prefer is not None and prefer(["?", "?"], ["The Nile", "b"], ["a", "The Nile"]) == [1.0, 0.0]


def test_a_judge_of_positions_cannot_tell(capsys: pytest.CaptureFixture) -> None:
    with serve(likes_the_first) as address:
        judging.comparer(Args(compare_with=address))
    assert "scores 1.0 and a wrong one 1.0; it cannot tell them apart, and its win rate will" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--judge", "--compare-with"])
def test_messages_name_the_flag_that_named_the_judge(flag: str) -> None:
    find = judging.connect if flag == "--judge" else judging.comparer

    def args(address: str) -> Args:
        return replace(Args(), **{flag.removeprefix("--").replace("-", "_"): address})

    sentence = rf"another {flag} or --judge-model, or pass {flag} none$"
    with serve(lambda request: "Who knows?") as address, pytest.raises(ValueError, match=sentence) as refused:
        find(args(address))
    assert explain(refused.value) == str(refused.value)
    with serve(knows) as address:
        judge = find(args(address)) if flag == "--judge" else judging._connect(args(address), flag, address)
        assert judge is not None and judge.remedy.endswith(f"--resume, or pass {flag} none")  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="no judge answers at"):
        find(args("http://127.0.0.1:9"))


def test_a_comparer_that_dies_in_training_is_a_sentence() -> None:
    """It is asked before and after, and nothing of it is held in between."""
    with serve(knows) as address:
        prefer = judging.comparer(Args(compare_with=address))
    assert prefer is not None
    with pytest.raises(ValueError, match=f"no judge answers at {address}/v1"):
        prefer(["?"], ["a"], ["b"])


def test_the_budget_is_that_of_the_comparison(capsys: pytest.CaptureFixture) -> None:
    with serve(knows) as address:
        prefer = judging.comparer(Args(compare_with=address, judge_max_calls=2))
        assert prefer is not None and prefer(["?"], ["a"], ["The Nile"]) == [0.0]
        assert prefer(["another"], ["a"], ["The Nile"]) == [None]
    assert "1 of 1 pairs lack a verdict and are left out" in capsys.readouterr().out


@pytest.mark.parametrize("smoke", [False, True])
def test_a_judge_in_this_process_compares(smoke: bool, unsloth: Any, capsys: pytest.CaptureFixture) -> None:
    """SmolLM2, and the tiny random model: what they say is worth nothing, and is said of every pair in both orders."""
    model = str(tiny_folder())
    prefer = judging.comparer(Args(compare_with="local", smoke=smoke, model=model))
    assert prefer is not None
    assert {*prefer(["?", "Why?"], ["a", "b"], ["b", "c"])} <= {0.0, 0.5, 1.0}
    printed = capsys.readouterr().out
    assert f"judge local {'tiny' if smoke else 'smollm2'}" in printed.lower()
    assert "4 verdicts in 4 requests" in printed and "lack a verdict" not in printed


def test_the_newest_complete_reward_model_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparers, "reward_by_name", lambda name: f"by name: {name}")
    runs = tmp_path / "ultrafeedback_reward" / "smollm2-135m"
    for time, results in {"20261101": True, "20261102": True, "20261103": False, "20261104": None}.items():
        (runs / time).mkdir(parents=True)
        if results is not None:
            (runs / time / "results.json").write_text(json.dumps({"complete": results}))
    args = Args(reward="trained", output_dir=str(tmp_path))
    assert judging.rewarder(args) == f"by name: {runs / '20261102' / 'adapter'}"
    # Of another model or under another name, it is asked for as it is.
    for name in ("pairrm", "outputs/x/adapter"):
        assert judging.rewarder(replace(args, reward=name)) == f"by name: {name}"
    with pytest.raises(ValueError, match="--reward trained found no reward model of phi-4 in "):
        judging.rewarder(replace(args, model="phi-4"))


def test_without_a_reward_model_the_step_before_is_named(tmp_path: Path) -> None:
    runs = tmp_path / "ultrafeedback_reward" / "smollm2-135m"
    with pytest.raises(ValueError) as refused:
        judging.rewarder(Args(reward="trained", output_dir=str(tmp_path)))
    assert explain(refused.value) == str(refused.value)
    assert str(refused.value) == (
        f"--reward trained found no reward model of smollm2-135m in {runs}: first run `python recipes/"
        f"ultrafeedback_reward.py --model smollm2-135m --output-dir {tmp_path}`, or give a folder or pairrm as --reward"
    )
