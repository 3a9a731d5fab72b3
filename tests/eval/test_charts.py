import re

from eval.charts import COLOURS, curves, svg


def test_two_curves_are_named_and_told_apart() -> None:
    falling = [(step, -float(step)) for step in range(1, 31)]
    rising = [(step, float(step)) for step in range(1, 31, 2)]
    one = curves("one", {"chosen": falling})
    two = curves("two", {"chosen": falling, "rejected": rising})
    assert re.findall(r">(chosen|rejected)</text>", two) == ["chosen", "rejected"]
    assert "chosen" not in one
    # The legend's handle, the strong line and the thin one.
    assert two.count("stroke: var(--accent)") == two.count("stroke: var(--ink)") == 3


def test_a_label_is_an_attribute_and_nothing_else() -> None:
    drawing = svg(lambda axes: axes.plot([0, 1], color=COLOURS["line"]), size=(2, 1), label='"><script>')
    assert re.match(r'<svg viewBox="[\d. ]+" role="img" aria-label="&quot;&gt;&lt;script&gt;">', drawing)
    assert drawing.rstrip().endswith("</svg>")
    assert not re.search(r"#0[1-4]0[1-4]0[1-4]", drawing)
