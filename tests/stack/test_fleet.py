"""The fleet's decisions, with real engine actors in this process and a server that only lives and dies."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web

from miles_lite.engine.actor import EngineActor
from miles_lite.engine.ports import Ports
from miles_lite.errors import UserError
from miles_lite.process.remote import Remote
from miles_lite.stack import engine_slot, fleet
from miles_lite.stack.fleet import Fleet
from miles_lite.weights.bucket import WeightUpdate
from tests.models import make_tiny_weights
from tests.stack.chats import stack_options
from tests.waiting import until

Calls = list[tuple[str, str]]


class Method:
    def __init__(self, call: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        self._call = call

    def remote(self, *args: Any, **options: Any) -> asyncio.Future[Any]:
        return asyncio.ensure_future(self._call(*args, **options))


class Here:
    """The handle of an actor in this process."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Method:
        return Method(getattr(self._actor, name))


class Slots:
    """A layout without Ray."""

    device = "cpu"
    engine_slots = (0, 1)

    def options(self, bundle: int, share: float) -> dict[str, Any]:
        return {}

    def machines(self, bundles: Sequence[int]) -> int:
        return 1

    def check_neighbours(self, bundles: Sequence[int], what: str) -> None:
        pass


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    async def end(actor: Remote[Any]) -> None:
        await actor.call(EngineActor.stop)

    def named(kind: type, *_: Any, **options: Any) -> Callable[..., Remote[Any]]:
        return lambda *given: Remote(cast(Any, Here(kind(*given))))

    monkeypatch.setattr(fleet, "named_actor", named)
    monkeypatch.setattr(engine_slot, "end_actor", end)
    fake = str(Path(__file__).parent / "fake_sglang")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([fake, os.environ.get("PYTHONPATH", "")]))


@asynccontextmanager
async def engines(
    folder: Path, *, topology: Mapping[str, Any] | None = None, **flags: Any
) -> AsyncIterator[tuple[Fleet, Calls]]:
    """Two engines, or what `topology` says, and what the router was told."""
    calls: Calls = []

    async def note(request: web.Request) -> web.Response:
        calls.append((request.path, request.query.get("url", "")))
        return web.json_response({"stale": []})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", note)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    model = make_tiny_weights(folder / "model", 0)
    options = stack_options(model, folder, **{"engine_health_interval": 0.2, "engine_health_timeout": 30.0} | flags)
    options = dataclasses.replace(options, topology=dataclasses.replace(options.topology, **(topology or {})))
    running = Fleet(options, Slots(), model=model, context_length=2048)  # type: ignore[arg-type]
    try:
        await running.start([f"http://127.0.0.1:{runner.addresses[0][1]}"])
        yield running, calls
    finally:
        await running.stop()
        await runner.cleanup()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_an_engine_that_dies_or_hangs_leaves_the_router_before_another_enters(
    tmp_path: Path, how: signal.Signals
):
    async with engines(tmp_path, engine_health_timeout=2.0 if how is signal.SIGSTOP else 30.0) as (running, calls):
        lost, other = running.engines
        calls.clear()
        os.kill(lost.pid, how)
        [line] = await running.new_lines(0)
        assert line.startswith("engine 0: ")
        assert line.endswith("; replacing it (0 so far)")
        await until(lambda: running.recoveries, "a replacement")
        replacement, same = running.engines
        assert same == other
        paths = [path for path, url in calls if url in (lost.url, replacement.url)]
        assert paths[0] == "/remove_worker"
        assert paths[-1] == "/add_worker"
        assert ("hangs" if how is signal.SIGSTOP else "ended") in running.recoveries[0].reason


TWO_NODES = {"rollout_num_gpus_per_engine": 2, "num_gpus_per_node": 1}


async def test_an_engine_over_two_nodes_is_one_to_the_router_and_is_replaced_on_both_when_one_is_lost(tmp_path: Path):
    async with engines(tmp_path, topology=TWO_NODES) as (running, calls):
        [slot] = running._slots
        before: list[Any] = [node.handle._actor._info for node in slot.nodes]
        assert [url for path, url in calls if path == "/add_worker"] == [before[0].url]
        os.kill(before[1].pid, signal.SIGKILL)
        await until(lambda: running.recoveries, "a replacement")
        after: list[Any] = [node.handle._actor._info for node in slot.nodes]
        assert not {info.pid for info in before} & {info.pid for info in after}
        assert not Path(f"/proc/{before[0].pid}").exists()


async def test_engines_on_several_machines_must_not_listen_on_loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Slots, "machines", lambda slots, bundles: len(bundles))

    async def run() -> None:
        async with engines(tmp_path):
            pass

    with pytest.raises(UserError, match=r"engines are on 2 machines, .*\n.*--bind-host 0\.0\.0\.0"):
        await run()


async def test_a_server_whose_port_another_process_took_starts_on_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken, choose = [other.getsockname()[1]], Ports.reserve

        def hold(ports: Ports, host: str, *, consecutive: int = 1) -> int:
            return taken.pop() if taken else choose(ports, host, consecutive=consecutive)

        monkeypatch.setattr(Ports, "reserve", hold)

        async def run() -> None:
            async with engines(tmp_path) as (running, _):
                assert len(running.engines) == 2
                assert running.restarts == 0

        await run()
        assert not taken


async def test_a_node_that_does_not_come_up_ends_the_start_with_its_own_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FAKE_SGLANG_BROKEN_NODE", "1")

    async def run() -> None:
        async with engines(tmp_path, topology=TWO_NODES):
            pass

    with pytest.raises(UserError, match=r"(?s)engine-0-node-1\.0\.log.*node 1 is out of memory"):
        await run()


async def test_a_replacement_that_starts_during_an_update_has_the_new_weights_before_it_is_registered(tmp_path: Path):
    other = make_tiny_weights(tmp_path / "other", 1)
    async with engines(tmp_path) as (running, _):
        os.kill(running.engines[0].pid, signal.SIGKILL)
        await until(lambda: len(running.engines) == 1, "the loss")
        await running.update_weights(WeightUpdate(str(other), 1))
        await until(lambda: len(running.engines) == 2, "the replacement")
        served = [slot.actor.handle._actor._served.version for slot in running._slots]
        assert served == [1, 1]


async def test_engines_that_refuse_weights_are_replaced_until_the_run_is_told_that_none_is_left(tmp_path: Path):
    async with engines(tmp_path, engine_restarts=0) as (running, _):
        await running.update_weights(WeightUpdate(str(tmp_path / "missing"), 1))
        await until(lambda: running.failure, "the failure")
        assert "no regular engine is left" in str(running.failure)
        heard = await running.new_lines(0)
        assert sum("is given up after 0 restarts" in line for line in heard) == 2
        with pytest.raises(UserError, match="no regular engine is left"):
            await running.new_lines(len(heard))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
async def test_an_external_engine_is_used_and_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str):
    async with engines(tmp_path / "a") as (owner, _):
        address = owner.engines[0].url.removeprefix("http://")
        monkeypatch.setattr(Slots, "device", device)
        topology = {"rollout_external_engine_addrs": (address,)}
        async with engines(tmp_path / "b", topology=topology) as (user, calls):
            assert [engine.url for engine in user.engines] == [owner.engines[0].url]
            assert ("/add_worker", owner.engines[0].url) in calls
            assert (await user.update_weights(WeightUpdate(str(tmp_path / "a" / "model"), 1))).behind == {}
        assert Path(f"/proc/{owner.engines[0].pid}").exists()
        assert owner.recoveries == []
