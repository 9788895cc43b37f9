"""The routing process is killed at every step of a weight update, and what it wrote down is kept, old or lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from miles_lite.engine.actor import EngineActor
from miles_lite.errors import UserError
from miles_lite.router.client import RouterError, RouterState, fetch_state, set_weight_version
from miles_lite.router.spec import RouterSpec
from miles_lite.router.supervised_router import Supervisor
from miles_lite.stack import router_sync
from miles_lite.stack.fleet import Fleet
from miles_lite.stack.router_sync import RouterSync
from miles_lite.weights.bucket import WeightUpdate
from tests.models import make_tiny_weights
from tests.ports import free_port
from tests.stack.chats import stack_options
from tests.stack.test_fleet import Slots, here  # noqa: F401 - a fixture
from tests.waiting import until

pytestmark = pytest.mark.e2e
STEPS = 8
"""Before and after each of: telling the router of the update, loading on two engines, telling it of the end."""


@contextlib.asynccontextmanager
async def fleet_and_router(folder: Path) -> AsyncIterator[tuple[Fleet, Supervisor, Path]]:
    """Two engines at version 1 behind a router; the last is its state file."""
    state = folder / "router.json"
    supervisor = Supervisor(RouterSpec(state_file=str(state)))
    model = make_tiny_weights(folder / "model", 0)
    fleet = Fleet(
        stack_options(model, folder),
        Slots(),  # type: ignore[arg-type]
        model=model,
        context_length=2048,
    )
    try:
        await fleet.start([await supervisor.start()])
        await fleet.update_weights(WeightUpdate(str(make_tiny_weights(folder / "one", 1)), 1))
        yield fleet, supervisor, state
    finally:
        await fleet.stop()
        await supervisor.stop()


async def served(url: str) -> int:
    """The status of a generation request."""
    async with aiohttp.ClientSession() as client:
        try:
            async with client.post(f"{url}/generate", json={}) as reply:
                return reply.status
        except aiohttp.ClientError:
            return 0


async def look(url: str) -> RouterState:
    while True:
        with contextlib.suppress(RouterError):
            found = await fetch_state(url)
            assert found is not None
            return found
        await asyncio.sleep(0.05)


async def converged(fleet: Fleet, url: str, version: str) -> None:
    """The router that stands has every engine, ready, and admits `version` alone."""
    wanted = {(engine.url, "ready", version) for engine in fleet.engines}
    for _ in range(600):
        found = await look(url)
        if found.versions == {version} and wanted == {
            (one["url"], one["state"], one["weight_version"]) for one in found.workers.values()
        }:
            assert await served(url) == 200
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"the router goes by {found}, the fleet has {wanted}")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("step", "kept"),
    [
        *((step, "what was before") for step in range(STEPS)),
        *((step, "nothing") for step in (0, 3, 6, 7)),
        *((step, "all") for step in (1, 6)),
    ],
)
async def test_a_router_that_is_killed_at_any_step_of_an_update_ends_with_the_fleets_versions_and_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, kept: str
) -> None:
    async with fleet_and_router(tmp_path) as (fleet, router, state):
        before, steps = state.read_text(), iter(range(1000))

        def at_a_step() -> None:
            if next(steps) != step:
                return
            if kept == "nothing":
                state.unlink()
            elif kept == "what was before":
                state.write_text(before)
            assert router.pid is not None
            os.kill(router.pid, signal.SIGKILL)

        def stepping(call: Callable[..., Any]) -> Callable[..., Any]:
            async def stepped(*args: Any, **options: Any) -> Any:
                at_a_step()
                done = await call(*args, **options)
                at_a_step()
                return done

            return stepped

        monkeypatch.setattr(router_sync, "set_weight_version", stepping(set_weight_version))
        monkeypatch.setattr(EngineActor, "update_weights", stepping(EngineActor.update_weights))
        delivered = await fleet.update_weights(WeightUpdate(str(tmp_path / "one"), 2))
        assert delivered.behind == {}
        await until(lambda: router.restarts, "the router to be missed")
        await converged(fleet, router.url, "2")
        assert not any("ALARM" in line for line in fleet.lines)


@pytest.mark.usefixtures("here")
async def test_engines_that_all_have_other_weights_though_nobody_updates_them_are_an_alarm_with_its_cause(
    tmp_path: Path,
) -> None:
    async with fleet_and_router(tmp_path) as (fleet, router, _), aiohttp.ClientSession() as client:
        for engine in fleet.engines:
            await client.post(f"{engine.url}/update_weights_from_disk", json={"weight_version": "9"})
        await client.put(f"{router.url}/weight_version", json={"version": 1})
        await until(lambda: fleet.lines, "the alarm")
        await asyncio.sleep(2.5 * router_sync.LOOK_SECONDS)
        [alarm] = fleet.lines
        assert alarm.startswith("ALARM: no engine gets requests")
        assert all(f"{engine.url} serves 9" in alarm for engine in fleet.engines)
        assert "admits weight version 1" in alarm
        await fleet.update_weights(WeightUpdate(str(tmp_path / "one"), 2))
        await converged(fleet, router.url, "2")


async def test_an_update_waits_for_a_router_that_is_away_and_says_so_when_it_stays_away() -> None:
    port = free_port()
    sync = RouterSync(f"http://127.0.0.1:{port}", key=None, notify=print, patience=0.5)
    with pytest.raises(UserError, match="waited 0 s for the router to take weight version 3; PUT "):
        await sync.admit(3)
    waiting = asyncio.create_task(RouterSync(f"http://127.0.0.1:{port}", key=None, notify=print).admit(3))
    await asyncio.sleep(0.3)
    router = Supervisor(RouterSpec(port=port))
    await router.start()
    assert await waiting == []
    found = await fetch_state(router.url)
    assert found is not None
    assert found.versions == {"3"}
    await router.stop()


async def test_a_look_that_began_before_an_update_says_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the router had admitted until then is not what the update has it admit."""
    looking, go_on, said = asyncio.Event(), asyncio.Event(), list[str]()
    router = Supervisor(RouterSpec())
    await router.start()

    async def slowly(url: str) -> RouterState | None:
        found = await fetch_state(url)
        looking.set()
        await go_on.wait()
        return found

    monkeypatch.setattr(router_sync, "fetch_state", slowly)
    sync = RouterSync(router.url, key=None, notify=said.append)
    keeping = asyncio.create_task(sync.run(lambda: False))
    await looking.wait()
    admitting = asyncio.create_task(sync.admit(3))
    await asyncio.sleep(0)
    go_on.set()
    assert await admitting == []
    keeping.cancel()
    found = await fetch_state(router.url)
    assert found is not None
    assert found.versions == {"3"}
    assert said == []
    await router.stop()


async def test_a_router_without_a_weight_gate_is_left_alone(tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    async def other(request: web.Request) -> web.Response:
        asked.append((request.method, request.path))
        return web.Response(status=404 if request.method == "PUT" else 200, text=json.dumps({"workers": []}))

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", other)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    sync = RouterSync(f"http://127.0.0.1:{runner.addresses[0][1]}", key=None, notify=print)
    assert await sync.admit(3) == []
    keeping = asyncio.create_task(sync.run(lambda: False))
    await until(lambda: ("GET", "/workers") in asked, "a look")
    keeping.cancel()
    await runner.cleanup()
    assert {method for method, _ in asked} == {"GET", "PUT"}
