"""The picture of a run: reward over training steps."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from miles_lite.report import metric_names as names
from miles_lite.report.history import Row, held_out, read_history, series

TRAIN_COLOR, EVAL_COLORS, MUTED = "#2f6fb2", ("#d1662b", "#3d8b5f", "#8457a8"), "#6b6f76"
WINDOW = 5
"""Steps of the running mean; the reward of single steps stays visible behind it."""


def reward_curve(metrics_jsonl: Path, png: Path, *, chance: float | None, title: str) -> None:
    """Draw train reward, every held-out dataset's reward, and the chance line into `png`.

    Without any logged reward the picture says so, so that a run that was stopped early still ends with one.
    """
    rows = read_history(metrics_jsonl)
    figure = Figure(figsize=(8.0, 4.5), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _frame(axes, title)
    drawn = [
        _train(axes, rows),
        *(_heldout(axes, rows, name, i) for i, name in enumerate(held_out(name for row in rows for name in row))),
    ]
    if chance is not None:
        axes.axhline(chance, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), label=f"chance {chance:.2f}")
    if any(drawn):
        axes.legend(loc="lower right", frameon=False, fontsize=10)
    else:
        axes.text(0.5, 0.5, "no reward was logged", transform=axes.transAxes, ha="center", color=MUTED)
    png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png)


def _frame(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=13, pad=12)
    axes.set_xlabel("training step", fontsize=11)
    axes.set_ylabel("mean reward", fontsize=11)
    axes.grid(axis="y", color="#e4e6e9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b9bdc3")
    axes.tick_params(colors="#43474d", labelsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _train(axes: Axes, rows: list[Row]) -> bool:
    points = series(rows, names.REWARD, step_key=names.ROLLOUT_STEP)
    steps, rewards = [step + 1 for step in points], list(points.values())
    smooth = [sum(part) / len(part) for part in (rewards[max(0, i + 1 - WINDOW) : i + 1] for i in range(len(rewards)))]
    if points:
        axes.plot(steps, rewards, color=TRAIN_COLOR, linewidth=1.0, alpha=0.35, marker="o", markersize=2.5)
        axes.plot(steps, smooth, color=TRAIN_COLOR, linewidth=2.2, label=f"train, mean of {WINDOW} steps")
        low, high = min(0.0, *rewards), max(1.0, *rewards)
        axes.set_ylim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    return bool(points)


def _heldout(axes: Axes, rows: list[Row], name: str, index: int) -> bool:
    points = series(rows, names.heldout(name), step_key=names.EVAL_STEP)
    color = EVAL_COLORS[index % len(EVAL_COLORS)]
    label = f"held-out ({name})"
    axes.plot(list(points), list(points.values()), color=color, linewidth=1.6, marker="D", markersize=5.5, label=label)
    return bool(points)
