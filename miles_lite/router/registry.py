"""Which workers there are, and which weight versions may serve.

Invariant: a URL is registered at most once. A worker whose weights have another version than the accepted ones is never
made ready, nor left ready when the accepted ones change.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

from miles_lite.errors import UserError
from miles_lite.process.drafted import drafted
from miles_lite.router.backend import State, Worker
from miles_lite.router.registration import parse_worker

log = logging.getLogger(__name__)
STORED = ("id", "url", "worker_type", "bootstrap_port")


class Registry:
    """Workers by URL, in order of registration, and the weight versions that may serve; kept in a file if one is named.

    `accepted` is empty until a version is set: then all are.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Raises UserError when `path` holds something else, or cannot be written."""
        self._path = path
        self._workers: dict[str, Worker] = {}
        self.accepted: tuple[str, ...] = ()
        if path is not None:
            self._open(path)

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
        name = name.rstrip("/")
        return self._workers.get(name) or next((worker for worker in self if worker.id == name), None)

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
        if not self._current(version):
            worker.state = "stale"
        elif worker.state != "ready":
            worker.trial = worker.state == "unreachable"
            worker.state = "ready"
        elif worker.in_flight:  # its request runs, and it still answers
            worker.trial = False

    def mark_unverified(self, worker: Worker) -> None:
        """A worker does not say its version: it serves on only if the one it said last is accepted."""
        if worker.state == "ready" and not self._current(worker.version):
            worker.state = "stale"

    def save(self) -> None:
        """Write the file, whole or not at all. A disk that fails stops nobody from serving: it is logged."""
        try:
            if self._path is not None:
                self._write(self._path)
        except OSError as error:
            log.error("%s: workers and weight version are not kept: %s", self._path, error)

    def _open(self, path: Path) -> None:
        """Go on from what the file holds, and see that it can be written."""
        try:
            if path.exists():
                self._load(path)
            self._write(path)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"{path}: the workers cannot be kept there: {reason}.\n  Name a file that can be written."
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: not the state of a router ({error!r}).\n  Remove the file: the engines register again."
            ) from error

    def _current(self, version: str | None) -> bool:
        return not self.accepted or version in self.accepted

    def _write(self, path: Path) -> None:
        kept = [worker for worker in self if worker.state != "draining"]
        rows = [{name: getattr(one, name) for name in STORED} for one in kept]
        path.parent.mkdir(parents=True, exist_ok=True)
        with drafted(path) as draft:
            draft.write_text(json.dumps({"workers": rows, "weight_versions": self.accepted}, indent=1))

    def _load(self, path: Path) -> None:
        stored = json.loads(path.read_text())
        self.accepted = tuple(map(str, stored["weight_versions"]))
        for row in stored["workers"]:
            worker = parse_worker(row)
            worker.id = str(row["id"])
            worker.state = "stale" if self.accepted else "ready"
            self._workers[worker.url] = worker
