"""Which workers there are, how they do, and which of them may serve.

Invariant: a URL is registered at most once; a worker's `in_flight` is the number of requests forwarded to it that have
not ended. Only a `ready` worker is given requests, and one that is on trial gets one at a time. A worker whose weights
have another version than the accepted ones is never made ready.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from miles_lite.errors import UserError

WorkerType = Literal["regular", "prefill", "decode"]
State = Literal["ready", "unreachable", "stale", "draining"]
STORED = ("id", "url", "worker_type", "bootstrap_port")


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
    worker_type: WorkerType = "regular"
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

    def as_dict(self) -> dict[str, Any]:
        """The form of GET /workers."""
        shown: dict[str, Any] = {"id": self.id, "url": self.url, "worker_type": self.worker_type}
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


class Registry:
    """Workers by URL, in order of registration, and the weight versions that may serve; kept in a file if one is named.

    `accepted` is empty until a version is set: then all are.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._workers: dict[str, Worker] = {}
        self.accepted: tuple[str, ...] = ()
        if path is not None and path.exists():
            self._load(path)

    def __iter__(self) -> Iterator[Worker]:
        return iter(tuple(self._workers.values()))

    def __len__(self) -> int:
        return len(self._workers)

    def add(self, worker: Worker) -> Worker:
        """Register `worker`. The same URL and role again keeps the worker, clears its failures and ends its draining.

        Where a weight version is set, a worker that was not serving is `stale` until it is admitted with it.
        """
        fresh: State = "stale" if self.accepted else "ready"
        known = self._workers.get(worker.url)
        if known and (known.worker_type, known.bootstrap_port) == (worker.worker_type, worker.bootstrap_port):
            known.failures, known.trial = 0, False
            if known.state in ("draining", "unreachable"):
                known.state = fresh
                self.save()
            return known
        if known:
            known.gone = True
        worker.state = fresh
        self._workers[worker.url] = worker
        self.save()
        return worker

    def find(self, name: str) -> Worker | None:
        """The worker with this id or URL."""
        by_url = self._workers.get(name.rstrip("/"))
        return by_url or next((worker for worker in self if worker.id == name), None)

    def drain(self, worker: Worker) -> None:
        """Give `worker` no more requests; it is forgotten when those in flight have ended."""
        worker.state = "draining"
        self.settle(worker)
        self.save()

    def settle(self, worker: Worker) -> None:
        """A request of `worker` ended: forget it if that was the last of a draining one."""
        if worker.state == "draining" and worker.in_flight == 0 and self._workers.get(worker.url) is worker:
            worker.gone = True
            del self._workers[worker.url]

    def accept(self, *versions: str) -> None:
        """From here on only workers with one of these weight versions are admitted."""
        self.accepted = versions
        self.save()

    def admit(self, worker: Worker, version: str | None) -> None:
        """A worker answered and reports `version`: it serves if that is accepted, on trial if it had failed."""
        worker.version = version
        if worker.state == "draining":
            return
        if self.accepted and version not in self.accepted:
            worker.state = "stale"
        elif worker.state != "ready":
            worker.trial = worker.state == "unreachable"
            worker.state = "ready"
        elif worker.in_flight:  # its request runs, and it still answers
            worker.trial = False

    def save(self) -> None:
        """Write the file, whole or not at all."""
        if self._path is None:
            return
        kept = [worker for worker in self if worker.state != "draining"]
        rows = [{name: getattr(one, name) for name in STORED} for one in kept]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        draft.write_text(json.dumps({"workers": rows, "weight_versions": self.accepted}, indent=1))
        draft.replace(self._path)

    def _load(self, path: Path) -> None:
        try:
            stored = json.loads(path.read_text())
            self.accepted = tuple(map(str, stored["weight_versions"]))
            for row in stored["workers"]:
                worker = Worker(**{name: row[name] for name in STORED})
                worker.state = "stale" if self.accepted else "ready"
                self._workers[worker.url] = worker
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(
                f"{path}: not the state of a router ({error!r}).\n  Remove the file: the engines register again."
            ) from error
