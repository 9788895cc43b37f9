"""Who waits, what is ready, how often a start is tried: over a provider that does as it is told."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from miles_lite.errors import RolloutError, UserError, Where
from miles_lite.sandboxes import lending
from miles_lite.sandboxes.lending import Lease, Limits, Pool
from miles_lite.sandboxes.sandbox import Sandbox, broken
from miles_lite.sandboxes.shell import Outcome
from tests.waiting import wait_until


@dataclass
class Told:
    """Starts that fail `failing` times, and wait while `gate` is closed; notes what was started and what is open."""

    failing: int = 0
    error: Exception = field(default_factory=lambda: broken("no room"))
    gate: threading.Event = field(default_factory=threading.Event)
    names: list[str] = field(default_factory=list)
    images: list[str | None] = field(default_factory=list)
    open: set[str] = field(default_factory=set)
    starting: int = 0
    most_starting: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.gate.set()

    def start(self, name: str, image: str | None, workdir: str | None) -> Sandbox:
        with self.lock:
            self.starting += 1
            self.most_starting = max(self.most_starting, self.starting)
        try:
            assert self.gate.wait(60)
        finally:
            with self.lock:
                self.starting -= 1
        with self.lock:
            self.names.append(name)
            if self.failing:
                self.failing -= 1
                raise self.error
            self.images.append(image)
            self.open.add(name)
        return Nothing(self, name)

    def reap(self) -> int:
        return 0


@dataclass
class Nothing:
    told: Told
    name: str

    def run(self, command: str, *, seconds: float) -> Outcome:
        return Outcome("", "", 0, 0.0)

    def unpack(self, archive: bytes) -> None: ...
    def pack(self, path: str) -> bytes:
        return b""

    def close(self) -> None:
        with self.told.lock:
            self.told.open.discard(self.name)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "BACKOFF", 0.001)


def test_no_more_are_lent_or_started_at_once_than_may_be() -> None:
    told, lent, most = Told(), [0], [0]
    pool = Pool(told, Limits(at_once=3, starting=2))

    def episode(_: int) -> None:
        with pool.open():
            with told.lock:
                lent[0] += 1
                most[0] = max(most[0], lent[0])
            time.sleep(0.002)
            with told.lock:
                lent[0] -= 1

    told.gate.clear()
    with ThreadPoolExecutor(12) as episodes:
        asked = episodes.map(episode, range(40))
        wait_until(lambda: told.starting == 2, "two starts")
        told.gate.set()
        list(asked)
    assert most[0] <= 3
    assert told.most_starting == 2
    assert len(set(told.names)) == 40
    assert not told.open
    pool.close()


def test_a_start_is_tried_again_under_its_name_and_its_failures_are_told() -> None:
    told = Told(failing=2)
    with Pool(told).open() as lease:
        assert len(told.names) == 3
        assert len(set(told.names)) == 1
        assert lease.report == {"sandbox_start_time": lease.seconds, "sandbox_failures": 2}
    told.failing = 3
    with pytest.raises(RolloutError, match="no room") as caught, Pool(told).open():
        pass
    assert caught.value.where is Where.ENVIRONMENT
    told.failing, told.error, told.names = 1, UserError("no such image"), []
    with pytest.raises(UserError, match="no such image"), Pool(told).open():
        pass
    assert len(told.names) == 1  # nothing that another attempt would mend


def test_what_is_spare_is_ready_before_it_is_asked_for_and_lent_once() -> None:
    told = Told()
    pool = Pool(told, Limits(spare=2))
    seen: list[Lease] = []
    for _ in range(3):
        with pool.open("a") as lease:
            seen.append(lease)
            wait_until(lambda: len(told.open) == 3, "the sandboxes")
    assert len({lease.sandbox.name for lease in seen}) == 3  # type: ignore[attr-defined]
    with pool.open("b"):
        wait_until(lambda: told.images.count("b") == 3, "the sandboxes")
        wait_until(
            lambda: len(told.open) == 3, "the sandboxes"
        )  # those of a, which nobody asks for any more, have ended
    pool.close()
    assert not told.open
    pool.close()


def test_who_waits_in_vain_is_told_and_what_starts_too_late_ends() -> None:
    told = Told()
    pool = Pool(told, Limits(at_once=1, seconds=0.5))
    with pool.open(), pytest.raises(RolloutError, match=r"no sandbox was free for 0\.5 s: 1 are lent"), pool.open():
        pass
    told.gate.clear()
    with pytest.raises(RolloutError, match=r"no sandbox had started after 0\.5 s"), pool.open():
        pass
    told.gate.set()
    wait_until(lambda: len(told.names) == 2 and not told.open, "the sandboxes")
    with pool.open():  # its room is free again
        pass
    pool.close()
