from __future__ import annotations

import asyncio
import contextlib
import gzip
import random
import socket

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from yarl import URL

from miles_lite.config.engines import Routing
from miles_lite.router.replies import Limits
from miles_lite.router.spec import RouterSpec
from tests.ports import free_port
from tests.router.upstream import Upstream, eventually, raw_url, routing, serving

QUICK = Limits(connect=2.0, idle=0.2)


async def test_bytes_pass_both_ways_unchanged():
    async with serving(Upstream()) as worker, routing(worker.url) as (_, client):
        body = gzip.compress(bytes(range(256)) * 50)
        headers = [
            ("X-Odd", "kept"),
            ("X-Odd", "twice"),
            ("X-SMG-Routing-Key", "s1"),
            ("Content-Encoding", "gzip"),
            ("Connection", "X-Mine, keep-alive"),
            ("Connection", "X-Yours"),
            ("X-Mine", "1"),
            ("X-Yours", "1"),
            ("TE", "trailers"),
            ("Proxy-Authorization", "Basic eDp5"),
        ]
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
        assert seen.getall("X-Odd") == ["kept", "twice"]
        assert (seen["X-SMG-Routing-Key"], seen["Content-Encoding"]) == ("s1", "gzip")
        assert not {"x-mine", "x-yours", "te", "proxy-authorization", "connection"} & {name.lower() for name in seen}
        assert seen["Host"] == worker.url.removeprefix("http://")


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "PUT", "PATCH", "OPTIONS"])
async def test_every_method_passes(method):
    async with serving(Upstream()) as worker, routing(worker.url) as (_, client):
        async with client.request(method, "/x") as reply:
            assert reply.status == 418
        assert len(worker.seen) == 1


async def test_a_stream_arrives_as_it_is_written():
    async with (
        serving(Upstream()) as worker,
        routing(worker.url) as (_, client),
        client.post("/stream", json={}) as reply,
    ):
        assert await reply.content.readany() == b"data: 1\n\n"
        worker.release.set()
        assert await reply.content.read() == b"data: 2\n\n"


async def test_a_client_that_leaves_cancels_its_request_upstream():
    async with serving(Upstream()) as worker, routing(worker.url) as (router, client):
        asking = asyncio.create_task(client.post("/hang"))
        await asyncio.wait_for(worker.arrived.wait(), 10)
        asking.cancel()
        await asyncio.wait_for(worker.cancelled.wait(), 10)
        (seen,) = router.registry
        await eventually(lambda: seen.in_flight == 0, "the count to return to 0")


async def test_a_key_sticks_to_its_worker_and_others_spread():
    async with serving(Upstream()) as one, serving(Upstream()) as two, routing(one.url, two.url) as (_, client):
        for key in ["a", "b"] * 5:
            async with client.post("/generate", headers={"X-SMG-Routing-Key": key}):
                pass
        keys = [{headers["X-SMG-Routing-Key"] for _, headers, _ in worker.seen} for worker in (one, two)]
        assert sorted(map(sorted, keys)) == [["a"], ["b"]]


@pytest.mark.parametrize(
    ("path", "status", "kind"), [("/hang", 504, "worker_timeout"), ("/drop", 502, "worker_connection")]
)
async def test_a_worker_that_fails_gives_a_reason_and_a_time_to_retry(path, status, kind):
    async with (
        serving(Upstream()) as worker,
        routing(worker.url, limits=QUICK) as (_, client),
        client.post(path) as reply,
    ):
        assert reply.status == status
        assert reply.headers["Retry-After"] == "1"
        error = (await reply.json())["error"]
        assert (error["code"], error["type"]) == (status, kind)
        assert worker.url in error["message"]


async def test_a_reply_that_breaks_off_does_not_pass_for_a_whole_one():
    async with serving(Upstream()) as worker, routing(worker.url) as (_, client):
        with pytest.raises(aiohttp.ClientError):
            async with client.post("/cut") as reply:
                await reply.read()


@pytest.mark.parametrize("path", ["/cut", "/stream"])
async def test_replies_that_break_off_in_a_row_set_a_worker_aside_and_clients_that_leave_do_not(path):
    async with serving(Upstream()) as worker, routing(worker.url, limits=QUICK, interval=60) as (router, client):
        (seen,) = router.registry
        for _ in range(4):
            async with client.get("/flood") as reply:
                await reply.content.readany()
            await eventually(lambda: seen.in_flight == 0, "the request to end")
        assert (seen.state, seen.failures) == ("ready", 0)
        for _ in range(3):
            with pytest.raises(aiohttp.ClientError):
                async with client.post(path) as reply:  # the second falls silent in the middle
                    await reply.read()
        assert (seen.state, seen.served) == ("unreachable", 0)


async def test_waiting_for_a_connection_has_an_end():
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # the kernel takes one or two of them; the others fill its queue
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        async with routing(url, limits=Limits(connect=0.2)) as (_, client), client.post("/x") as reply:
            assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
            message = (await reply.json())["error"]["message"]
            assert message.startswith(f"router: could not connect to {url}: no connection within 0.2 s; besides, ")


async def test_a_dead_worker_is_set_aside_its_keys_move_and_it_comes_back():
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
        assert [one.state for one in router.registry] == ["unreachable", "ready"]
        async with serving(Upstream(), port=port):
            await eventually(lambda: worker.state == "ready", "the probe to readmit the worker")


async def test_nobody_alive_is_503_with_the_reason():
    dead = f"http://127.0.0.1:{free_port('127.0.0.1')}"
    async with routing(dead) as (_, client), client.post("/generate") as reply:
        assert reply.status == 503
        assert "Retry-After" in reply.headers
        assert f"could not connect to {dead}" in (await reply.json())["error"]["message"]


@settings(max_examples=12, deadline=None)
@given(st.lists(st.sampled_from(["/x", "/hang", "/drop", "/cut", "leave", "dead"]), max_size=12))
async def test_counts_return_to_zero_after_any_mix_of_endings(paths):
    async def ask(client, path):
        try:
            async with client.post("/hang" if path == "leave" else path) as reply:
                await reply.read()
        except aiohttp.ClientError:
            pass

    dead = [f"http://127.0.0.1:{free_port('127.0.0.1')}"] if "dead" in paths else []
    async with serving(Upstream()) as worker, routing(worker.url, *dead, limits=QUICK) as (router, client):
        asking = [asyncio.create_task(ask(client, path)) for path in paths if path != "dead"]
        for path, task in zip([path for path in paths if path != "dead"], asking, strict=True):
            if path == "leave":
                await asyncio.sleep(0.02)
                task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await eventually(lambda: not any(one.in_flight for one in router.registry), "all counts to return to 0")


async def raw(client: aiohttp.ClientSession, *pieces: bytes) -> bytes:
    """What the router answers to these bytes on one connection, until it has been silent for a moment or closes."""
    url = URL(str(client._base_url))
    reader, writer = await asyncio.open_connection(url.host, url.port)
    answer = b""
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        with contextlib.suppress(TimeoutError):
            while chunk := await asyncio.wait_for(reader.read(1 << 16), 0.3):
                answer += chunk
    writer.close()
    return answer


async def test_requests_on_one_connection_are_answered_in_order():
    async with serving(Upstream()) as worker, routing(worker.url) as (_, client):
        three = b"".join(b"GET /%d HTTP/1.1\r\nHost: r\r\n\r\n" % number for number in range(3))
        answer = await raw(client, three)
        assert answer.count(b"HTTP/1.1 418 As It Is\r\n") == 3
        assert [path for path, _, _ in worker.seen] == ["/0", "/1", "/2"]


async def test_a_chunked_body_arrives_whole_and_expectations_are_met_here():
    async with serving(Upstream()) as worker, routing(worker.url) as (_, client):
        chunked = (
            b"POST /c HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"
        )
        assert b"418 As It Is" in await raw(client, chunked)
        head = b"POST /e HTTP/1.1\r\nHost: r\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        answer = await raw(client, head, b"xyz")
        assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 418")
        assert [body for _, _, body in worker.seen] == [b"abcde", b"xyz"]
        assert all("Expect" not in headers and "Transfer-Encoding" not in headers for _, headers, _ in worker.seen)


async def test_what_is_no_http_or_too_long_is_refused_without_a_word_in_the_log(caplog):
    async with serving(Upstream()) as worker, routing(worker.url) as (_, client):
        for head in (
            b"\x16\x03\x01 hello\r\n\r\n",
            b"FROB /x HTTP/1.1\r\nHost: r\r\n\r\n",
            b"GET /x HTTP/1.1\r\nHost : r\r\n\r\n",
            b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: r\r\n\r\n",
            b"GET /x HTTP/1.1\r\nHost: r\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
            b"POST /x HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        ):
            assert b" 400 Bad Request" in (await raw(client, head)).split(b"\r\n")[0]
        assert not worker.seen
    assert not caplog.records


async def test_an_upgrade_is_not_passed_on_and_its_connection_goes_on_as_http():
    async with serving(Upstream(status=404)) as worker, routing(worker.url) as (_, client):
        upgrade = (
            b"GET /ws HTTP/1.1\r\nHost: r\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        answer = await raw(client, upgrade, b"GET /then HTTP/1.1\r\nHost: r\r\n\r\n")
        assert answer.count(b"HTTP/1.1 404 As It Is\r\n") == 2
        assert [path for path, _, _ in worker.seen] == ["/ws", "/then"]
        assert "Upgrade" not in worker.seen[0][1]


@pytest.mark.parametrize(
    "request_head",
    [
        b"POST / HTTP/1.1\r\nHost: r\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: r\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"GET http://other/ HTTP/1.1\r\nHost: r\r\n\r\n",
    ],
)
async def test_ambiguous_requests_reach_no_worker(request_head):
    async with serving(Upstream()) as worker, routing(worker.url) as (_, client):
        assert b" 400 " in (await raw(client, request_head)).split(b"\r\n")[0]
        assert not worker.seen


async def test_a_big_body_passes_both_ways():
    body = random.Random(0).randbytes(20 << 20)
    async with serving(Upstream()) as worker, routing(worker.url) as (_, client):
        async with client.post("/big", data=body) as reply:
            assert gzip.decompress(await reply.read()) == body
        assert worker.seen[0][2] == body


async def test_a_slow_reader_slows_the_worker_down():
    async with serving(Upstream()) as worker, routing(worker.url) as (_, client):
        async with client.get("/flood") as reply:
            await reply.content.readany()
            before = -1
            while worker.sent != before:
                before = worker.sent
                await asyncio.sleep(0.2)
            assert worker.sent < 64 << 20, "what nobody reads is not taken from the worker"
            received = 0
            while received < 64 << 20:
                received += len(await reply.content.readany())
        await asyncio.wait_for(worker.cancelled.wait(), 10)


async def test_connections_to_a_worker_are_used_again_unless_it_closes_them():
    async with serving(Upstream()) as worker, routing(worker.url) as (_, client):
        for _ in range(5):
            async with client.get("/x"):
                pass
        assert len(worker.connections) == 1
        for _ in range(3):
            async with client.get("/close"):
                pass
        assert len(worker.connections) == 3


async def test_5xx_in_a_row_set_a_worker_aside_and_4xx_never_does():
    async with serving(Upstream(status=404)) as worker, routing(worker.url, interval=60) as (router, client):
        (seen,) = router.registry
        for _ in range(5):
            async with client.get("/x") as reply:
                assert reply.status == 404
        assert [one.state for one in router.registry] == ["ready"]
        worker.status = 500
        for _ in range(3):
            async with client.get("/x") as reply:
                assert reply.status == 500
        assert seen.state == "unreachable"
        async with client.get("/x") as reply:
            assert (reply.status, reply.headers["Retry-After"]) == (503, "1")


async def test_a_worker_that_comes_back_is_tried_with_one_request_first():
    hanging = Upstream(version="1", hangs=True)
    async with serving(hanging) as worker, routing(worker.url, interval=60) as (router, client):
        (seen,) = router.registry
        seen.state = "unreachable"
        router.registry.admit(seen, "1")
        asking = [asyncio.create_task(client.get("/x")) for _ in range(3)]
        await asyncio.wait_for(worker.arrived.wait(), 10)
        await eventually(lambda: router.admission.waiting == 2, "two to wait")
        assert seen.in_flight == 1
        router.registry.admit(seen, "1")
        router.admission.wake()
        assert seen.in_flight == 3
        for task in asking:
            task.cancel()
        await eventually(lambda: seen.in_flight + router.admission.waiting == 0, "all to be gone")


async def test_keys_take_turns_when_workers_are_full():
    spec = RouterSpec(routing=Routing(sglang_server_concurrency=1))
    async with serving(Upstream(paced=True)) as worker, routing(worker.url, spec=spec) as (router, client):
        keys = ["a"] * 4 + ["b"] + ["c"]
        asking = []
        for number, key in enumerate(keys):
            asking.append(asyncio.create_task(client.get(f"/{key}", headers={"X-SMG-Routing-Key": key})))
            await eventually(lambda number=number: router.admission.waiting == number, "the queue to grow")
        worker.release.set()
        await asyncio.gather(*asking)
        assert [path for path, _, _ in worker.seen] == ["/a", "/a", "/b", "/c", "/a", "/a"]


async def test_waiting_for_room_has_an_end():
    limits = Limits(connect=2.0, idle=20.0, queue=0.1)
    spec = RouterSpec(routing=Routing(sglang_server_concurrency=1))
    async with serving(Upstream()) as worker, routing(worker.url, spec=spec, limits=limits) as (_, client):
        first = asyncio.create_task(client.post("/hang"))
        await worker.arrived.wait()
        async with client.post("/x") as reply:
            assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
            assert (await reply.json())["error"]["type"] == "queue_timeout"
        first.cancel()
