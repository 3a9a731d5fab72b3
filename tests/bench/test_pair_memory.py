"""The benchmark's arithmetic, its table and its rows; the measurement itself is `make bench-memory`."""

from typing import Any

import pytest

from recipes.bench.pair_memory import PAIRS, Memory, judge, longest_pairs, table


def took(start: int, peak: int, **other: Any) -> Memory:
    memory = {"start_mib": start, "peak_mib": peak, "above_mib": peak - start}
    return memory | {"batch": [8, 81], "tokens": 631} | other


SFT = took(800, 1800)


def test_a_bar_is_judged_by_what_lies_above_the_start() -> None:
    memory = {
        "sft": SFT,
        "dpo": took(800, 2050),  # 1,250 of 1,000: the bar itself
        "dpo precomputed": took(700, 1951),  # 1,251 of 1,000
        "kto": took(800, 9800),
    }
    assert [(row["whose"], row["ratio"], row["met"]) for row in judge(memory)] == [
        ("dpo", 1.25, True),
        ("dpo precomputed", 1.251, False),
        ("kto", 9.0, None),
    ]


def test_no_ratio_of_different_tokens_is_judged() -> None:
    for other in (SFT | {"tokens": 630}, SFT | {"batch": [8, 82]}):
        with pytest.raises(RuntimeError, match=r"dpo had batches of \[8, 8.\] with 63. tokens, and sft of \[8, 81\]"):
            judge({"sft": SFT, "dpo": other})
        assert judge({"sft": SFT, "orpo": other})[0]["met"] is None


def test_nothing_is_judged_without_the_peer() -> None:
    assert judge({"dpo": SFT}) == []


def test_the_table_says_what_is_met_and_what_is_missed() -> None:
    memory = {
        "sft": SFT,
        "dpo": took(800, 1900),
        "dpo precomputed": took(800, 2400),
        "orpo": took(800, 2400, tokens=623),
    }
    assert [" ".join(line.split()) for line in table(memory, judge(memory)).splitlines()] == [
        "tokens start_mib peak_mib above_mib",
        "sft 631 800 1,800 1,000",
        "dpo 631 800 1,900 1,100",
        "dpo precomputed 631 800 2,400 1,600",
        "orpo 623 800 2,400 1,600",
        "",
        "memory: dpo / sft 1.100 at most 1.25: met",
        "memory: dpo precomputed / sft 1.600 at most 1.25: MISSED",
        "memory: orpo / sft 1.600 for information",
    ]


def test_the_longest_pairs_are_chosen_by_both_answers() -> None:
    class Words:
        def apply_chat_template(self, messages: list[dict[str, str]], *, return_dict: bool) -> list[str]:
            return " ".join(message["content"] for message in messages).split()

    from data import ultrafeedback

    def words(row: dict) -> int:
        texts = [row[side][0]["content"] for side in ("chosen", "rejected")] + 2 * [row["prompt"][-1]["content"]]
        return sum(len(text.split()) for text in texts)

    found = [words(row) for row in longest_pairs(Words())]
    assert found == sorted((words(row) for row in ultrafeedback.load("train", source="sample")), reverse=True)[:PAIRS]
