"""A key per session, which its agent sends as its API key, and one that opens sessions.

Invariant: a session's key follows from the server's secret and the session's id, so that it is valid as long as the
session, restarts included, and opens no other session.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from miles_lite.admin import needed, shows
from miles_lite.session.errors import ApiError

PREFIX = "sk-session-"


class Keys:
    """Makes and checks keys. Where none are `required`, whatever clients send is good."""

    def __init__(self, secret: str, *, required: bool, admin: str | None = None) -> None:
        """`admin` opens sessions; None: whoever asks does."""
        self._secret, self.required, self._admin = secret.encode(), required, admin

    def key_of(self, session_id: str) -> str:
        return PREFIX + hmac.new(self._secret, session_id.encode(), "sha256").hexdigest()

    def check(self, session_id: str, headers: Mapping[str, str]) -> None:
        """Raises ApiError 401 unless the session's key is the bearer token or x-api-key."""
        if self.required and not shows(headers, self.key_of(session_id)):
            raise ApiError(
                401,
                "this session needs its key, which POST /sessions returned as api_key: give it to the client as its "
                "API key",
                code="invalid_api_key",
            )

    def check_opening(self, headers: Mapping[str, str]) -> None:
        """Raises ApiError 401 unless the admin key is shown, where there is one."""
        if self._admin is not None and not shows(headers, self._admin):
            raise ApiError(401, needed("opening a session"), code="invalid_api_key")
