"""Asks a server whether it is there."""

from __future__ import annotations

from http import HTTPStatus

import aiohttp


async def answers(url: str, *, seconds: float) -> bool:
    """Whether a GET of `url` is answered with 200 within `seconds`."""
    return await refusal(url, seconds=seconds) is None


async def refusal(url: str, *, seconds: float) -> str | None:
    """None where it is; else what became of it, in words that follow those of who was asked: `answers 503`."""
    timeout = aiohttp.ClientTimeout(total=seconds)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as client, client.get(url) as reply:
            return None if reply.status == HTTPStatus.OK else f"answers {reply.status}"
    except TimeoutError:
        return f"does not answer within {seconds:g} s"
    except aiohttp.ClientError as error:
        return f"cannot be asked ({error})"
