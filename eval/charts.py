"""Charts as SVG for a page: in its colours, light or dark, with text that can be read and selected."""

import html
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

CURVE_POINTS = 300  # about one per pixel of a chart

# Charts are drawn in these stand-in colours, which the page replaces with its own, light or dark.
COLOURS = {"ink": "#010101", "muted": "#020202", "line": "#030303", "accent": "#040404"}
CURVE_COLOURS = (COLOURS["accent"], COLOURS["ink"])


def svg(draw: Callable[[Any], None], *, size: tuple[float, float], label: str) -> str:
    """An SVG element of what `draw` puts on the matplotlib `Axes` it is given.

    `size` is width and height in inches, of which only the proportion is left: the page sets the width. `label` says
    what the chart shows to those who cannot see it, and must be the only one of its kind on a page.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none",  # text stays text: small, selectable, in the page's own font
        "svg.hashsalt": label,  # the same run gives the same bytes, and no two charts share an id
        "text.color": COLOURS["ink"],
        **dict.fromkeys(("axes.labelcolor", "xtick.color", "ytick.color"), COLOURS["muted"]),
        **dict.fromkeys(("axes.edgecolor", "grid.color"), COLOURS["line"]),
        "grid.linewidth": 0.6,
        "font.size": 8.5,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        draw(axes)
        drawing = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(drawing, format="svg", transparent=True, metadata=no_metadata)
    found = drawing.getvalue()
    found = found[found.index("<svg") :]  # an XML prologue and a document type have no place inside a page
    found = re.sub(r' id="[\w.]+_\d+"', "", found)  # names such as "axes_1", the same in every chart
    opening, rest = found.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', opening)
    assert view, opening
    found = f'<svg {view[0]} role="img" aria-label="{html.escape(label)}">{rest}'  # no fixed width
    for name, colour in COLOURS.items():
        found = found.replace(colour, f"var(--{name})")
    return found


def curves(title: str, lines: Mapping[str, Sequence[tuple[int, float]]], unit: str | None = None) -> str:
    """A chart of one or two curves over the steps of training: raw values thin, running mean strong.

    `lines` maps the name of a curve to its points (step, value), at least one; two curves get a legend. `unit` is
    None, "share" (of 1) or "percent". Returns an SVG element.
    """

    def draw(axes: Any) -> None:
        from matplotlib.ticker import MaxNLocator, PercentFormatter

        for colour, (name, points) in zip(CURVE_COLOURS, lines.items(), strict=False):
            steps, values = (_thinned(column) for column in zip(*points, strict=True))
            if len(values) < 10:
                axes.plot(steps, values, color=colour, linewidth=1.6, marker="o", markersize=3.5, label=name)
            else:
                axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.4)
                axes.plot(steps, _smoothed(values, len(values) // 10), color=colour, linewidth=2, label=name)
        if len(lines) > 1:
            above = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0}
            axes.legend(ncols=len(lines), frameon=False, handlelength=1.2, **above)
        if unit:
            axes.set_ylim(-0.04, 1.04)
            axes.set_yticks([0, 0.5, 1])
        else:
            axes.yaxis.set_major_locator(MaxNLocator(4))
        if unit == "percent":
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("step")
        axes.grid(axis="y")

    return svg(draw, size=(3.6, 1.9), label=title)


def _thinned(values: Sequence[float]) -> list[float]:
    """Means of equal runs of `values`, at most CURVE_POINTS of them: a long run makes no heavy page."""
    size = math.ceil(len(values) / CURVE_POINTS)
    return [sum(run) / len(run) for run in (values[i : i + size] for i in range(0, len(values), size))]


def _smoothed(values: Sequence[float], reach: int) -> list[float]:
    """Running mean over each value and `reach` neighbours on either side; centred, it does not lag."""
    runs = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(run) / len(run) for run in runs]
