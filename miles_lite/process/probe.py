"""Asks a server whether it is there."""

from __future__ import annotations

import aiohttp


async def answers(url: str, *, seconds: float) -> bool:
    """Whether a GET of `url` is answered with 200 within `seconds`."""
    timeout = aiohttp.ClientTimeout(total=seconds)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as client, client.get(url) as reply:
            return reply.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False
