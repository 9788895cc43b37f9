"""The Rust gateway on its own: what it must pass, who may change it, and what becomes of one that hangs."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from miles_lite.errors import UserError
from miles_lite.router import gateway
from miles_lite.router.gateway import Gateway, free_port
from tests.router.upstream import Upstream, serving

pytest.importorskip("smg", reason="the Rust gateway is not installed")
pytestmark = pytest.mark.e2e


@asynccontextmanager
async def started(host: str) -> AsyncIterator[tuple[Gateway, str]]:
    """A gateway on `host`, and its URL on this machine."""
    port = free_port()
    one = Gateway(host=host, port=port, timeout=60.0)
    await one.start()
    try:
        yield one, f"http://127.0.0.1:{port}"
    finally:
        await one.stop()


async def test_off_loopback_only_its_router_changes_its_workers_and_one_that_hangs_is_replaced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gateway, "TIMEOUT", aiohttp.ClientTimeout(total=1.0))

    async def scenario() -> None:
        async with (
            serving(Upstream(status=200, answer={}, version="1")) as engine,
            aiohttp.ClientSession() as client,
            started("0.0.0.0") as (one, url),
        ):
            async with client.post(f"{url}/workers", json={"url": engine.url}) as reply:
                assert reply.status == 401
            async with client.delete(f"{url}/workers/x") as reply:
                assert reply.status == 401
            await one.follow([engine.url])
            assert one._process is not None
            hung = one._process.pid
            os.kill(hung, signal.SIGSTOP)
            while one.restarts == 0:
                await one.follow([engine.url], wait=False)
            await one.follow([engine.url])
            assert one._process.pid != hung
            async with client.post(f"{url}/generate", json={"input_ids": [1]}) as reply:
                assert reply.status == 200

    await asyncio.wait_for(scenario(), 180)
    assert "the gateway hangs: " in caplog.text


async def test_a_gateway_that_changes_what_passes_is_refused_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "VERBATIM", ("--policy", "cache_aware", "--disable-tokenizer-autoload"))

    async def scenario() -> None:
        one = Gateway(host="127.0.0.1", port=free_port(), timeout=60.0)
        with pytest.raises(UserError, match="changes what passes"):
            await one.start()
        assert one._process is None

    await asyncio.wait_for(scenario(), 180)


async def test_a_worker_that_returns_while_the_gateway_still_drains_it_is_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(gateway.HEALTH, "drain_settle_secs", 1)

    async def scenario() -> None:
        async with (
            serving(Upstream(status=200, answer={}, version="1")) as engine,
            aiohttp.ClientSession() as client,
            started("127.0.0.1") as (one, url),
        ):
            await one.follow([engine.url])
            await one.follow([], wait=False)
            async with client.post(f"{url}/workers", json={"url": engine.url}) as reply:
                assert reply.status == 409
            await one.follow([engine.url])
            async with client.post(f"{url}/generate", json={"input_ids": [1]}) as reply:
                assert reply.status == 200

    await asyncio.wait_for(scenario(), 180)
