"""A key per session, which its agent sends as its API key.

Invariant: a session's key follows from the server's secret and the session's id, so that it is valid as long as the
session, restarts included, and opens no other session.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from miles_lite.session.errors import ApiError

PREFIX = "sk-session-"


class Keys:
    """Makes and checks keys. Where none are `required`, whatever clients send is good."""

    def __init__(self, secret: str, *, required: bool) -> None:
        self._secret, self.required = secret.encode(), required

    def key_of(self, session_id: str) -> str:
        return PREFIX + hmac.new(self._secret, session_id.encode(), "sha256").hexdigest()

    def check(self, session_id: str, headers: Mapping[str, str]) -> None:
        """Raises ApiError 401 unless the session's key is the bearer token or x-api-key."""
        if not self.required:
            return
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("X-Api-Key", "")
        if not hmac.compare_digest(given.encode(), self.key_of(session_id).encode()):
            raise ApiError(
                401,
                "this session needs its key, which POST /sessions returned as api_key: give it to the client as its "
                "API key",
                code="invalid_api_key",
            )
