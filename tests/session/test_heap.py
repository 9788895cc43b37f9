"""What a session server keeps in memory when it has answered, and when sessions end."""

from __future__ import annotations

import platform
import tracemalloc
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from miles_lite.session.memory import Heap
from tests.session.engine import STOP, answer, bench
from tests.waiting import until

MB = 2**20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries give memory back unasked")
async def test_what_is_left_between_things_that_stay_is_given_back() -> None:
    held = [bytes(10_000) for _ in range(10_000)]
    memory = psutil.Process().memory_info().rss
    del held[1:-1]
    heap = Heap()
    heap.left()
    heap.left()
    await until(lambda: psutil.Process().memory_info().rss < memory - 50 * MB, "it to be given back")
    assert len(held) == 2


async def test_a_waiting_connection_keeps_no_request(tiny_model: Path) -> None:
    """The first turn is for what is made once."""

    async with bench(tiny_model, lambda body: answer([5, STOP])) as b, aiohttp.ClientSession() as http:
        for megabytes in (0, 6):
            body: dict[str, Any] = {"messages": [{"role": "user", "content": "go"}], "user": "x" * megabytes * MB}
            tracemalloc.start()
            async with http.post(f"{b.client.base_url(await b.client.create())}/chat/completions", json=body) as r:
                assert r.status == 200
                await r.read()
            del body
            await until(lambda: tracemalloc.get_traced_memory()[0] < 3 * MB, "what the request took")
            tracemalloc.stop()
