from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from urllib.parse import quote

import pytest

from miles_lite.errors import UserError
from miles_lite.router.actor import RouterActor
from miles_lite.router.app import RouterSpec
from tests.router.upstream import raw_url, routing

PREFILL = {"url": "http://h:2", "worker_type": "prefill", "bootstrap_port": 8998}


def test_workers_are_added_listed_and_removed_in_every_form():
    async def scenario():
        async with routing("http://h:1") as (_, client):
            assert (await client.post("/workers", json=PREFILL)).status == 200
            assert (await client.post("/add_worker?worker_url=http://h:3&worker_type=decode")).status == 200
            assert await (await client.get("/list_workers")).json() == {
                "urls": ["http://h:1", "http://h:2", "http://h:3"]
            }
            listed = (await (await client.get("/workers")).json())["workers"]
            assert [one["worker_type"] for one in listed] == ["regular", "prefill", "decode"]
            assert listed[1]["bootstrap_port"] == 8998
            assert (await client.delete(f"/workers/{listed[0]['id']}")).status == 200
            escaped = raw_url(client, "/workers/" + quote("http://h:2", safe=""))
            assert (await client.delete(escaped)).status == 200
            assert (await client.post("/remove_worker", params={"url": "http://h:3"})).status == 200
            assert (await client.post("/remove_worker", params={"url": "http://h:3"})).status == 404
            assert (await (await client.get("/health")).json())["workers"] == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("body", [b"{", b"[1]", b'{"url": "nonsense"}', b'{"url": "http://h:1", "worker_type": "x"}'])
def test_a_bad_registration_is_400_with_the_reason(body):
    async def scenario():
        async with routing() as (_, client), client.post("/add_worker", data=body) as reply:
            assert reply.status == 400
            assert (await reply.json())["error"]["message"].startswith("router: ")

    asyncio.run(scenario())


def test_prefill_and_decode_alone_are_503_with_the_reason():
    async def scenario():
        async with routing() as (_, client):
            await client.post("/workers", json=PREFILL)
            async with client.post("/generate") as reply:
                assert reply.status == 503
                assert "no regular worker" in (await reply.json())["error"]["message"]

    asyncio.run(scenario())


def test_the_actor_starts_once_and_a_port_in_use_says_so():
    async def scenario():
        first = RouterActor(RouterSpec())
        url = await first.start()
        assert await first.start() == url
        assert repr(first) == f"RouterActor({url})"
        with pytest.raises(UserError, match="--sglang-router-port"):
            await RouterActor(RouterSpec(port=int(url.rsplit(":", 1)[1]))).start()
        await first.stop()
        await first.stop()

    asyncio.run(scenario())


def test_serve_ends_cleanly_on_ctrl_c():
    code = "from miles_lite.router.app import RouterSpec, serve; serve(RouterSpec())"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"router: http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, b"")
