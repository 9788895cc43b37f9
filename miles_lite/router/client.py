"""What the one who updates weights says to a router.

Invariant: a router that has no weight gate (any other than ours) is no error; it is said once per call, and left alone.
"""

from __future__ import annotations

import logging

import aiohttp

from miles_lite.admin import bearer

log = logging.getLogger(__name__)
TIMEOUT = aiohttp.ClientTimeout(total=30.0)


async def set_weight_version(
    url: str, version: int, *, previous: int | None = None, key: str | None = None
) -> list[str]:
    """Tell the router at `url` which version may serve, and during an update which other; returns who has neither.

    `key`: the router's admin key, if it has one.
    """
    body = {"version": version, "previous": previous}
    try:
        async with (
            aiohttp.ClientSession(timeout=TIMEOUT) as client,
            client.put(f"{url}/weight_version", json=body, headers=bearer(key)) as reply,
        ):
            if reply.status == 200:
                stale: list[str] = (await reply.json())["stale"]
                return stale
            reason = f"{reply.status} {(await reply.text())[:200]}"
    except (aiohttp.ClientError, TimeoutError) as error:
        reason = str(error) or type(error).__name__
    log.warning("the router at %s did not take weight version %d: %s", url, version, reason)
    return []
