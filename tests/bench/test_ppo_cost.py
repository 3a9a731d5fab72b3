"""The benchmark's arithmetic, its table, its peer's reward and a contender; the measurement is `make bench-ppo`."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from recipes.bench.ppo_cost import (
    BARS,
    Job,
    contend,
    distinct_words_reward,
    judge,
    programmatic,
    right_answers,
    table,
)

TRL = {"start_mib": 500, "peak_mib": 4500, "above_mib": 4000, "seconds": [99.0, 40.0, 42.0]}
OURS = {"start_mib": 600, "peak_mib": 2600, "above_mib": 2000, "seconds": [99.0, 41.0, 41.0]}  # half of it, as long
SLOW = OURS | {"seconds": [1.0, 50.0]}
FAST = TRL | {"seconds": [1.0, 10.0]}
GRPO = TRL | {"peak_mib": 2099, "above_mib": 1599}  # of which 2,000 are 1.2507
RIGHT = {"ours at 0.005": [240, 250, 245], "trl at 0.005": [230, 231, 232], "trl at 0.001": [245, 244, 246]}


def test_bars_are_judged_by_what_lies_above_the_start_by_medians_and_by_the_best_rate() -> None:
    found = judge(RIGHT, {"ours": [OURS, SLOW], "trl": [TRL, FAST], "trl whole": [TRL], "grpo": [GRPO]})
    assert [(row["what"], row["whose"], row["peer"], row["ratio"], row["met"]) for row in found] == [
        ("right answers", "trl", "ours", 1.0, True),
        ("peak memory", "ours", "trl", 0.5, True),
        ("seconds an update", "ours", "trl", 1.025, False),  # medians 41 and 40
        ("peak memory", "ours", "grpo", 1.251, False),
    ]
    assert [row["met"] for row in judge(RIGHT | {"ours at 0.005": [240, 250, 244]}, {})] == [False]


def test_what_was_not_measured_is_not_judged() -> None:
    assert judge({}, {}) == []
    assert [row["peer"] for row in judge({}, {"ours": [OURS], "grpo": [GRPO]})] == ["grpo"]
    assert judge({"ours at 0.005": [0, 0, 0], "trl at 0.005": [0, 0, 0]}, {"trl": [TRL]}) == []


def test_the_table_says_what_is_met_and_what_is_missed() -> None:
    cost = {"ours": [OURS], "trl": [TRL, TRL], "grpo": [GRPO]}
    assert [" ".join(line.split()) for line in table(RIGHT, cost, judge(RIGHT, cost)).splitlines()] == [
        "start_mib peak_mib above_mib s/update",
        "ours 600 2,600 2,000 41.00",
        "trl 500 4,500 4,000 41.00",
        "trl 500 4,500 4,000 41.00",
        "grpo 500 2,099 1,599 41.00",
        "",
        "right of 250 mean by seed",
        "ours at 0.005 245.0 240, 250, 245",
        "trl at 0.005 231.0 230, 231, 232",
        "trl at 0.001 245.0 245, 244, 246",
        "",
        "right answers: trl / ours 1.000 at most 1.00: met",
        "peak memory: ours / trl 0.500 at most 0.50: met",
        "seconds an update: ours / trl 1.000 at most 1.00: met",
        "peak memory: ours / grpo 1.251 at most 1.25: MISSED",
    ]
    assert len(BARS) == 4


def test_distinct_words_are_counted() -> None:
    completions = [[{"role": "assistant", "content": text}] for text in ("a b a", "", "word " * 48)]
    assert distinct_words_reward(completions) == [2 / 48, 0.0, 1 / 48]


def test_the_peer_reads_the_reward_at_every_position(nano: Any) -> None:
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(nano.folder, padding_side="left")
    rows = nano.dataset().to_list()
    prompts = [tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"] for row in rows]
    judge = programmatic(tokenizer, prompts, rows, nano.successor_reward)
    written = {7: "8 <|im_end|>", 3: "8 8", 0: "1"}
    texts = [prompts[digit] + tokenizer.encode(text) for digit, text in written.items()]
    padded = tokenizer.pad({"input_ids": texts}, return_tensors="pt")
    backbone = getattr(judge, judge.base_model_prefix)
    hidden = backbone(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"].bool()).hidden_states[-1]
    scores = judge.score(hidden)
    assert scores.shape == (*padded["input_ids"].shape, 1)
    assert torch.equal(scores[..., 0], torch.tensor([[1.0], [0.0], [1.0]]).expand(padded["input_ids"].shape))


@pytest.fixture
def job(nano: Any, tmp_path: Path) -> Job:
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps(nano.dataset().to_list()), encoding="utf-8")
    return Job("ours", str(nano.folder), str(rows), str(tmp_path / "out"), updates=2, micro_batch=5, tokens=4)


def test_a_contender_leaves_its_cost_and_an_adapter_that_can_be_counted(nano: Any, job: Job) -> None:
    cost = contend(asdict(job))
    assert len(cost["seconds"]) == 2 and min(cost["seconds"]) > 0
    assert 0 < cost["start_mib"] <= cost["peak_mib"]
    assert 0 < right_answers(job.model, job.out) < 100  # of 250: two updates at 1e-5 teach nothing


def test_a_model_that_ends_is_not_compared_on_equal_lengths(nano: Any, job: Job) -> None:
    rows = json.loads(Path(job.rows).read_text(encoding="utf-8"))
    Path(job.rows).write_text(json.dumps([{"prompt": row["prompt"]} for row in rows]), encoding="utf-8")
    with pytest.raises(RuntimeError, match=r"ours wrote \d+ tokens, and all contenders must write 480"):
        contend(asdict(replace(job, updates=1, tokens=48)))
