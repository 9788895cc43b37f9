"""The HTTP face of a session server.

Invariant: only the routes listed here exist; every answer but samples and streams is JSON, and errors have the shape of
the dialect that the route speaks. Nothing of an engine's HTTP answer, headers above all, reaches a client.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import orjson
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from miles_lite.config.session_options import Session as SessionOptions
from miles_lite.process import tracing
from miles_lite.process.concurrently import together
from miles_lite.process.json_types import Json, JsonObject
from miles_lite.session.dialects import DIALECTS, Dialect, Media, Route, chat, dialect_at
from miles_lite.session.dialects.fields import check_limits
from miles_lite.session.dialects.json_reuse import Bodies, Body
from miles_lite.session.dialects.request import ChatAnswer, ChatRequest
from miles_lite.session.dialects.typed_json import read
from miles_lite.session.engine.sampling import check_run
from miles_lite.session.errors import ApiError, bad_request, journal_failed
from miles_lite.session.http.keys import Keys, shown_key
from miles_lite.session.http.model_list import model_named, models
from miles_lite.session.http.openapi import openapi
from miles_lite.session.http.streaming import Stream
from miles_lite.session.logs import SESSION
from miles_lite.session.samples.collect import Collecting
from miles_lite.session.samples.sample_file import encode_samples
from miles_lite.session.samples.trajectory_rows import encode_turns
from miles_lite.session.service import Service
from miles_lite.session.shared_request import Call
from miles_lite.session.turn import Incoming

MAX_SESSION_ID = 200

log = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_SESSION = "/sessions/{session_id}"
_ADDRESSES = (_SESSION, f"{_SESSION}/v1", "")
"""Where dialects are spoken: below a session, also by agents that append /v1 to a base URL that ends in it, and at the
root for those whose key says which session is meant."""


def build_app(
    service: Service, *, model: Mapping[str, str], keys: Keys, keep_alive: float, options: SessionOptions
) -> web.Application:
    """`model` is the model's fingerprint; /v1/models lists its name. A stream is never silent for more than
    `keep_alive` seconds."""
    routes = _Routes(service, dict(model), keys, keep_alive)
    app = web.Application(middlewares=[_errors, routes.guard])
    media = Media(refused=options.session_tool_images == "refuse")
    dialects: list[Dialect] = [make(media) for make in DIALECTS.values()]
    for at in _ADDRESSES:  # aiohttp tries routes in this order
        for dialect in dialects:
            app.add_routes([routes.of(dialect, route, at) for route in dialect.routes])
    app.add_routes(
        [
            web.get("/health", routes.health),
            web.get("/metrics", routes.metrics),
            web.get("/openapi.json", routes.openapi),
            web.post("/sessions", routes.create),
            web.get(_SESSION, routes.describe),
            web.get(f"{_SESSION}/turns", routes.turns),
            web.get(f"{_SESSION}/training_trace", routes.training_trace),
            web.delete(_SESSION, routes.delete),
            web.post(f"{_SESSION}/samples", routes.samples),
        ]
    )
    return app


class _Routes:
    def __init__(self, service: Service, model: dict[str, str], keys: Keys, keep_alive: float) -> None:
        self._service, self._model, self._keys, self._keep_alive = service, model, keys, keep_alive

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """What is about a session needs its key, and is logged under its id."""
        session_id = request.match_info.get("session_id")
        if session_id is not None:
            if not session_id.isprintable() or len(session_id) > MAX_SESSION_ID:
                raise bad_request(f"a session's id is at most {MAX_SESSION_ID} printable characters")
            if self._keys.required:
                self._keys.check(session_id, shown_key(request.headers, request.query))
            SESSION.set(session_id)
        return await handler(request)

    def _session_id(self, request: web.Request) -> str:
        """In the request's path, else by its key. Raises ApiError 401."""
        session_id = request.match_info.get("session_id")
        if session_id is None:
            session_id = self._keys.session_of(shown_key(request.headers, request.query))
            SESSION.set(session_id)
        return session_id

    async def health(self, request: web.Request) -> web.Response:
        return _json({"status": "ok"} | self._service.stats())

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._service.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    def of(self, dialect: Dialect, route: Route, at: str) -> web.RouteDef:
        """The route of a dialect at an address."""
        if route.does in ("models", "model"):
            return web.get(at + route.path, self.listing(models if route.does == "models" else model_named))
        handler = self.speaking(dialect) if route.does == "turn" else self.counting(dialect)
        return web.post(at + route.path, handler)

    def listing(self, tell: Callable[[str], JsonObject]) -> Handler:
        """A handler that tells of the model under the name that the path has, else under its own."""

        async def handle(request: web.Request) -> web.StreamResponse:
            return _json(tell(request.match_info.get("model") or self._model["name"]))

        return handle

    async def openapi(self, request: web.Request) -> web.Response:
        return _json(openapi())

    async def create(self, request: web.Request) -> web.Response:
        self._keys.check_opening(request.headers)
        body = await self._body(request)
        traced = tracing.carried(request.headers)
        session_id = await self._service.create(check_run(body.get("sampling")), turns=body.get("turns"), traced=traced)
        return _json({"session_id": session_id, "api_key": self._keys.key_of(session_id)})

    async def describe(self, request: web.Request) -> web.Response:
        return _json(await self._service.describe(_session_id(request)))

    async def turns(self, request: web.Request) -> web.Response:
        session_id = _session_id(request)
        kept = await self._service.kept(session_id)
        body = encode_turns(await self._service.tree(session_id), kept=kept, model=self._model)
        return web.Response(body=body, content_type="application/json")

    async def training_trace(self, request: web.Request) -> web.Response:
        body = await self._service.training_trace(_session_id(request))
        return web.Response(body=body, content_type="application/json")

    async def delete(self, request: web.Request) -> web.Response:
        await self._service.delete(_session_id(request))
        return web.Response(status=204)

    async def samples(self, request: web.Request) -> web.Response:
        limit = read(await self._body(request), Collecting).max_seq_len
        samples = await self._service.samples(_session_id(request), max_seq_len=limit)
        body = await self._service.turns.off_loop.run(partial(encode_samples, samples), heavy=True)
        return web.Response(body=body, content_type="application/octet-stream")

    def speaking(self, dialect: Dialect) -> Handler:
        """A handler that runs one turn in `dialect`."""

        async def handle(request: web.Request) -> web.StreamResponse:
            async def tell(asked: ChatRequest, calls: Sequence[Call]) -> web.StreamResponse:
                if asked.stream:
                    return await Stream(request, asked, dialect, calls, keep_alive=self._keep_alive).run()
                answers = await together(*(call.answer() for call in calls))
                response = await _whole(request, _render(dialect, asked, answers))
                for call in calls:
                    call.deliver()
                return response

            return await self._service.turns.run(await self._incoming(request, dialect), tell)

        return handle

    def counting(self, dialect: Dialect) -> Handler:
        """A handler that counts the tokens of a prompt."""

        async def handle(request: web.Request) -> web.StreamResponse:
            incoming = await self._incoming(request, dialect)
            return _json(dialect.counted(await self._service.turns.count_tokens(incoming)))

        return handle

    async def _incoming(self, request: web.Request, dialect: Dialect) -> Incoming:
        return Incoming(
            session_id=self._session_id(request),
            dialect=dialect,
            raw=await self._service.turns.limits.read(request.content),
            path=request.path,
            headers=request.headers,
            address=dialect.addressed(request.match_info, request.query_string),
        )

    async def _body(self, request: web.Request) -> Json:
        body = Body(await self._service.turns.limits.read(request.content), Bodies()).parse()
        check_limits(body)
        return body


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        return refusal(request, error)
    except web.HTTPException as error:
        return refusal(request, ApiError(error.status, f"{request.method} {request.path}: {error.reason}"), error)
    except web.RequestPayloadError as error:
        return refusal(request, bad_request(f"the request body cannot be decoded: {' '.join(str(error).split())}"))
    except sqlite3.Error as error:
        log.error("%s %s: the session journal failed: %s", request.method, request.path, error)
        return refusal(request, journal_failed(error))
    except ConnectionResetError:
        log.info("the client of %s left while it was being answered", request.path)
        return web.Response(status=499)
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return refusal(request, ApiError(500, "internal error: see the session server's log"))


def refusal(request: web.Request, error: ApiError, cause: web.HTTPException | None = None) -> web.Response:
    """The error in the shape of the route's dialect."""
    answer = _json(dialect_at(request.path).error(error), status=error.status)
    if cause is not None and "Allow" in cause.headers:
        answer.headers["Allow"] = cause.headers["Allow"]
    return answer


def _render(dialect: Dialect, parsed: ChatRequest, answers: Sequence[ChatAnswer]) -> JsonObject:
    if len(answers) == 1:
        return dialect.answer(parsed, answers[0])
    bodies = [dialect.answer(replace(parsed, choice=number), answer) for number, answer in enumerate(answers)]
    return chat.together(bodies, answers)


def _session_id(request: web.Request) -> str:
    return request.match_info["session_id"]


async def _whole(request: web.Request, body: Json) -> web.StreamResponse:
    """The answer, written out to its last byte."""
    response = _json(body)
    await response.prepare(request)
    await response.write_eof()
    return response


def _json(body: Json, *, status: int = 200) -> web.Response:
    """In a copy: a waiting connection keeps its last answer, and orjson leaves its bytes in a far larger buffer."""
    data = bytes(memoryview(orjson.dumps(body)))
    return web.Response(body=data, status=status, content_type="application/json")
