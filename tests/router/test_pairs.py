"""Prefill/decode pairs on workers that answer, refuse, hang and die on demand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from miles_lite.config.choices import WorkerType
from miles_lite.router.backend import Worker
from tests.ports import free_port
from tests.router.upstream import Upstream, eventually, routing, serving

PREFILL_META = {"input_token_logprobs": [[None, 1, None], [-0.5, 2, None]], "weight_version": "1"}
DECODE_META = {"input_token_logprobs": [], "output_token_logprobs": [[-0.1, 7, None]], "weight_version": "1"}
MERGED = {**DECODE_META, "input_token_logprobs": PREFILL_META["input_token_logprobs"]}


def half(meta: dict) -> Upstream:
    """A worker that answers /generate with this meta_info."""
    return Upstream(status=200, answer={"text": "x", "meta_info": meta})


@asynccontextmanager
async def paired(prefill: Upstream, *decodes: Upstream) -> AsyncIterator[tuple]:
    async with routing() as (router, client):
        router.registry.add(Worker(prefill.url, WorkerType.PREFILL, 8998))
        for decode in decodes:
            router.registry.add(Worker(decode.url, WorkerType.DECODE))
        yield router, client


@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_both_halves_get_the_same_body_and_the_client_one_reply(method):
    async with (
        serving(half(PREFILL_META)) as prefill,
        serving(half(DECODE_META)) as decode,
        paired(prefill, decode) as (_, client),
    ):
        sent = b'{"input_ids": [1, 2], "odd":1.50}'
        async with client.request(method, "/generate?x=1", data=sent) as reply:
            assert reply.status == 200
            assert (await reply.json())["meta_info"] == MERGED
        (path, _, one), (other_path, _, other) = prefill.seen[0], decode.seen[0]
        assert path == other_path == "/generate?x=1"
        assert one == other
        assert one.startswith(b'{"input_ids": [1, 2], "odd":1.50,')
        assert json.loads(one)["bootstrap_port"] == 8998


async def test_a_stream_is_merged_event_by_event_as_it_comes():
    async with (
        serving(Upstream(events=[{"meta_info": PREFILL_META}])) as prefill,
        serving(Upstream(events=[{"meta_info": DECODE_META}] * 2)) as decode,
        paired(prefill, decode) as (_, client),
    ):
        prefill.release.set()
        async with client.post("/generate", json={"stream": True}) as reply:
            first = await reply.content.readuntil(b"\n\n")
            assert json.loads(first[6:])["meta_info"] == MERGED
            assert not decode.release.is_set()
            decode.release.set()
            rest = (await reply.content.read()).split(b"\n\n")
            assert [json.loads(rest[0][6:])["meta_info"], *rest[1:]] == [MERGED, b"data: [DONE]", b""]


@pytest.mark.parametrize("refusing", ["prefill", "decode"])
async def test_when_one_half_refuses_the_client_hears_it_and_the_other_is_cancelled(refusing):
    refusal, waiting = Upstream(status=400, answer={"error": "too long"}), Upstream(hangs=True)
    async with serving(refusal), serving(waiting):
        prefill, decode = (refusal, waiting) if refusing == "prefill" else (waiting, refusal)
        async with paired(prefill, decode) as (router, client):
            async with client.post("/generate", json={}) as reply:
                assert (reply.status, await reply.json()) == (400, {"error": "too long"})
            await asyncio.wait_for(waiting.cancelled.wait(), 10)
            assert all(worker.in_flight == 0 for worker in router.registry)
            assert router.registry.find(refusal.url).failures == 0


@pytest.mark.parametrize("dying", ["prefill", "decode"])
async def test_when_one_half_dies_the_other_is_cancelled(dying):
    dead, waiting = Upstream(drops=True), Upstream(hangs=True)
    async with serving(dead), serving(waiting):
        prefill, decode = (dead, waiting) if dying == "prefill" else (waiting, dead)
        async with paired(prefill, decode) as (router, client):
            async with client.post("/generate", json={}) as reply:
                assert reply.status == 502
                assert dead.url in (await reply.json())["error"]["message"]
            await asyncio.wait_for(waiting.cancelled.wait(), 10)
            assert router.registry.find(dead.url).failures == 1


async def test_a_client_that_leaves_cancels_both():
    async with (
        serving(Upstream(hangs=True)) as prefill,
        serving(Upstream(hangs=True)) as decode,
        paired(prefill, decode) as (router, client),
    ):
        asking = asyncio.create_task(client.post("/generate", json={}))
        await asyncio.gather(prefill.arrived.wait(), decode.arrived.wait())
        asking.cancel()
        await asyncio.wait_for(asyncio.gather(prefill.cancelled.wait(), decode.cancelled.wait()), 10)
        await eventually(lambda: not any(one.in_flight for one in router.registry), "the counts to return to 0")


async def test_a_client_that_leaves_a_stream_cancels_it():
    async with (
        serving(Upstream(events=[{"meta_info": PREFILL_META}])) as prefill,
        serving(Upstream(events=[{"meta_info": DECODE_META}] * 2)) as decode,
        paired(prefill, decode) as (router, client),
    ):
        async with client.post("/generate", json={"stream": True}) as reply:
            await reply.content.readuntil(b"\n\n")
        await asyncio.wait_for(decode.cancelled.wait(), 10)
        await eventually(lambda: not any(one.in_flight for one in router.registry), "the counts to return to 0")
        assert not any(one.failures for one in router.registry)


async def test_a_stream_that_breaks_off_is_cut_and_is_the_decode_workers_failure():
    async with (
        serving(Upstream(events=[{"meta_info": PREFILL_META}])) as prefill,
        serving(Upstream(events=[{"meta_info": DECODE_META}] * 2, dies=True)) as decode,
        paired(prefill, decode) as (router, client),
    ):
        for _ in range(3):
            decode.release.clear()
            async with client.post("/generate", json={"stream": True}) as reply:
                await reply.content.readuntil(b"\n\n")
                decode.release.set()
                with pytest.raises(aiohttp.ClientError):
                    await reply.content.read()
        states = {one.worker_type: (one.state, one.served) for one in router.registry}
        assert states == {"prefill": ("ready", 3), "decode": ("unreachable", 0)}


async def test_a_half_that_cannot_be_reached_is_replaced_and_the_session_stays_with_the_new_pair():
    async with serving(half(PREFILL_META)) as prefill, serving(half(DECODE_META)) as decode:
        dead = Upstream(url=f"http://127.0.0.1:{free_port('127.0.0.1')}")
        async with paired(prefill, dead, decode) as (_, client):
            for _ in range(4):
                async with client.post("/generate", json={}, headers={"X-SMG-Routing-Key": "s"}) as reply:
                    assert (await reply.json())["meta_info"] == MERGED
            assert len(decode.seen) == 4


async def test_an_error_event_of_the_prefill_half_is_the_answer():
    async with (
        serving(Upstream(events=[{"error": {"message": "no"}}])) as prefill,
        serving(Upstream(events=[{"meta_info": DECODE_META}])) as decode,
        paired(prefill, decode) as (_, client),
    ):
        prefill.release.set()
        async with client.post("/generate", json={"stream": True}) as reply:
            assert b'"message": "no"' in await reply.read()


async def test_what_generates_nothing_is_asked_of_decode_alone_and_nonsense_is_refused():
    async with (
        serving(half(PREFILL_META)) as prefill,
        serving(half(DECODE_META)) as decode,
        paired(prefill, decode) as (_, client),
    ):
        async with client.get("/v1/models") as reply:
            assert reply.status == 200
        assert (len(prefill.seen), len(decode.seen)) == (0, 1)
        for body in (b"[]", b'{"sampling_params": {"n": 2}}'):
            async with client.post("/generate", data=body) as reply:
                assert reply.status == 400


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_reply_that_is_no_json_is_502(streamed):
    good, bad = half(PREFILL_META), Upstream(status=200)
    if streamed:
        good, bad = Upstream(events=[{"meta_info": DECODE_META}]), Upstream(events=["{no"])
    async with (
        serving(bad) as prefill,
        serving(good) as decode,
        paired(prefill, decode) as (_, client),
        client.post("/generate", json={}) as reply,
    ):
        assert reply.status == 502
        assert "sent no JSON" in (await reply.json())["error"]["message"]
