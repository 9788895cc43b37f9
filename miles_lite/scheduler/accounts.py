"""Where every prompt group and rollout of a run went."""

from __future__ import annotations

from dataclasses import dataclass, field

from miles_lite.scheduler.protocol import End


@dataclass(slots=True)
class Accounts:
    """Counted where it happens, so that `in_flight` is a claim that can be checked; part of the checkpoint.

    started           groups; of which `trained` (given to the trainer), `filtered`, `failed`, `quarantined`, `unused`
    rollouts_started  members of those groups; `rollouts_retried` counts what ran in their place
    rollouts_failed   members that have no answer in the end, by reason in `failures`
    late              answers that came when nobody waited for them any longer
    """

    started: int = 0
    trained: int = 0
    filtered: int = 0
    failed: int = 0
    quarantined: int = 0
    unused: int = 0
    rollouts_started: int = 0
    rollouts_retried: int = 0
    rollouts_failed: int = 0
    late: int = 0
    failures: dict[str, int] = field(default_factory=dict)

    @property
    def in_flight(self) -> int:
        ended = self.trained + self.filtered + self.failed + self.quarantined + self.unused
        return self.started - ended

    def book(self, end: End, groups: int = 1) -> None:
        """So many groups have ended so; or have not, where it is negative."""
        setattr(self, end, getattr(self, end) + groups)
