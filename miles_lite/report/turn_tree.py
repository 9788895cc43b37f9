"""The turns of a trajectory as the tree that they are, where an agent forked.

Invariant: pure; every sampled turn is there once, after the one that it goes on from, whatever the tree's depth.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from miles_lite.report.visible import first, visible
from miles_lite.traces.atraj import Step, Trajectory

MOST_SAID = 80
"""Characters of what a turn says."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A model call. `parent`: the turn that it goes on from, None for a first one; `forks`: how many are above it;
    `counts`: whether it leads to an end that counts."""

    turn: int
    parent: int | None
    forks: int
    counts: bool
    tokens: int
    ended: str
    text: str


def tree(trajectory: Trajectory) -> Iterator[Turn]:
    """From the first turn on, each branch to its end."""
    sampled = {step.turn: step for step in trajectory.steps if step.sampled}
    below: dict[int | None, list[int]] = {}
    for number, step in sampled.items():
        below.setdefault(step.data.get("parent"), []).append(number)
    counting = {step.turn for path in trajectory.paths() for step in path}
    waiting = [(number, 0) for number in reversed(below.get(None, []))]
    while waiting:
        number, forks = waiting.pop()
        yield _turn(sampled[number], forks, counts=number in counting)
        following = below.get(number, [])
        forks += len(following) > 1
        waiting += [(each, forks) for each in reversed(following)]


def _turn(step: Step, forks: int, *, counts: bool) -> Turn:
    says = visible(first(" ".join(" ".join(step.texts).split()), MOST_SAID))
    ended = visible(step.data.get("finish_reason", "?"))
    return Turn(step.turn, step.data.get("parent"), forks, counts, len(step.ids), ended, says)
