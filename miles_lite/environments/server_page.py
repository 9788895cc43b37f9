"""What a server of an environment says of itself, asked before anything starts.

Invariant: whatever answers there, a page of another server's included, what comes out is an object or a UserError.
"""

from __future__ import annotations

from collections.abc import Mapping

import httpx

from miles_lite.errors import UserError, user_error
from miles_lite.process.json_types import Json, JsonMapping, JsonObject

PAGE_SECONDS = 10.0


def page(url: str, what: str) -> JsonObject:
    """The object at an address. Raises UserError, which begins with `what`."""
    with user_error(what, httpx.HTTPError, httpx.InvalidURL, ValueError):
        told: Json = httpx.get(url, timeout=PAGE_SECONDS).raise_for_status().json()
    if not isinstance(told, dict):
        raise UserError(f"{what}: {url} says {told!r:.200}, which is no object")
    return told


def within(told: Json, *keys: str) -> JsonMapping:
    """The object inside others; an empty one where there is none."""
    for key in keys:
        told = told.get(key) if isinstance(told, Mapping) else None
    return told if isinstance(told, Mapping) else {}
