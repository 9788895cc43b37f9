"""One engine as the router sees it: what it is, how it does, and whether it may be given a request.

Invariant: `in_flight` is the number of requests forwarded to it that have not ended. Only a `ready` worker is given
requests, and one that is on trial gets one at a time.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Literal

from miles_lite.config.choices import WorkerType
from miles_lite.process.json_types import JsonObject

State = Literal["ready", "unreachable", "stale", "draining"]


@dataclass(eq=False, slots=True)
class Worker:
    """One engine, seen from the router.

    turn       number of the last request placed on it
    failures   in a row
    served     requests that it answered; broken: requests that it failed
    trial      came back from a failure: one request at a time until one is answered, or runs while it is asked again
    version    the weight version it reported last
    gone       no longer registered
    """

    url: str
    worker_type: WorkerType = WorkerType.REGULAR
    bootstrap_port: int | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    state: State = "ready"
    in_flight: int = 0
    turn: int = 0
    failures: int = 0
    served: int = 0
    broken: int = 0
    trial: bool = False
    version: str | None = None
    gone: bool = False

    def room(self, most: int | None) -> bool:
        """True when one more request may be given to it, `most` being allowed at once."""
        limit = 1 if self.trial else most
        return self.state == "ready" and (limit is None or self.in_flight < limit)

    def failed(self, patience: int) -> None:
        """It could not be reached, broke off or answered with an error of its own; `patience` of these set it aside."""
        self.failures += 1
        self.broken += 1
        if self.state == "ready" and (self.trial or self.failures >= patience):
            self.state = "unreachable"

    def answered(self) -> None:
        """It answered a request, if only to refuse it."""
        self.failures = 0
        self.served += 1
        self.trial = False

    def as_dict(self) -> JsonObject:
        """The form of GET /workers."""
        shown: JsonObject = {"id": self.id, "url": self.url, "worker_type": self.worker_type}
        if self.bootstrap_port is not None:
            shown["bootstrap_port"] = self.bootstrap_port
        return shown | {
            "is_healthy": self.state == "ready",
            "state": "trial" if self.trial and self.state == "ready" else self.state,
            "load": self.in_flight,
            "failures": self.failures,
            "served": self.served,
            "weight_version": self.version,
        }
