"""The parameters of a schedule: from synchronous to fully asynchronous, one code path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Order = Literal["fifo", "longest"]
Granularity = Literal["sample", "group"]

WINDOW_SHARE = 0.3
"""Of the groups that may be open at once, how many a batch may reach past the oldest unfinished one (MiniMax,
arXiv:2605.26494, section 6.2.4)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """What a scheduler is to keep to. With P groups a batch and a staleness bound S, B = (S + 1) P groups at most are
    open (started and not given to the trainer) at once.

    groups_per_step    P
    rollouts_per_group members of a group
    max_staleness      S, in weight versions: no token is older when it is trained; 0 is synchronous
    depth              steps that groups are started ahead of the trainer, at most S. What lies between it and S is
                       room for stragglers to be overtaken in
    extra              groups that are open beyond what is needed (over-sampling); with S = 0 they are given up when
                       the batch is complete
    capacity           rollouts at once, until `Capacity` says otherwise
    sample_retries     how often a member whose rollout failed is run again, while there is time (`pace.may_retry`)
    quarantine_after   groups of one prompt that fail in a row before it is not dealt again; 0: never
    failure_share      share of failed rollouts among the last `failure_window` that stops the run; 1: never
    refill             a batch is given up after starting so many times its groups
    patience           seconds after which a rollout that has not answered counts as failed (timeout); 0: never
    order              which rollouts start first among those of one step's groups: in turn, or those that finished
                       siblings let expect to be longest (Seer, arXiv:2511.14617)
    granularity        whether capacity is counted in rollouts, or in whole groups
    reuse_unused       whether the prompts of groups that were given up are dealt again
    steps              batches of the run, for which alone groups are started; 0: nobody knows
    """

    groups_per_step: int
    rollouts_per_group: int = 1
    max_staleness: int = 0
    depth: int = 0
    extra: int = 0
    capacity: int = 64
    sample_retries: int = 0
    quarantine_after: int = 0
    failure_share: float = 1.0
    failure_window: int = 256
    refill: int = 20
    patience: float = 0.0
    order: Order = "fifo"
    granularity: Granularity = "sample"
    reuse_unused: bool = False
    steps: int = 0

    def __post_init__(self) -> None:
        assert min(self.groups_per_step, self.rollouts_per_group, self.refill, self.failure_window) > 0
        assert 0 <= self.depth <= self.max_staleness

    @property
    def window(self) -> int:
        """W: ordinals, counted from the oldest unfinished group, that a batch may take from."""
        return max(1, int(WINDOW_SHARE * self._bound))

    @property
    def most_open(self) -> int:
        """Groups that may be open where the engines have the weights of the last step: B, and what will be given up."""
        return self._bound + (self.extra if self.gives_up_extra else 0)

    @property
    def _bound(self) -> int:
        """B."""
        return (self.max_staleness + 1) * self.groups_per_step

    @property
    def gives_up_extra(self) -> bool:
        """Whether a batch is the first P groups that finish, and the others are given up: over-sampling in step."""
        return self.max_staleness == 0 and self.extra > 0


def depth_of(max_staleness: int, given: int | None = None) -> int:
    """The depth that is `given`; else one step is left to stragglers as soon as there is more than one."""
    if given is not None:
        return given
    return max_staleness if max_staleness <= 1 else max_staleness - 1
