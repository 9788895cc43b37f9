from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile

import aiohttp
import httpx
import psutil
import pytest

from miles_lite.config.choices import RouterKind
from miles_lite.config.engines import Routing
from miles_lite.errors import UserError
from miles_lite.process.admin_key import VARIABLE, bearer
from miles_lite.router.actor import RouterActor
from miles_lite.router.spec import RouterSpec
from miles_lite.router.supervised_router import Supervisor
from miles_lite.session.engine.engine_client import EngineCalls
from tests.router.upstream import Upstream, eventually, serving

pytestmark = pytest.mark.e2e
JSON = {"Content-Type": "application/json"}
PREFILL = {"worker_type": "prefill", "bootstrap_port": 8998}


@contextlib.asynccontextmanager
async def supervised(spec: RouterSpec, *, silence: float = 30.0):
    supervisor = Supervisor(spec, silence=silence)
    try:
        async with aiohttp.ClientSession(await supervisor.start()) as client:
            yield supervisor, client
    finally:
        await supervisor.stop()


async def test_a_killed_router_is_back_on_its_port_with_its_workers_and_clients_that_retry_do_not_notice(tmp_path):
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

    await scenario()


async def test_a_router_that_hangs_is_replaced_and_who_waits_is_answered_though_no_file_was_named(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    async with serving(Upstream()) as worker, supervised(RouterSpec(), silence=3.0) as (supervisor, client):
        await client.post("/add_worker", params={"url": worker.url})
        hung = supervisor.pid
        os.kill(hung, signal.SIGSTOP)
        async with aiohttp.ClientSession() as other, other.post(f"{supervisor.url}/generate", data=b"x") as reply:
            assert reply.status == 418
        assert not psutil.pid_exists(hung)
    assert not list(tmp_path.iterdir())
    assert "the router (process" in caplog.text
    assert "hangs: waited 3 s for a sign of life from its event loop" in caplog.text


async def test_a_sessions_generation_outlives_the_router_that_carried_it(tmp_path):
    meta = {
        "completion_tokens": 2,
        "output_token_logprobs": [[-0.5, 11, None], [-0.25, 12, None]],
        "finish_reason": {"type": "length", "length": 2},
        "weight_version": "3",
        "weight_versions": [{"version": "3", "start": 0, "end": 2}],
    }
    engine = Upstream(status=200, version="3", answer={"meta_info": meta}, paced=True)

    spec = RouterSpec(state_file=str(tmp_path / "state.json"))
    async with serving(engine), supervised(spec) as (supervisor, client):
        await client.post("/add_worker", params={"url": engine.url})
        async with EngineCalls(supervisor.url, retry_seconds=30, call_seconds=30) as calls:
            params = {"max_new_tokens": 2}
            asking = asyncio.create_task(calls.generate(b"0,1,2", params, tokens=3, key="s"))
            await eventually(lambda: len(engine.seen) == 1, "the request to reach the engine")
            os.kill(supervisor.pid, signal.SIGKILL)
            await eventually(lambda: len(engine.seen) == 2, "the session to ask again")
            engine.release.set()
            done = await asking
    assert (list(done.ids), list(done.logprobs), done.spans, done.retries) == (
        [11, 12],
        [-0.5, -0.25],
        [(3, 0, 2)],
        1,
    )


def test_the_process_ends_with_its_parent(tmp_path):
    code = (
        "import asyncio, os, signal\n"
        "from miles_lite.router.spec import RouterSpec\n"
        "from miles_lite.router.supervised_router import Supervisor\n"
        "async def main():\n"
        "    supervisor = Supervisor(RouterSpec())\n"
        "    await supervisor.start()\n"
        "    print(supervisor.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}  # what a killed parent kept stays there
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == -signal.SIGKILL
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(done.stdout)).wait(timeout=20)


async def test_the_actor_starts_once_stops_twice_and_a_port_in_use_says_so():
    first = RouterActor(RouterSpec())
    url = await first.start()
    assert await first.start() == url
    assert await first.workers() == []
    with pytest.raises(UserError, match="--sglang-router-port"):
        await RouterActor(RouterSpec(port=int(url.rsplit(":", 1)[1]))).start()
    await first.stop()
    await first.stop()
    again = Supervisor(RouterSpec(port=int(url.rsplit(":", 1)[1])))
    assert await again.start() == url
    await again.stop()


async def test_a_router_that_cannot_start_says_why(tmp_path):
    file = tmp_path / "state.json"
    file.write_text("{")

    with pytest.raises(UserError, match="not the state of a router"):
        await Supervisor(RouterSpec(state_file=str(file))).start()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ends_cleanly(number, tmp_path):
    argv = [sys.executable, "-m", "miles_lite", "router", "--state-file", str(tmp_path / "state.json")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"router: http://127.0.0.1:")
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, b"")


def test_the_command_tells_the_key_that_it_made_up():
    argv = [sys.executable, "-m", "miles_lite", "router", "--bind-host", "0.0.0.0", "--advertise-host", "127.0.0.1"]
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout is not None
        key = process.stdout.readline().removeprefix("admin key ").split()[0]
        url = process.stdout.readline().split()[1]
        assert [httpx.delete(f"{url}/workers/x", headers=shown).status_code for shown in ({}, bearer(key))] == [
            401,
            404,
        ]
        assert httpx.get(f"{url}/workers").status_code == 200
        process.terminate()
        assert process.wait(timeout=30) == 0


async def test_the_gateway_carries_bytes_unchanged_and_follows_registrations(tmp_path):
    pytest.importorskip("smg", reason="the Rust gateway is not installed")
    routing = Routing(router=RouterKind.GATEWAY)
    spec = RouterSpec(routing=routing, state_file=str(tmp_path / "state.json"))
    body = b'{"input_ids": [1],  "odd": 1.50, "return_routed_experts": true}'

    async def generate(supervisor: Supervisor) -> int:
        async with (
            aiohttp.ClientSession() as client,
            client.post(f"{supervisor.data_url}/generate", data=body, headers=JSON) as reply,
        ):
            await reply.read()
            assert reply.status != 503 or reply.headers["Retry-After"] == "1"
            return reply.status

    async def serves_again(supervisor: Supervisor, url: str) -> None:
        status = 0
        while status != 200:
            with contextlib.suppress(aiohttp.ClientError):
                status = await generate(supervisor)
            await asyncio.sleep(0.05)
        assert supervisor.data_url == url

    async def scenario():
        async with (
            serving(Upstream(status=200, answer={}, version="1")) as one,
            serving(Upstream(status=200, answer={}, version="2")) as two,
            supervised(spec) as (supervisor, client),
        ):
            url = supervisor.data_url
            assert url != supervisor.url
            assert [await generate(supervisor) for _ in range(20)] == [503] * 20, "come again, there is no engine yet"
            for worker in (one, two, one):
                async with client.post("/add_worker", params={"url": worker.url}) as reply:
                    assert reply.status == 200, await reply.text()
            async with client.put("/weight_version", json={"version": 2}) as reply:
                assert (await reply.json())["stale"] == [one.url]
            assert [await generate(supervisor) for _ in range(4)] == [200] * 4
            assert generations(one) == []
            assert generations(two) == [body] * 4
            async with client.post("/workers", json=PREFILL | {"url": one.url}) as reply:
                assert reply.status == 400
                assert "--router python" in await reply.text()
            (gateway,) = psutil.Process(supervisor.pid).children()
            gateway.kill()
            await serves_again(supervisor, url)
            routing = psutil.Process(supervisor.pid)
            routing.kill()
            await eventually(lambda: supervisor.pid != routing.pid, "the routing process to be replaced")
            await serves_again(supervisor, url)
            assert generations(one) == [], "the weight gate has outlived the router"
            async with aiohttp.ClientSession() as again, again.get(f"{supervisor.url}/workers") as reply:
                states = {one["url"]: one["state"] for one in (await reply.json())["workers"]}
            assert states == {one.url: "stale", two.url: "ready"}
            async with aiohttp.ClientSession() as again:
                await again.post(f"{supervisor.url}/remove_worker", params={"url": two.url})
            assert await generate(supervisor) == 503

    await asyncio.wait_for(scenario(), 180)


def generations(worker: Upstream) -> list[bytes]:
    """Bodies of the generation requests that reached `worker`."""
    return [body for path, _, body in worker.seen if path == "/generate"]
