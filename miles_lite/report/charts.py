"""A run's pictures, as SVG that takes its colours from the page it stands in.

Invariant: ink, grid and series are the page's CSS variables (`--ink`, `--grid`, `--s0` ...), so that a picture is right
in light, in dark and on paper; what it shows is in a table beside it. It is drawn once, with margins that are given:
to have them measured takes as long as to draw.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from miles_lite.report.rollout_table import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Mapping[int, float]
Box = tuple[float, float, float, float]
"""Left, bottom, width, height."""
_INK, _GRID = "#010101", "#020202"
_SERIES = tuple(f"#0{index}0309" for index in range(6))
_STYLES = ("-", "--", ":")
"""Of lines whose colours come again."""
VARIABLES = {_INK: "var(--ink)", _GRID: "var(--grid)", **{color: f"var(--s{at})" for at, color in enumerate(_SERIES)}}
"""What stands for each colour in the page."""
FEW_STEPS = 60
"""Steps that have a bar each."""
MOST_BARS = 160
"""Rollouts of a step that a Gantt picture shows: the longest."""
COLUMNS = 300
"""Parts of a long curve, of each of which the lowest and the highest point are drawn: about one a pixel."""
WIDTH, LEFT, RIGHT, BOTTOM, ABOVE, KEY_LINE = 6.4, 0.62, 0.08, 0.45, 0.1, 0.19
"""Inches: of a picture, of its margins, of a line of its key."""
MARGIN = 1.05
"""Of a curve's height."""
IN_A_LINE = 5
"""Names in a line of the key."""


def curves(
    lines: Mapping[str, Points],
    *,
    along: str = "step",
    low: float | None = None,
    high: float | None = None,
    spread: Mapping[str, Points] | None = None,
) -> str:
    """Each of `lines` over steps, or what else they go `along`; `low` and `high` are within the picture. Behind those
    that `spread` names is a band, as wide on each side of the line as that is."""
    figure, axes = _frame(2.4, named=len(lines) if len(lines) > 1 else 0)
    for at, (name, points) in enumerate(lines.items()):
        color, marked = _SERIES[at % len(_SERIES)], "o" if len(points) < 40 else None
        style = _STYLES[at // len(_SERIES) % len(_STYLES)]
        steps, values = thinned(points)
        axes.plot(
            *(steps, values, style), color=color, marker=marked, label=_printable(name), linewidth=1.6, markersize=3
        )
        if spread is not None and name in spread:
            wide = np.array([spread[name].get(int(step), 0.0) for step in steps])
            axes.fill_between(steps, values - wide, values + wide, color=color, alpha=0.18, linewidth=0)
    axes.set_xlabel(along)
    if low is not None and high is not None:
        bottom, top = axes.get_ylim()
        said = [value for points in lines.values() for value in points.values()]
        if min(said, default=low) >= low:
            bottom, top = low, low + MARGIN * (max(said, default=high) - low)
        axes.set_ylim(bottom, max(high, top) if max(high, top) > bottom else bottom + 1)
    return _svg(figure, axes, legend=len(lines) > 1)


def thinned(points: Points) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values, of a long curve those where it turns: it looks the same, and neither peak nor pit is lost."""
    steps, values = (np.fromiter(of, np.float64, len(points)) for of in (points.keys(), points.values()))
    if len(points) <= 4 * COLUMNS:
        return steps, values
    bounds = np.linspace(0, len(points), COLUMNS + 1).astype(int)
    parts = [(low, values[low:high]) for low, high in pairwise(bounds)]
    turns = [low + place(part) for low, part in parts for place in (np.argmin, np.argmax)]
    kept = np.unique([0, *turns, len(points) - 1])
    return steps[kept], values[kept]


def stacked(parts: Mapping[str, Points], steps: Sequence[int]) -> str:
    """Bars of `parts` one above the other, a bar for each of `steps`, or areas where those are many; seconds."""
    figure, axes = _frame(2.4, named=len(parts))
    every = {name: [points.get(step, 0.0) for step in steps] for name, points in parts.items()}
    if len(steps) > FEW_STEPS:
        axes.stackplot(list(steps), *every.values(), colors=_SERIES[: len(every)], labels=list(every))
    else:
        base = [0.0] * len(steps)
        for color, (name, heights) in zip(_SERIES, every.items(), strict=False):
            boxes = [(step - 0.45, low, 0.9, high) for step, low, high in zip(steps, base, heights, strict=True)]
            _boxes(axes, boxes, color=color, label=name)
            base = [below + height for below, height in zip(base, heights, strict=True)]
        axes.set_xlim(min(steps) - 0.7, max(steps) + 0.7)
        axes.set_ylim(0.0, 1.05 * max(base) or 1.0)
    axes.set_xlabel("step")
    axes.set_ylabel("seconds")
    return _svg(figure, axes, legend=True)


def bars(counts: Mapping[str, int], *, along: str, of: str) -> str:
    """A histogram: how many `of` are in each place `along` an axis."""
    figure, axes = _frame(2.4)
    _boxes(axes, [(at - 0.4, 0.0, 0.8, float(count)) for at, count in enumerate(counts.values())], color=_SERIES[0])
    axes.set_xticks(range(len(counts)), list(counts))
    axes.set_xlim(-0.6, len(counts) - 0.4)
    axes.set_ylim(0.0, MARGIN * max(counts.values(), default=0) or 1.0)
    axes.set_xlabel(along)
    axes.set_ylabel(of)
    return _svg(figure, axes, legend=False)


def gantt(rows: Sequence[Row], updates: Sequence[float] = ()) -> str:
    """A bar for each rollout, from its start to its end in seconds since the first: the model's time, the tools', the
    reward's, and the rest, in which it waits. The parts stand in this order, not in that of the turns, which no row
    tells. `updates`: when engines had taken new weights, as lines across."""
    longest = sorted(rows, key=lambda row: row["finished_at"] - row["started_at"], reverse=True)[:MOST_BARS]
    shown = sorted(longest, key=lambda row: row["started_at"])
    began = min((row["started_at"] for row in rows), default=0.0)
    figure, axes = _frame(max(1.6, 0.6 + 0.05 * len(shown)), named=len(GANTT_PARTS) + 1 + bool(updates))
    reached, ends = [row["started_at"] - began for row in shown], [row["finished_at"] - began for row in shown]
    left = [max(0.0, end - at) for at, end in zip(reached, ends, strict=True)]
    for part, (name, column) in enumerate(GANTT_PARTS):
        widths = [min(row[column] or 0.0, most) for row, most in zip(shown, left, strict=True)]
        _boxes(axes, _rows(reached, widths), color=_SERIES[part], label=name)
        reached = [at + width for at, width in zip(reached, widths, strict=True)]
        left = [most - width for most, width in zip(left, widths, strict=True)]
    _boxes(axes, _rows(reached, left), color=_GRID, label="wait")
    lines = axes.vlines([at - began for at in updates], -0.6, len(shown) - 0.4, color=_SERIES[5], linewidth=1.6)
    lines.set_label("new weights" if updates else "")
    axes.set_yticks([])
    axes.set_xlim(min(0.0, *(at - began for at in updates), 0.0), max(ends, default=0.0) or 1.0)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlabel("seconds since the step's first rollout")
    return _svg(figure, axes, legend=True)


GANTT_PARTS = (("model", "model"), ("tool", "tool"), ("reward", "reward_time"))


def _rows(starts: Sequence[float], widths: Sequence[float]) -> list[Box]:
    """A box in each line, from the first line down."""
    return [(start, line - 0.42, width, 0.84) for line, (start, width) in enumerate(zip(starts, widths, strict=True))]


def _boxes(axes: Axes, boxes: Sequence[Box], *, color: str, label: str = "") -> None:
    """All of them one object, which is drawn far sooner than as many bars."""
    from matplotlib.collections import PolyCollection

    corners = [[(x, y), (x + wide, y), (x + wide, y + high), (x, y + high)] for x, y, wide, high in boxes]
    axes.add_collection(PolyCollection(corners, facecolor=color, label=label), autolim=False)


def _printable(name: str) -> str:
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in name)


def _frame(height: float, *, named: int = 0) -> tuple[Figure, Axes]:
    """Of so many inches, with room for so many names in its key."""
    from matplotlib.figure import Figure  # half a second, for whoever looks at a picture
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    above = ABOVE + KEY_LINE * -(-named // IN_A_LINE)
    height += above
    figure = Figure(figsize=(WIDTH, height))
    wide, high = WIDTH - LEFT - RIGHT, height - BOTTOM - above
    axes = figure.add_axes((LEFT / WIDTH, BOTTOM / height, wide / WIDTH, high / height))
    axes.patch.set_alpha(0)
    figure.patch.set_alpha(0)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GRID)
    axes.tick_params(colors=_INK, labelsize=8)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return figure, axes


def _svg(figure: Figure, axes: Axes, *, legend: bool) -> str:
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    formulas = rc_context({"text.parse_math": False})  # names are text, also those that look like one
    with formulas, rc_context({"svg.fonttype": "none", "svg.hashsalt": "miles-lite", "font.family": "sans-serif"}):
        if legend:
            key = axes.legend(frameon=False, fontsize=8, labelcolor=_INK, ncols=IN_A_LINE, loc="lower left")
            key.set_bbox_to_anchor((0, 1))
        canvas = FigureCanvasSVG(figure)  # savefig draws twice, the first time for a layout
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})  # type: ignore[no-untyped-call]
    drawn = buffer.getvalue()
    for color, variable in VARIABLES.items():
        drawn = drawn.replace(color, variable)
    return drawn[drawn.index("<svg") :]
