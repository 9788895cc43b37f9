"""The key that opens, off loopback, what changes a server: weights of engines, engines of a router, new sessions.

Invariant: on loopback nobody is asked for it. It is no part of a URL or of an actor's environment, which are shown.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Mapping

from miles_lite.process.addresses import loopback

VARIABLE = "MILES_LITE_ADMIN_KEY"
"""Environment variable with the key; without it one is made up wherever servers are started."""


def admin_key(bind_host: str, *given: str | None) -> str | None:
    """The key of servers that listen on `bind_host`: the first that was given, else a new one. None on loopback."""
    return None if loopback(bind_host) else next(filter(None, given), None) or secrets.token_urlsafe(24)


def known_key() -> str | None:
    """The key that the user gave this process."""
    return os.environ.get(VARIABLE) or None


def announced(key: str | None, *given: str | None) -> str:
    """A line for whoever starts servers by hand: their key where none was given; else nothing."""
    return f"admin key {key}    made up; {VARIABLE} sets it\n" if key and key not in given else ""


def needed(what: str) -> str:
    """What a request is told that does not show the key, where `what` takes it."""
    return f"{what} needs the admin key as Authorization: Bearer; clients of miles_lite take it from {VARIABLE}"


def bearer(key: str | None) -> dict[str, str]:
    """The header that shows `key` (RFC 6750, section 2.1); none without a key."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def key_of(headers: Mapping[str, str]) -> str:
    """The key that a request shows: a bearer token, or x-api-key as Anthropic's clients have it."""
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("X-Api-Key", "")


def equal(shown: str, key: str) -> bool:
    """Takes as long for a key that is nearly right as for any other."""
    return hmac.compare_digest(shown.encode(errors="surrogateescape"), key.encode(errors="surrogateescape"))


def authorizes(headers: Mapping[str, str], key: str) -> bool:
    """Whether a request shows `key`."""
    return equal(key_of(headers), key)
