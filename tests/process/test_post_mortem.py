"""Deaths of actors on a real Ray: noticed by who waits for something else, with what can be known of them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from miles_lite.errors import UnavailableError, UserError
from miles_lite.job.watch import Alarms, OvertimeError, Watch, death_in
from miles_lite.process.post_mortem import DiedError, describe_death, how_to_go_on, last_lines, naming
from miles_lite.process.remote import Remote
from miles_lite.process.stopping import Interrupts
from miles_lite.stack.cluster import connect, disconnect

pytestmark = pytest.mark.e2e


class Actor:
    """One that ends in several ways."""

    def pid(self) -> int:
        return os.getpid()

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def end(self, how: str) -> None:
        if how == "exit":
            os._exit(7)
        if how == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        os.kill(os.getpid(), signal.SIGKILL)

    def alarms(self) -> list[str]:
        return ["one", "two"]


class Keeper(Actor):
    """One that keeps another."""

    def keep(self) -> Any:
        self._kept = actor()
        return self._kept

    async def told(self, kept: Any) -> None:
        with naming("who is kept"):
            await kept.wait.remote(60)


class Broken:
    def __init__(self) -> None:
        raise ValueError("no such model")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    tmp_path_factory.getbasetemp()  # not in the temp folder of a cluster, which ends with it
    yield connect(None)
    disconnect()


def actor(kind: type = Actor, name: str | None = None) -> Any:
    return ray.remote(kind).options(num_cpus=0, name=name).remote()


@pytest.mark.parametrize(
    ("how_", "words"),
    [
        ("kill", r"ended from outside \(SIGKILL\)"),
        ("crash", "Fatal Python error: Segmentation fault"),
        ("exit", "its log is "),
    ],
)
def test_who_waits_for_another_actor_learns_of_a_death_at_once(logs: Path, how_: str, words: str) -> None:
    with Interrupts() as interrupts:
        watch, busy, victim = Watch(interrupts, hint="see the logs"), actor(), actor()
        watch.follow("train rank 1", Remote(victim))
        ray.get(victim.pid.remote())
        victim.end.remote(how_)
        with pytest.raises(DiedError) as caught:
            watch.wait(busy.wait.remote(120), "something else", 120)
        ray.kill(busy)
    told = describe_death(caught.value.error, logs=logs, killed_before=10**9)
    assert caught.value.name == "train rank 1"
    assert re.search(words, told), told
    if how_ == "crash":
        assert words in last_lines(caught.value.error, logs)


def test_of_a_wait_that_comes_to_its_end_stacks_are_left(logs: Path, tmp_path: Path) -> None:
    said: list[str] = []
    with Interrupts() as interrupts:
        watch, busy = Watch(interrupts, hint="see the logs", notify=said.append), actor(name="train-rank-0")
        ray.get(busy.pid.remote())
        watch.follow("train rank 0", Remote(busy))
        ref = busy.wait.remote(60)
        with pytest.raises(UnavailableError, match="waited 1 s for it"):
            watch.wait(ref, "it", 1.0)
        watch.write_stacks(tmp_path / "stacks")
        ray.kill(busy)
    assert re.fullmatch(r"waiting for it since \d+ s, at most 1 s", said[0])
    assert re.fullmatch(r"what driver, (.*, )?train-rank-0(, .*)? were at is in .*stacks", said[1])
    assert "write_stacks" in (tmp_path / "stacks" / "driver.txt").read_text()
    assert "wait (" in (tmp_path / "stacks" / "train-rank-0.txt").read_text()


@pytest.mark.parametrize("seen", ["as they are followed", "as one is asked"])
def test_of_an_actor_and_what_dies_with_it_the_first_is_named(logs: Path, seen: str) -> None:
    with Interrupts() as interrupts:
        watch, busy, keeper = Watch(interrupts, hint="see the logs"), actor(), actor(Keeper)
        kept = ray.get(keeper.keep.remote())
        watch.follow("who keeps", Remote(keeper))
        watch.follow("who is kept", Remote(kept))
        asked = busy if seen == "as they are followed" else kept
        waited = asked.wait.remote(60)
        time.sleep(1.0)
        keeper.end.remote("kill")
        with pytest.raises(DiedError, match="who keeps has died"):
            watch.wait(waited, "something", 60)
        ray.kill(busy)


def test_a_death_that_another_actor_tells_of_is_known_by_its_name(logs: Path) -> None:
    teller, victim = actor(Keeper), actor()
    telling = teller.told.remote(victim)
    time.sleep(1.0)
    ray.kill(victim)
    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        ray.get(telling, timeout=60)
    died = death_in(caught.value)
    assert died is not None
    assert died.name == "who is kept"
    assert describe_death(died.error, logs=logs, killed_before=10**9) == "ray.kill ended it"


def test_an_actor_that_could_not_be_made_says_why(logs: Path) -> None:
    with pytest.raises(ray.exceptions.RayActorError) as caught:
        ray.get(actor(Broken).__ray_ready__.remote())
    died = death_in(caught.value)
    assert died is not None
    assert "ValueError: no such model" in describe_death(died.error, logs=logs, killed_before=0)


def test_waits_end_with_their_bound_the_wish_to_stop_or_the_time_that_is_left(logs: Path) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    interrupts = Interrupts().__enter__()
    try:
        watch, busy = Watch(interrupts, hint="see the logs"), actor()
        ref = busy.wait.remote(60)
        with pytest.raises(UserError, match="waited 0 s for it; see the logs"):
            watch.wait(ref, "it", 0.3)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            watch.wait(ref, "it", 60)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(OvertimeError), watch.at_most(0.5):
            watch.wait(ref, "it", 60)
        ray.kill(busy)
    finally:
        with pytest.raises(KeyboardInterrupt):
            interrupts.__exit__(None, None, None)
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ("signals", "goes_on"),
    [((), True), ((signal.SIGINT,), True), ((signal.SIGINT,) * 2, False), ((signal.SIGTERM,), False)],
)
def test_what_finishes_waits_for_its_end_unless_it_is_asked_for_twice(
    signals: tuple[int, ...], goes_on: bool, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or, after SIGTERM, takes longer than it has."""
    monkeypatch.setattr("miles_lite.job.watch.FINISH_SECONDS", 0.3)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    interrupts = Interrupts(deaf=0.5).__enter__()
    said: list[str] = []
    try:
        watch, busy = Watch(interrupts, hint="see the logs"), actor()
        ref = busy.wait.remote(1 if goes_on else 60)
        for number in signals:
            os.kill(os.getpid(), number)
        ends = contextlib.nullcontext() if goes_on else pytest.raises(KeyboardInterrupt)
        with ends, watch.finishing(lambda: said.append("finishing")):
            watch.wait(ref, "it", 60)
        assert said == ["finishing"] * (len(signals) == 1)
        with pytest.raises(KeyboardInterrupt) if signals else contextlib.nullcontext():
            watch.check()
        ray.kill(busy)
    finally:
        with pytest.raises(KeyboardInterrupt) if signals else contextlib.nullcontext():
            interrupts.__exit__(None, None, None)
        for number, handler in before.items():
            signal.signal(number, handler)


def test_alarms_are_passed_on_once(logs: Path) -> None:
    said: list[str] = []
    teller = actor()
    alarms = Alarms(teller.alarms.remote, said.append)
    deadline = time.monotonic() + 30
    while len(said) < 2 and time.monotonic() < deadline:
        alarms()
        time.sleep(0.05)
    for _ in range(60):
        alarms()
        time.sleep(0.05)
    assert said == ["one", "two"]


def test_who_saved_is_told_how_to_go_on() -> None:
    assert how_to_go_on(["miles-lite", "train"], save="some where", saved=1) == (
        "Go on from step 2, the last that was saved: miles-lite train --load 'some where'"
    )


def test_who_saved_nothing_is_told_how_to() -> None:
    assert how_to_go_on(["miles-lite", "train", "--lr", "1"], save=None, saved=None) == (
        "Nothing was saved yet: start again with --save DIR --save-interval 1, with which a run goes on by itself: "
        "miles-lite train --lr 1"
    )
    assert how_to_go_on(["miles-lite", "train"], save="x", saved=None) == (
        "Nothing was saved yet: start again: miles-lite train"
    )
