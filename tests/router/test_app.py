from __future__ import annotations

import asyncio
import json
from urllib.parse import quote

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from yarl import URL

from miles_lite.commands import router
from miles_lite.config.places import Hosts
from miles_lite.errors import UserError
from miles_lite.process.admin_key import bearer
from miles_lite.router.app import Router
from miles_lite.router.client import set_weight_version
from miles_lite.router.replies import Limits
from miles_lite.router.spec import RouterSpec, listen
from tests.ports import free_port
from tests.router.upstream import Upstream, eventually, raw_url, reachable_urls, routing, serving


async def ask(client: aiohttp.ClientSession, method: str, path: str | URL, **kwargs) -> tuple[int, dict]:
    async with client.request(method, path, **kwargs) as reply:
        return reply.status, await reply.json()


async def states(client: aiohttp.ClientSession) -> dict[str, str]:
    _, listed = await ask(client, "GET", "/workers")
    return {one["url"]: one["state"] for one in listed["workers"]}


PREFILL = {"worker_type": "prefill", "bootstrap_port": 8998}


@pytest.mark.parametrize(
    ("path", "body", "role"),
    [
        ("/add_worker?url={url}", None, {}),
        ("/add_worker?worker_url={url}", None, {}),
        ("/add_worker?url={url}&worker_type=prefill&bootstrap_port=8998", None, PREFILL),
        ("/add_worker?url={url}&worker_type=decode", None, {"worker_type": "decode"}),
        ("/add_worker?url={url}", PREFILL, PREFILL),
        ("/add_worker", {"url": "{url}"}, {}),
        ("/add_worker", {"worker_url": "{url}"}, {}),
        ("/add_worker/", {"worker_url": "{url}", "worker_type": "decode"}, {"worker_type": "decode"}),
        ("/workers", {"url": "{url}", "worker_type": "regular", "bootstrap_port": None}, {}),
        ("/workers", {"url": "{url}", "worker_type": "decode"}, {"worker_type": "decode"}),
        ("/workers/", {"url": "{url}", **PREFILL}, PREFILL),
    ],
)
async def test_a_worker_is_registered_in_every_form_as_often_as_one_likes(path, body, role):
    with reachable_urls(1) as (url,):
        async with routing() as (_, client):
            filled = body and {name: url if value == "{url}" else value for name, value in body.items()}
            for _ in range(2):
                told = {} if filled is None else {"json": filled}
                status, answer = await ask(client, "POST", path.format(url=url), **told)
                assert (status, answer["worker_urls"]) == (200, {url: 0})
            (row,) = (await ask(client, "GET", "/workers"))[1]["workers"]
            expected = {"url": url, "worker_type": "regular", "id": answer["worker_id"]} | role
            assert {name: row.get(name) for name in (*expected, "bootstrap_port")} == {
                "bootstrap_port": None,
                **expected,
            }
            assert (await ask(client, "GET", "/list_workers"))[1] == {"urls": [url]}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("DELETE", "/workers/{id}", None),
        ("DELETE", "/workers/{id}/", None),
        ("DELETE", "/workers/{quoted}", None),
        ("DELETE", "/workers?url={url}", None),
        ("DELETE", "/workers", "url"),
        ("POST", "/remove_worker?url={url}", None),
        ("POST", "/remove_worker?worker_url={url}", None),
        ("POST", "/remove_worker", "url"),
        ("POST", "/remove_worker/", "worker_url"),
    ],
)
async def test_a_worker_is_removed_in_every_form(method, path, body):
    with reachable_urls(2) as (url, other):
        async with routing(url, other) as (router, client):
            found = router.registry.find(url)
            assert found is not None
            names = {"id": found.id, "quoted": quote(url, safe=""), "url": url}
            told = {} if body is None else {"json": {body: url}}
            gone = raw_url(client, path.format(**names))
            assert [(await ask(client, method, gone, **told))[0] for _ in range(2)] == [200, 404]
            assert (await ask(client, "GET", "/list_workers"))[1] == {"urls": [other]}


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/add_worker?url=http://h:1", "POST"),
        ("PUT", "/workers", "GET, POST, DELETE"),
        ("POST", "/list_workers/", "GET"),
        ("GET", "/workers/x", "DELETE"),
        ("POST", "/weight_version", "GET, PUT"),
    ],
)
async def test_another_method_on_a_path_of_the_routers_own_is_405(method, path, allowed):
    async with serving(Upstream()) as worker, routing(worker.url) as (_, client):
        async with client.request(method, path) as reply:
            assert (reply.status, reply.headers["Allow"]) == (405, allowed)
            assert (await reply.json())["error"]["type"] == "method_not_allowed"
        async with client.head("/workers") as reply:
            assert (reply.status, await reply.read()) == (200, b"")
        assert not worker.seen


async def test_what_changes_workers_or_versions_needs_the_admin_key_where_there_is_one():
    spec = RouterSpec(admin_key="k")
    upstream = Upstream(status=200, version="1", answer={})
    async with serving(upstream) as one, routing(one.url, spec=spec) as (router, client):
        named = {"url": one.url}
        changes = [
            ("PUT", "/weight_version", {"version": 1}),
            ("POST", "/add_worker", named),
            ("POST", "/workers", named),
            ("DELETE", "/workers", named),
            ("POST", "/workers", named),
            ("DELETE", f"/workers/{quote(one.url, safe='')}", {}),
            ("POST", "/workers", named),
            ("POST", "/remove_worker", named),
            ("POST", "/workers", named),
        ]
        for headers in ({}, {"Authorization": "Bearer other"}):
            for method, path, body in changes:
                status, told = await ask(client, method, path, json=body, headers=headers)
                assert (status, told["error"]["type"]) == (401, "unauthorized")
        with pytest.raises(UserError, match="did not take weight version 1: 401"):
            await set_weight_version(url_of_client(client), 1, key="other")
        assert (await states(client), router.registry.accepted) == ({one.url: "ready"}, ())
        assert (await ask(client, "POST", "/generate", json={}))[0] == 200
        for method, path, body in changes:
            assert (await ask(client, method, path, json=body, headers=bearer("k")))[0] == 200
        assert await set_weight_version(url_of_client(client), 2, key="k") == [one.url]
        assert router.registry.accepted == ("2",)


def url_of_client(client: aiohttp.ClientSession) -> str:
    return str(client._base_url).rstrip("/")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not JSON"),
        (b"[1]", "JSON object"),
        (b"[" * 5000, "not JSON"),
        (b'{"url": "nonsense"}', "must be http"),
        (b'{"url": "http://h:1", "worker_type": "x"}', "worker_type"),
        (b'{"url": "http://h:1", "worker_type": "prefill"}', "bootstrap_port"),
    ],
)
async def test_a_bad_registration_is_400_with_the_reason(body, words):
    async with routing() as (_, client):
        status, answer = await ask(client, "POST", "/add_worker", data=body)
        assert status == 400
        assert words in answer["error"]["message"]


async def test_a_url_that_cannot_be_reached_is_400():
    async with routing() as (router, client):
        url = f"http://127.0.0.1:{free_port('127.0.0.1')}"
        status, answer = await ask(client, "POST", "/add_worker", params={"url": url})
        assert (status, answer["error"]["type"]) == (400, "unreachable_worker")
        assert url in answer["error"]["message"]
        assert len(router.registry) == 0


async def test_half_a_pair_is_503_with_the_reason():
    with reachable_urls(1) as (url,):
        async with routing() as (_, client):
            prefill = {"url": url, "worker_type": "prefill", "bootstrap_port": 8998}
            await ask(client, "POST", "/workers", json=prefill)
            status, answer = await ask(client, "POST", "/generate")
            assert status == 503
            assert "1 prefill and 0 decode" in answer["error"]["message"]


async def test_a_removed_worker_ends_its_requests_and_is_then_forgotten():
    async with serving(Upstream()) as worker, routing(worker.url) as (router, client):
        async with client.post("/stream") as reply:
            assert await reply.content.readany() == b"data: 1\n\n"
            status, answer = await ask(client, "POST", "/remove_worker", params={"url": worker.url})
            assert (status, answer["in_flight"]) == (200, 1)
            assert await states(client) == {worker.url: "draining"}
            assert (await ask(client, "DELETE", f"/workers/{answer['worker_id']}"))[1] == answer
            assert (await ask(client, "POST", "/generate"))[0] == 503
            worker.release.set()
            assert await reply.content.read() == b"data: 2\n\n"
        await eventually(lambda: len(router.registry) == 0, "the worker to be forgotten")
        await eventually(lambda: not router._pool._kept, "its connection to be closed")


async def test_registering_a_draining_worker_again_keeps_it():
    async with serving(Upstream()) as worker, routing(worker.url) as (_, client):
        async with client.post("/stream") as reply:
            await reply.content.readany()
            await ask(client, "POST", "/remove_worker", params={"url": worker.url})
            await ask(client, "POST", "/add_worker", params={"url": worker.url})
            worker.release.set()
            await reply.content.read()
        assert await states(client) == {worker.url: "ready"}


async def test_workers_and_versions_survive_a_restart(tmp_path):
    spec = RouterSpec(state_file=str(tmp_path / "folder" / "state.json"))

    async with serving(Upstream(version="7")) as one, serving(Upstream(version="6")) as two:
        async with routing(spec=spec) as (_, client):
            for worker in (one, two):
                await ask(client, "POST", "/add_worker", params={"url": worker.url})
            before = (await ask(client, "GET", "/workers"))[1]["workers"]
            await ask(client, "PUT", "/weight_version", json={"version": 7})
        async with routing(spec=spec) as (router, client):
            assert [worker.id for worker in router.registry] == [row["id"] for row in before]
            known = router.registry.find(one.url)
            assert known is not None
            await eventually(lambda: known.state == "ready", "the version to be asked")
            assert await states(client) == {one.url: "ready", two.url: "stale"}


ROW = {"id": "a", "url": "http://h:1", "worker_type": "regular", "bootstrap_port": None}


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"workers": [',
        "[]",
        "\0",
        json.dumps({"workers": 3, "weight_versions": []}),
        json.dumps({"workers": [3], "weight_versions": []}),
        json.dumps({"workers": [ROW | {"url": "nonsense"}], "weight_versions": []}),
        json.dumps({"workers": [ROW | {"worker_type": "encode"}], "weight_versions": []}),
        json.dumps({"workers": [{"url": "http://h:1"}], "weight_versions": []}),
        json.dumps({"workers": [ROW]}),
    ],
)
def test_a_state_file_of_something_else_is_refused_and_left_alone(tmp_path, text):
    file = tmp_path / "state.json"
    file.write_text(text)
    with pytest.raises(UserError, match="not the state of a router"):
        Router(RouterSpec(state_file=str(file)))
    assert file.read_text() == text


def test_a_state_file_that_cannot_be_written_is_refused_at_start(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "state.json", tmp_path):
        with pytest.raises(UserError, match="cannot be kept there"):
            Router(RouterSpec(state_file=str(path)))


async def test_a_disk_that_fails_later_stops_no_registration_and_is_said(tmp_path, caplog):
    folder = tmp_path / "folder"

    with reachable_urls(2) as urls:
        async with routing(spec=RouterSpec(state_file=str(folder / "state.json"))) as (_, client):
            (folder / "state.json").unlink()
            folder.rmdir()
            folder.touch()
            assert (await ask(client, "POST", "/add_worker", params={"url": urls[0]}))[0] == 200
            assert "state.json: workers and weight version are not kept: " in caplog.text
            folder.unlink()
            assert (await ask(client, "POST", "/add_worker", params={"url": urls[1]}))[0] == 200
            assert [row["url"] for row in json.loads((folder / "state.json").read_text())["workers"]] == urls


async def test_both_versions_pass_during_an_update_and_one_after_it():
    async with (
        serving(Upstream(version="1")) as old,
        serving(Upstream(version="2")) as new,
        routing(old.url, new.url) as (_, client),
    ):
        _, answer = await ask(client, "PUT", "/weight_version", json={"version": 2, "previous": 1})
        assert answer == {"weight_versions": ["2", "1"], "stale": []}
        _, answer = await ask(client, "PUT", "/weight_version", json={"version": 2})
        assert answer == {"weight_versions": ["2"], "stale": [old.url]}
        for _ in range(4):
            async with client.post("/generate") as reply:
                assert reply.status == 418
        assert not old.seen
        old.version = "2"
        while (await states(client))[old.url] != "ready":
            await asyncio.sleep(0.02)


async def test_an_engine_that_returns_to_its_url_with_other_weights_is_noticed_when_it_registers():
    async with serving(Upstream(version="2")) as worker, routing(worker.url, interval=60) as (_, client):
        await ask(client, "PUT", "/weight_version", json={"version": 2})
        assert await states(client) == {worker.url: "ready"}
        worker.version = "1"
        await ask(client, "POST", "/add_worker", params={"url": worker.url})
        assert await states(client) == {worker.url: "stale"}


async def test_who_does_not_say_its_version_is_taken_at_its_last_word():
    limits = Limits(connect=0.6, idle=20.0)
    async with serving(Upstream(version="1")) as worker, routing(worker.url, limits=limits) as (_, client):
        await ask(client, "PUT", "/weight_version", json={"version": 1})
        worker.mute = True
        _, answer = await ask(client, "PUT", "/weight_version", json={"version": 2, "previous": 1})
        assert answer["stale"] == []
        _, answer = await ask(client, "PUT", "/weight_version", json={"version": 2})
        assert answer["stale"] == [worker.url]
        assert await states(client) == {worker.url: "stale"}
        worker.mute, worker.version = False, "2"
        while (await states(client))[worker.url] != "ready":
            await asyncio.sleep(0.02)


async def test_registering_again_does_not_open_the_gate():
    async with serving(Upstream(version="1")) as worker, routing(worker.url, interval=60) as (_, client):
        await ask(client, "PUT", "/weight_version", json={"version": 2})
        await ask(client, "POST", "/add_worker", params={"url": worker.url})
        assert await states(client) == {worker.url: "stale"}
        status, answer = await ask(client, "POST", "/generate")
        assert status == 503
        assert "has other weights" in answer["error"]["message"]
        worker.version = "2"
        await ask(client, "POST", "/add_worker", params={"url": worker.url})
        assert await states(client) == {worker.url: "ready"}


@pytest.mark.parametrize("answer", [[1], {"weight_version": None}, {}])
async def test_a_worker_that_says_no_version_does_not_pass_the_gate(answer):
    async with (
        serving(Upstream(status=200, answer=answer, model=answer)) as worker,
        routing(worker.url, interval=0.01) as (_, client),
    ):
        await ask(client, "PUT", "/weight_version", json={"version": 2})
        if isinstance(answer, dict):
            assert await states(client) == {worker.url: "stale"}
        worker.model = {"weight_version": 2}
        while (await states(client))[worker.url] != "ready":
            await asyncio.sleep(0.02)


async def test_a_version_is_required():
    async with routing() as (_, client):
        for fields in ({}, {"version": [1]}, {"version": ""}, {"version": 1, "previous": [0]}):
            assert (await ask(client, "PUT", "/weight_version", json=fields))[0] == 400
        assert (await ask(client, "GET", "/weight_version"))[1] == {"weight_versions": []}


async def test_prometheus_can_read_the_state():
    async with serving(Upstream()) as worker, routing(worker.url) as (_, client):
        async with client.post("/generate") as reply:
            await reply.read()
        async with client.get("/metrics") as reply:
            page = await reply.text()
    samples = {
        (sample.name, sample.labels.get("state")): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    assert samples["router_worker_answered_total", None] == 1
    assert samples["router_worker_in_flight", None] == 0
    assert samples["router_worker_state", "ready"] == 1
    assert samples["router_worker_state", "stale"] == 0
    assert samples["router_queue_length", None] == 0


def test_a_port_in_use_says_so():
    with listen(RouterSpec()) as listener, pytest.raises(UserError, match=r"in use.*\n.*--port.*--sglang-router-port"):
        listen(RouterSpec(port=listener.getsockname()[1]))


def test_a_host_of_others_says_so():
    with pytest.raises(UserError, match=r"192\.0\.2\.1.*\n.*--bind-host"):
        listen(RouterSpec(hosts=Hosts(bind_host="192.0.2.1")))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--sglang-server-concurrency 0", "--sglang-server-concurrency 0: must be at least 1"),
        ("--router-timeout 0", "--router-timeout 0.0: must be above 0"),
        ("--router-queue-seconds -1", "--router-queue-seconds -1.0: must be at least 0"),
        ("--port -1", "--port -1: must be at least 1"),
        ("--port 65536", "--port 65536: must be at least 1 and at most 65535"),
    ],
)
def test_what_no_router_can_be_is_refused(flags, words):
    with pytest.raises(UserError, match=words):
        router.main(flags.split())
