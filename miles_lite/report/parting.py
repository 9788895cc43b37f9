"""Two rollouts side by side: how many tokens they begin with alike, and what each goes on with from there.

Invariant: pure. What is compared are the ids that the engines saw, along each one's first path; where they part is
exact. What of a turn the other one lacks is found turn by turn, in so many tokens as MOST_COMPARED, and all after those
counts as lacking.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import groupby, zip_longest

from miles_lite.errors import user_error
from miles_lite.traces.atraj import Step, Trajectory

MOST_COMPARED = 3000
"""Tokens of a turn."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a turn was told, or what was sampled in it. `start`: the place of its first token in the sequence; `only`:
    [start, end) of those of its `ids` that the other rollout lacks there."""

    turn: int
    sampled: bool
    steps: Sequence[Step]
    start: int
    ids: Sequence[int]
    only: Sequence[tuple[int, int]] = ()

    @property
    def end(self) -> int:
        return self.start + len(self.ids)

    @property
    def role(self) -> str:
        """Of the messages, each once."""
        return " and ".join(dict.fromkeys(step.role for step in self.steps))

    @property
    def text(self) -> str:
        return "\n".join(step.content for step in self.steps)


@dataclass(frozen=True, slots=True)
class Parting:
    """`same` tokens begin both; of each the parts from the one on in which they part, none where it has ended."""

    same: int
    one: Sequence[Part]
    other: Sequence[Part]


def damaged(which: str) -> AbstractContextManager[None]:
    """Where values of a trajectory are read. Raises UserError for one that is none, naming `which` trajectory."""
    return user_error(f"{which} is damaged", TypeError, ValueError, OverflowError, AttributeError, LookupError)


def parting(one: Trajectory, other: Trajectory) -> Parting:
    """Of two trajectories, whole."""
    mine, theirs = list(_parts(one)), list(_parts(other))
    pairs = zip(_ids(mine), _ids(theirs), strict=False)
    ends = min((parts[-1].end if parts else 0) for parts in (mine, theirs))
    same = next((at for at, (left, right) in enumerate(pairs) if left != right), ends)
    rest = [[part for part in parts if part.end > same] for parts in (mine, theirs)]
    told = [_difference(left, right) for left, right in zip_longest(*rest)]
    return Parting(same, [left for left, _ in told if left], [right for _, right in told if right])


def _parts(trajectory: Trajectory) -> Iterator[Part]:
    """Along the first path, without the tokens that a later part has dropped."""
    path, end = (trajectory.paths() or [trajectory.steps])[0], 0
    before: Part | None = None
    for (turn, sampled), same in groupby(path, lambda step: (step.turn, step.sampled)):
        steps = list(same)
        if before is not None:
            yield replace(before, ids=before.ids[: max(0, len(before.ids) - steps[0].drop)])
        start = max(0, end - steps[0].drop)
        before = Part(turn, sampled, steps, start, [token for step in steps for token in step.ids])
        end = before.end
    if before is not None:
        yield before


def _ids(parts: Sequence[Part]) -> Iterator[int]:
    return (token for part in parts for token in part.ids)


def _difference(one: Part | None, other: Part | None) -> tuple[Part | None, Part | None]:
    """With what each lacks of the other."""
    if one is None or other is None:
        alone = [part and replace(part, only=[(0, len(part.ids))]) for part in (one, other)]
        return alone[0], alone[1]
    compared = SequenceMatcher(None, one.ids[:MOST_COMPARED], other.ids[:MOST_COMPARED])
    found = [block for block in compared.get_opcodes() if block[0] != "equal"]
    mine = [(start, end) for _, start, end, _, _ in found if end > start]
    theirs = [(start, end) for _, _, _, start, end in found if end > start]
    return replace(one, only=[*mine, *_beyond(one)]), replace(other, only=[*theirs, *_beyond(other)])


def _beyond(part: Part) -> list[tuple[int, int]]:
    return [(MOST_COMPARED, len(part.ids))] if len(part.ids) > MOST_COMPARED else []
