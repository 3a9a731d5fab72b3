"""The two documents that a run leaves for people: `report.html` and the adapter's model card.

Both are views of `results.json`, `metrics.jsonl` and `completions.jsonl` and can be made again from them. The
report is one file that runs no script and requests nothing. What a model wrote is taken as hostile:
everything is escaped, and a content security policy forbids scripts and requests should escaping ever fail.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from eval.charts import curves
from eval.files import write_text_atomic
from eval.metrics import PREFERENCE, change, format_p, short_name, side_scores, verdict
from eval.winrate import describe

SHOWN_PROBLEMS = 5
SHOWN_CHARACTERS = 4_000  # x 5 problems x 3 stages x 5 characters per escaped one: 300 KB at worst

# Label, key in a stage's summary, key of its interval, unit: the rows of the before/after table. Those that no stage
# measured are left out.
STAGE_ROWS = (
    ("Accuracy, greedy", "accuracy", "ci95", "percent"),
    ("Accuracy, sampled", "sampled_accuracy", None, "percent"),
    ("Format rate, greedy", "format_rate", "format_ci95", "percent"),
    ("Format rate, sampled", "sampled_format_rate", None, "percent"),
    ("Held-out loss, nats per token", "loss", "loss_ci95", "number"),
    ("Perplexity", "perplexity", None, "plain"),
    ("Reward, sampled", "sampled_reward", "sampled_reward_ci95", "number"),
    ("Reward, greedy", "greedy_reward", None, "number"),
    ("Truncated, of all", "truncation_rate", None, "percent"),
    ("Tokens, greedy", "mean_length", None, "tokens"),
    ("Tokens, sampled", "sampled_mean_length", None, "tokens"),
)
# Label, key in a comparison, unit: the rows of the table of paired differences.
DIFFERENCE_ROWS = (
    ("Accuracy, greedy", "accuracy", "points"),
    ("Accuracy, sampled", "sampled_accuracy", "points"),
    ("Format rate, greedy", "format_rate", "points"),
    ("Held-out loss, nats per token", "loss", "difference"),
    ("Reward, sampled", "sampled_reward", "difference"),
)
# What a row is called where the problems are pairs of responses and the question is which one has the higher reward.
PAIR_LABELS = {
    "Accuracy, greedy": "Preference accuracy",
    "Newly solved": "Ranked better than before",
    "No longer solved": "Ranked worse than before",
    "McNemar, exact": "Sign test, exact",
    "Problems (n)": "Pairs (n)",
}
SCORE_LABELS = {
    "chosen_logp": "Log-probability of the chosen",
    "rejected_logp": "Log-probability of the rejected",
    "kl_per_token": "KL to the reference, nats per token",
}
# Unit: factor, format, what follows the number.
UNITS = {
    "percent": (100, ".1f", " %"),
    "points": (100, "+.1f", " points"),
    "number": (1, ".3f", ""),
    "plain": (1, ",.2f", ""),
    "difference": (1, "+.3f", ""),
    "tokens": (1, ".0f", ""),
}

# What a method is called where capitals alone would not do.
METHODS = {"simpo": "SimPO", "reward": "Reward model"}
# Rewards of these begin at a margin of zero, and at this one the odds of a pair are still 52.5 to 47.5 (Bradley-Terry).
# Those of ORPO and SimPO begin at what the base model thinks.
ZERO_MARGIN_AT_FIRST = ("dpo", "kto", "reward")
NEAR_ZERO = 0.1

# What a recipe's `--adapter` stands for in a model card. "full" is none of them, and recipes without that choice train
# a LoRA.
ADAPTERS = {
    "lora": "LoRA adapter",
    "qlora": "LoRA adapter over 4-bit weights (QLoRA)",
    "dora": "DoRA adapter",
    "p-tuning": "p-tuning adapter (virtual tokens)",
    "prefix-tuning": "prefix-tuning adapter (virtual keys and values)",
    "prompt-tuning": "prompt-tuning adapter (virtual tokens)",
}
UNSLOTH_ADAPTERS = ("lora", "qlora", "dora")


class Cell(NamedTuple):
    """A number of a table, its 95 % interval, and for a bar (value, low, high) in percent."""

    text: str
    interval: str = ""
    bar: tuple[float, float, float] | None = None


Row = tuple[str, list[Cell]]


def write_report(
    path: Path,
    results: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    completions: Sequence[Mapping[str, Any]],
) -> None:
    """Write the run's report to `path` as one self-contained HTML page, atomically.

    `results` is the content of `results.json`: stages as from `summarise`, comparisons as from `compare`.
    `metrics` are the lines of `metrics.jsonl`: "phase" ("warm start", "sft", "grpo", "ppo", "dpo", ...), "step", the
    trainer's own keys and perhaps a "warning"; a curve without data is left out. `completions` are the records of
    every stage (see `eval.metrics`).
    """
    stages, comparisons, whole = results["stages"], results["comparisons"], _whole(results)
    problems, choice = pick_problems(completions, [stage["name"] for stage in stages], results["correct"])
    memory = {kind: gib for kind, gib in results["peak_memory_gib"].items() if gib is not None}
    page = page_template("report.html.j2").render(
        results=results,
        verdict=headline(results),
        unfinished=_unfinished(results),
        parts=[(_credit(results, pair), verdict(pair)) for pair in comparisons if pair is not whole],
        warnings=list(dict.fromkeys((line["step"], line["warning"]) for line in metrics if line.get("warning"))),
        win_rate=_win_rate(results),
        reasons=_reasons(results, metrics),
        **_tables(results),
        charts=_charts(results, metrics),
        problems=problems,
        choice=choice,
        seconds={phase: _duration(seconds) for phase, seconds in results["seconds"].items()},
        memory={kind: f"{gib:.2f} GiB" for kind, gib in memory.items()},
        training=_training(results),
        versions={**results["versions"], "git commit": results["git_commit"] or "unknown"},
    )
    write_text_atomic(path, page)


def write_model_card(path: Path, results: Mapping[str, Any]) -> None:
    """Write the adapter's model card (Markdown with the hub's YAML front matter) to `path`, atomically."""
    dataset, _, method = results["recipe"].rpartition("_")
    method_name = _method(results)
    base_model, kind = results["base_model"], results["args"].get("adapter", "lora")
    card = page_template("model_card.md.j2").render(
        results=results,
        verdict=headline(results),
        unfinished=_unfinished(results),
        win_rate=_win_rate(results),
        **_tables(results),
        training=_training(results),
        adapter=ADAPTERS.get(kind),
        unsloth=kind in UNSLOTH_ADAPTERS,
        in_4bit=results["args"].get("load_in_4bit", kind == "qlora"),
        kind=kind if kind in ADAPTERS else "full-fine-tuning",
        dataset=dataset,
        method=method_name,
        method_tag=method_name.lower().replace(" ", "-"),
        with_trl=method != "ppo",  # whose trainer is this repository's own
        scores_texts=method == "reward",
        # The hub refuses a card whose base model is not an id, and a local folder is nobody else's business.
        base_model=base_model if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", base_model) else None,
        licence=(results.get("licence") or "").lower().replace(" ", "-"),
    )
    write_text_atomic(path, card)


def headline(results: Mapping[str, Any]) -> str:
    """The verdict on the whole run, first stage against last: one sentence without a full stop."""
    whole = _whole(results)
    return verdict(whole) if whole else "fewer than two stages were measured, so there is nothing to compare"


def pick_problems(
    completions: Iterable[Mapping[str, Any]], stages: Sequence[str], correct: str | None = "correctness_reward"
) -> tuple[list[list[Mapping[str, Any]]], str]:
    """Choose up to five problems that have a greedy completion in every stage, and say how they were chosen.

    Problems solved only in the last stage and problems solved only in the first take turns, so that losses
    show as readily as gains; unchanged ones fill what is left. Without `correct`, the score that says what is
    solved, the first five. Of pairs, those ranked right count as solved. Returns, per problem, its records in the
    order of `stages`, and a sentence.
    """
    greedy: dict[int, dict[str, Mapping[str, Any]]] = {}
    for record in completions:
        if record["kind"] == "greedy":
            greedy.setdefault(record["index"], {})[record["stage"]] = record
    everywhere = [found for _, found in sorted(greedy.items()) if found.keys() >= set(stages)]
    rows = [[found[name] for name in stages] for found in everywhere]
    if not rows or not stages:
        return [], ""

    if not correct:
        return rows[:SHOWN_PROBLEMS], f"The first {len(rows[:SHOWN_PROBLEMS])} of {len(rows)} problems."

    def solved(record: Mapping[str, Any]) -> bool:
        return record["scores"].get(correct) == 1.0

    def outcome(first: bool, last: bool) -> list[list[Mapping[str, Any]]]:
        return [row for row in rows if (solved(row[0]), solved(row[-1])) == (first, last)]

    gained, lost = outcome(False, True), outcome(True, False)
    never, always = outcome(False, False), outcome(True, True)
    turns = chain.from_iterable(chain(zip_longest(gained, lost), zip_longest(never, always)))
    chosen = [row for row in turns if row is not None][:SHOWN_PROBLEMS]
    done = "ranked right" if correct == PREFERENCE else "solved"
    return chosen, (
        f"{len(chosen)} of {len(rows)} {_problems(correct)}, chosen by rule: the {len(gained)} {done} only "
        f"{stages[-1]} and the {len(lost)} {done} only {stages[0]} take turns, lowest number first, then the "
        f"unchanged ({len(never)} never, {len(always)} always {done})."
    )


def _problems(correct: str | None) -> str:
    """What the held-out problems of a run are called."""
    return "pairs" if correct == PREFERENCE else "problems"


def _whole(results: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The comparison of the first stage with the last, if there are two."""
    names = [stage["name"] for stage in results["stages"]]
    pairs = (pair for pair in results["comparisons"] if [pair["from"], pair["to"]] == [names[0], names[-1]])
    return next(pairs, None)


def _credit(results: Mapping[str, Any], pair: Mapping[str, Any]) -> str:
    """Whose doing a comparison shows: the warm start's, the method's, or that of both together."""
    if pair["to"] == "warm start":
        return "Warm start"
    method = _method(results)
    warmed = any(stage["name"] == "warm start" for stage in results["stages"])
    return f"Warm start and {method}" if warmed and pair["from"] != "warm start" else method


def _method(results: Mapping[str, Any]) -> str:
    method = results["recipe"].rpartition("_")[2]
    return METHODS.get(method, method.upper())


def _win_rate(results: Mapping[str, Any]) -> str:
    """The sentence on tuned against base responses, without a full stop; empty where no judge compared them."""
    return describe(results["win_rate"]) if results.get("win_rate") else ""


def _unfinished(results: Mapping[str, Any]) -> str:
    """How far a run came that stopped before its last step (`--max-hours`); empty for a whole one."""
    if results.get("complete", True):
        return ""
    return "stopped after step {made} of {planned}, and these numbers are of that model".format(**results["steps"])


def _reasons(results: Mapping[str, Any], metrics: Iterable[Mapping[str, Any]]) -> list[str]:
    """What in the run's own numbers may explain that accuracy did not rise; empty where it did or is no measure."""
    whole = _whole(results)
    if whole is None or whole["measure"] != "accuracy" or change(whole) > 0:
        return []
    metrics = list(metrics)
    first, last = results["stages"][0], results["stages"][-1]
    low, high = whole["accuracy"]["ci95"] or (-1, 1)
    flat, cut = _average(metrics, "frac_reward_zero_std"), _average(metrics, "completions/clipped_ratio")
    margins = [line for line in metrics if line["phase"] in ZERO_MARGIN_AT_FIRST]
    margin = _average(margins[-max(5, len(margins) // 10) :], "rewards/margins", "margin")
    reasons = []
    if change(whole) == 0 and high - low > 0.1:
        reasons.append(
            f"The measurement is coarse: its interval is {100 * (high - low):.0f} points wide. More held-out "
            f"{_problems(results['correct'])} would make a smaller change visible."
        )
    if margin is not None and margin < NEAR_ZERO:
        reasons.append(
            f"The margin between the rewards of the training pairs ended at {margin:.3f}, still near zero, where it "
            "began: the learning rate is too low or the steps are too few."
        )
    if flat is not None and flat > 0.5:
        reasons.append(
            f"{100 * flat:.0f} % of the groups got the same reward throughout and taught nothing: the "
            "problems are too easy or too hard for this model, or the groups too small."
        )
    if cut is not None and cut > 0.2:
        reasons.append(f"{100 * cut:.0f} % of the training completions hit the length limit: raise it.")
    if first["accuracy"] > 0.9:
        share = f"{100 * first['accuracy']:.0f} % of the {_problems(results['correct'])}"
        reasons.append(f"The model had {share} right before training.")
    if last["format_rate"] is not None and last["format_rate"] < 0.5:
        reasons.append(
            f"Only {100 * last['format_rate']:.0f} % of the completions end up well formed, and only what "
            "stands in the answer block is graded: warm up for longer."
        )
    return reasons


def _average(lines: Iterable[Mapping[str, Any]], *keys: str) -> float | None:
    found = [line[key] for line in lines for key in keys if _is_number(line.get(key))]
    return sum(found) / len(found) if found else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _tables(results: Mapping[str, Any]) -> dict[str, Any]:
    """What both documents show of the stages and of their differences, and which words explain it."""
    stages, pairs = results["stages"], results["comparisons"]
    scores = side_scores(stages, results["correct"], results["format"], results.get("beside", ()))

    def measured(key: str) -> bool:
        return any(stage[key] is not None for stage in stages)

    preference = results["correct"] == PREFERENCE

    def named(rows: Iterable[Row]) -> list[Row]:
        return [(PAIR_LABELS.get(label, label) if preference else label, cells) for label, cells in rows]

    return {
        "stage_columns": [(stage["name"], "") for stage in stages],
        "stage_rows": named(_stage_rows(stages, scores, _deciding_rewards(results))),
        "difference_columns": [(_credit(results, pair), f"{pair['from']} → {pair['to']}") for pair in pairs],
        "difference_rows": named(_difference_rows(pairs, scores)),
        "sampled": measured("sampled_mean_length"),
        "formed": measured("format_rate"),
        "lost": measured("loss"),
        "rewards": [short_name(name) for name in _deciding_rewards(results)],
        "preference": preference,
        "problems_called": _problems(results["correct"]),
        "wrote": _wrote(stages),
    }


def _deciding_rewards(results: Mapping[str, Any]) -> list[str]:
    """The scores that make up the sampled reward where that is what the run is judged by; else none."""
    stages = results["stages"]
    if results["correct"] or any(stage["loss"] is not None for stage in stages):
        return []
    return list(dict.fromkeys(name for stage in stages for name in stage["rewards"]))


def _wrote(stages: Iterable[Mapping[str, Any]]) -> bool:
    """Whether there are completions to speak of: a reward model writes none."""
    return any(stage["mean_length"] for stage in stages)


def _stage_rows(stages: Sequence[Mapping[str, Any]], scores: Iterable[str], deciding: Sequence[str]) -> list[Row]:
    """The before/after table: one cell per stage."""
    rows = []
    left_out = [] if _wrote(stages) else ["truncation_rate", "mean_length"]
    left_out += [] if deciding else ["greedy_reward"]
    for label, key, ci, unit in STAGE_ROWS:
        if key in left_out:
            continue
        cells = []
        for stage in stages:
            value, ends = stage[key], stage[ci] if ci else None
            bar = (100 * value, 100 * ends[0], 100 * ends[1]) if ends and unit == "percent" else None
            cells.append(Cell(_quantity(value, unit), _interval(ends, unit), bar))
        if any(stage[key] is not None for stage in stages):
            rows.append((label, cells))
    for name in scores:
        found = [(stage["scores"].get(name), stage.get("scores_ci95", {}).get(name)) for stage in stages]
        rows.append((_label(name), [Cell(_quantity(x, "number"), _interval(ends, "number")) for x, ends in found]))
    parts = list(dict.fromkeys(name for stage in stages for name in stage["rewards"]))
    for name in () if len(deciding) == 1 else parts:  # one alone is the reward itself
        means = [stage["rewards"].get(name) for stage in stages]
        rows.append((f"{name}, sampled", [Cell(_quantity(mean, "number")) for mean in means]))
    rows.append(("Problems (n)", [Cell(str(stage["n"])) for stage in stages]))
    if any(stage["ungraded"] for stage in stages):
        rows.append(("Left out, ungradable", [Cell(str(stage["ungraded"])) for stage in stages]))
    return rows


def _difference_rows(pairs: Sequence[Mapping[str, Any]], scores: Iterable[str]) -> list[Row]:
    """The table of paired differences: one cell per comparison."""
    nothing = {"delta": None, "ci95": None}
    found = [(label, [pair[key] for pair in pairs], unit) for label, key, unit in DIFFERENCE_ROWS]
    found += [(_label(name), [pair["scores"].get(name, nothing) for pair in pairs], "difference") for name in scores]
    rows = [
        (label, [Cell(_quantity(x["delta"], unit), _interval(x["ci95"], unit)) for x in differences])
        for label, differences, unit in found
        if any(x["delta"] is not None for x in differences)
    ]
    if any(pair["measure"] == "accuracy" for pair in pairs):
        for label, key in (("Newly solved", "gained"), ("No longer solved", "lost")):
            rows.append((label, [Cell(str(pair["accuracy"][key])) for pair in pairs]))
        rows.append(("McNemar, exact", [Cell(format_p(pair["accuracy"]["p"])) for pair in pairs]))
    rows.append(("Problems (n)", [Cell(str(pair["n"])) for pair in pairs]))
    return rows


def _label(score: str) -> str:
    name = SCORE_LABELS.get(score) or short_name(score)
    return name[:1].upper() + name[1:]


def _training(results: Mapping[str, Any]) -> dict[str, str]:
    """What was trained, against what, how large it is and how fast it went, as far as it is known."""
    figures, reference = results["training"], results.get("reference")
    trainable, total = figures["trainable_parameters"], figures["parameters"]
    size, speed = figures["adapter_bytes"], figures["tokens_per_second"]
    return {
        **({"trainable": f"{trainable:,} of {total:,} parameters ({100 * trainable / total:.3g} %)"} if total else {}),
        **({"reference policy": reference} if reference else {}),
        **({"judge, in the last session": results["judge"]} if results.get("judge") else {}),
        **({"saved weights": f"{size / 2**20:,.2f} MiB"} if size else {}),
        **({"speed": f"{speed:,.0f} tokens/s, median over steps"} if speed else {}),
    }


def _quantity(value: float | None, unit: str) -> str:
    factor, number, suffix = UNITS[unit]
    return "not measured" if value is None else f"{factor * value:{number}}{suffix}"


def _interval(ci95: Sequence[float] | None, unit: str) -> str:
    factor, number, _ = UNITS[unit]
    return " to ".join(f"{factor * end:{number}}" for end in ci95) if ci95 else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _clip(text: str) -> str:
    if len(text) <= SHOWN_CHARACTERS:
        return text
    hidden = len(text) - SHOWN_CHARACTERS
    return f"{text[:SHOWN_CHARACTERS]}\n[{hidden:,} more characters in completions.jsonl]"


def _charts(results: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(title, SVG) of every curve that has data, in reading order."""
    functions = dict.fromkeys(
        key.split("/")[1] for line in metrics for key in line if re.fullmatch(r"rewards/[^/]+/mean", key)
    )
    grpo = {line["phase"] for line in metrics if "reward" in line}
    ppo = {line["phase"] for line in metrics if "score" in line}
    rewarded = grpo | ppo
    paired = {line["phase"] for line in metrics if line.keys() & {"margin", "logps/chosen", "logps/rejected"}}
    wanted = [
        ("Reward, weighted total", grpo, ["reward"], None),
        *((name, grpo, [f"rewards/{name}/mean"], "share") for name in functions),
        ("Groups without a signal (zero variance)", grpo, ["frac_reward_zero_std"], "percent"),
        ("Reward, before clipping and the KL penalty", ppo, ["score"], None),
        ("KL to the reference, nats per token", ppo, ["kl"], None),
        ("Entropy of the policy, nats per token", ppo, ["entropy"], None),
        ("Returns that the value function explains, share of variance", ppo, ["explained_variance"], None),
        ("Tokens with a clipped ratio, share", ppo, ["clip_fraction"], None),
        ("Completion length, tokens", rewarded, ["completions/mean_length", "length"], None),
        ("Truncated completions", rewarded, ["completions/clipped_ratio", "truncated"], "percent"),
    ]
    method = results["recipe"].rpartition("_")[2]
    # Where a reward is maximised, the loss is near 0 by construction and says nothing.
    for phase in dict.fromkeys(line["phase"] for line in metrics if line["phase"] not in rewarded):
        title = _method(results) if phase == method else phase.capitalize()
        wanted.append((f"{title}: loss", {phase}, ["loss"], None))
        if phase in paired:
            kl = "as KTO estimates it, nats" if phase == "kto" else "nats per token of held-out answers"
            wanted += [
                ("Training pairs ranked right", {phase}, ["rewards/accuracies", "accuracy"], "percent"),
                ("Reward margin, chosen over rejected", {phase}, ["rewards/margins", "margin"], None),
                ("Log-probability of the responses, nats", {phase}, ["logps/chosen", "logps/rejected"], None),
                (f"KL to the reference, {kl}", {phase}, ["kl"], None),
            ]
    charts = []
    for title, phases, keys, unit in wanted:
        own = [line for line in metrics if line["phase"] in phases]
        # By step: a resumed run repeats the steps after its checkpoint, and the later line is the one kept.
        points = {key: {line["step"]: line[key] for line in own if _is_number(line.get(key))} for key in keys}
        if lines := {key.rpartition("/")[2]: sorted(found.items()) for key, found in points.items() if found}:
            charts.append((title, curves(title, lines, unit)))
    return charts


def page_template(name: str) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["clip"] = _clip
    return environment.get_template(name)
