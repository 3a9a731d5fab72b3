"""Who a name stands for, as a comparer and as a reward, and when the reader learns that it stands for nobody.

And an LLM judge that compares, on a real loopback server or in this process.
"""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.winrate import describe, win_rate
from recipes.common.cli import explain
from recipes.common.stand_ins.smollm2 import converted_folder
from recipes.common.stand_ins.tiny import write_pairrm
from rewards import comparers, pairrm, reward_model
from rewards.judge import Judge, connect

PROMPTS = [[{"role": "user", "content": "Name a colour."}], [{"role": "user", "content": "Why?"}]]
FIRST, SECOND = ["Blue.", "Because."], ["No.", "I do not know."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairrm")
    write_pairrm(folder)
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """The folder of a reward model, as far as its config tells."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"task_type": "SEQ_CLS"}), encoding="utf-8")
    return tmp_path


def test_nobody_compares() -> None:
    assert comparers.by_name("none") is None


def test_pairrm_judges_and_rewards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its folder, and by its name, which means the hub's."""
    completions = [[{"role": "assistant", "content": text}] for text in FIRST]
    judge = pairrm.load(str(folder))
    asked: list[str] = []
    fetch = pairrm.fetch

    def fetched(source: str) -> Path:
        asked.append(source)
        return fetch(str(folder) if source == "llm-blender/PairRM-hf" else source)

    monkeypatch.setattr(pairrm, "fetch", fetched)
    for name, source in (("pairrm", "llm-blender/PairRM-hf"), (str(folder), str(folder))):
        asked.clear()
        prefer = comparers.by_name(name)
        make = comparers.reward_by_name(name)
        assert asked == [source] * 2  # before anything is loaded
        assert prefer is not None
        assert prefer(PROMPTS, FIRST, SECOND) == pytest.approx(
            [1 / (1 + math.exp(-logit)) for logit in judge.logits(PROMPTS, FIRST, SECOND)]
        )
        reward = make(None)
        assert reward.__name__ == "pairrm_reward"
        assert reward(prompts=PROMPTS, completions=completions, reference=SECOND) == judge.logits(
            PROMPTS, FIRST, SECOND
        )


def test_an_adapter_folder_is_a_reward_model(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(reward_model, "reward", lambda *whom: given.append(whom))
    monkeypatch.setattr(reward_model, "prefer", lambda *whom: given.append(whom))
    make = comparers.reward_by_name(str(adapter))
    assert given == []
    make("the policy")
    comparers.by_name(str(adapter))
    assert given == [(str(adapter), "the policy"), (str(adapter),)]


def test_a_folder_of_neither_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    match = r"holds no reward model .* recipes/ultrafeedback_reward\.py"
    for name in (tmp_path, tmp_path / "model", tmp_path / "nowhere"):
        for find in (comparers.by_name, comparers.reward_by_name):
            with pytest.raises(ValueError, match=match) as refused:
                find(str(name))
            assert explain(refused.value) == str(refused.value) and "\n" not in str(refused.value)


def test_a_damaged_pairrm_is_refused_at_once(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    for find in (comparers.by_name, comparers.reward_by_name):
        with pytest.raises(ValueError, match="holds no safetensors"):
            find(str(tmp_path))


def test_without_the_hub_there_is_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*_: Any, **__: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("Got: ConnectError\nPlease check.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    for find in (comparers.by_name, comparers.reward_by_name):
        with pytest.raises(ValueError, match=r"train a reward model of your own with recipes/ultrafeedback_reward\.py"):
            find("pairrm")


# An LLM judge


Sides = Callable[[str, str], Any]
BEFORE, AFTER = ["bad", "good", "bad", "fair"], ["good", "bad", "also bad", "also fair"]


def reading(say: Sides) -> Callable[[dict[str, Any]], Any]:
    """A judge that says what `say` makes of the first answer and the second: a verdict, or an HTTP status and body."""

    def script(body: dict[str, Any]) -> Any:
        found = re.findall(r'^(?:First|Second) answer: (".*")$', body["messages"][0]["content"], re.MULTILINE)
        first, second = map(json.loads, found)
        said = say(first, second)
        return {"better": said} if isinstance(said, str) else said

    return script


def honest(first: str, second: str) -> str:
    if ("bad" in first) == ("bad" in second):
        return "tie"
    return "first" if "bad" in second else "second"


@pytest.fixture
def judge_of(scripted: Any, tmp_path: Path) -> Callable[..., tuple[Any, Judge]]:
    """`judge_of(say, ...)`: a server whose judge speaks so, and the judge."""

    def judge_of(say: Sides, **settings: Any) -> tuple[Any, Judge]:
        server = scripted(reading(say))
        judge = connect(server.address, cache=tmp_path / "verdicts", **settings)
        assert judge is not None
        judge.backoff = 0.01
        return server, judge

    return judge_of


def compared(judge: Judge, prompts: Any = tuple("abcd")) -> dict[str, Any]:
    return win_rate(prompts, BEFORE, AFTER, comparers.judged(lambda: judge))


def test_a_judge_that_compares_wins_ties_and_losses(
    judge_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    server, judge = judge_of(honest)
    found = compared(judge)
    assert (found["wins"], found["ties"], found["losses"], found["order_disagreement"]) == (1, 2, 1, 0.0)
    assert len(server.requests) == judge.counts.requests == 8  # either order once, though the win rate asks twice
    printed = capsys.readouterr().out
    assert printed.count("Compared in both orders") == 1 and "8 verdicts in 8 requests" in printed
    assert "lack a verdict" not in printed

    again = connect(server.address, cache=tmp_path / "verdicts")
    assert again is not None and compared(again) == found
    assert again.counts.requests == 0 and again.counts.cached == 8


@pytest.mark.parametrize("position", ["first", "second"])
def test_a_judge_of_positions_is_seen_through(judge_of: Any, position: str) -> None:
    _, judge = judge_of(lambda first, second: position)
    found = compared(judge)
    assert (found["rate"], found["ties"], found["order_disagreement"]) == (0.5, 4, 1.0)
    assert "the order changed the judge's mind in 100 % of pairs" in describe(found)


def test_ties_stay_ties(judge_of: Any) -> None:
    _, judge = judge_of(lambda first, second: "tie")
    found = compared(judge)
    assert (found["rate"], found["ties"], found["order_disagreement"]) == (0.5, 4, 0.0)


@pytest.mark.parametrize("fails", ["good", "bad", "also bad"])
@pytest.mark.parametrize("biased", [False, True])
def test_half_a_verdict_is_no_win(judge_of: Any, capsys: pytest.CaptureFixture, fails: str, biased: bool) -> None:
    """It fails where this answer stands first, for good; a judge of positions would let the other side win."""

    def say(first: str, second: str) -> Any:
        if first == fails:
            return 400, b'{"error": {"message": "I would rather not"}}'
        return "first" if biased else honest(first, second)

    server, judge = judge_of(say)
    prefer = comparers.judged(lambda: judge)
    lost = [row for row, pair in enumerate(zip(BEFORE, AFTER, strict=True)) if fails in pair]
    there, back = prefer("abcd", AFTER, BEFORE), prefer("abcd", BEFORE, AFTER)
    assert [(there[row], back[row]) for row in lost] == [(None, None)] * len(lost)
    assert (len(server.requests), judge.counts.failed) == (8, len(lost))  # what failed was not asked again
    found = win_rate("abcd", BEFORE, AFTER, prefer)
    assert (found["n"], found["unjudged"]) == (4 - len(lost), len(lost))
    assert found["wins"] == found["losses"] == (0 if biased or fails != "also bad" else 1)
    printed = capsys.readouterr().out
    assert printed.count(f"; {len(lost)} of 4 pairs lack a verdict and are left out") == 1
    assert f"{len(lost)} failed (the last: HTTP 400" in printed


def test_a_spent_budget_leaves_pairs_out(judge_of: Any, capsys: pytest.CaptureFixture) -> None:
    server, judge = judge_of(lambda first, second: "first" if "bad" in second else "second", max_calls=3, concurrency=1)
    found = compared(judge)
    assert len(server.requests) == 3
    assert (found["n"], found["unjudged"], found["wins"], found["order_disagreement"]) == (1, 3, 1, 0.0)
    printed = capsys.readouterr().out
    assert "budget of 3 calls is spent" in printed and "3 of 4 pairs lack a verdict and are left out" in printed


def test_a_judge_that_never_answers_stops_the_comparison(judge_of: Any) -> None:
    _, judge = judge_of(lambda first, second: (503, b"{}"), remedy="pass --compare-with none")
    many = [f"bad {n}" for n in range(20)]
    with pytest.raises(ValueError, match=r"failed on 20 of the last 20 .*; pass --compare-with none$"):
        win_rate(many, many, ["good"] * 20, comparers.judged(lambda: judge))


@pytest.mark.parametrize(
    ("first", "second", "again"),
    [("good", "bad", 0), ("bad", "good", 0), ("good", "worse", 2), ("good", "bad ", 2), ("go", "odbad", 2)],
)
def test_a_verdict_is_of_both_answers_in_their_order(judge_of: Any, first: str, second: str, again: int) -> None:
    server, judge = judge_of(honest)
    assert comparers.judged(lambda: judge)(["a"], ["good"], ["bad"]) == [1.0]
    (verdict,) = comparers.judged(lambda: judge)(["a"], [first], [second])
    assert verdict == {"first": 1.0, "tie": 0.5, "second": 0.0}[honest(first, second)]
    assert len(server.requests) == 2 + again
    comparers.judged(lambda: judge)(["another prompt"], ["good"], ["bad"])
    assert len(server.requests) == 4 + again


def test_what_the_judge_reads(judge_of: Any) -> None:
    server, judge = judge_of(honest)
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi\n\nassistant: no"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Why?"},
    ]
    prompts = ["Text?", [{"role": "user", "content": "A message?"}], talk]
    comparers.judged(lambda: judge)(prompts, ["good"] * 3, ["bad\nbad"] * 3)
    line = re.compile(r'^(Prompt|First answer|Second answer): (".*")$', re.MULTILINE)
    read = [line.findall(json.loads(raw)["messages"][0]["content"]) for raw in server.requests]
    shown = {tuple((name, json.loads(text)) for name, text in found) for found in read}
    conversation = "system: Be brief.\n\nuser: Hi\n\nassistant: no\n\nassistant: Hello.\n\nuser: Why?"
    assert shown == {
        (("Prompt", asked), ("First answer", one), ("Second answer", other))
        for asked in ("Text?", "A message?", conversation)
        for one, other in (("good", "bad\nbad"), ("bad\nbad", "good"))
    }


def test_no_judge_is_made_before_it_is_needed(judge_of: Any) -> None:
    made: list[Judge] = []

    def make() -> Judge:
        made.append(judge_of(honest)[1])
        return made[-1]

    prefer = comparers.judged(make)
    assert made == []
    prefer(["a"], ["good"], ["bad"])
    prefer(["b"], ["good"], ["bad"])
    assert len(made) == 1


def test_smollm2_compares_in_both_orders(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The embedded default: every verdict is one of the three, whatever it is worth."""
    judge = connect("local", model=str(converted_folder()), cache=tmp_path)
    assert judge is not None
    prefer = comparers.judged(lambda: judge)
    there, back = prefer(PROMPTS, FIRST, SECOND), prefer(PROMPTS, SECOND, FIRST)
    assert {*there, *back} <= {0.0, 0.5, 1.0}
    assert (judge.counts.requests, judge.counts.judged, judge.counts.failed) == (4, 4, 0)
    found = win_rate(PROMPTS, SECOND, FIRST, prefer)
    assert found["n"] == found["wins"] + found["ties"] + found["losses"] == 2
    biased = [(a > 0.5 and b > 0.5) or (a < 0.5 and b < 0.5) for a, b in zip(there, back, strict=True)]
    assert found["order_disagreement"] == sum(biased) / 2
    assert judge.counts.requests == 4 and "lack a verdict" not in capsys.readouterr().out
