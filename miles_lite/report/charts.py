"""A run's pictures, as SVG that takes its colours from the page it stands in.

Invariant: ink, grid and series are the page's CSS variables (`--ink`, `--grid`, `--s0` ...), so that a picture is right
in light, in dark and on paper; what it shows is in a table beside it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from miles_lite.report.rollout_table import Row

Points = Mapping[int, float]
_INK, _GRID = "#010101", "#020202"
_SERIES = tuple(f"#0{index}0309" for index in range(6))
VARIABLES = {_INK: "var(--ink)", _GRID: "var(--grid)", **{color: f"var(--s{at})" for at, color in enumerate(_SERIES)}}
"""What stands for each colour in the page."""
FEW_STEPS = 60
"""Steps that have a bar each."""
MOST_BARS = 160
"""Rollouts of a step that a Gantt picture shows: the longest."""


def curves(
    lines: Mapping[str, Points], *, along: str = "step", low: float | None = None, high: float | None = None
) -> str:
    """Each of `lines` over steps, or what else they go `along`; `low` and `high` are within the picture."""
    figure, axes = _frame(2.4)
    for at, (name, points) in enumerate(lines.items()):
        marked = "o" if len(points) < 40 else None
        color = _SERIES[at % len(_SERIES)]
        axes.plot(
            list(points),
            list(points.values()),
            color=color,
            label=_printable(name),
            linewidth=1.6,
            marker=marked,
            markersize=3,
        )
    axes.set_xlabel(along)
    if low is not None and high is not None:
        bottom, top = axes.get_ylim()
        axes.set_ylim(min(low, bottom), max(high, top))
    return _svg(figure, axes, legend=len(lines) > 1)


def stacked(parts: Mapping[str, Points], steps: Sequence[int]) -> str:
    """Bars of `parts` one above the other, a bar for each of `steps`, or areas where those are many; seconds."""
    figure, axes = _frame(2.4)
    every = {name: [points.get(step, 0.0) for step in steps] for name, points in parts.items()}
    if len(steps) > FEW_STEPS:
        axes.stackplot(list(steps), *every.values(), colors=_SERIES[: len(every)], labels=list(every))
    else:
        base = [0.0] * len(steps)
        for color, (name, heights) in zip(_SERIES, every.items(), strict=False):
            axes.bar(list(steps), heights, bottom=base, color=color, label=name, width=0.9)
            base = [below + height for below, height in zip(base, heights, strict=True)]
    axes.set_xlabel("step")
    axes.set_ylabel("seconds")
    return _svg(figure, axes, legend=True)


def gantt(rows: Sequence[Row]) -> str:
    """A bar for each rollout, from its start to its end in seconds since the first: the model's time, the tools', the
    reward's, and what is left. The parts stand in this order, not in that of the turns, which no row tells."""
    longest = sorted(rows, key=lambda row: row["finished_at"] - row["started_at"], reverse=True)[:MOST_BARS]
    shown = sorted(longest, key=lambda row: row["started_at"])
    began = min((row["started_at"] for row in rows), default=0.0)
    figure, axes = _frame(max(1.6, 0.6 + 0.05 * len(shown)))
    lines = range(len(shown))
    reached, ends = [row["started_at"] - began for row in shown], [row["finished_at"] - began for row in shown]
    left = [max(0.0, end - at) for at, end in zip(reached, ends, strict=True)]
    for part, (name, column) in enumerate(GANTT_PARTS):
        widths = [min(row[column] or 0.0, most) for row, most in zip(shown, left, strict=True)]
        axes.barh(lines, widths, left=reached, color=_SERIES[part], height=0.85, label=name)
        reached = [at + width for at, width in zip(reached, widths, strict=True)]
        left = [most - width for most, width in zip(left, widths, strict=True)]
    axes.barh(lines, left, left=reached, color=_GRID, height=0.85, label="other")
    axes.set_yticks([])
    axes.invert_yaxis()
    axes.set_xlabel("seconds since the step's first rollout")
    return _svg(figure, axes, legend=True)


GANTT_PARTS = (("model", "model"), ("tool", "tool"), ("reward", "reward_time"))


def _printable(name: str) -> str:
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in name)


def _frame(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
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
    buffer = io.StringIO()
    formulas = rc_context({"text.parse_math": False})  # names are text, also those that look like one
    with formulas, rc_context({"svg.fonttype": "none", "svg.hashsalt": "miles-lite", "font.family": "sans-serif"}):
        if legend:
            axes.legend(frameon=False, fontsize=8, labelcolor=_INK, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    drawn = buffer.getvalue()
    for color, variable in VARIABLES.items():
        drawn = drawn.replace(color, variable)
    return drawn[drawn.index("<svg") :]
