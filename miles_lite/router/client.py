"""What the one who updates weights says to a router, and asks it.

Invariant: what is not answered as it should be raises; a router that has no weight gate (any other than ours) is no
error: it is said once per call, and left alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp

from miles_lite.errors import UserError
from miles_lite.process.admin_key import bearer
from miles_lite.process.json_types import Json, JsonMapping, JsonObject, parsed

log = logging.getLogger(__name__)
TIMEOUT = aiohttp.ClientTimeout(total=30.0)
NO_SUCH_PATH = (404, 405, 501)


class RouterError(RuntimeError):
    """A router did not answer, or cannot do it just now. The message holds its words."""


@dataclass(frozen=True)
class RouterState:
    """What a router goes by: the weight versions that may serve (none set: all do), and its workers by URL in the form
    of GET /workers."""

    versions: frozenset[str]
    workers: Mapping[str, JsonMapping]


async def set_weight_version(
    url: str, version: int, *, previous: int | None = None, key: str | None = None
) -> list[str]:
    """Tell the router at `url` which version may serve, and during an update which other; returns who has neither.

    `key`: the router's admin key, if it has one. Raises RouterError when it is not there or cannot just now, UserError
    when it refuses.
    """
    status, answer = await _call("PUT", f"{url}/weight_version", key, {"version": version, "previous": previous})
    if status in NO_SUCH_PATH:
        log.warning("the router at %s has no weight gate: it does not hear of version %d", url, version)
        return []
    if status != 200:
        refused = f"the router at {url} did not take weight version {version}: {status} {answer}"
        raise UserError(refused) if status < 500 else RouterError(refused)
    stale: list[str] = answer.get("stale", [])
    return stale


async def fetch_state(url: str) -> RouterState | None:
    """What the router at `url` goes by; None for one without a weight gate. Raises RouterError."""
    status, answer = await _call("GET", f"{url}/workers")
    if status in NO_SUCH_PATH or (status == 200 and "weight_versions" not in answer):
        return None
    if status != 200:
        raise RouterError(f"the router at {url} does not say who its workers are: {status} {answer}")
    return RouterState(frozenset(answer["weight_versions"]), {one["url"]: one for one in answer["workers"]})


async def _call(method: str, url: str, key: str | None = None, body: Json = None) -> tuple[int, JsonObject]:
    """Status and JSON object, which is empty for another body. Raises RouterError without an answer."""
    try:
        async with (
            aiohttp.ClientSession(timeout=TIMEOUT) as client,
            client.request(method, url, json=body, headers=bearer(key)) as reply,
        ):
            answer = parsed(await reply.read())
            return reply.status, answer if isinstance(answer, dict) else {}
    except (aiohttp.ClientError, TimeoutError) as error:
        raise RouterError(f"{method} {url}: {str(error) or type(error).__name__}") from error
