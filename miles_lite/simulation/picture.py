"""A simulation as a picture: who works when, weight updates as lines."""

from __future__ import annotations

from pathlib import Path

from miles_lite.simulation.world import TICK, Outcome


def gantt(outcome: Outcome, path: Path, *, title: str) -> None:
    """Write it to `path`, in the format of its suffix: the trainer, some engines, rollouts at once."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 6), layout="constrained")
    FigureCanvasAgg(figure)
    trainer, engines, rollouts = figure.subplots(3, 1, sharex=True, height_ratios=[1, 4, 2])
    figure.suptitle(title)
    train = [(step.began, step.ended - step.began) for step in outcome.steps]
    sync = [(step.ended, step.synced - step.ended) for step in outcome.steps if step.synced]
    trainer.broken_barh(train, (0.1, 0.8), color="#2a6f97", label="train")
    trainer.broken_barh(sync, (0.1, 0.8), color="#e09f3e", label="sync")
    trainer.set_yticks([0.5], ["trainer"])
    trainer.set_xlim(0.0, outcome.seconds)
    trainer.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, fontsize="small", frameon=False)
    ticks = outcome.ticks
    busy = list(zip(*(tick.engines for tick in ticks), strict=True))
    extent = (0.0, ticks[-1].at, len(busy) - 0.5, -0.5)
    shown = engines.imshow(busy, aspect="auto", extent=extent, vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    engines.set_yticks(range(len(busy)), [f"engine {number}" for number in range(len(busy))])
    figure.colorbar(shown, ax=engines, label="share of full speed", pad=0.01)
    rollouts.step([tick.at - TICK for tick in ticks], [tick.rollouts for tick in ticks], where="post", color="#2a6f97")
    rollouts.set_ylabel("rollouts at once")
    rollouts.set_ylim(bottom=0)
    rollouts.set_xlabel("seconds")
    for step in outcome.steps:
        if step.synced:
            rollouts.axvline(step.synced, color="#e09f3e", linewidth=0.6)
    figure.savefig(path, dpi=120)
