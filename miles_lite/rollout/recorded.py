"""A run's record of its rollouts and engines: the rows of a step, for `report.rollout_table`, trajectories, and how
engines stood."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import orjson
import ray

from miles_lite.errors import writing
from miles_lite.report import rollout_table
from miles_lite.report.rollout_table import TRAINED, Row
from miles_lite.rollout.agent_report import agent_report, number
from miles_lite.rollout.fleet_samples import FleetSamples
from miles_lite.rollout.generate import Step
from miles_lite.rollout.kept import Keeper, costs_no_run
from miles_lite.rollout.metrics import no_gradient
from miles_lite.sample import Group, Rollout, Spans
from miles_lite.traces.token_values import TokenValues

RETRIED, UNUSED = "retried", "unused"
Credited = Sequence[Awaitable[list[TokenValues]]]
"""What training makes of tokens, as each rank tells it."""


class Recorder:
    """Writes a run's record of its rollouts: of each step the table, and some trajectories while the next one runs, one
    after the other."""

    def __init__(self, run_dir: Path, *, keep: int) -> None:
        """`keep`: --keep-trajectories."""
        self._run_dir, self._keeper = run_dir, Keeper(run_dir, keep)
        self.fleet = FleetSamples(run_dir)
        self._writing: asyncio.Task[None] | None = None

    @property
    def keeps(self) -> bool:
        """Whether any trajectory is kept."""
        return self._keeper.keeps

    async def record(self, number: int, step: Step) -> frozenset[int]:
        """The step of that number has ended; the numbers of the rollouts that are kept. Raises UserError when the disk
        is full."""
        await self.close()
        taken = self._keeper.take(number, step)
        self._writing = asyncio.create_task(asyncio.to_thread(self._keeper.write, number, taken))
        rows = list(rows_of(number, step))
        with writing("the table of a step's rollouts", self._run_dir / rollout_table.FOLDER):
            await asyncio.to_thread(rollout_table.write, self._run_dir, number, rows)
        return frozenset(rollout.index for rollout, _ in taken)

    def credit(self, number: int, advantages: Mapping[int, float], told: Credited) -> None:
        """What training makes of rollouts of that step, by number, and of the tokens of those that are kept: it goes
        into their rows and files."""
        self._writing = asyncio.create_task(self._credit(self._writing, number, advantages, told))

    async def close(self) -> None:
        """Wait for what is being written."""
        if self._writing is not None:
            await self._writing

    async def _credit(
        self, before: asyncio.Task[None] | None, number: int, advantages: Mapping[int, float], told: Credited
    ) -> None:
        if before is not None:
            await before
        with costs_no_run(f"rollouts of step {number} stay without their advantages"):
            await asyncio.to_thread(rollout_table.credit, self._run_dir, number, advantages)
        with contextlib.suppress(ray.exceptions.RayError):  # the rank that knew has died
            values = [one for each in await asyncio.gather(*told) for one in each]
            await asyncio.to_thread(self._keeper.add, number, values)


def rows_of(number_of: int, step: Step) -> Iterator[Row]:
    """Of every rollout that ended for the step of that number."""
    trained = {group.index for group in step.groups}
    ended = [
        (group, TRAINED if group.index in trained else step.reasons.get(group.index, UNUSED)) for group in step.finished
    ]
    for group, outcome in [*ended, *((group, RETRIED) for group in step.replaced)]:
        for rollout in group.rollouts:
            yield {"step": number_of, **_row(group, rollout), "outcome": outcome}


def _row(group: Group, rollout: Rollout) -> Row:
    versions = [version for sample in rollout.samples for version in sample.weight_versions]
    told, given, row = agent_report(rollout.metadata), rollout.metadata.get("rewards"), group.prompt.get("row")
    return {
        "rollout": rollout.index,
        "group": group.index,
        "prompt_row": None if row is None else str(row),
        "status": rollout.status.value,
        "where": rollout.failure and rollout.failure.where.value,
        "why": rollout.failure and rollout.failure.why,
        "reward": number(rollout.reward),
        "rewards": _json(given.items()) if isinstance(given, dict) else None,
        "zero_std": no_gradient(group),
        "advantage": None,
        "samples": len(rollout.samples),
        "forks": _json(forks.items()) if (forks := _forks(rollout)) else None,
        "tokens": sum(sample.length for sample in rollout.samples),
        "prompt_tokens": sum(sample.prompt_length for sample in rollout.samples),
        "trained_tokens": rollout.trained_tokens,
        "truncated": any(sample.ends_cut for sample in rollout.samples),
        "min_version": min(versions, default=None),
        "max_version": max(versions, default=None),
        "ended_version": rollout.ended_version,
        "turns": told.get("turns"),
        "tool_calls": told.get("tool_calls"),
        "started_at": rollout.started_at,
        "finished_at": rollout.finished_at,
        **_spent(rollout.spans, rollout.finished_at - rollout.started_at),
    }


def _spent(spans: Spans, seconds: float) -> Row:
    """Where so many seconds of a rollout went."""
    accounted = sum(each or 0.0 for each in (spans.model, spans.tool, spans.reward))
    return {
        "queue": spans.queue,
        "model": spans.model,
        "prefill": spans.prefill,
        "decode": None if spans.model is None or spans.prefill is None else max(0.0, spans.model - spans.prefill),
        "tool": spans.tool,
        "tools": _json(spans.tools.items()) if spans.tools else None,
        "reward_time": spans.reward,
        "idle": max(0.0, seconds - accounted),
    }


def _forks(rollout: Rollout) -> dict[str, float]:
    """By why its history forked, how often: all its samples are of one session, which counts them."""
    prefix = "forks_"
    counted = rollout.samples[0].metadata.get("counts") if rollout.samples else None
    counts = counted if isinstance(counted, Mapping) else {}  # an agent's own samples may say anything
    return {name.removeprefix(prefix): count for name, count in counts.items() if str(name).startswith(prefix)}


def _json(numbers: Iterable[tuple[object, object]]) -> str:
    return orjson.dumps({str(name): number(value) for name, value in numbers}).decode()
