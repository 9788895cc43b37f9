"""Whatever bytes a client sends, the router has an answer that is not its own failure."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from miles_lite.process.admin_key import bearer
from miles_lite.router.spec import RouterSpec
from tests.raw_requests import ask, ask_many
from tests.router.upstream import routing

COUNT = int(os.environ.get("MILES_LITE_FUZZ_REQUESTS", "600"))


@asynccontextmanager
async def content_worker() -> AsyncIterator[str]:
    """The URL of a worker that answers 200 to whatever it is sent."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = [line.lower() for line in head.split(b"\r\n")]
                sizes = [int(line[15:]) for line in lines if line.startswith(b"content-length:")]
                await reader.readexactly(sum(sizes))
                body = b"" if head.startswith(b"HEAD ") else b"{}"
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n" + body)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass  # the router, or the test, is done with it
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_headers_that_cannot_be_read_are_passed_on_or_refused():
    async with content_worker() as worker, routing() as (_, client):
        async with client.post("/add_worker", json={"url": worker}) as reply:
            assert reply.status == 200
        port = int(str(client._base_url).rpartition(":")[2].strip("/"))
        for line, status in (
            (b"Expect: \xff\xfe", 417),
            (b"X-SMG-Routing-Key: \xff\xfe", 200),
            (b"Content-Encoding: gzip", 200),
            (b"X-Agent-Name: \xff", 200),
            (b"Connection: \xff, close", 200),
        ):
            data = b"POST /generate HTTP/1.1\r\nHost: x\r\n" + line + b"\r\nContent-Length: 2\r\n\r\n{}"
            assert (line, await ask(port, data)) == (line, status)


async def test_no_bytes_make_it_fail():
    """MILES_LITE_FUZZ_REQUESTS says how many are tried."""
    paths = ["/generate", "/v1/chat/completions", "/", "/list_workers", "/workers", "/weight_version", "/health"]
    paths += ["/metrics", "/workers/x", "/remove_worker?url=x", "/health_generate?x=1", "/anything/at/all"]

    async with content_worker() as worker, routing(spec=RouterSpec(admin_key="k")) as (_, client):
        async with client.post("/add_worker", json={"url": worker}, headers=bearer("k")) as reply:
            assert reply.status == 200
        port = int(str(client._base_url).rpartition(":")[2].strip("/"))
        told = await ask_many(port, paths, count=COUNT, seed=COUNT)
        assert {status: seen for status, seen in told.items() if status >= 500} == {}
        assert {200, 400, 401, 405} <= told.keys()
