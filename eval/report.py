"""The two documents that a run leaves for people: `report.html` and the adapter's model card.

Both are views of `results.json`, `metrics.jsonl` and `completions.jsonl` and can be made again from them. The
report is one file that runs no script and requests nothing. What a model wrote is taken as hostile:
everything is escaped, and a content security policy forbids scripts and requests should escaping ever fail.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from eval.charts import curves
from eval.files import write_text_atomic
from eval.methods import ADAPTERS, method_of, spelled_out
from eval.metrics import PREFERENCE, format_p, measure_change, short_name, side_scores, verdict
from eval.results import Change, Comparison, Interval, MetricsLine, Paired, Record, Results, Stage
from eval.winrate import describe

SHOWN_PROBLEMS = 5  # x 3 stages x 4,000 characters, as the template cuts them, x 5 per escaped one: 300 KB at worst

Measured = tuple[float | None, Interval | None]
# Label, figure with its interval, unit: the rows of the before/after table. Those that no stage measured are left out.
STAGE_ROWS: tuple[tuple[str, Callable[[Stage], Measured], str], ...] = (
    ("Accuracy, greedy", lambda stage: (stage["accuracy"], stage["ci95"]), "percent"),
    ("Accuracy, sampled", lambda stage: (stage["sampled_accuracy"], None), "percent"),
    ("Guard", lambda stage: (stage.get("guard_rate"), stage.get("guard_ci95")), "percent"),
    ("Format rate, greedy", lambda stage: (stage["format_rate"], stage["format_ci95"]), "percent"),
    ("Format rate, sampled", lambda stage: (stage["sampled_format_rate"], None), "percent"),
    ("Held-out loss, nats per token", lambda stage: (stage["loss"], stage["loss_ci95"]), "number"),
    ("Perplexity", lambda stage: (stage["perplexity"], None), "plain"),
    ("Reward, sampled", lambda stage: (stage["sampled_reward"], stage["sampled_reward_ci95"]), "number"),
    ("Reward, greedy", lambda stage: (stage["greedy_reward"], None), "number"),
    ("Truncated, of all", lambda stage: (stage["truncation_rate"], None), "percent"),
    ("Tokens, greedy", lambda stage: (stage["mean_length"], None), "tokens"),
    ("Tokens, sampled", lambda stage: (stage["sampled_mean_length"], None), "tokens"),
)
NOT_COMPARED: Change = {"delta": None, "ci95": None}
# Label, difference, unit: the rows of the table of paired differences.
DIFFERENCE_ROWS: tuple[tuple[str, Callable[[Comparison], Change], str], ...] = (
    ("Accuracy, greedy", lambda pair: pair["accuracy"], "points"),
    ("Accuracy, sampled", lambda pair: pair["sampled_accuracy"], "points"),
    ("Guard", lambda pair: pair.get("guard", NOT_COMPARED), "points"),
    ("Format rate, greedy", lambda pair: pair["format_rate"], "points"),
    ("Held-out loss, nats per token", lambda pair: pair["loss"], "difference"),
    ("Reward, sampled", lambda pair: pair["sampled_reward"], "difference"),
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

SMOKE = "A smoke run with a tiny random model: it shows that the path works, and its figures mean nothing"
STOPPED = "stopped after step {made} of {planned}, and these numbers are of that model"  # by `--max-hours`
NOTHING_TO_COMPARE = "fewer than two stages were measured, so there is nothing to compare"
NEAR_ZERO = 0.1  # at this margin the odds of a pair are still 52.5 to 47.5 (Bradley-Terry)


class Cell(NamedTuple):
    """A number of a table, its 95 % interval, and for a bar (value, low, high) in percent."""

    text: str
    interval: str = ""
    bar: tuple[float, float, float] | None = None


Row = tuple[str, list[Cell]]


def write_report(path: Path, results: Results, metrics: Sequence[MetricsLine], completions: Sequence[Record]) -> None:
    """Write the run's report to `path` as one self-contained HTML page, atomically.

    `metrics` are the lines of `metrics.jsonl`, `completions` the records of every stage. A curve without data is left
    out, and of a phase that `eval.methods` does not know, the loss is drawn.
    """
    trained = _trained(results)
    judged_by = [name for name in (results["correct"], results.get("guard")) if name]
    problems, choice = pick_problems(completions, [stage["name"] for stage in results["stages"]], judged_by)
    page = page_template("report.html.j2").render(
        **_shared(results),
        warnings=list(dict.fromkeys((line["step"], line["warning"]) for line in metrics if line.get("warning"))),
        reasons=[] if results["args"].get("smoke") else _reasons(results, metrics),
        trained=trained,
        charts=_charts(results, metrics),
        problems=problems,
        choice=choice,
        score_of=lambda record: _score_of(record, judged_by),
        seconds={phase: _duration(seconds) for phase, seconds in results["seconds"].items()},
        memory={kind: f"{gib:.2f} GiB" for kind, gib in results["peak_memory_gib"].items()},
        versions={**results["versions"], "git commit": results["git_commit"] or "unknown"},
    )
    write_text_atomic(path, page)


def write_model_card(path: Path, results: Results) -> None:
    """Write the card of a trained model (Markdown with the hub's YAML front matter) to `path`, atomically."""
    dataset, _, method = results["recipe"].rpartition("_")
    base_model, kind = results["base_model"], results["args"].get("adapter", "lora")
    adapter = ADAPTERS.get(kind, ADAPTERS["full"])
    card = page_template("model_card.md.j2").render(
        **_shared(results),
        adapter=adapter,
        in_4bit=results["args"].get("load_in_4bit", kind == "qlora"),
        kind=kind if adapter.title else "full-fine-tuning",
        dataset=dataset,
        method=method_of(method),
        # The hub refuses a card whose base model is not an id, and a local folder is nobody else's business.
        base_model=base_model if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", base_model) else None,
        licence=(results["licence"] or "").lower().replace(" ", "-"),
    )
    write_text_atomic(path, card)


def pick_problems(
    completions: Iterable[Record], stages: Sequence[str], judged_by: Sequence[str]
) -> tuple[list[list[Record]], str]:
    """Choose up to five problems that have a greedy completion in every stage, and say how they were chosen.

    Problems solved only in the last stage and problems solved only in the first take turns, so that losses
    show as readily as gains; unchanged ones fill what is left. The first five where `judged_by` is empty, which are the
    scores that say what is solved: of each problem, the first that it has. Of pairs, those ranked right count as
    solved. Returns, per problem, its records in the order of `stages`, and a sentence.
    """
    greedy: dict[int, dict[str, Record]] = {}
    for record in completions:
        if record["kind"] == "greedy":
            greedy.setdefault(record["index"], {})[record["stage"]] = record
    everywhere = [found for _, found in sorted(greedy.items()) if found.keys() >= set(stages)]
    rows = [[found[name] for name in stages] for found in everywhere]
    if not rows or not stages:
        return [], ""
    if not judged_by:
        return rows[:SHOWN_PROBLEMS], f"The first {len(rows[:SHOWN_PROBLEMS])} of {len(rows)} problems."
    solved: dict[tuple[bool, ...], list[list[Record]]] = defaultdict(list)  # by whether first, whether last
    for row in rows:
        solved[tuple(_score_of(record, judged_by) == 1.0 for record in (row[0], row[-1]))].append(row)
    gained, lost = solved[False, True], solved[True, False]
    never, always = solved[False, False], solved[True, True]
    turns = chain.from_iterable(chain(zip_longest(gained, lost), zip_longest(never, always)))
    chosen = [row for row in turns if row is not None][:SHOWN_PROBLEMS]
    called, done = ("pairs", "ranked right") if PREFERENCE in judged_by else ("problems", "solved")
    return chosen, (
        f"{len(chosen)} of {len(rows)} {called}, chosen by rule: the {len(gained)} {done} only "
        f"{stages[-1]} and the {len(lost)} {done} only {stages[0]} take turns, lowest number first, then the "
        f"unchanged ({len(never)} never, {len(always)} always {done})."
    )


def _score_of(record: Record, judged_by: Iterable[str]) -> float | None:
    """The first of these scores that could be given; None where none could."""
    found = (record["scores"].get(name) for name in judged_by)
    return next((score for score in found if score is not None), None)


def _trained(results: Results) -> bool:
    """Whether the run has a phase of training: one may as well compare prompts."""
    return bool(results["steps"] and results["steps"]["planned"])


def _whole(results: Results) -> Comparison | None:
    """The comparison of the first stage with the last, if there are two."""
    names = [stage["name"] for stage in results["stages"]]
    pairs = (pair for pair in results["comparisons"] if [pair["from"], pair["to"]] == [names[0], names[-1]])
    return next(pairs, None)


def verdicts(results: Results) -> list[str]:
    """What a run's last lines say: the change from its first stage to its last, and where there were several phases,
    that of each from its own stages, the method's last. A gain over all may be the warm start's alone."""
    whole, parts, trained = _whole(results), _parts(results), _trained(results)
    if whole is None:
        return []
    where = f"From {whole['from']} to {whole['to']}: " if parts else ""
    alone = [f"{_credit(results, pair)} alone: {verdict(pair, trained=trained)}" for pair in parts]
    return [where + verdict(whole, trained=trained), *alone]


def _parts(results: Results) -> list[Comparison]:
    """The comparisons of neighbouring stages, where there are more than two."""
    return results["comparisons"][:-1]


def _credit(results: Results, pair: Comparison) -> str:
    """Whose doing a comparison shows: the warm start's, the method's, or that of both together."""
    if not _trained(results):
        return pair["to"]
    warm_start = method_of("warm start").title
    if pair["to"] == "warm start":
        return warm_start
    method = method_of(results["recipe"].rpartition("_")[2]).title
    warmed = any(stage["name"] == "warm start" for stage in results["stages"])
    return f"{warm_start} and {method}" if warmed and pair["from"] != "warm start" else method


def _by_phase(results: Results, metrics: Iterable[MetricsLine]) -> dict[str, list[MetricsLine]]:
    """The lines of each phase, that of the recipe's method first."""
    method = results["recipe"].rpartition("_")[2]
    phases: dict[str, list[MetricsLine]] = {method: []}
    for line in metrics:
        phases.setdefault(line["phase"], []).append(line)
    return phases


def _reasons(results: Results, metrics: Iterable[MetricsLine]) -> list[str]:
    """What in the run's own numbers may explain that accuracy did not rise; empty where it did or is no measure."""
    whole = _whole(results)
    if whole is None or whole["measure"] != "accuracy" or measure_change(whole) > 0:
        return []
    first, last = results["stages"][0], results["stages"][-1]
    problems = "pairs" if results["correct"] == PREFERENCE else "problems"
    low, high = whole["accuracy"]["ci95"] or (-1, 1)
    reasons = []
    if measure_change(whole) == 0 and high - low > 0.1:
        reasons.append(
            f"The measurement is coarse: its interval is {100 * (high - low):.0f} points wide. More held-out "
            f"{problems} would make a smaller change visible."
        )
    if not _trained(results):
        return reasons
    for phase, lines in _by_phase(results, metrics).items():
        method = method_of(phase)
        flat, cut = _average(lines, method.flat), _average(lines, method.cut_off)
        margin = _average(lines[-max(5, len(lines) // 10) :], method.margin)
        if method.zero_margin_at_first and margin is not None and margin < NEAR_ZERO:
            reasons.append(
                f"The margin between the rewards of the training pairs ended at {margin:.3f}, still near zero, where "
                "it began: the learning rate is too low or the steps are too few."
            )
        if flat is not None and flat > 0.5:
            reasons.append(
                f"{100 * flat:.0f} % of the groups got the same reward throughout and taught nothing: the "
                "problems are too easy or too hard for this model, or the groups too small."
            )
        if cut is not None and cut > 0.2:
            reasons.append(f"{100 * cut:.0f} % of the training completions hit the length limit: raise it.")
    if first["accuracy"] is not None and first["accuracy"] > 0.9:
        reasons.append(f"The model had {100 * first['accuracy']:.0f} % of the {problems} right before training.")
    if last["format_rate"] is not None and last["format_rate"] < 0.5:
        reasons.append(
            f"Only {100 * last['format_rate']:.0f} % of the completions end up well formed, and only what "
            "stands in the answer block is graded: warm up for longer."
        )
    return reasons


def _average(lines: Iterable[MetricsLine], key: str | None) -> float | None:
    found = [value for line in lines if key and _is_number(value := line.get(key))]
    return sum(found) / len(found) if found else None


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _shared(results: Results) -> dict[str, Any]:
    """What both documents show of the stages and of their differences, and which words explain it."""
    stages, pairs, guard, whole = results["stages"], results["comparisons"], results.get("guard"), _whole(results)
    scores = side_scores(stages, results["correct"], results["format"], results["beside"], guard)
    parts = list(dict.fromkeys(name for stage in stages for name in stage["rewards"]))
    lost = any(stage["loss"] is not None for stage in stages)
    rewards = [] if results["correct"] or lost else parts  # that make up the reward, where that is what decides
    preference = results["correct"] == PREFERENCE
    labels = PAIR_LABELS if preference else {}
    if guard:
        labels = labels | {"Guard": f"{_label(guard)}, greedy"}

    def named(rows: Iterable[Row]) -> list[Row]:
        return [(labels.get(label, label), cells) for label, cells in rows]

    return {
        "results": results,
        "verdict": verdict(whole, trained=_trained(results)) if whole else NOTHING_TO_COMPARE,
        "parts": [(_credit(results, pair), verdict(pair, trained=_trained(results))) for pair in _parts(results)],
        "smoke": SMOKE if results["args"].get("smoke") else "",
        "unfinished": STOPPED.format(**results["steps"]) if results["steps"] and not results["complete"] else "",
        "win_rate": describe(results["win_rate"]) if results["win_rate"] else "",
        "training": _training(results),
        "stage_columns": [(stage["name"], "") for stage in stages],
        "stage_rows": named(_stage_rows(stages, scores, parts, bool(rewards))),
        "difference_columns": [(_credit(results, pair), f"{pair['from']} → {pair['to']}") for pair in pairs],
        "difference_rows": named(_difference_rows(pairs, scores)),
        "sampled": any(stage["sampled_mean_length"] is not None for stage in stages),
        "formed": any(stage["format_rate"] is not None for stage in stages),
        "lost": lost,
        "wrote": any(stage["mean_length"] is not None for stage in stages),
        "rewards": [short_name(name) for name in rewards],
        "guard": short_name(guard) if guard else "",
        "preference": preference,
        "problems_called": "pairs" if preference else "problems",
    }


def _stage_rows(stages: Sequence[Stage], scores: Iterable[str], parts: Sequence[str], rewarded: bool) -> list[Row]:
    """The before/after table: one cell per stage. `parts` make up the reward, which decides where `rewarded`."""
    rows = []
    for label, figure, unit in STAGE_ROWS:
        found = [figure(stage) for stage in stages]
        if any(value is not None for value, _ in found) and (rewarded or label != "Reward, greedy"):
            rows.append((label, [_cell(*measured, unit) for measured in found]))
    for name in scores:
        found = [(stage["scores"].get(name), stage["scores_ci95"].get(name)) for stage in stages]
        rows.append((_label(name), [_cell(*measured, "number") for measured in found]))
    for name in () if rewarded and len(parts) == 1 else parts:  # one alone is the reward itself
        rows.append((f"{name}, sampled", [_cell(stage["rewards"].get(name), None, "number") for stage in stages]))
    rows.append(("Problems (n)", [Cell(str(stage["n"])) for stage in stages]))
    if any("guard_n" in stage for stage in stages):
        rows.append(("Problems (n), guard", [Cell(str(stage.get("guard_n", 0))) for stage in stages]))
    if any(stage["ungraded"] for stage in stages):
        rows.append(("Left out, ungradable", [Cell(str(stage["ungraded"])) for stage in stages]))
    return rows


def _difference_rows(pairs: Sequence[Comparison], scores: Iterable[str]) -> list[Row]:
    """The table of paired differences: one cell per comparison."""
    found = [(label, [difference(pair) for pair in pairs], unit) for label, difference, unit in DIFFERENCE_ROWS]
    for name in scores:
        found.append((_label(name), [pair["scores"].get(name, NOT_COMPARED) for pair in pairs], "difference"))
    rows = [
        (label, [_cell(x["delta"], x["ci95"], unit) for x in differences])
        for label, differences, unit in found
        if any(x["delta"] is not None for x in differences)
    ]
    if any(pair["measure"] == "accuracy" for pair in pairs):
        rows += _paired_rows([pair["accuracy"] for pair in pairs], "")
    rows.append(("Problems (n)", [Cell(str(pair["n"])) for pair in pairs]))
    if guards := [pair["guard"] for pair in pairs if "guard" in pair]:
        rows += _paired_rows(guards, ", guard")
        rows.append(("Problems (n), guard", [Cell(str(guard["n"])) for guard in guards]))
    return rows


def _paired_rows(found: Sequence[Paired], of: str) -> list[Row]:
    """How a difference of rates came about; `of` says of which."""
    return [
        (f"Newly solved{of}", [Cell(str(paired["gained"])) for paired in found]),
        (f"No longer solved{of}", [Cell(str(paired["lost"])) for paired in found]),
        (f"McNemar, exact{of}", [Cell("" if paired["p"] is None else format_p(paired["p"])) for paired in found]),
    ]


def _label(score: str) -> str:
    name = SCORE_LABELS.get(score) or short_name(score)
    return name[:1].upper() + name[1:]


def _training(results: Results) -> dict[str, str]:
    """What was trained, against what, how large it is and how fast it went, as far as it is known."""
    figures, reference = results["training"], results["reference"]
    trainable, total = figures["trainable_parameters"], figures["parameters"]
    size, speed = figures["adapter_bytes"], figures["tokens_per_second"]
    share = f"{trainable:,} of {total:,} parameters ({100 * trainable / total:.3g} %)" if trainable and total else ""
    facts = {
        "trainable": share,
        "reference policy": reference,
        "judge, in the last session": results["judge"],
        "saved weights": f"{size / 2**20:,.2f} MiB" if size else "",
        "speed": f"{speed:,.0f} tokens/s, median over steps" if speed else "",
    }
    return {name: fact for name, fact in facts.items() if fact}


def _cell(value: float | None, ci95: Interval | None, unit: str) -> Cell:
    factor, number, suffix = UNITS[unit]
    text = "not measured" if value is None else f"{factor * value:{number}}{suffix}"
    interval = " to ".join(f"{factor * end:{number}}" for end in ci95) if ci95 else ""
    bar = (100 * value, 100 * ci95[0], 100 * ci95[1]) if value is not None and ci95 and unit == "percent" else None
    return Cell(text, interval, bar)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _charts(results: Results, metrics: Sequence[MetricsLine]) -> list[tuple[str, str]]:
    """(title, SVG) of every curve that has data, in reading order."""
    charts = []
    for phase, lines in _by_phase(results, metrics).items():
        logged = dict.fromkeys(key for line in lines for key in line)
        for curve in method_of(phase).curves:
            for name, first in spelled_out(curve.keys[0], logged).items():
                title, found = curve.title.replace("*", name), {}
                for key in (first, *curve.keys[1:]):
                    # By step: a resumed run repeats the steps after its checkpoint, and the later line is the one kept.
                    points = {line["step"]: value for line in lines if _is_number(value := line.get(key))}
                    if points:
                        found[key.rpartition("/")[2]] = sorted(points.items())
                if found:
                    charts.append((title, curves(title, found, curve.unit)))
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
    return environment.get_template(name)
