"""A key per session, which its agent sends as its API key, and one that opens sessions.

Invariant: a session's key holds the session's id and what follows from it and the server's secret, so that it says by
itself whose it is, is valid as long as the session, restarts included, and opens no other session.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from miles_lite.process.admin_key import authorizes, equal, key_of, needed
from miles_lite.session.errors import ApiError

PREFIX = "sk-session-"


class Keys:
    """Makes and checks keys. Where none are `required`, whatever clients send is good."""

    def __init__(self, secret: str, *, required: bool, admin: str | None = None) -> None:
        """`admin` opens sessions; None: whoever asks does."""
        self._secret, self.required, self._admin = secret.encode(), required, admin

    def key_of(self, session_id: str) -> str:
        named = session_id.encode(errors="surrogateescape")
        return f"{PREFIX}{session_id}-{hmac.new(self._secret, named, 'sha256').hexdigest()}"

    def check(self, session_id: str, shown: str) -> None:
        """Where keys are required: raises ApiError 401 unless the key that a request shows is the session's."""
        if not equal(shown, self.key_of(session_id)):
            raise _refused("this session needs its key, which POST /sessions returned as api_key")

    def session_of(self, shown: str) -> str:
        """The session whose key a request shows, required or not. Raises ApiError 401."""
        session_id = shown.removeprefix(PREFIX).rpartition("-")[0]
        if not session_id or not equal(shown, self.key_of(session_id)):
            raise _refused("at this address the key says which session is meant: POST /sessions returned it as api_key")
        return session_id

    def check_opening(self, headers: Mapping[str, str]) -> None:
        """Raises ApiError 401 unless the admin key is shown, where there is one."""
        if self._admin is not None and not authorizes(headers, self._admin):
            raise ApiError(401, needed("opening a session"), code="invalid_api_key")


def shown_key(headers: Mapping[str, str], query: Mapping[str, str]) -> str:
    """The key that a request shows, in the way of any dialect; empty when it shows none."""
    return key_of(headers) or headers.get("X-Goog-Api-Key", "") or query.get("key", "")


def _refused(why: str) -> ApiError:
    how = "send it as Authorization: Bearer, x-api-key or x-goog-api-key, as clients do with their API key"
    return ApiError(401, f"{why}; {how}", code="invalid_api_key")
