"""Trajectories that a run keeps: `trajectories/STEP-ROLLOUT.atraj` in its folder.

Invariant: of each step every failure up to MOST_FAILED, the best, the worst, one of a group without gradient and some
of the rest are kept, the same for the same step; the folder stays below MOST_BYTES, the oldest steps leave first. What
is not kept is never fetched, and nothing about keeping stops a run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import orjson

from miles_lite.process.json_types import JsonMapping, JsonObject
from miles_lite.report.rollout_table import TRAJECTORIES, trajectory_path
from miles_lite.rollout.generate import Step
from miles_lite.rollout.metrics import no_gradient
from miles_lite.rollout.prompts import Prompt
from miles_lite.rollout.stored import Stored
from miles_lite.sample import Group, Rollout
from miles_lite.traces import atraj, token_values
from miles_lite.traces.atraj import Trajectory
from miles_lite.traces.token_values import TokenValues

log = logging.getLogger(__name__)

MOST_FAILED = 64
"""Failures of a step."""
MOST_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class StoredTranscript:
    """What a rollout's session was told and said (GET /sessions/{id}/turns), and the prompt that it started from."""

    turns: Stored[bytes]
    prompt: Prompt

    def fetch(self) -> tuple[bytes, JsonObject]:
        """As JSON, and as a plain object."""
        return self.turns.fetch(), dataclasses.asdict(self.prompt)


def trajectory(turns: bytes, prompt: JsonObject, rollout: Rollout, more: JsonMapping) -> Trajectory:
    """What is written of a rollout, with `more` in its metadata."""
    metadata = {
        "rollout_index": rollout.index,
        "group_index": rollout.group_index,
        "status": rollout.status,
        "failure": None if rollout.failure is None else dataclasses.asdict(rollout.failure),
        "prompt": prompt,
    }
    return atraj.build(orjson.loads(turns), reward=rollout.reward, metadata={**metadata, **more})


def chosen(step: Step, some: int) -> dict[int, list[str]]:
    """The numbers of the rollouts of a step that are kept, and why each is; `some` of those that have no reason."""
    ended = sorted(_rollouts(step.finished), key=attrgetter("index"))
    failed = [one for one in [*ended, *_rollouts(step.replaced)] if one.failure is not None]
    judged = [one for one in ended if one.reward is not None]
    flat = [one for group in step.finished if no_gradient(group) for one in group.judged]
    reasons: dict[str, Sequence[Rollout]] = {
        "failed": failed[:MOST_FAILED],
        "best": sorted(judged, key=lambda one: -(one.reward or 0.0))[:1],
        "worst": sorted(judged, key=lambda one: one.reward or 0.0)[:1],
        "no_gradient": flat[:1],
    }
    taken = {one.index for rollouts in reasons.values() for one in rollouts}
    rest = [one for one in judged if one.index not in taken]
    reasons["some"] = rest[:: max(1, len(rest) // max(1, some))][:some]
    found: dict[int, list[str]] = {}
    for why, rollouts in reasons.items():
        for one in rollouts:
            found.setdefault(one.index, []).append(why)
    return found


def _rollouts(groups: Sequence[Group]) -> list[Rollout]:
    return [one for group in groups for one in group.rollouts]


class Keeper:
    """Keeps those of one run's steps."""

    def __init__(self, run_dir: Path, some: int) -> None:
        """`some`: of each step, besides those that have a reason; 0: none at all."""
        self._run_dir, self._folder, self._some = run_dir, run_dir / TRAJECTORIES, some

    @property
    def keeps(self) -> bool:
        return self._some > 0

    def take(self, number: int, step: Step) -> list[tuple[Rollout, JsonObject]]:
        """The rollouts of step `number` that `write` is to write, each with what its file says besides. The others let
        go of what their sessions said."""
        rollouts = _rollouts([*step.finished, *step.replaced])
        reasons = chosen(step, self._some) if self.keeps else {}
        taken = [
            (dataclasses.replace(one, stored=None), {"step": number, "kept": reasons[one.index]})
            for one in rollouts
            if one.index in reasons and one.transcript is not None
        ]
        for one in rollouts:
            one.transcript = None
        return taken

    def write(self, number: int, taken: Sequence[tuple[Rollout, JsonObject]]) -> None:
        """The files of step `number`, in the place of those that an earlier attempt at it left."""
        with costs_no_run(f"trajectories of step {number} are not kept"):
            for old in self._folder.glob(f"{number:06d}-*{atraj.SUFFIX}"):
                old.unlink()
            for rollout, more in taken:
                assert rollout.transcript is not None
                turns, prompt = rollout.transcript.fetch()
                if turns:
                    made = trajectory(turns, prompt, rollout, more)
                    atraj.write(made, trajectory_path(self._run_dir, number, rollout.index))
            for old in _beyond(self._folder, MOST_BYTES):
                old.unlink()

    def add(self, number: int, values: Sequence[TokenValues]) -> None:
        """Give the files of step `number` what training made of their tokens, one after the other."""
        with costs_no_run(f"trajectories of step {number} stay without what training made of them"):
            for rollout in sorted({each.rollout for each in values}):
                path = trajectory_path(self._run_dir, number, rollout)
                if path.is_file():
                    mine = [each for each in values if each.rollout == rollout]
                    atraj.write(token_values.put(atraj.read(path), mine), path)


@contextlib.contextmanager
def costs_no_run(what: str) -> Iterator[None]:
    """Whatever goes wrong in it is said."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - a full disk, or what was said is lost with its node
        log.warning("%s: %s", what, error)


def _beyond(folder: Path, most: int) -> Iterator[Path]:
    """The oldest files, as many as lie in the way of `most` bytes."""
    sizes = {path: path.stat().st_size for path in sorted(folder.glob(f"*{atraj.SUFFIX}"))}
    too_much = sum(sizes.values()) - most
    for path, size in sizes.items():
        if too_much <= 0:
            return
        too_much -= size
        yield path
