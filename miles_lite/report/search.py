"""Which of a run's kept trajectories say a text: in a message, its reasoning, or the arguments of a call.

Invariant: one file is in memory at a time; for a text that was looked for lately only files that are new, or were
written again, are read. What is no trajectory says nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from threading import Lock

import orjson

from miles_lite.errors import UserError
from miles_lite.report import rollout_table
from miles_lite.traces import atraj

MOST_TEXTS = 4
"""Of which it is known what says them."""


Place = tuple[int, int]
"""Step and number of a rollout."""


class Search:
    """Of the run in `run_dir`; several threads may ask at once."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._asked = lru_cache(MOST_TEXTS)(_Asked)

    def containing(self, text: str) -> list[Place]:
        """The rollouts whose trajectory says it, letter by letter. Raises OSError."""
        paths = {
            at: rollout_table.trajectory_path(self._run_dir, *at) for at in rollout_table.trajectories(self._run_dir)
        }
        return self._asked(text).among(paths)


class _Asked:
    """One text, and what is known of it."""

    def __init__(self, text: str) -> None:
        self._text, self._lock = text, Lock()
        self._written = orjson.dumps(text)[1:-1]
        """As it stands in a file."""
        self._known: dict[Place, tuple[int, int, bool]] = {}
        """Time and size of each file, and whether it says it."""

    def among(self, paths: Mapping[Place, Path]) -> list[Place]:
        with self._lock:
            self._known = {at: known for at, path in paths.items() for known in self._looked_at(at, path)}
            return [at for at, (*_, says) in self._known.items() if says]

    def _looked_at(self, at: Place, path: Path) -> Iterator[tuple[int, int, bool]]:
        """Nothing of one that was removed meanwhile."""
        with suppress(FileNotFoundError):
            state, known = os.stat(path), self._known.get(at)
            if known is None or known[:2] != (state.st_mtime_ns, state.st_size):
                known = state.st_mtime_ns, state.st_size, self._contains(path)
            yield known

    def _contains(self, path: Path) -> bool:
        data = path.read_bytes()
        if self._written not in data:
            return False
        with suppress(UserError, orjson.JSONDecodeError):
            trajectory = atraj.parse(orjson.loads(data), where=str(path))
            return any(self._text in said for step in trajectory.steps for said in step.texts)
        return False
