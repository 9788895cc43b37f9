"""What a server bears at a moment, as SGLang's `GET /v1/loads` tells it: per data-parallel rank, from its scheduler.

Invariant: asking has a bound, and a server that does not say is None, not idle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import aiohttp

from miles_lite.process.json_types import JsonMapping

TIMEOUT = aiohttp.ClientTimeout(total=5.0)


@dataclass(frozen=True)
class Load:
    """kv_use    share of the KV cache that requests hold; what could be evicted does not count
    running      requests that are decoded, or prefilled
    queued       requests that wait
    preempted    requests that lately had to give their place back (0 where the server keeps no such count)
    tokens_per_second  that it samples, by its own count
    version      of the weights that it serves; None where nobody says, and of several servers
    """

    kv_use: float
    running: int
    queued: int
    preempted: int
    tokens_per_second: float = 0.0
    version: int | None = None


def read(answer: JsonMapping) -> Load | None:
    """From the body of the answer; None where it is another one."""
    ranks = answer.get("loads")
    if not isinstance(ranks, Sequence) or not ranks or not all("token_usage" in rank for rank in ranks):
        return None
    return together(
        Load(
            kv_use=float(rank["token_usage"]),
            running=int(rank["num_running_reqs"]),
            queued=int(rank["num_waiting_reqs"]),
            preempted=int((rank.get("queues") or {}).get("retracted", 0)),
            tokens_per_second=float(rank.get("gen_throughput", 0.0)),
        )
        for rank in ranks
    )


def together(loads: Iterable[Load]) -> Load:
    """Of several servers alike, at least one: their caches' mean use, and all requests."""
    each = list(loads)
    return Load(
        kv_use=sum(one.kv_use for one in each) / len(each),
        running=sum(one.running for one in each),
        queued=sum(one.queued for one in each),
        preempted=sum(one.preempted for one in each),
        tokens_per_second=sum(one.tokens_per_second for one in each),
    )


async def fetch_load(*, url: str, headers: Mapping[str, str]) -> Load | None:
    """Of the server at `url`; None where it does not say."""
    try:
        async with (
            aiohttp.ClientSession(timeout=TIMEOUT, headers=headers) as client,
            client.get(f"{url}/v1/loads") as reply,
        ):
            answer = await reply.json() if reply.status == 200 else {}
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return None
    return read(answer) if isinstance(answer, dict) else None
