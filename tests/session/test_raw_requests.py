"""Whatever bytes a client sends, a session server has an answer that is not its own failure."""

from __future__ import annotations

import os
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from miles_lite.session.client import SessionClient
from miles_lite.session.supervised_server import Supervisor
from tests.raw_requests import ask, ask_many
from tests.session.engine import STOP, answer, bench, scripted, spec

COUNT = int(os.environ.get("MILES_LITE_FUZZ_REQUESTS", "600"))
BODY = b'{"messages":[{"role":"user","content":"go"}]}'
REFUSED: list[tuple[bytes, bytes, int]] = [
    (b"/sessions/a%00b", b"", 400),
    (b"/sessions/a%0Ab", b"", 400),
    (b"/sessions/" + b"a" * 201, b"", 400),
    (b"/sessions/s", b"X-Agent-Name: \xff\xfe", 400),
    (b"/sessions/s", b"X-Claude-Code-Agent-Id: \xff", 400),
    (b"/sessions/s", b"Idempotency-Key: \xff\xfe", 400),
    (b"/sessions/s", b"Expect: \xff\xfe", 417),
    (b"/sessions/s", b"Expect: a miracle", 417),
    (b"/sessions/s", b"Content-Encoding: gzip", 400),
    (b"/sessions/s", b"Content-Encoding: deflate", 400),
    (b"/sessions/s", b"X-Stainless-Retry-Count: \xc2\xb2", 200),
    (b"/sessions/s", b"X-Stainless-Retry-Count: " + b"9" * 5000, 200),
]


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


async def test_what_cannot_be_read_is_refused(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with bench(tiny_model, lambda body: answer([5, STOP]), run_dir=tmp_path) as b:
        for path, line, status in REFUSED:
            head = b"POST %b/v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%b" % (
                path,
                line + b"\r\n" if line else b"",
            )
            request = head + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
            assert (line, await ask(_port(b.client.url), request)) == (line, status)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_no_bytes_make_it_fail(tiny_model: Path, tmp_path: Path) -> None:
    """MILES_LITE_FUZZ_REQUESTS says how many are tried."""
    routes = ("chat/completions", "responses", "messages", "messages/count_tokens", "models", "nothing")

    async with bench(tiny_model, lambda body: answer([5, STOP]), run_dir=tmp_path) as b:
        session = await b.client.create()
        paths = [f"/sessions/{session}/v1/{route}" for route in routes]
        paths += [f"/sessions/nobody/v1/{route}" for route in routes[:3]]
        paths += [f"/sessions/{session}{rest}" for rest in ("", "/turns", "/samples", "/v1/v1/chat/completions")]
        paths += ["/sessions", "/health", "/metrics", "/v1/models", "/openapi.json", "/", "/v1/chat/completions"]
        told = await ask_many(_port(b.client.url), paths, count=COUNT, seed=COUNT)
        assert {status: seen for status, seen in told.items() if status >= 500} == {}
        assert {200, 400, 404} <= told.keys()


@pytest.mark.e2e
async def test_a_disk_that_takes_nothing_is_a_503_until_it_takes_something_again(
    tiny_model: Path, tmp_path: Path
) -> None:
    """The worker may write no file beyond the size that its journal has."""

    async with scripted(lambda body: answer([5, STOP])) as (_, engine):
        supervisor = Supervisor(replace(spec(tiny_model, engine), run_dir=str(tmp_path)))
        try:
            async with SessionClient(await supervisor.start()) as client, aiohttp.ClientSession() as http:
                assert supervisor.worker_pid is not None
                await client.create()
                _, most = resource.prlimit(supervisor.worker_pid, resource.RLIMIT_FSIZE)
                resource.prlimit(supervisor.worker_pid, resource.RLIMIT_FSIZE, (1, most))
                for path in ("/sessions", "/sessions/mine/v1/chat/completions"):
                    async with http.post(client.url + path, data=BODY) as response:
                        error: dict[str, Any] = (await response.json())["error"]
                        assert (response.status, error["code"]) == (503, "journal_failed")
                resource.prlimit(supervisor.worker_pid, resource.RLIMIT_FSIZE, (most, most))
                session = await client.create()
                assert (await client.describe(session))["turns"] == []
                assert supervisor.restarts == 0
        finally:
            await supervisor.stop()
