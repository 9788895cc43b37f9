"""A prefill and a decode SGLang server that move caches over TCP, beside one regular server, on one Qwen3-MoE.

All three keep a radix cache, so that later turns of a session hit one on either side.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from miles_lite.config.choices import WorkerType
from miles_lite.config.engines import Engines, Routing
from miles_lite.engine.actor import EngineActor
from miles_lite.engine.disaggregation import missing
from miles_lite.engine.spec import EngineSpec
from miles_lite.router.backend import Worker
from miles_lite.router.pairs import with_room
from miles_lite.router.spec import RouterSpec
from miles_lite.router.supervised_router import Supervisor
from tests.models import make_tiny_moe

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(missing() is not None, reason=missing() or "")]
LAYERS, TOP_K = 2, 2
PROMPT = [random.Random(1).randrange(20, 400) for _ in range(200)]


@dataclass(frozen=True)
class Fleet:
    """URLs of the router in front of the pair, and of the regular server; the pair's own for control."""

    pair: str
    single: str
    engines: tuple[str, ...]

    def both(self, path: str = "/generate", **body: Any) -> tuple[Any, Any]:
        """The replies of pair and single server to one body."""
        return ask(self.pair + path, **body), ask(self.single + path, **body)


def ask(url: str, **body: Any) -> Any:
    """A JSON reply, or the JSON events of a stream."""
    reply = requests.post(url, json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    if "event-stream" not in reply.headers["Content-Type"]:
        return reply.json()
    return [json.loads(line[6:]) for line in reply.text.split("\n\n") if line.startswith("data: {")]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("pair")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(doing: Coroutine[Any, Any, Any], seconds: float = 300.0) -> Any:
        return asyncio.run_coroutine_threadsafe(doing, loop).result(seconds)

    router = Supervisor(RouterSpec())
    model, roles = make_tiny_moe(folder / "model"), (WorkerType.PREFILL, WorkerType.DECODE, WorkerType.REGULAR)
    actors = []
    try:
        router_url = run(router.start())
        actors = [EngineActor(engine_spec(folder, model, role, router_url)) for role in roles]
        infos = run(gathered(*(actor.start() for actor in actors)))
        yield Fleet(router_url, infos[2].url, tuple(info.url for info in infos))
    finally:
        run(gathered(*(actor.stop() for actor in actors), router.stop()))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def gathered(*doing: Coroutine[Any, Any, Any]) -> list[Any]:
    return list(await asyncio.gather(*doing))


def engine_spec(folder: Path, model: Path, role: WorkerType, router_url: str) -> EngineSpec:
    return EngineSpec(
        index=0,
        model_path=str(model),
        device="cpu",
        log_path=str(folder / f"{role}.log"),
        worker_type=role,
        router_urls=() if role == "regular" else (router_url,),
        context_length=1024,
        threads=1,
        routing=Routing(sglang_server_concurrency=8),
        engines=Engines(
            sglang_args={
                "enable_return_routed_experts": True,
                "disaggregation_decode_enable_radix_cache": role == "decode",
            }
        ),
    )


def body(input_ids: list[int] | list[list[int]], **more: Any) -> dict[str, Any]:
    sampling = {"max_new_tokens": 6, "temperature": 0, "ignore_eos": True}
    asked = {"return_logprob": True, "logprob_start_len": 0, "return_routed_experts": True}
    return {"input_ids": input_ids, "sampling_params": sampling, **asked, **more}


def assert_same(pair: dict[str, Any], single: dict[str, Any]) -> None:
    """Token for token: ids, logprobs of both sides, experts of every row, version spans, cached tokens."""
    assert pair["output_ids"] == single["output_ids"]
    one, other = pair["meta_info"], single["meta_info"]
    for name in ("input_token_logprobs", "output_token_logprobs"):
        assert [entry[1] for entry in one[name]] == [entry[1] for entry in other[name]]
        np.testing.assert_allclose(logprobs(one[name]), logprobs(other[name]), atol=1e-4)
    np.testing.assert_array_equal(experts(one), experts(other))
    for name in ("weight_versions", "prompt_tokens", "completion_tokens", "cached_tokens", "finish_reason"):
        assert one[name] == other[name], name


def logprobs(entries: list[list[Any]]) -> list[float]:
    return [entry[0] for entry in entries if entry[0] is not None]


def experts(holder: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(holder["routed_experts"]), np.int32).reshape(-1, LAYERS, TOP_K)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 150])
def test_a_pair_answers_as_one_engine_does(fleet: Fleet, length: int):
    pair, single = fleet.both(**body(PROMPT[-length:]))
    assert_same(pair, single)
    assert len(experts(pair["meta_info"])) == length + 6 - 1


@pytest.mark.parametrize("start", [1, 20, 39, 40])
def test_expert_rows_start_where_the_client_asks(fleet: Fleet, start: int):
    pair, single = fleet.both(**body(PROMPT[40:80], routed_experts_start_len=start))
    assert_same(pair, single)
    assert len(experts(pair["meta_info"])) == 40 + 6 - 1 - start


def test_turns_of_a_session_hit_the_radix_cache_and_keep_their_experts(fleet: Fleet):
    prompt, seen = PROMPT[:90], []
    for turn in range(3):
        asked = body(prompt, logprob_start_len=-1)
        asked["sampling_params"]["max_new_tokens"] = 20
        headers = {"X-SMG-Routing-Key": "a session"}
        pair = requests.post(f"{fleet.pair}/generate", json=asked, headers=headers, timeout=60).json()
        single = ask(f"{fleet.single}/generate", **asked)
        fresh = ask_without_cache(fleet, asked)
        assert pair["output_ids"] == single["output_ids"] == fresh["output_ids"]
        np.testing.assert_array_equal(experts(pair["meta_info"]), experts(fresh["meta_info"]))
        seen.append(pair["meta_info"]["cached_tokens"])
        prompt = [*prompt, *pair["output_ids"], *PROMPT[turn * 7 : turn * 7 + 7]]
    assert seen[0] < seen[1] < seen[2]
    for half in both_halves(fleet, body(prompt, logprob_start_len=-1)):
        assert half["meta_info"]["cached_tokens"] > 100


def both_halves(fleet: Fleet, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """What prefill and decode worker say by themselves, unmerged."""
    listed = requests.get(f"{fleet.pair}/workers", timeout=10).json()["workers"]
    known = {one["worker_type"]: one for one in listed}
    meeting = Worker(known["prefill"]["url"], WorkerType.PREFILL, known["prefill"]["bootstrap_port"])
    sent = json.loads(with_room(json.dumps(asked).encode(), meeting))
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda role: ask(f"{known[role]['url']}/generate", **sent), ("prefill", "decode")))


def ask_without_cache(fleet: Fleet, asked: dict[str, Any]) -> dict[str, Any]:
    requests.post(f"{fleet.single}/flush_cache", timeout=30).raise_for_status()
    answer: dict[str, Any] = ask(f"{fleet.single}/generate", **asked)
    return answer


def test_a_batch_is_merged_prompt_by_prompt(fleet: Fleet):
    prompts = [PROMPT[100:140], PROMPT[3:9], PROMPT[150:]]
    pair, single = fleet.both(**body(prompts))
    assert len(pair) == len(single) == 3
    for one, other in zip(pair, single, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("prompts", [PROMPT[11:51], [PROMPT[12:52], PROMPT[13:20]]])
def test_a_stream_is_merged_event_by_event(fleet: Fleet, prompts: Any):
    count = len(prompts) if isinstance(prompts[0], list) else 1
    pair, single = (finished(events, count) for events in fleet.both(**body(prompts, stream=True)))
    for one, other in zip(pair, single, strict=True):
        assert_same(one, other)


def finished(events: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """What the streams of a batch amount to: all output, and the last event's meta_info."""
    whole: list[dict[str, Any]] = [{"output_ids": [], "logprobs": []} for _ in range(count)]
    for event in events:
        one = whole[event.get("index", 0)]
        one["output_ids"] += event["output_ids"]
        one["logprobs"] += event["meta_info"]["output_token_logprobs"]
        assert event["meta_info"]["input_token_logprobs"], "every event carries them, as with one engine"
        one["meta_info"] = event["meta_info"] | {"output_token_logprobs": one["logprobs"]}
    return whole


def test_chat_replies_and_streams_carry_the_experts_of_one_engine(fleet: Fleet):
    chat = {
        "model": "m",
        "messages": [{"role": "user", "content": "hello world, how are you today?"}],
        "max_tokens": 5,
        "temperature": 0,
        "return_routed_experts": True,
    }
    pair, single = fleet.both("/v1/chat/completions", **chat, return_meta_info=True)
    one, other = (reply["choices"][0] for reply in (pair, single))
    assert one["message"] == other["message"]
    np.testing.assert_array_equal(experts(one["meta_info"]), experts(other["meta_info"]))
    pair, single = fleet.both("/v1/chat/completions", **chat, stream=True)
    one, other = (next(event["sglext"] for event in events if event.get("sglext")) for events in (pair, single))
    np.testing.assert_array_equal(experts(one), experts(other))


def test_a_refused_prompt_is_refused_at_once(fleet: Fleet):
    reply = requests.post(f"{fleet.pair}/generate", json=body([5] * 2000), timeout=20)
    assert reply.status_code == 400
    assert "context length" in reply.text


def test_a_client_that_leaves_frees_both_halves(fleet: Fleet):
    asked = body(PROMPT[:30])
    asked["sampling_params"]["max_new_tokens"] = 900
    with pytest.raises(requests.Timeout):
        requests.post(f"{fleet.pair}/generate", json=asked, timeout=0.5)
    for _ in range(200):
        listed = requests.get(f"{fleet.pair}/workers", timeout=10).json()["workers"]
        if not any(worker["load"] for worker in listed):
            break
        threading.Event().wait(0.05)
    assert [worker["load"] for worker in listed] == [0, 0]
    pair, single = fleet.both(**body(PROMPT[60:100]))
    assert_same(pair, single)
