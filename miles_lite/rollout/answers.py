"""What the rollout manager answers its driver: records, as everything that it holds."""

from __future__ import annotations

from dataclasses import dataclass, field

from miles_lite.process.remote import Remote
from miles_lite.sample import Group
from miles_lite.stack.fleet import Fleet


@dataclass(frozen=True, slots=True)
class Started:
    """Where it serves, who has its engines, the rollouts of one evaluation, the steps of one epoch."""

    router_urls: list[str]
    session_urls: list[str]
    engine_urls: list[str]
    fleet: Remote[Fleet]
    eval_rollouts: int
    rollouts_per_epoch: int


@dataclass(frozen=True, slots=True)
class Generated:
    """The groups of a step that are to be trained, and what was seen on the way. `kept`: the numbers of rollouts whose
    trajectories are."""

    groups: list[Group]
    metrics: dict[str, float]
    busy: list[tuple[float, float]]
    kept: frozenset[int] = frozenset()


Evaluated = tuple[dict[str, float], list[tuple[float, float]]]
"""Metrics of the held-out prompts, and when agents were busy."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a running step stands. `again` counts the attempts that were lost with a worker or a session server;
    `oldest`: seconds that the oldest rollout has run."""

    groups_done: int
    rollouts_done: int
    rollouts_started: int
    again: int
    oldest: float = field(default=0.0, compare=False)

    def __str__(self) -> str:
        return f"{self.rollouts_started - self.rollouts_done} run, the oldest for {self.oldest:.0f} s"
