"""The HTTP face of a session server.

Invariant: only the routes listed here exist; every answer but samples and streams is JSON, and errors have the shape of
the dialect that the route speaks. Nothing of an engine's HTTP answer, headers above all, reaches a client.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import orjson
from aiohttp import web

from miles_lite.session.caller import agent_name
from miles_lite.session.codec import encode_samples
from miles_lite.session.dialects import ChatCompletions, Dialect, Messages, Responses
from miles_lite.session.dialects.fields import check_limits
from miles_lite.session.errors import ApiError, bad_request
from miles_lite.session.exchange import ChatRequest
from miles_lite.session.openapi import openapi
from miles_lite.session.sampling import check_run
from miles_lite.session.service import Service
from miles_lite.session.streaming import Stream
from miles_lite.session.turns import encode_turns

MAX_BODY_BYTES = 64 * 2**20

log = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_CHAT, _RESPONSES, _MESSAGES = ChatCompletions(), Responses(), Messages()


def build_app(service: Service, *, model: Mapping[str, str], keep_alive: float) -> web.Application:
    """`model` is the model's fingerprint; /v1/models lists its name. A stream is never silent for more than
    `keep_alive` seconds."""
    routes = _Routes(service, dict(model), keep_alive)
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_errors])
    app.add_routes(
        [
            web.get("/health", routes.health),
            web.get("/openapi.json", routes.openapi),
            web.get("/v1/models", routes.models),
            web.post("/sessions", routes.create),
            web.get("/sessions/{session_id}", routes.describe),
            web.get("/sessions/{session_id}/turns", routes.turns),
            web.delete("/sessions/{session_id}", routes.delete),
            web.post("/sessions/{session_id}/samples", routes.samples),
            web.get("/sessions/{session_id}/v1/models", routes.models),
            web.post("/sessions/{session_id}/v1/chat/completions", routes.speaking(_CHAT)),
            web.post("/sessions/{session_id}/v1/responses", routes.speaking(_RESPONSES)),
            web.post("/sessions/{session_id}/v1/messages", routes.speaking(_MESSAGES)),
            web.post("/sessions/{session_id}/v1/messages/count_tokens", routes.count_tokens),
        ]
    )
    return app


class _Routes:
    def __init__(self, service: Service, model: dict[str, str], keep_alive: float) -> None:
        self._service, self._model, self._keep_alive = service, model, keep_alive

    async def health(self, request: web.Request) -> web.Response:
        return _json({"status": "ok"} | self._service.stats())

    async def models(self, request: web.Request) -> web.Response:
        """The one model, as clients of OpenAI and of Anthropic read it."""
        name = self._model["name"]
        openai = {"id": name, "object": "model", "created": 0, "owned_by": "miles_lite"}
        anthropic = {"type": "model", "display_name": name, "created_at": "1970-01-01T00:00:00Z"}
        page = {"has_more": False, "first_id": name, "last_id": name}
        return _json({"object": "list", "data": [openai | anthropic]} | page)

    async def openapi(self, request: web.Request) -> web.Response:
        return _json(openapi())

    async def create(self, request: web.Request) -> web.Response:
        body = await _body(request)
        return _json({"session_id": self._service.create(check_run(body.get("sampling")))})

    async def describe(self, request: web.Request) -> web.Response:
        return _json(self._service.describe(_session_id(request)))

    async def turns(self, request: web.Request) -> web.Response:
        body = encode_turns(self._service.tree(_session_id(request)), model=self._model)
        return web.Response(body=body, content_type="application/json")

    async def delete(self, request: web.Request) -> web.Response:
        self._service.delete(_session_id(request))
        return web.Response(status=204)

    async def samples(self, request: web.Request) -> web.Response:
        limit = (await _body(request)).get("max_seq_len")
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
            raise bad_request("max_seq_len must be a positive integer", param="max_seq_len")
        samples = self._service.samples(_session_id(request), max_seq_len=limit)
        return web.Response(body=encode_samples(samples), content_type="application/octet-stream")

    def speaking(self, dialect: Dialect) -> Handler:
        """A handler that runs one turn in `dialect`."""

        async def handle(request: web.Request) -> web.StreamResponse:
            parsed = await _parsed(request, dialect)
            session_id, answer_id = _session_id(request), dialect.prefix + uuid.uuid4().hex
            if not parsed.stream:
                answer = await self._service.chat(session_id, parsed, answer_id=answer_id)
                return _json(dialect.answer(parsed, answer))
            stream = Stream(request, parsed, dialect, answer_id, keep_alive=self._keep_alive)
            return await stream.run(
                lambda on_delta: self._service.chat(session_id, parsed, answer_id=answer_id, on_delta=on_delta)
            )

        return handle

    async def count_tokens(self, request: web.Request) -> web.Response:
        parsed = await _parsed(request, _MESSAGES)
        return _json({"input_tokens": self._service.count_tokens(_session_id(request), parsed)})


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        return _refusal(request, error)
    except web.HTTPRequestEntityTooLarge:
        return _refusal(request, ApiError(413, f"the request body is over {MAX_BODY_BYTES} bytes"))
    except web.HTTPException as error:
        return _refusal(request, ApiError(error.status, f"{request.method} {request.path}: {error.reason}"), error)
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return _refusal(request, ApiError(500, "internal error: see the session server's log"))


def _refusal(request: web.Request, error: ApiError, cause: web.HTTPException | None = None) -> web.Response:
    """The error in the shape of the route's dialect."""
    anthropic = "/v1/messages" in request.path
    answer = _json((_MESSAGES if anthropic else _CHAT).error(error), status=error.status)
    if cause is not None and "Allow" in cause.headers:
        answer.headers["Allow"] = cause.headers["Allow"]
    return answer


async def _body(request: web.Request) -> Any:
    data = await request.read()
    try:
        body = orjson.loads(data) if data else {}
    except orjson.JSONDecodeError as error:
        raise bad_request(f"the request body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise bad_request("the request body must be a JSON object")
    check_limits(body)
    return body


async def _parsed(request: web.Request, dialect: Dialect) -> ChatRequest:
    body = await _body(request)
    return replace(dialect.parse(body), agent=agent_name(request.headers, body))


def _session_id(request: web.Request) -> str:
    return request.match_info["session_id"]


def _json(body: Any, *, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")
