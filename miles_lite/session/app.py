"""The HTTP face of a session server.

Invariant: only the routes listed here exist; every answer but samples and streams is JSON, errors in OpenAI's shape.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from aiohttp import web

from miles_lite.session.chat import ChatRequest, chunk, completion, delta_of, last_chunks, parse_chat
from miles_lite.session.codec import encode_samples
from miles_lite.session.errors import ApiError, bad_request
from miles_lite.session.sampling import check_run
from miles_lite.session.service import Service
from miles_lite.session.turns import encode_turns
from miles_lite.tito import Reply

MAX_BODY_BYTES = 64 * 2**20

log = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build_app(service: Service, *, model: Mapping[str, str]) -> web.Application:
    """`model` is the model's fingerprint; /v1/models lists its name."""
    routes = _Routes(service, dict(model))
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_errors])
    app.add_routes(
        [
            web.get("/health", routes.health),
            web.get("/v1/models", routes.models),
            web.post("/sessions", routes.create),
            web.get("/sessions/{session_id}", routes.describe),
            web.get("/sessions/{session_id}/turns", routes.turns),
            web.delete("/sessions/{session_id}", routes.delete),
            web.post("/sessions/{session_id}/samples", routes.samples),
            web.get("/sessions/{session_id}/v1/models", routes.models),
            web.post("/sessions/{session_id}/v1/chat/completions", routes.chat),
        ]
    )
    return app


class _Routes:
    def __init__(self, service: Service, model: dict[str, str]) -> None:
        self._service, self._model = service, model

    async def health(self, request: web.Request) -> web.Response:
        return _json({"status": "ok"} | self._service.stats())

    async def models(self, request: web.Request) -> web.Response:
        entry = {"id": self._model["name"], "object": "model", "created": 0, "owned_by": "miles_lite"}
        return _json({"object": "list", "data": [entry]})

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

    async def chat(self, request: web.Request) -> web.StreamResponse:
        parsed = parse_chat(await _body(request))
        answer_id = f"chatcmpl-{uuid.uuid4().hex}"
        if parsed.stream:
            return await _Stream(request, parsed, answer_id).run(self._service)
        answer = await self._service.chat(_session_id(request), parsed, answer_id=answer_id)
        return _json(completion(answer))


class _Stream:
    """Server-sent events. Headers leave with the first event, so that errors before it keep their status."""

    def __init__(self, request: web.Request, parsed: ChatRequest, answer_id: str) -> None:
        self._request, self._parsed = request, parsed
        self._stamp = (answer_id, int(time.time()), str(parsed.body.get("model") or "default"))
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        self._response = web.StreamResponse(headers=headers)

    async def run(self, service: Service) -> web.StreamResponse:
        try:
            answer = await service.chat(
                _session_id(self._request), self._parsed, answer_id=self._stamp[0], on_delta=self._delta
            )
        except ApiError as error:
            if not self._response.prepared:
                raise
            await self._send(error.body())
            return self._response
        for event in last_chunks(answer, include_usage=self._parsed.include_usage):
            await self._send(event)
        await self._response.write(b"data: [DONE]\n\n")
        return self._response

    async def _delta(self, reply: Reply) -> None:
        await self._begin()
        if delta := delta_of(reply):
            await self._send(chunk(*self._stamp, delta))

    async def _begin(self) -> None:
        if not self._response.prepared:
            await self._response.prepare(self._request)
            await self._send(chunk(*self._stamp, {"role": "assistant", "content": ""}))

    async def _send(self, event: Any) -> None:
        await self._response.write(b"data: " + orjson.dumps(event) + b"\n\n")


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        return _json(error.body(), status=error.status)
    except web.HTTPRequestEntityTooLarge:
        return _json(ApiError(413, f"the request body is over {MAX_BODY_BYTES} bytes").body(), status=413)
    except web.HTTPException as error:
        message = f"{request.method} {request.path}: {error.reason}"
        return _json(ApiError(error.status, message).body(), status=error.status)
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return _json(ApiError(500, "internal error: see the session server's log").body(), status=500)


async def _body(request: web.Request) -> Any:
    data = await request.read()
    try:
        body = orjson.loads(data) if data else {}
    except orjson.JSONDecodeError as error:
        raise bad_request(f"the request body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise bad_request("the request body must be a JSON object")
    return body


def _session_id(request: web.Request) -> str:
    return request.match_info["session_id"]


def _json(body: Any, *, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")
