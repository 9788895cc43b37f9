"""How far the trainer's logprobs are from the engines', token by token, of the trajectories that were kept last.

Invariant: no more is read than MOST_FILES files of MOST_BYTES in all, the newest first.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np

from miles_lite.report.pictures import Picture, histogram
from miles_lite.report.rollout_table import TRAJECTORIES
from miles_lite.traces import atraj
from miles_lite.traces.atraj import SUFFIX, TRAINER_LOGPROBS, Trajectory

MOST_FILES, MOST_BYTES = 32, 1 << 24
BOUNDS = (0.0, 1e-6, 1e-4, 1e-3, 1e-2, 0.05, 0.2, 1.0, np.inf)
"""Nats: a token is between two of them."""


def gap_histogram(run_dir: Path) -> Iterable[Picture]:
    """Raises UserError for a damaged file."""
    paths = _newest(run_dir / TRAJECTORIES)
    gaps = [gaps_of(atraj.read(path)) for path in paths]
    counts, _ = np.histogram(np.concatenate([np.zeros(0), *gaps]), BOUNDS)
    places = {_place(low, high): int(count) for (low, high), count in zip(pairwise(BOUNDS), counts, strict=True)}
    says = f"trained tokens of the {len(paths)} trajectories that were kept last, by how far both logprobs are apart"
    yield from histogram("Gap", says, places, along="nats between trainer and engine", of="tokens")


def gaps_of(trajectory: Trajectory) -> np.ndarray:
    """float64, at least 0: of the tokens of which both said something."""
    both = [
        (engine, trainer)
        for step in trajectory.steps
        for engine, trainer in zip(step.logprobs, step.data.get(TRAINER_LOGPROBS, ()), strict=False)
        if trainer is not None
    ]
    engine, trainer = np.array(both, dtype=np.float64).reshape(-1, 2).T
    gaps: np.ndarray = np.abs(engine - trainer)
    return gaps


def _newest(folder: Path) -> list[Path]:
    """By the numbers in their names, which are those of steps and rollouts."""
    chosen, size = list[Path](), 0
    for path in sorted(folder.glob(f"[0-9]*{SUFFIX}"), reverse=True)[:MOST_FILES]:
        size += path.stat().st_size
        if chosen and size > MOST_BYTES:
            break
        chosen.append(path)
    return chosen


def _place(low: float, high: float) -> str:
    return f"< {high:g}" if low == 0 else f"≥ {low:g}"
