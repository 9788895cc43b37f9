from __future__ import annotations

import asyncio
import gzip

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miles_lite.engine.process import free_port
from miles_lite.router.replies import Limits
from tests.router.upstream import Upstream, eventually, raw_url, routing, serving

QUICK = Limits(connect=2.0, idle=0.2)


def test_bytes_pass_both_ways_unchanged():
    async def scenario():
        async with serving(Upstream()) as worker, routing(worker.url) as (_, client):
            body = gzip.compress(bytes(range(256)) * 50)
            headers = {
                "X-Odd": "kept",
                "X-SMG-Routing-Key": "s1",
                "Content-Encoding": "gzip",
                "Connection": "X-Mine",
                "X-Mine": "1",
            }
            url = raw_url(client, "/odd%2Fpath//x?b=2&a=%20+1&b=")
            async with client.post(url, data=body, headers=headers) as reply:
                assert (reply.status, reply.reason) == (418, "As It Is")
                assert reply.headers["X-Odd-Reply"] == "kept"
                assert reply.headers["Content-Encoding"] == "gzip"
                assert "X-Per-Hop" not in reply.headers
                assert gzip.decompress(await reply.read()) == body
            path, seen, received = worker.seen[0]
            assert path == "/odd%2Fpath//x?b=2&a=%20+1&b="
            assert received == body
            assert (seen["X-Odd"], seen["X-SMG-Routing-Key"], seen["Content-Encoding"]) == ("kept", "s1", "gzip")
            assert "X-Mine" not in seen
            assert seen["Host"] == worker.url.removeprefix("http://")

    asyncio.run(scenario())


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "PUT", "PATCH", "OPTIONS"])
def test_every_method_passes(method):
    async def scenario():
        async with serving(Upstream()) as worker, routing(worker.url) as (_, client):
            async with client.request(method, "/x") as reply:
                assert reply.status == 418
            assert len(worker.seen) == 1

    asyncio.run(scenario())


def test_a_stream_arrives_as_it_is_written():
    async def scenario():
        async with (
            serving(Upstream()) as worker,
            routing(worker.url) as (_, client),
            client.post("/stream", json={}) as reply,
        ):
            assert await reply.content.readany() == b"data: 1\n\n"
            worker.release.set()
            assert await reply.content.read() == b"data: 2\n\n"

    asyncio.run(scenario())


def test_a_client_that_leaves_cancels_its_request_upstream():
    async def scenario():
        async with serving(Upstream()) as worker, routing(worker.url) as (router, client):
            asking = asyncio.create_task(client.post("/hang"))
            await asyncio.wait_for(worker.arrived.wait(), 10)
            asking.cancel()
            await asyncio.wait_for(worker.cancelled.wait(), 10)
            (seen,) = router.registry
            await eventually(lambda: seen.in_flight == 0, "the count to return to 0")

    asyncio.run(scenario())


def test_a_key_sticks_to_its_worker_and_others_spread():
    async def scenario():
        async with serving(Upstream()) as one, serving(Upstream()) as two, routing(one.url, two.url) as (_, client):
            for key in ["a", "b"] * 5:
                async with client.post("/generate", headers={"X-SMG-Routing-Key": key}):
                    pass
            keys = [{headers["X-SMG-Routing-Key"] for _, headers, _ in worker.seen} for worker in (one, two)]
            assert sorted(map(sorted, keys)) == [["a"], ["b"]]

    asyncio.run(scenario())


@pytest.mark.parametrize(("path", "status"), [("/hang", 504), ("/drop", 502)])
def test_a_worker_that_fails_gives_a_reason_and_a_time_to_retry(path, status):
    async def scenario():
        async with (
            serving(Upstream()) as worker,
            routing(worker.url, limits=QUICK) as (_, client),
            client.post(path) as reply,
        ):
            assert reply.status == status
            assert reply.headers["Retry-After"] == "1"
            error = (await reply.json())["error"]
            assert error["code"] == status
            assert worker.url in error["message"]

    asyncio.run(scenario())


def test_a_reply_that_breaks_off_does_not_pass_for_a_whole_one():
    async def scenario():
        async with serving(Upstream()) as worker, routing(worker.url) as (_, client):
            with pytest.raises(aiohttp.ClientError):
                async with client.post("/cut") as reply:
                    await reply.read()

    asyncio.run(scenario())


def test_a_dead_worker_is_set_aside_its_keys_move_and_it_comes_back():
    async def scenario():
        port, key = free_port("127.0.0.1"), {"X-SMG-Routing-Key": "k"}
        dead = f"http://127.0.0.1:{port}"
        async with serving(Upstream()) as alive, routing(dead, alive.url) as (router, client):
            for _ in range(5):
                async with client.post("/generate", headers=key) as reply:
                    assert reply.status == 418
            worker = router.registry.find(dead)
            assert worker is not None
            for _ in range(5):
                async with client.post("/generate") as reply:
                    assert reply.status == 418
            assert worker.state == "unreachable"
            async with serving(Upstream(), port=port):
                await eventually(lambda: worker.state == "ready", "the probe to readmit the worker")

    asyncio.run(scenario())


def test_nobody_alive_is_503_with_the_reason():
    async def scenario():
        dead = f"http://127.0.0.1:{free_port('127.0.0.1')}"
        async with routing(dead) as (_, client), client.post("/generate") as reply:
            assert reply.status == 503
            assert "Retry-After" in reply.headers
            assert f"could not connect to {dead}" in (await reply.json())["error"]["message"]

    asyncio.run(scenario())


@settings(max_examples=12, deadline=None)
@given(st.lists(st.sampled_from(["/x", "/hang", "/drop", "/cut", "leave", "dead"]), max_size=12))
def test_counts_return_to_zero_after_any_mix_of_endings(paths):
    async def ask(client, path):
        try:
            async with client.post("/hang" if path == "leave" else path) as reply:
                await reply.read()
        except aiohttp.ClientError:
            pass

    async def scenario():
        dead = [f"http://127.0.0.1:{free_port('127.0.0.1')}"] if "dead" in paths else []
        async with serving(Upstream()) as worker, routing(worker.url, *dead, limits=QUICK) as (router, client):
            asking = [asyncio.create_task(ask(client, path)) for path in paths if path != "dead"]
            for path, task in zip([path for path in paths if path != "dead"], asking, strict=True):
                if path == "leave":
                    await asyncio.sleep(0.02)
                    task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
            await eventually(lambda: not any(one.in_flight for one in router.registry), "all counts to return to 0")

    asyncio.run(scenario())
