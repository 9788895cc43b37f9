"""The agent's side of a session server: OpenAI chat in, turns with ids out.

Invariant: every call ends within its bound; what the server refuses is a UserError in its words, a full context is
`ContextFull`. A call is never repeated: the session server itself retries engines.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from functools import cache
from types import TracebackType
from typing import Self

import httpx

from miles_lite.errors import UserError
from miles_lite.process.admin_key import bearer
from miles_lite.process.json_types import Json, JsonMapping, JsonObject, parsed

CALL_SECONDS = 660.0
"""Longer than the server's own bound on one turn."""
WHAT_URL = "  MODEL is a model folder, or the `sessions` URL that `miles-lite serve` prints."


@cache
def _tls() -> ssl.SSLContext:
    """Reading the system's certificates takes longer than a whole session."""
    return ssl.create_default_context()


class ContextFull(Exception):
    """The conversation no longer fits into the model's context."""


class AgentSession:
    """One session at a server's `url`; a context manager that opens and deletes it."""

    def __init__(
        self,
        url: str,
        *,
        sampling: JsonMapping | None = None,
        request: JsonMapping | None = None,
        turns: Sequence[JsonMapping] = (),
        admin_key: str | None = None,
    ) -> None:
        """`sampling` in the engines' names: temperature, top_p, ...; `request`: more fields of every chat request;
        `turns`: those of another session that it goes on from; `admin_key`: what the server wants for opening one."""
        self._url, self._sampling, self._request = url.rstrip("/"), dict(sampling or {}), dict(request or {})
        self._turns = list(turns)
        self._http = httpx.Client(timeout=httpx.Timeout(CALL_SECONDS, connect=10.0), trust_env=False, verify=_tls())
        self._http.headers.update(bearer(admin_key or "-"))
        self.session_id, self._owned = "", True

    @classmethod
    def joining(cls, base_url: str, *, api_key: str | None = None, request: JsonMapping | None = None) -> Self:
        """A session that somebody else opened and will delete, by its OpenAI base URL, `.../sessions/ID/v1`, and its
        key, which servers off loopback want. Raises UserError."""
        url, found, rest = base_url.rstrip("/").rpartition("/sessions/")
        session_id, _, version = rest.partition("/")
        if not found or not session_id or version != "v1":
            raise UserError(f"{base_url} is no base URL of a session: it ends in /sessions/ID/v1")
        session = cls(url, request=request)
        session._http.headers["Authorization"] = f"Bearer {api_key or '-'}"
        session.session_id, session._owned = session_id, False
        return session

    def __enter__(self) -> Self:
        if not self._owned:
            return self
        try:
            body = self._call("POST", "/sessions", {"sampling": self._sampling, "turns": self._turns})
            if not isinstance(body, dict) or "session_id" not in body:
                raise UserError(f"{self._url} is no session server: POST /sessions gave no session_id\n{WHAT_URL}")
        except BaseException:
            self._http.close()
            raise
        self.session_id = str(body["session_id"])
        self._http.headers.update(bearer(body.get("api_key") or "-"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._owned:
                self._call("DELETE", f"/sessions/{self.session_id}")
        except UserError:
            if kind is None:
                raise
        finally:
            self._http.close()

    def chat(
        self,
        messages: Sequence[JsonMapping],
        *,
        max_tokens: int | None = None,
        tools: Sequence[JsonMapping] = (),
        agent: str | None = None,
        one_object: bool = False,
    ) -> JsonObject:
        """The reply as an assistant message, to be sent back as it is. `agent` names the caller where several share
        the session; with `one_object` nothing is sampled after the reply's first JSON object. Raises ContextFull,
        UserError."""
        body: JsonObject = {"model": "default", **self._request, "messages": list(messages)}
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        if agent is not None:
            body["metadata"] = {**(body.get("metadata") or {}), "agent": agent}
        if tools:
            body["tools"] = list(tools)
        if one_object:
            body["stop_at"] = "json_object"
        answer = self._call("POST", f"/sessions/{self.session_id}/v1/chat/completions", body)
        return dict(answer["choices"][0]["message"])

    def turns(self) -> JsonObject:
        """What `atraj.build` takes."""
        return dict(self._call("GET", f"/sessions/{self.session_id}/turns"))

    def _call(self, method: str, path: str, body: Json = None) -> Json:
        try:
            answer = self._http.request(method, self._url + path, json=body)
        except httpx.HTTPError as error:
            raise UserError(
                f"no answer from the session server at {self._url}: {error or type(error).__name__}\n{WHAT_URL}"
            ) from error
        body = parsed(answer.content) if answer.content else None
        if body is None and answer.content:
            body = answer.text[:500]
        if answer.status_code < 300:
            return body
        refusal = body["error"] if isinstance(body, dict) and isinstance(body.get("error"), dict) else {}
        message = refusal.get("message", body)
        if refusal.get("code") == "context_length_exceeded":
            raise ContextFull(message)
        hint = f"\n{WHAT_URL}" if path == "/sessions" and answer.status_code in (404, 405) else ""
        raise UserError(f"{self._url}{path} answered {answer.status_code}: {message}{hint}")
