import ast
import re
from collections.abc import Iterable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval.charts import CURVE_POINTS
from eval.metrics import compare, summarise
from eval.report import pick_problems, verdicts, write_model_card, write_report

STAGES = ("before", "warm start", "after")
CORRECT = ["correctness_reward"]
GSM8K: dict[str, Any] = {"correct": "correctness_reward", "format": "structure_reward"}
GOOD = "<reasoning>\n2 + 2 = 4\n</reasoning>\n<answer>\n4\n</answer>"
HOSTILE = "\n  </pre></answer><script>alert('&amp;')</script>\n\t<img src=x onerror=alert(1)>{{ 7 * 7 }}\r\n\ud83d"


class Page(HTMLParser):
    """What a browser would find: every element with its attributes, and the text of every <pre>."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.blocks: list[str] = []
        self.text = ""
        self.inside = False
        self.feed(path.read_bytes().decode("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.text += " "
        if tag == "pre":
            self.inside = True
            self.blocks.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "pre":
            self.inside = False
            self.blocks[-1] = self.blocks[-1].removeprefix("\n")  # as HTML's own parsing rules do

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.inside:
            self.blocks[-1] += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def records(stage: str, outcomes: Iterable[float | None], completion: str = GOOD) -> list[dict[str, Any]]:
    return [
        {
            "stage": stage,
            "kind": kind,
            "index": index,
            "sample": 0,
            "question": f"question number {index}",
            "gold": "4",
            "completion": f"{completion}",
            "tokens": 12,
            "truncated": False,
            "scores": {"correctness_reward": outcome, "structure_reward": 1.0},
            "reward": None if outcome is None else outcome + 0.5,
        }
        for index, outcome in enumerate(outcomes)
        for kind in ("greedy", "sampled")
    ]


def run(*stages: list[dict[str, Any]], **changes: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The `results` and the completions of a run that measured these stages."""
    pairs = [*pairwise(stages), *([(stages[0], stages[-1])] if len(stages) > 2 else [])]
    results = {
        "recipe": "gsm8k_grpo",
        "model": "smollm2-135m",
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "n": 8,
        "complete": True,
        "steps": {"made": 40, "planned": 40},
        "date": "2026-01-31",
        "machine": "a machine",
        "command": "python recipes/gsm8k_grpo.py --model smollm2-135m",
        **GSM8K,
        **{"reference": None, "beside": [], "win_rate": None, "judge": None},
        "stages": [summarise(stage, **GSM8K) for stage in stages],
        "comparisons": [compare(*pair, **GSM8K) for pair in pairs],
        "training": {
            "trainable_parameters": 4_884_480,
            "parameters": 139_399_488,
            "adapter_bytes": 19_593_064,
            "tokens_per_second": 487.6,
        },
        "seconds": {"before": 59.6, "grpo": 3_700.0},
        "peak_memory_gib": {"resident": 3.41},
        "versions": {"trl": "1.15.0"},
        "git_commit": "0a1b2c3",
        "args": {"source": "sample", "learning_rate": 5e-5, "load_in_4bit": True},
        "licence": "Apache-2.0",
    }
    return results | changes, [record for stage in stages for record in stage]


def supervised(stage: str, outcomes: Iterable[float], nats: float) -> list[dict[str, Any]]:
    """Greedy records alone, with a second score and the loss of gold answers of two tokens."""
    return [
        record
        | {
            "scores": {"choice_reward": record["scores"]["correctness_reward"], "likeliest_option": 0.5 + nats / 10},
            "nll": nats,
            "nll_tokens": 2,
        }
        for record in records(stage, outcomes)[::2]
    ]


def supervised_run(correct: str | None, **changes: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A run of supervised training: greedy evaluations, no format, and a loss that fell by one nat a token."""
    stages = supervised("before", [0.0] * 20, 4.0), supervised("after", [1.0] * 15 + [0.0] * 5, 2.0)
    judged_by = {"correct": correct, "format": None}
    results, _ = run()
    results |= {
        "recipe": "arc_sft",
        "command": "python recipes/arc_sft.py",
        "args": {"adapter": "dora", "source": "hub"},
        **judged_by,
        "stages": [summarise(stage, **judged_by) for stage in stages],
        "comparisons": [compare(*stages, **judged_by)],
    }
    return results | changes, [record for stage in stages for record in stage]


def ranked(stage: str, outcomes: Iterable[float], logp: float = -200.0) -> list[dict[str, Any]]:
    """Greedy records with the scores of a pair."""
    return [
        record
        | {
            "gold": "the better answer",
            "scores": {
                "preference_accuracy": outcome,
                "reward_margin": 2 * outcome - 1,
                "chosen_logp": logp,
                "rejected_logp": logp - 20,
                "kl_per_token": 0.0 if stage == "before" else 0.125,
            },
        }
        for outcome, record in zip(outcomes, records(stage, [0.0] * 100)[::2], strict=False)
    ]


def preference_run(
    method: str, *stages: list[dict[str, Any]], **changes: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A run of a preference method, by default one that learned."""
    stages = stages or (ranked("before", [0.5] * 20), ranked("after", [1.0] * 16 + [0.5] + [0.0] * 3, -260.0))
    judged_by = {"correct": "preference_accuracy", "format": None}
    results, _ = run()
    results |= {
        "recipe": f"ultrafeedback_{method}",
        "command": f"python recipes/ultrafeedback_{method}.py",
        "args": {"adapter": "qlora", "source": "hub"},
        **judged_by,
        "stages": [summarise(stage, **judged_by) for stage in stages],
        "comparisons": [compare(*stages, **judged_by)],
    }
    return results | changes, [record for stage in stages for record in stage]


def preference_steps(phase: str, count: int = 30, **changes: Any) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl as DPO's trainer logs them, with a KL on every tenth step."""
    return [
        {
            "phase": phase,
            "step": step,
            "loss": 0.69 - step / 100,
            "rewards/chosen": step / 100,
            "rewards/rejected": -step / 100,
            "rewards/accuracies": 0.5 + step / 100,
            "rewards/margins": step / 50,
            "logps/chosen": -200.0 - step,
            "logps/rejected": -220.0 - 2 * step,
            **({"kl": step / 1000} if step % 10 == 0 else {}),
        }
        | changes
        for step in range(1, count + 1)
    ]


def rewarded(stage: str, reward: float, *, parts: int = 1, gold: str = "the better answer") -> list[dict[str, Any]]:
    """Greedy and sampled records that only a reward judges; the last problem's could not be given."""
    names = ["pairrm_reward", "length_reward"][:parts]
    return [
        record
        | {
            "gold": gold,
            "scores": dict.fromkeys(names, earned),
            "reward": None if earned is None else parts * earned - (0.5 if record["kind"] == "greedy" else 0.0),
        }
        for record in records(stage, [0.0] * 21)
        for earned in [None if record["index"] == 20 else reward + record["index"] % 2]
    ]


def reward_run(*stages: list[dict[str, Any]], **changes: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A run of PPO, by default one that learned."""
    stages = stages or (rewarded("before", -2.0), rewarded("after", 1.25))
    judged_by = {"correct": None, "format": None}
    results, _ = run()
    results |= {
        "recipe": "ultrafeedback_ppo",
        "command": "python recipes/ultrafeedback_ppo.py --reward pairrm",
        "args": {"reward": "pairrm", "source": "hub", "load_in_4bit": True},
        **judged_by,
        "stages": [summarise(stage, **judged_by) for stage in stages],
        "comparisons": [compare(*stages, **judged_by)],
    }
    return results | changes, [record for stage in stages for record in stage]


def reward_steps(count: int, **changes: Any) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl as PPO's trainer logs them."""
    return [
        {
            **{"phase": "ppo", "step": step, "loss": 0.1, "grad_norm": 1.0, "learning_rate": 1e-5},
            **{"score": -2.0 + step / 10, "score_std": 1.5, "kl": step / 1000, "kl_per_completion": step / 20},
            **{"kl_coefficient": 0.05, "entropy": 2.0 - step / 100, "policy_loss": -0.01, "value_loss": 0.3},
            **{"clip_fraction": 0.1, "value_clip_fraction": 0.1, "explained_variance": step / 40 - 0.2},
            **{"approx_kl": 0.001, "ratio_error": 0.0, "minibatches": 8, "length": 60 + step, "truncated": 0.1},
            **{"ungraded": 0, "num_tokens": 4_000 * step, "seconds": 9.5},
        }
        | changes
        for step in range(1, count + 1)
    ]


WIN_RATE = {
    **{"n": 40, "unjudged": 0, "wins": 24, "ties": 2, "losses": 14, "rate": 0.625, "ci95": [0.475, 0.7625]},
    **{"length_controlled_rate": 0.55, "length_controlled_ci95": [0.4, 0.69], "order_disagreement": 0.1},
    **{"before_mean_length": 80.0, "after_mean_length": 120.5, "length_unit": "words"},
}

LEARNED = (
    records("before", [0.0] * 20),
    records("warm start", [1.0] * 4 + [0.0] * 16),
    records("after", [1.0] * 14 + [0.0] * 6),
)
STUCK = (records("before", [1.0, 0.0] * 10), records("after", [0.0, 1.0] * 10))


def steps(count: int, **changes: Any) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl: a warm start of four steps, then `count` steps of GRPO."""
    warm = [{"phase": "warm start", "step": step, "loss": 2.0 / step} for step in range(1, 5)]
    return warm + [
        {
            "phase": "grpo",
            "step": step,
            "loss": 0.0,
            "reward": (step * 7 % 11) / 4,
            "frac_reward_zero_std": (step * 5 % 4) / 4,
            "completions/mean_length": 90 + step % 13,
            "completions/clipped_ratio": (step % 5) / 10,
            "rewards/correctness_reward/mean": (step * 3 % 10) / 10,
            "rewards/correctness_reward/std": 0.4,
            "rewards/tags_reward/mean": (step * 9 % 10) / 10,
        }
        | changes
        for step in range(1, count + 1)
    ]


def report(tmp_path: Path, results: dict[str, Any], metrics: list[dict[str, Any]], completions: Any) -> Page:
    write_report(tmp_path / "report.html", results, metrics, completions)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    return Page(tmp_path / "report.html")


def test_report_tells_apart_what_the_warm_start_and_what_grpo_gave(tmp_path: Path) -> None:
    results, completions = run(*LEARNED)
    page = report(tmp_path, results, [], completions)
    text = re.sub(r"\s+", " ", page.text)
    assert "Accuracy +70.0 points (95 % CI +50.0 to +90.0, p = 0.00012, n = 20): it learned." in text
    assert "Warm start: accuracy +20.0 points" in text
    assert "GRPO: accuracy +50.0 points" in text
    assert "GRPO warm start → after" in text
    assert "Warm start and GRPO before → after" in text
    assert "Accuracy, greedy 0.0 % 0.0 to 16.1 20.0 % 8.1 to 41.6 70.0 % 48.1 to 85.5" in text
    assert "Newly solved 4 10 14 No longer solved 0 0 0" in text
    assert "before 1 min 0 s grpo 1 h 1 min" in text
    assert "resident 3.41 GiB" in text
    assert "gpu" not in text
    assert "may explain" not in text
    assert "Unfinished" not in text


def test_the_last_line_of_a_run_is_of_its_own_method() -> None:
    """A warm start that taught the form, and GRPO that lost of it: "it learned" is said of the former alone."""
    fell = (records("before", [0.0] * 20), records("warm start", [1.0] * 20), records("after", [1.0] * 8 + [0.0] * 12))
    whole, warm, own = verdicts(run(*fell)[0])
    assert whole.startswith("From before to after: accuracy +40.0 points") and whole.endswith("it learned")
    assert warm.startswith("Warm start alone: accuracy +100.0 points") and warm.endswith("it learned")
    assert own.startswith("GRPO alone: accuracy -60.0 points") and own.endswith("it got worse")
    (only,) = verdicts(run(*STUCK)[0])
    assert only.startswith("accuracy +0.0 points")


def test_report_of_supervised_training_shows_what_it_measured_and_nothing_else(tmp_path: Path) -> None:
    results, completions = supervised_run("choice_reward")
    metrics = [{"phase": "sft", "step": step, "loss": 2.0 / step, "num_tokens": 90.0 * step} for step in range(1, 9)]
    page = report(tmp_path, results, metrics, completions)
    text = re.sub(r"\s+", " ", page.text)
    assert "Accuracy +75.0 points (95 % CI +55.0 to +90.0, p < 0.0001, n = 20): it learned." in text
    before_and_after = (
        "before after Accuracy, greedy 0.0 % 0.0 to 16.1 75.0 % 53.1 to 88.8 "
        "Held-out loss, nats per token 2.000 2.000 to 2.000 1.000 1.000 to 1.000 Perplexity 7.39 2.72 "
        "Truncated, of all 0.0 % 0.0 % Tokens, greedy 12 12 "
        "Likeliest option 0.900 0.900 to 0.900 0.700 0.700 to 0.700 Problems (n) 20 20"
    )
    assert before_and_after in text
    differences = (
        "SFT before → after Accuracy, greedy +75.0 points +55.0 to +90.0 Held-out loss, nats per token "
        "-1.000 -1.000 to -1.000 Likeliest option -0.200 -0.200 to -0.200 "
        "Newly solved 15 No longer solved 0 McNemar, exact p < 0.0001"
    )
    assert differences in text
    assert "The loss is that of the gold answers" in text
    assert "5 of 20 problems, chosen by rule: the 15 solved only after" in text
    assert text.count("✓ correct") == text.count("✗ wrong") == 5
    for word in ("GRPO", "sampled", "Format", "blocks", "Reward", "reward", "not measured"):
        assert word not in text, word
    assert "<figcaption>SFT: loss</figcaption>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("figure") == 1
    assert "trainable 4,884,480 of 139,399,488 parameters (3.5 %) saved weights 18.69 MiB speed 488 tokens/s" in text


def test_where_no_answer_is_right_the_report_judges_by_the_loss(tmp_path: Path) -> None:
    results, completions = supervised_run(None)
    for record in completions:
        record["scores"].pop("choice_reward")
    results["training"] = dict.fromkeys(results["training"])
    text = re.sub(r"\s+", " ", report(tmp_path, results, [], completions).text)
    assert "Held-out loss -1.000 nats/token (95 % CI -1.000 to -1.000, n = 20): it learned." in text
    assert "The first 5 of 20 problems." in text
    for word in ("Accuracy", "McNemar", "solved", "ungraded", "correct", "wrong", "tokens/s"):
        assert word not in text, word


def test_no_right_answer_and_no_change_is_no_reason_to_look_for_reasons(tmp_path: Path) -> None:
    results, completions = supervised_run(None)
    results["comparisons"][0]["loss"] = {"delta": 0.1, "ci95": [-0.1, 0.3]}
    text = report(tmp_path, results, steps(20, frac_reward_zero_std=0.9), completions).text
    assert "no measurable change" in text
    assert "may explain" not in text


def test_report_asks_for_nothing_and_runs_nothing(tmp_path: Path) -> None:
    results, completions = run(*LEARNED)
    page = report(tmp_path, results, steps(30), completions)
    assert page.count("script") == page.count("img") == page.count("iframe") == 0
    for tag, attributes in page.elements:
        address = attributes.get("src") or attributes.get("href") or attributes.get("xlink:href") or "#"
        assert address.startswith(("#", "data:,")), (tag, address)
        assert not [name for name in attributes if name.startswith("on")]
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in source
    assert "http:" not in source and "https:" not in source and "@import" not in source
    assert set(re.findall(r"url\((.)", source)) <= {"#"}  # clip paths inside a chart


def test_what_the_model_wrote_is_shown_to_the_character_and_does_nothing(tmp_path: Path) -> None:
    stages = [records(name, [0.0, 1.0], HOSTILE) for name in STAGES]
    results, completions = run(*stages, command="python x.py <b>", model="<script>alert(2)</script>")
    results["args"]["note"] = "<script>alert(3)</script>"
    for record in completions:
        record["question"] = record["gold"] = "</p><script>alert(4)</script>"
    page = report(tmp_path, results, [], completions)
    assert page.count("script") == page.count("img") == 0
    assert page.blocks == [HOSTILE.replace("\ud83d", "\\ud83d")] * 6 + ["python x.py <b>"]
    assert page.text.count("alert(4)") == 4


def test_report_of_a_preference_run_speaks_of_pairs(tmp_path: Path) -> None:
    results, completions = preference_run("dpo", reference="the base model, adapter off", win_rate=WIN_RATE)
    metrics = preference_steps("dpo")
    metrics[21]["warning"] = "Both <fell>."
    page = report(tmp_path, results, [*metrics, metrics[21]], completions)
    text = re.sub(r"\s+", " ", page.text)
    assert "Accuracy +32.5 points" in text
    before_and_after = (
        "before after Preference accuracy 50.0 % 29.9 to 70.1 82.5 % 61.1 to 93.4 Truncated, of all 0.0 % 0.0 % "
        "Tokens, greedy 12 12 "
        "Reward margin 0.000 0.000 to 0.000 0.650 0.300 to 0.900 "
        "Log-probability of the chosen -200.000 -200.000 to -200.000 -260.000 -260.000 to -260.000 "
        "Log-probability of the rejected -220.000 -220.000 to -220.000 -280.000 -280.000 to -280.000 "
        "KL to the reference, nats per token 0.000 0.000 to 0.000 0.125 0.125 to 0.125 "
        "Pairs (n) 20 20"
    )
    assert before_and_after in text
    assert "DPO before → after Preference accuracy +32.5 points" in text
    assert "Ranked better than before 16 Ranked worse than before 3 Sign test, exact p = 0.0044 Pairs (n) 20" in text
    assert "5 of 20 pairs, chosen by rule: the 16 ranked right only after" in text
    assert text.count("chosen in the data the better answer") == text.count("before pair tied") == 5
    assert "after ✓ pair ranked right" in text
    assert text.count("Warning, step 22: Both <fell>.") == 1
    assert "Tuned over base responses: win rate 62.5 % (95 % CI 47.5 to 76.2; 24 wins" in text
    assert "80.0; 55.0 % at equal length" in text
    assert "reference policy the base model, adapter off" in text
    for word in ("sampled", "problems", "McNemar", "solved", "Gold", "may explain", "correct", "not measured"):
        assert word not in text, word
    plain, _ = preference_run("dpo", win_rate=None)
    text = report(tmp_path, plain, preference_steps("dpo"), completions).text
    for word in ("win rate", "reference policy", "Warning"):
        assert word not in text, word


def test_report_of_a_reward_model_shows_no_completions(tmp_path: Path) -> None:
    stages = ranked("before", [0.0, 1.0] * 10), ranked("after", [1.0] * 18 + [0.0] * 2)
    for record in stages[0] + stages[1]:
        record |= {"completion": "", "tokens": 0}
    results, completions = preference_run("reward", *stages)
    text = re.sub(r"\s+", " ", report(tmp_path, results, [], completions).text)
    assert "Reward model before → after Preference accuracy +40.0 points" in text
    for word in ("Tokens", "tokens,", "runcated", "Side by side"):
        assert word not in text, word
    write_model_card(tmp_path / "README.md", results)
    assert "runcated" not in (tmp_path / "README.md").read_text(encoding="utf-8")


def safety(stage: str, refused: list[float], answered: list[float]) -> list[dict[str, Any]]:
    """Greedy records of harmful requests, and then of harmless ones."""
    marks = [(mark, None) for mark in refused] + [(None, mark) for mark in answered]
    return [
        record | {"scores": {"refusal_reward": refusal, "answers_reward": answer}}
        for record, (refusal, answer) in zip(records(stage, [0.0] * len(marks))[::2], marks, strict=True)
    ]


def safety_run() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One that learned to refuse, everything."""
    stages = safety("before", [0.0] * 10, [1.0] * 8), safety("after", [1.0] * 10, [0.0] * 8)
    judged_by = {"correct": "refusal_reward", "format": None, "guard": "answers_reward"}
    results, _ = run()
    results |= {
        "recipe": "safety_sft",
        **judged_by,
        "stages": [summarise(stage, **judged_by) for stage in stages],
        "comparisons": [compare(*stages, **judged_by)],
    }
    return results, [record for stage in stages for record in stage]


def test_report_and_card_of_a_run_with_a_guard_show_both_measures(tmp_path: Path) -> None:
    results, completions = safety_run()
    text = re.sub(r"\s+", " ", report(tmp_path, results, [], completions).text)
    assert (
        "Accuracy +100.0 points (95 % CI +100.0 to +100.0, p = 0.002, n = 10) and answers -100.0 points (95 %" in text
    )
    assert "n = 8): it got better at one and worse at the other." in text
    assert "The guard, answers, must not get worse" in text
    assert "Accuracy, greedy 0.0 % 0.0 to 27.8 100.0 % 72.2 to 100.0" in text
    assert "Answers, greedy 100.0 % 67.6 to 100.0 0.0 % 0.0 to 32.4" in text
    assert "Problems (n) 10 10 Problems (n), guard 8 8" in text
    assert "Answers, greedy -100.0 points -100.0 to -100.0" in text
    assert "Newly solved, guard 0 No longer solved, guard 8 McNemar, exact, guard p = 0.0078" in text
    assert "the 10 solved only after and the 8 solved only before take turns" in text
    assert text.count("✓ correct") == text.count("✗ wrong") == 5
    for word in ("may explain", "ungraded", "ungradable", "Guard"):  # accuracy rose, and every problem has a score
        assert word not in text, word
    write_model_card(tmp_path / "README.md", results)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| Answers, greedy | 100.0 % (67.6 to 100.0) | 0.0 % (0.0 to 32.4) |" in card
    assert "it got better at one and worse at the other.**" in card
    assert "no safety" not in card


@pytest.mark.parametrize("steps", [None, {"made": 0, "planned": 0}])
def test_a_run_that_trains_nothing_is_reported_and_claims_no_learning(tmp_path: Path, steps: Any) -> None:
    stages = [records(name, [1.0] * right + [0.0] * (20 - right))
              for name, right in (("zero-shot", 2), ("one-shot", 6), ("few-shot", 12))]  # fmt: skip
    results, completions = run(*stages, recipe="gsm8k_fewshot", steps=steps)
    results["training"] = dict.fromkeys(results["training"])
    text = re.sub(r"\s+", " ", report(tmp_path, results, [], completions).text)
    assert "Accuracy +50.0 points (95 % CI +30.0 to +70.0, p = 0.002, n = 20): it got better." in text
    assert "one-shot: accuracy +20.0 points" in text
    assert "few-shot one-shot → few-shot" in text and "few-shot zero-shot → few-shot" in text
    assert "What was measured The same held-out problems" in text
    for word in ("learned", "Training", "FEWSHOT", "Before and after", "None", "Unfinished"):
        assert word not in text, word
    results, completions = run(*STUCK, recipe="gsm8k_fewshot", steps=steps)
    text = report(tmp_path, results, [], completions).text
    assert "points wide" in text and "before training" not in text


def test_the_loss_of_a_phase_that_nobody_has_described_is_drawn(tmp_path: Path) -> None:
    results, completions = run(*LEARNED, recipe="gsm8k_rloo")
    metrics = [{"phase": phase, "step": 1, "loss": 0.5, "reward": 1.0} for phase in ("second round", "rloo")]
    report(tmp_path, results, metrics, completions)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"<figcaption>(.*?)</figcaption>", source) == ["RLOO: loss", "Second round: loss"]
    assert "RLOO" in source and "<b>Warm start</b>" in source


def test_report_of_a_run_that_a_reward_judges_headlines_the_reward(tmp_path: Path) -> None:
    results, completions = reward_run(win_rate=WIN_RATE, reference="the base model, adapter off")
    text = re.sub(r"\s+", " ", report(tmp_path, results, reward_steps(30), completions).text)
    assert "Sampled reward +3.250 (95 % CI +3.250 to +3.250, n = 20): it learned." in text
    assert "Tuned over base responses: win rate 62.5 %" in text
    assert "What decides is the reward (pairrm) of the sampled: higher is better, in a unit of its own." in text
    before_and_after = (
        "before after Reward, sampled -1.500 -1.700 to -1.300 1.750 1.550 to 1.950 Reward, greedy -2.000 1.250 "
        "Truncated, of all 0.0 % 0.0 % Tokens, greedy 12 12 Tokens, sampled 12 12 Problems (n) 20 20 "
        "Left out, ungradable 1 1"
    )
    assert before_and_after in text
    assert "PPO before → after Reward, sampled +3.250 +3.250 to +3.250 Problems (n) 20" in text
    assert "The first 5 of 21 problems." in text
    assert text.count("answer in the data the better answer") == 5
    assert "before reward -2.500, 12 tokens" in text and "after reward 0.750, 12 tokens" in text
    for word in ("ccuracy", "McNemar", "solved", "correct", "wrong", "Gold", "Held-out", "Perplexity", "Format"):
        assert word not in text, word
    for word in ("not measured", "None", "nan", "may explain"):
        assert word not in text, word


def test_rewards_of_several_parts_show_each_and_completions_without_one_say_so(tmp_path: Path) -> None:
    stages = [[r for r in rewarded(name, 0.5, parts=2, gold="") if r["index"] > 15] for name in ("before", "after")]
    results, completions = reward_run(*stages)
    text = re.sub(r"\s+", " ", report(tmp_path, results, reward_steps(2, explained_variance=None), completions).text)
    assert "(95 % CI +0.000 to +0.000, n = 4): too few problems to tell." in text
    assert "the reward (pairrm + length) of the sampled" in text
    assert "pairrm_reward, sampled 1.000 1.000 length_reward, sampled 1.000 1.000" in text
    assert "before ungraded, 12 tokens" in text
    for word in ("answer in the data", "reward None", "not measured", "nan"):
        assert word not in text, word


def test_curves_of_a_run_that_a_reward_judges(tmp_path: Path) -> None:
    results, completions = reward_run()

    def titles(metrics: list[dict[str, Any]]) -> list[str]:
        write_report(tmp_path / "report.html", results, metrics, completions)
        source = (tmp_path / "report.html").read_text(encoding="utf-8")
        return re.findall(r"<figcaption>(.*?)</figcaption>\s*<svg ", source)

    assert titles(reward_steps(30)) == [
        "Reward, before clipping and the KL penalty",
        "KL to the reference, nats per token",
        "Entropy of the policy, nats per token",
        "Returns that the value function explains, share of variance",
        "Tokens with a clipped ratio, share",
        "Completion length, tokens",
        "Truncated completions",
    ]
    assert "Returns that the value" not in " ".join(titles(reward_steps(9, explained_variance=None)))


def test_a_preference_run_that_did_not_learn_is_searched_for_a_reason(tmp_path: Path) -> None:
    stuck = ranked("before", [0.5] * 20), ranked("after", [1.0, 0.0] * 10)
    results, completions = preference_run("dpo", *stuck)

    def reasons(phase: str, **changes: Any) -> str:
        lines = preference_steps(phase, **changes)
        return re.sub(r"\s+", " ", report(tmp_path, results, lines, completions).text)

    text = reasons("dpo", **{"rewards/margins": 0.0123})
    assert "may explain that accuracy did not rise" in text
    assert "points wide. More held-out pairs would make" in text
    assert "The margin between the rewards of the training pairs ended at 0.012, still near zero" in text
    assert "near zero" in reasons("reward", **{"rewards/margins": None, "margin": -0.05})
    assert "near zero" not in reasons("dpo")  # margins that grew to 0.6
    assert "near zero" not in reasons("orpo", **{"rewards/margins": 0.0123})  # beta times a mean: small by its nature


def test_every_curve_with_data_is_drawn_and_no_other(tmp_path: Path) -> None:
    results, completions = run(*LEARNED)

    def titles(metrics: list[dict[str, Any]]) -> list[str]:
        write_report(tmp_path / "report.html", results, metrics, completions)
        source = (tmp_path / "report.html").read_text(encoding="utf-8")
        return re.findall(r"<figcaption>(.*?)</figcaption>\s*<svg ", source)

    assert titles(steps(30)) == [
        "Reward, weighted total",
        "correctness_reward",
        "tags_reward",
        "Groups without a signal (zero variance)",
        "Completion length, tokens",
        "Truncated completions",
        "Warm start: loss",
    ]
    assert titles([]) == []
    assert titles([{"phase": "grpo", "step": 1, "reward": 0.5, "kl": 0.1}]) == ["Reward, weighted total"]
    assert titles([{"phase": "sft", "step": 1, "loss": 0.5}]) == ["SFT: loss"]  # this recipe's method is GRPO
    assert titles([{"phase": "grpo", "step": 1, "reward": value} for value in (None, "?", float("nan"))]) == []


def test_curves_of_a_preference_run_in_reading_order(tmp_path: Path) -> None:
    def titles(method: str, metrics: list[dict[str, Any]]) -> list[str]:
        results, completions = preference_run(method)
        page = report(tmp_path, results, metrics, completions)
        source = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert len(re.findall(r">(chosen|rejected)</text>", source)) == 2 * ("Log-probability of the resp" in page.text)
        return re.findall(r"<figcaption>(.*?)</figcaption>\s*<svg ", source)

    common = ["Training pairs ranked right", "Reward margin, chosen over rejected"]
    logps = "Log-probability of the responses, nats"
    assert titles("dpo", preference_steps("dpo") + steps(0)) == [
        *("DPO: loss", *common, logps, "KL to the reference, nats per token of held-out answers", "Warm start: loss")
    ]
    assert titles("simpo", preference_steps("simpo", kl=None)) == ["SimPO: loss", *common, logps]
    kto = preference_steps("kto", **{"kl": 0.5, "rewards/accuracies": None})
    for line in kto[::2]:  # batches without desirable rows
        del line["logps/chosen"], line["rewards/margins"]
    assert titles("kto", kto) == ["KTO: loss", common[1], logps, "KL to the reference, as KTO estimates it, nats"]
    scored = [{"phase": "reward", "step": i, "loss": 0.5, "accuracy": 0.5, "margin": 0.1} for i in range(1, 12)]
    assert titles("reward", scored) == ["Reward model: loss", *common]


def test_a_step_logged_again_after_a_resume_counts_once(tmp_path: Path) -> None:
    results, completions = run(*LEARNED)
    once, twice = tmp_path / "once.html", tmp_path / "twice.html"
    kept = [{"phase": "grpo", "step": step, "reward": step / 30} for step in range(1, 31)]
    lost = [{"phase": "grpo", "step": step, "reward": 99.0} for step in range(10, 20)]
    write_report(once, results, kept, completions)
    write_report(twice, results, kept[:9] + lost + kept[9:], completions)
    assert once.read_bytes() == twice.read_bytes()


def test_charts_take_the_page_colours_and_share_no_names(tmp_path: Path) -> None:
    results, completions = run(*LEARNED)
    page = report(tmp_path, results, steps(30), completions)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    names = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(names) == len(set(names))
    assert not re.search(r"#0[1-4]0[1-4]0[1-4]", source)
    assert "stroke: var(--accent)" in source
    assert ">0.5</text>" in source  # text that can be read and selected, not outlines


def test_a_long_run_with_long_completions_stays_under_500_kb(tmp_path: Path) -> None:
    stages = [records(name, [0.0, 1.0] * 8, '"<' * 500_000) for name in STAGES]
    results, completions = run(*stages)
    page = report(tmp_path, results, steps(5_000), completions)
    assert (tmp_path / "report.html").stat().st_size < 500_000
    assert "[996,000 more characters in completions.jsonl]" in page.text
    assert CURVE_POINTS * 16 < 5_000


def test_when_accuracy_did_not_rise_the_run_is_searched_for_a_reason(tmp_path: Path) -> None:
    results, completions = run(*STUCK)
    metrics = steps(20, **{"frac_reward_zero_std": 0.7, "completions/clipped_ratio": 0.31})
    text = re.sub(r"\s+", " ", report(tmp_path, results, metrics, completions).text)
    assert "no measurable change" in text
    assert "may explain that accuracy did not rise" in text
    assert "70 % of the groups got the same reward" in text
    assert "31 % of the training completions hit the length limit" in text
    assert "points wide" in text
    assert "before training." not in text


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([], "Fewer than two stages were measured"),
        ([records("before", [1.0, 0.0])], "Fewer than two stages were measured"),
        ([records("before", [0.0]), records("after", [1.0])], "n = 1): too few problems to tell"),
        ([records("before", [0.0, None]), records("after", [1.0, None])], "Left out, ungradable 1 1"),
    ],
)
def test_small_and_broken_off_runs_have_a_report_too(tmp_path: Path, stages: Any, said: str) -> None:
    results, completions = run(*stages)
    assert said in re.sub(r"\s+", " ", report(tmp_path, results, [], completions).text)
    write_model_card(tmp_path / "README.md", results)


def test_problems_gained_and_lost_take_turns_and_unchanged_ones_fill_up() -> None:
    before = records("before", [0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    after = records("after", [0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    chosen, how = pick_problems(before + after, ["before", "after"], CORRECT)
    assert [row[0]["index"] for row in chosen] == [2, 4, 3, 5, 7]
    assert [record["stage"] for record in chosen[0]] == ["before", "after"]
    assert how.startswith("5 of 8 problems, chosen by rule: the 4 solved only after and the 1 solved only before")

    chosen, how = pick_problems(before + after, ["before", "after"], [])
    assert ([row[0]["index"] for row in chosen], how) == ([0, 1, 2, 3, 4], "The first 5 of 8 problems.")

    unchanged, how = pick_problems(before[:8] + records("after", [0.0, 1.0, 0.0, 0.0]), ["before", "after"], CORRECT)
    assert [row[0]["index"] for row in unchanged] == [0, 1, 2, 3]
    assert how.endswith("(3 never, 1 always solved).")


def test_a_smoke_run_says_that_its_figures_mean_nothing(tmp_path: Path) -> None:
    results, completions = run(*STUCK)
    results["args"]["smoke"] = True
    text = report(tmp_path, results, [], completions).text
    assert "A smoke run with a tiny random model" in text and "may explain" not in text
    write_model_card(tmp_path / "README.md", results)
    assert "**A smoke run with a tiny random model" in (tmp_path / "README.md").read_text()


def test_a_run_that_stopped_early_says_so(tmp_path: Path) -> None:
    results, completions = run(*LEARNED, complete=False, steps={"made": 12, "planned": 40})
    said = "stopped after step 12 of 40"
    assert said in report(tmp_path, results, [], completions).text
    write_model_card(tmp_path / "README.md", results)
    assert said in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_a_failing_report_leaves_the_old_one(tmp_path: Path) -> None:
    results, completions = run(*LEARNED)
    report(tmp_path, results, [], completions)
    old = (tmp_path / "report.html").read_bytes()
    del results["versions"]
    with pytest.raises(KeyError):
        write_report(tmp_path / "report.html", results, [], completions)
    assert (tmp_path / "report.html").read_bytes() == old


def card(tmp_path: Path, **changes: Any) -> tuple[dict[str, Any], str]:
    """A model card's front matter and text."""
    results, _ = run(*LEARNED, **changes)
    write_model_card(tmp_path / "README.md", results)
    _, front, text = (tmp_path / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def test_model_card_has_front_matter_verdict_and_tables(tmp_path: Path) -> None:
    front, text = card(tmp_path)
    assert front == {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "tags": ["lora", "unsloth", "trl", "grpo", "tunebook"],
    }
    assert "**Accuracy +70.0 points (95 % CI +50.0 to +90.0, p = 0.00012, n = 20): it learned.**" in text
    assert "| Accuracy, greedy | 0.0 % (0.0 to 16.1) | 20.0 % (8.1 to 41.6) | 70.0 % (48.1 to 85.5) |" in text
    assert "python recipes/gsm8k_grpo.py --model smollm2-135m" in text
    assert "learning_rate = 5e-05" in text
    assert "say nothing about\n  `gsm8k` itself" in text
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 2
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_model_card_code_is_python(tmp_path: Path) -> None:
    _, text = card(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        ast.parse(block)
    assert "load_in_4bit=True" in blocks[0]


@pytest.mark.parametrize(
    ("adapter", "tags", "library", "begins", "loads"),
    [
        ("qlora", ["qlora", "unsloth"], "peft", "A LoRA adapter over 4-bit weights (QLoRA) for `", "load_in_4bit=True"),
        ("dora", ["dora", "unsloth"], "peft", "A DoRA adapter for `", "load_in_4bit=False"),
        ("prefix-tuning", ["prefix-tuning"], "peft", "A prefix-tuning adapter (virtual keys", "PeftModel"),
        ("full", ["full-fine-tuning"], "transformers", "All weights of `", 'from_pretrained("path/to/this/folder")'),
    ],
)
def test_model_card_says_what_was_trained_and_how_to_load_it(
    tmp_path: Path, adapter: str, tags: list[str], library: str, begins: str, loads: str
) -> None:
    results, _ = supervised_run("choice_reward", args={"adapter": adapter})
    write_model_card(tmp_path / "README.md", results)
    _, front, text = (tmp_path / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(front)["tags"] == [*tags, "trl", "sft", "tunebook"]
    assert yaml.safe_load(front)["library_name"] == library
    assert f"\n{begins}" in text
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    for block in blocks:
        ast.parse(block)
    assert loads in blocks[0]
    assert ("unsloth" in text.lower()) == ("unsloth" in tags)
    assert ("PeftModel" in text) == (library == "peft")
    assert "Dataset `arc`, method SFT, training 4,884,480 of 139,399,488 parameters (3.5 %)." in text
    assert "| Likeliest option | 0.900 (0.900 to 0.900) | 0.700 (0.700 to 0.700) |" in text
    for word in ("GRPO", "sampled", "answer block", "system prompt"):
        assert word not in text, word


def test_model_card_of_a_loss_claims_no_answers(tmp_path: Path) -> None:
    results, _ = supervised_run(None)
    write_model_card(tmp_path / "README.md", results)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "**Held-out loss -1.000 nats/token" in text
    assert "No answer was judged right or wrong" in text
    assert "McNemar" not in text


def test_model_card_of_a_reward_claims_no_better_answers(tmp_path: Path) -> None:
    results, _ = reward_run(reference="the base model, adapter off")
    write_model_card(tmp_path / "README.md", results)
    _, front, text = (tmp_path / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(front)["tags"] == ["lora", "unsloth", "ppo", "tunebook"]  # TRL trained none of it
    assert "**Sampled reward +3.250 (95 % CI +3.250 to +3.250, n = 20): it learned.**" in text
    assert "| Reward, sampled | -1.500 (-1.700 to -1.300) | 1.750 (1.550 to 1.950) |" in text
    assert "What decides is the reward (pairrm) of the sampled" in text
    assert "Dataset `ultrafeedback`, method PPO, training" in text
    assert "can earn more of it without writing better answers" in text
    for word in ("McNemar", "ccuracy", "Wilson", "held-out answers", "data/prompts.py", "None", "nan", "not measured"):
        assert word not in text, word


def test_model_card_keeps_a_local_folder_to_itself_and_a_real_source_unblemished(tmp_path: Path) -> None:
    folder = "/home/ada/models/tiny"
    front, text = card(tmp_path, base_model=folder, licence=None, args={"source": "hub"})
    assert "base_model" not in front
    assert "license" not in front
    assert folder not in text
    assert "A LoRA adapter for a local model" in text
    assert "ship with the repository" not in text


@pytest.mark.parametrize(
    ("licence", "tag", "name"),
    [("MIT", "mit", None), ("Llama 3.2 Community", "other", "llama-3.2-community")],
)
def test_model_card_writes_the_licence_as_the_hub_knows_it(
    tmp_path: Path, licence: str, tag: str, name: str | None
) -> None:
    front, _ = card(tmp_path, licence=licence)
    assert (front["license"], front.get("license_name")) == (tag, name)


@pytest.mark.parametrize(
    ("method", "tag", "name"),
    [("dpo", "dpo", "DPO"), ("kto", "kto", "KTO"), ("orpo", "orpo", "ORPO"), ("simpo", "simpo", "SimPO")],
)
def test_model_card_of_a_preference_run(tmp_path: Path, method: str, tag: str, name: str) -> None:
    results, _ = preference_run(method, win_rate=WIN_RATE, reference="the adapter of the SFT run")
    write_model_card(tmp_path / "README.md", results)
    _, front, text = (tmp_path / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(front)["tags"] == ["qlora", "unsloth", "trl", tag, "tunebook"]
    assert yaml.safe_load(front)["pipeline_tag"] == "text-generation"
    assert f"Dataset `ultrafeedback`, method {name}, training 4,884,480 of" in text
    assert "The reference policy is the adapter of the SFT run. The command:" in text
    assert "\nTuned over base responses: win rate 62.5 % (" in text
    assert "| Preference accuracy | 50.0 % (29.9 to 70.1) | 82.5 % (61.1 to 93.4) |" in text
    assert "AutoModelForCausalLM" in text
    for word in ("McNemar", "problem", "Greedy", "data/prompts.py", "SequenceClassification"):
        assert word not in text, word


def test_model_card_of_a_reward_model_says_how_it_scores(tmp_path: Path) -> None:
    for adapter, library in (("qlora", "peft"), ("full", "transformers")):
        results, _ = preference_run("reward", args={"adapter": adapter})
        write_model_card(tmp_path / "README.md", results)
        _, front, text = (tmp_path / "README.md").read_text(encoding="utf-8").split("---\n", 2)
        assert yaml.safe_load(front)["library_name"] == library
        assert yaml.safe_load(front)["pipeline_tag"] == "text-classification"
        assert yaml.safe_load(front)["tags"][-2:] == ["reward-model", "tunebook"]
        assert "A model that scores responses and writes none. A" in text
        blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
        assert len(blocks) == 2
        for block in blocks:
            ast.parse(block)
        assert ("PeftModel" in text) == (library == "peft")
        for word in ("CausalLM", "FastLanguageModel", "Ask it", "reference policy"):
            assert word not in text, word
