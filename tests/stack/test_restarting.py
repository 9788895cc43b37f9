"""Actors that are killed, on a real Ray: the next one takes over what was known of the last."""

from __future__ import annotations

import asyncio
import math
import os
import re
import signal
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import ray

from miles_lite.config.session_options import Session as SessionOptions
from miles_lite.errors import UnavailableError, UserError
from miles_lite.process.remote import Remote
from miles_lite.session.actor import SessionActor, SessionSpec
from miles_lite.session.client import SessionClient
from miles_lite.stack import restarting
from miles_lite.stack.actors import Waiting, named_actor, restarted
from miles_lite.stack.restarting import RestartingActor
from miles_lite.stack.routers import port_of
from tests.clusters import local_cluster
from tests.processes import above, called, command_of, variables_of
from tests.session.engine import STOP, answer, scripted

pytestmark = pytest.mark.e2e


MARK = "MILES_LITE_TEST_RESTARTING"


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Its processes have a mark."""
    with pytest.MonkeyPatch.context() as patched, local_cluster(cpus=1):
        patched.setenv(MARK, uuid.uuid4().hex)
        yield


class Plain:
    """An actor that says who it is, or cannot start while there is a file of that name."""

    def __init__(self, restarts: int, obstacle: Path) -> None:
        self._restarts, self._obstacle = restarts, obstacle

    async def start(self) -> str:
        if self._obstacle.exists():
            raise UserError("something is in the way")
        return str(os.getpid())

    async def steady(self) -> float:
        return math.inf

    async def watch(self) -> None:
        await asyncio.Event().wait()

    async def who(self, seconds: float = 0.0) -> int:
        await asyncio.sleep(seconds)
        return self._restarts

    async def stop(self) -> None: ...


async def test_whoever_needs_an_actor_that_died_waits_for_the_next_whatever_stands_in_its_way(tmp_path: Path) -> None:
    said: list[str] = []
    obstacle = tmp_path / "obstacle"

    def make(restarts: int) -> Remote[Plain]:
        return named_actor(Plain, restarted("plain", restarts))(restarts, obstacle)

    plain = RestartingActor("the plain actor", make, start_seconds=120, waiting=Waiting(said.append, tmp_path))
    first = await plain.start()
    assert await (await plain.serving()).call(Plain.who) == 0
    assert await plain.served_since(0, time.monotonic())
    obstacle.touch()
    calling = (await plain.serving()).call(Plain.who, 60)
    os.kill(int(first), signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayActorError):
        await calling
    assert not await plain.served_since(0, time.monotonic())
    waiting = asyncio.create_task(plain.renewed(0))
    while plain.restarts < 2:
        await asyncio.sleep(0.05)
    obstacle.unlink()
    await asyncio.wait_for(waiting, 60)
    assert await (await plain.serving()).call(Plain.who) == plain.restarts >= 2
    assert plain.address != first
    assert not await plain.served_since(0, time.monotonic())
    assert await plain.served_since(plain.restarts, time.monotonic())
    await plain.stop()
    await plain.stop()
    assert said[0] == "the plain actor has ended; replacing it"
    assert said[1].startswith("the plain actor serves again after ")


class Busy(Plain):
    """It answers late, and lost a process of its own between question and answer."""

    async def steady(self) -> float:
        await asyncio.sleep(0.2)
        return 0.05


async def test_what_was_lost_while_it_was_asked_for_counts_as_lost(tmp_path: Path) -> None:
    waiting = Waiting(print, tmp_path)
    busy = RestartingActor(
        "busy", lambda _: named_actor(Busy, "busy")(0, tmp_path / "none"), start_seconds=120, waiting=waiting
    )
    await busy.start()
    try:
        began = time.monotonic()
        assert not await busy.served_since(0, began)
        assert await busy.served_since(0, began + 60)
    finally:
        await busy.stop()


async def test_who_waits_for_one_that_does_not_come_back_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarting, "BACK_SECONDS", 0.3)

    def never(restarts: int) -> Remote[Any]:
        raise AssertionError("nobody starts it")

    with pytest.raises(UserError, match="waited 0 s for the plain actor to be replaced"):
        await RestartingActor("the plain actor", never, start_seconds=1, waiting=Waiting(print, tmp_path)).serving()


class Slow(Plain):
    """It never starts."""

    async def start(self) -> str:
        time.sleep(60)
        return ""


async def test_an_actor_that_does_not_start_tells_what_it_is_at(tmp_path: Path) -> None:
    said: list[str] = []
    slow = named_actor(Slow, "slow")(0, tmp_path / "none")
    assert await slow.call(Slow.who) == 0
    starting = slow.call(Slow.start)
    try:
        with pytest.raises(UnavailableError, match="waited 4 s for engine 7 to start; Ray has it as process"):
            await Waiting(said.append, tmp_path).started(slow, starting, "engine 7", 4.0)
    finally:
        slow.kill()
    (line,) = said
    assert re.fullmatch(r"waiting for engine 7 to start since \d s, at most 4 s; Ray has it as process \d+ of .*", line)
    (stacks,) = tmp_path.glob("stacks-*/slow.txt")
    assert "start (" in stacks.read_text()


async def test_an_actor_that_has_no_place_tells_what_it_waits_for(tmp_path: Path) -> None:
    said: list[str] = []
    big = named_actor(Plain, "big", {"num_cpus": 7})(0, tmp_path / "none")
    try:
        with pytest.raises(UnavailableError, match="for the big one to start; Ray says PENDING_CREATION"):
            await Waiting(said.append, tmp_path).started(big, big.call(Plain.start), "the big one", 6.0)
    finally:
        big.kill()
    assert "1 node(s) live, free are 1 CPU and 0 GPU, not placed is 1 x {'CPU': 7.0}" in said[0]


async def test_a_killed_session_actors_sessions_go_on_at_the_same_url(tiny_model: Path, tmp_path: Path) -> None:
    async with scripted(lambda body: answer([40, 41, STOP])) as (engine, engine_url):
        spec = SessionSpec(
            index=0,
            model_path=str(tiny_model),
            router_url=engine_url,
            options=SessionOptions(tito_allowed_append_roles=("tool", "user")),
            context_length=512,
            run_dir=str(tmp_path),
        )

        def make(restarts: int) -> Remote[SessionActor]:
            placed = replace(spec, port=port_of(sessions.address)) if restarts else spec
            return named_actor(SessionActor, restarted("session-0", restarts))(placed)

        sessions = RestartingActor("session server 0", make, start_seconds=60, waiting=Waiting(print, tmp_path))
        try:
            await talk(await sessions.start(), sessions)
            assert [len(one["input_ids"]) for one in engine.requests] == sorted(
                len(one["input_ids"]) for one in engine.requests
            )
        finally:
            await sessions.stop()


async def talk(url: str, sessions: RestartingActor[SessionActor]) -> None:
    """One conversation of two turns, between which the actor is killed."""
    async with SessionClient(url, restart_seconds=60) as client:
        session = await client.create({"max_new_tokens": 4})
        agent = openai.AsyncOpenAI(
            base_url=client.base_url(session), api_key=client.api_key(session), max_retries=10, timeout=60
        )
        messages: list[Any] = [{"role": "user", "content": "hello"}]
        said = await agent.chat.completions.create(model="m", messages=messages)
        messages += [said.choices[0].message.model_dump(exclude_none=True), {"role": "user", "content": "go on"}]
        actor = the_process("", "ray::SessionActor")
        actor.kill()
        while not sessions.restarts:
            await asyncio.sleep(0.05)
        await agent.chat.completions.create(model="m", messages=messages)
        await sessions.serving()  # its port answers before the cluster says that it has started
        serving = sessions.restarts  # more than 1 where the port was not free at once
        assert await sessions.served_since(serving, time.monotonic())
        began = time.monotonic()
        worker = the_process("ray::SessionActor", "miles_lite.session.server_main")
        worker.kill()
        (sample,) = await client.collect(session)
        assert not await sessions.served_since(serving, began), "the worker was lost meanwhile"
        assert await sessions.served_since(serving, time.monotonic())
        assert sample.loss_mask.sum() == 6
        assert sessions.address == url


def the_process(parent: str, words: str) -> psutil.Process:
    """The process of this test's cluster whose command line holds `words`, started by one whose holds `parent`, once
    it is the only one."""
    deadline = time.monotonic() + 20
    while len(found := processes_below(parent, words)) != 1:
        assert time.monotonic() < deadline, f"{len(found)} processes are called {words}, below {parent}: {found}"
        time.sleep(0.1)
    return found[0]


def processes_below(parent: str, words: str) -> list[psutil.Process]:
    ours = (one for one in called(words) if variables_of(one).get(MARK) == os.environ[MARK])
    return [one for one in ours if any(parent in command_of(each) for each in above(one))]
