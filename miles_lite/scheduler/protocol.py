"""What a scheduler is told and what it tells: plain values, nothing else crosses its border.

Groups are known by their ordinal in the run, prompts by a number that only the driver understands.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class AttemptId(NamedTuple):
    """One execution of an agent: attempts of the same member of a group are versions of one rollout."""

    group: int
    member: int
    attempt: int


class End(StrEnum):
    """What becomes of a group: each ends once. `trained` says that the trainer was given it."""

    TRAINED = "trained"
    FILTERED = "filtered"
    FAILED = "failed"
    QUARANTINED = "quarantined"
    UNUSED = "unused"


# ---- events --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finished:
    """A rollout ended. `failed` is the boundary that broke, "" where the agent came to an end of its own; `why` the
    words; `again` whether another attempt may end otherwise; `length` its trained tokens."""

    who: AttemptId
    length: int = 0
    failed: str = ""
    why: str = ""
    again: bool = True


@dataclass(frozen=True, slots=True)
class Judged:
    """The answer to `Judge`: None, the group is to be trained, or how it ends (filtered, failed) and the reason."""

    group: int
    end: End | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The trainer takes the next batch as soon as there is one."""


@dataclass(frozen=True, slots=True)
class Trained:
    """The trainer is done with the batch of `step`: it will not be asked for again."""

    step: int


@dataclass(frozen=True, slots=True)
class Updated:
    """Every engine serves `version`: the weights after so many steps. What starts from now on is not older."""

    version: int


@dataclass(frozen=True, slots=True)
class Capacity:
    """So many rollouts may run at once, from now on."""

    rollouts: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """What ran is gone, `step` batches have been trained, and of answers only those of the groups in `kept` are left.

    Batches that had been given since are to be given again. Where the schedule is another one now, groups that it has
    no place for are unused, and their prompts come again."""

    step: int
    kept: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Closed:
    """The run ends: what is open is not needed. No command to start anything follows."""


Event = Finished | Judged | Wanted | Trained | Updated | Capacity | Tick | Resumed | Closed

# ---- commands ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """Run an agent on `prompt`; `Finished` is to follow."""

    who: AttemptId
    prompt: int


@dataclass(frozen=True, slots=True)
class Judge:
    """All members of the group of `prompt` have ended, `lost` of them without an answer; `Judged` is to follow."""

    group: int
    lost: int
    prompt: int = -1


@dataclass(frozen=True, slots=True)
class Deliver:
    """The batch of `step`: groups in the order of their ordinals. Fewer than a batch where no more can be had, which
    `short` explains."""

    step: int
    groups: tuple[int, ...]
    short: str = ""


@dataclass(frozen=True, slots=True)
class Renew:
    """The group begins anew: what has come of its members is no answer any longer, nor is what was said of it where it
    was `judged`."""

    group: int
    judged: bool


@dataclass(frozen=True, slots=True)
class Release:
    """The group has ended, and will not be trained: what is kept of it can go."""

    group: int
    end: End
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody waits for this rollout any longer. It may answer all the same."""

    who: AttemptId


@dataclass(frozen=True, slots=True)
class Stop:
    """The run cannot go on, and the reason. No command follows."""

    reason: str


Command = Start | Judge | Deliver | Renew | Release | Cancel | Stop
