"""Which workers there are and how they do.

Invariant: a URL is registered at most once; a worker's `in_flight` is the number of requests forwarded to it that have
not ended. A worker is set aside after `patience` connection failures in a row and is back with the next success.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args
from urllib.parse import urlsplit

from miles_lite.errors import UserError

WorkerType = Literal["regular", "prefill", "decode"]


@dataclass(eq=False, slots=True)
class Worker:
    """One engine, seen from the router. `turn` is the number of the last request placed on it."""

    url: str
    worker_type: WorkerType = "regular"
    bootstrap_port: int | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    in_flight: int = 0
    failures: int = 0
    turn: int = 0
    set_aside: bool = False

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Counts one request in flight, however it ends."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    def failed(self, patience: int) -> None:
        """It could not be reached."""
        self.failures += 1
        self.set_aside = self.set_aside or self.failures >= patience

    def answered(self) -> None:
        """It could be reached."""
        self.failures = 0
        self.set_aside = False

    def as_dict(self) -> dict[str, Any]:
        """The form of GET /workers."""
        shown: dict[str, Any] = {"id": self.id, "url": self.url, "worker_type": self.worker_type}
        if self.bootstrap_port is not None:
            shown["bootstrap_port"] = self.bootstrap_port
        return shown | {"is_healthy": not self.set_aside, "load": self.in_flight}


class Registry:
    """Workers by URL, in order of registration."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}

    def __iter__(self) -> Iterator[Worker]:
        return iter(tuple(self._workers.values()))

    def __len__(self) -> int:
        return len(self._workers)

    def add(self, worker: Worker) -> Worker:
        """Register `worker`. The same URL and role again is no change, and gives a worker set aside a new chance."""
        known = self._workers.get(worker.url)
        if known and (known.worker_type, known.bootstrap_port) == (worker.worker_type, worker.bootstrap_port):
            known.answered()
            return known
        self._workers[worker.url] = worker
        return worker

    def find(self, name: str) -> Worker | None:
        """The worker with this id or URL."""
        by_url = self._workers.get(name.rstrip("/"))
        return by_url or next((worker for worker in self if worker.id == name), None)

    def remove(self, worker: Worker) -> None:
        """Forget `worker`; its requests in flight end as they would have."""
        self._workers.pop(worker.url, None)


def parse_worker(fields: dict[str, Any]) -> Worker:
    """A worker from a registration's fields: url or worker_url, worker_type, bootstrap_port. Raises UserError."""
    role = fields.get("worker_type") or "regular"
    if role not in get_args(WorkerType):
        raise UserError(f"worker_type {role!r}: must be one of {', '.join(get_args(WorkerType))}")
    bootstrap = fields.get("bootstrap_port")
    if bootstrap in (None, "", "none"):
        bootstrap = None
    elif not str(bootstrap).isdecimal() or not 0 < int(bootstrap) < 65536:
        raise UserError(f"bootstrap_port {bootstrap!r}: must be a port number")
    if role == "prefill" and bootstrap is None:
        raise UserError("worker_type prefill needs bootstrap_port: where decode workers fetch the cache")
    return Worker(
        url=parse_url(fields.get("url") or fields.get("worker_url")),
        worker_type=cast(WorkerType, role),
        bootstrap_port=None if bootstrap is None else int(bootstrap),
    )


def parse_url(value: Any) -> str:
    """`http(s)://host[:port]` without a trailing slash. Raises UserError."""
    if not value:
        raise UserError("url (or worker_url) is required, in the query or in a JSON body")
    mend = "must be http://host:port"
    try:
        parts = urlsplit(str(value))
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError as error:
        raise UserError(f"url {value!r}: {mend} ({error})") from error
    if not valid or parts.query or parts.fragment:
        raise UserError(f"url {value!r}: {mend}")
    return str(value).rstrip("/")
