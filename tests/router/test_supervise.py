from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys

import aiohttp
import psutil
import pytest

from miles_lite.errors import UserError
from miles_lite.router.actor import RouterActor
from miles_lite.router.app import RouterSpec
from miles_lite.router.supervise import Supervisor
from tests.router.upstream import Upstream, eventually, serving

pytestmark = pytest.mark.e2e


@contextlib.asynccontextmanager
async def supervised(spec: RouterSpec):
    supervisor = Supervisor(spec)
    try:
        async with aiohttp.ClientSession(await supervisor.start()) as client:
            yield supervisor, client
    finally:
        await supervisor.stop()


def test_a_killed_router_is_back_on_its_port_with_its_workers_and_clients_that_retry_do_not_notice(tmp_path):
    async def scenario():
        spec = RouterSpec(state_file=str(tmp_path / "state.json"))
        async with serving(Upstream(version="3")) as worker, supervised(spec) as (supervisor, client):
            await client.post("/add_worker", params={"url": worker.url})
            await client.put("/weight_version", json={"version": 3})
            url, answered, broken, ended = supervisor.url, 0, 0, asyncio.Event()

            async def keep_asking():
                nonlocal answered, broken
                while not ended.is_set():
                    try:
                        async with client.post("/generate", data=b"x") as reply:
                            answered += reply.status == 418
                    except aiohttp.ClientError:
                        broken += 1

            asking = [asyncio.create_task(keep_asking()) for _ in range(4)]
            for _ in range(2):
                before, restarts = answered, supervisor.restarts
                os.kill(supervisor.pid, signal.SIGKILL)
                await eventually(lambda restarts=restarts: supervisor.restarts > restarts, "the router to be missed")
                await eventually(lambda before=before: answered > before + 50, "requests to be answered again")
            ended.set()
            await asyncio.gather(*asking)
            assert broken <= 8, "each client loses the request it had with a router that dies, and no other"
            assert supervisor.url == url
            async with client.get("/workers") as reply:
                listed = await reply.json()
            assert [(one["url"], one["state"]) for one in listed["workers"]] == [(worker.url, "ready")]
            assert listed["weight_versions"] == ["3"]

    asyncio.run(scenario())


def test_the_process_ends_with_its_parent():
    code = (
        "import asyncio, os, signal\n"
        "from miles_lite.router.app import RouterSpec\n"
        "from miles_lite.router.supervise import Supervisor\n"
        "async def main():\n"
        "    supervisor = Supervisor(RouterSpec())\n"
        "    await supervisor.start()\n"
        "    print(supervisor.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(done.stdout)).wait(timeout=20)


def test_the_actor_starts_once_stops_twice_and_a_port_in_use_says_so():
    async def scenario():
        first = RouterActor(RouterSpec())
        url = await first.start()
        assert await first.start() == url
        assert repr(first) == f"RouterActor({url})"
        assert await first.workers() == []
        with pytest.raises(UserError, match="--sglang-router-port"):
            await RouterActor(RouterSpec(port=int(url.rsplit(":", 1)[1]))).start()
        await first.stop()
        await first.stop()
        again = Supervisor(RouterSpec(port=int(url.rsplit(":", 1)[1])))
        assert await again.start() == url
        await again.stop()

    asyncio.run(scenario())


def test_a_router_that_cannot_start_says_why(tmp_path, capfd):
    file = tmp_path / "state.json"
    file.write_text("{")

    async def scenario():
        with pytest.raises(UserError, match="exit code 2"):
            await Supervisor(RouterSpec(state_file=str(file))).start()

    asyncio.run(scenario())
    assert "not the state of a router" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ends_cleanly(number, tmp_path):
    argv = [sys.executable, "-m", "miles_lite", "router", "--state-file", str(tmp_path / "state.json")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"router: http://127.0.0.1:")
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, b"")
