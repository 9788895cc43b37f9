"""A group that is open: what of it runs, waits, is done."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Self

UNSTARTED = -1
"""The version of a group none of whose members has started."""


@dataclass(slots=True)
class Open:
    """A group between its start and its end.

    version   the engines' when its first member started: none of its tokens is older
    attempts  of each member, how often it was started; the last one is the one that counts
    failed    of each member, how often it failed
    waiting   members that are to be started
    done      members that have ended for good, `lost` of them without an answer
    settled   whether it was judged worth training; it is ready then
    """

    ordinal: int
    prompt: int
    attempts: list[int]
    failed: list[int]
    waiting: list[int]
    version: int = UNSTARTED
    done: list[int] = field(default_factory=list)
    lost: int = 0
    lengths: int = 0
    settled: bool = False

    @classmethod
    def of(cls, ordinal: int, prompt: int, size: int) -> Self:
        return cls(ordinal, prompt, [0] * size, [0] * size, list(range(size - 1, -1, -1)))

    @property
    def complete(self) -> bool:
        return len(self.done) == len(self.attempts)

    @property
    def active(self) -> bool:
        """Whether a member has started and one has not ended."""
        return self.version != UNSTARTED and not self.complete

    @property
    def answered(self) -> int:
        return len(self.done) - self.lost

    def again(self, size: int) -> int:
        """Begin anew, with `size` members: no answer of it is left. Returns how many more they are."""
        more = size - len(self.attempts)
        self.attempts = [max(self.attempts)] * size
        self.waiting = list(range(size - 1, -1, -1))
        self.done, self.failed = [], [0] * size
        self.version, self.lost, self.lengths, self.settled = UNSTARTED, 0, 0, False
        return more

    def as_json(self) -> dict[str, Any]:
        return asdict(self)
