"""A reward model behind a URL (--rm-url): what it answers is the reward."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import orjson

from miles_lite.config.rewards import Rewards
from miles_lite.rollout.rewards.answer import Answer, Score, broken

PAUSE = 0.5
"""Seconds before a request is made again; twice as many each time."""


async def remote_rm(answer: Answer, options: Rewards, /) -> Score:
    """POST {"prompt", "response", "label"}; a number, an object with the reward under --reward-key, or null.

    Raises RolloutError.
    """
    assert options.rm_url is not None
    body = {"prompt": answer.prompt, "response": answer.response, "label": answer.label}
    said = await posted(options.rm_url, body, options)
    if said is None or isinstance(said, int | float | dict):
        return said
    raise broken(f"--rm-url {options.rm_url}: answered {said!r:.200}, which is no reward")


async def posted(url: str, body: dict[str, Any], options: Rewards) -> Any:
    """The JSON of an answer, asked for again after what may pass: no connection, no answer in time, 429 and 5xx.

    Raises RolloutError.
    """
    timeout = aiohttp.ClientTimeout(total=options.rm_timeout)
    pause, flaw = PAUSE, ""
    async with aiohttp.ClientSession(timeout=timeout) as client:
        for again in range(options.rm_retries + 1):
            if again:
                await asyncio.sleep(pause)
                pause *= 2
            try:
                async with client.post(url, json=body) as reply:
                    text = await reply.read()
            except (aiohttp.ClientError, TimeoutError) as error:
                flaw = f"{type(error).__name__} {error}".strip()
                continue
            if reply.status == 200:
                try:
                    return orjson.loads(text)
                except ValueError:
                    return text.decode(errors="replace")
            flaw = f"{reply.status} {text[:300].decode(errors='replace')}"
            if reply.status < 500 and reply.status != 429:
                break
    raise broken(f"{url}: {flaw}")
