"""Runs of a folder in a browser: pages over a JSON API (`/openapi.json`), live by server-sent events.

Invariant: it reads run folders only, and changes nothing. Who follows a run is told that it has gone on, and asks
for what is new.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException as NotFound

from miles_lite.errors import UserError
from miles_lite.process.addresses import loopback
from miles_lite.process.json_types import JsonObject
from miles_lite.report.dash_pages import Number, add_pages, refusal
from miles_lite.report.index import LARGEST, MOST_ROWS, Filter
from miles_lite.report.parting import Part
from miles_lite.report.record import read_record, state
from miles_lite.report.runs import Runs
from miles_lite.report.visible import visible

LOOK_SECONDS, LOOK_SHARE = 1.0, 0.1
"""How often it is looked whether a run has gone on; which share of the time that takes at most."""
COOKIE = "miles_lite_token"
Bound = Annotated[float | None, Query(allow_inf_nan=False)]
Asked = Annotated[int | None, Query(ge=0, le=LARGEST)]
Next = Callable[[Request], Awaitable[Response]]


def app_of(runs: Runs, *, token: str | None = None, ending: Callable[[], bool] = lambda: False) -> FastAPI:
    """Serves `runs`; with a `token`, to whoever has it: once in the address, from then on in a cookie. Who follows a
    run does so until the server is `ending`."""
    app = FastAPI(title="miles_lite runs", docs_url=None, redoc_url=None)
    cookie = f"{COOKIE}_{hashlib.sha256((token or '').encode()).hexdigest()[:8]}"  # of one port of a host

    @app.middleware("http")
    async def guard(request: Request, go_on: Next) -> Response:
        if token is None and not loopback(_host(request)):  # another site's name that leads here reads nothing
            return PlainTextResponse("miles-lite dash answers to 127.0.0.1, localhost and [::1]", 400)
        given = request.query_params.get("token") or request.cookies.get(cookie) or ""
        if token is not None and not secrets.compare_digest(given.encode(), token.encode()):
            return PlainTextResponse("a token is missing: miles-lite dash has printed it", 401)
        answer = await go_on(request)
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["Referrer-Policy"] = "no-referrer"
        if "token" in request.query_params:
            answer.set_cookie(cookie, given, httponly=True, samesite="strict")
        return answer

    @app.exception_handler(UserError)
    @app.exception_handler(FileNotFoundError)
    @app.exception_handler(RequestValidationError)
    @app.exception_handler(NotFound)
    async def missing(request: Request, error: Exception) -> Response:
        """What is not there, cannot be read, was removed meanwhile, or is no number; a method that is not GET."""
        status, said = 404, visible(error)
        if isinstance(error, NotFound):
            status, said = error.status_code, visible(f"{request.method} {request.url.path}: {error.detail}")
        if isinstance(error, RequestValidationError):
            status, said = 422, "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in error.errors())
        if request.url.path.startswith("/api/"):
            return JSONResponse({"error": said}, status)
        return refusal(said, status)

    _add_api(app, runs, ending)
    _add_rollouts_api(app, runs)
    add_pages(app, runs)
    return app


def _add_api(app: FastAPI, runs: Runs, ending: Callable[[], bool]) -> None:
    @app.get("/api/runs/{name}/changes")
    async def changes(name: str, request: Request, since: str | None = None) -> StreamingResponse:
        """Server-sent events: one whenever the run has logged something. `since`: what its page was made of."""
        path = await asyncio.to_thread(runs.path, name)
        return _stream(lambda: state(path), since, request, ending)

    @app.get("/api/changes")
    async def all_changes(request: Request, since: str | None = None) -> StreamingResponse:
        """Server-sent events: one whenever a run has begun, ended or logged something."""
        return _stream(runs.state, since, request, ending)

    @app.get("/api/runs")
    def list_runs() -> list[JsonObject]:
        """How every run stands, the one that was written to last first."""
        return runs.all()

    @app.get("/api/runs/{name}")
    def one_run(name: str) -> JsonObject:
        """How a run stands, its options, and its metrics by name and step."""
        record = read_record(runs.path(name), steps=0)
        metrics = {metric: record.by_step(metric) for metric in record.curves.names}
        return {**runs.status(name), "options": record.options, "metrics": metrics}

    @app.get("/api/runs/{name}/rollouts")
    def list_rollouts(
        name: str,
        step: Asked = None,
        group: Asked = None,
        outcome: str | None = None,
        where: str | None = None,
        status: str | None = None,
        least: Bound = None,
        most: Bound = None,
        text: str | None = None,
        limit: Annotated[int, Query(ge=0, le=MOST_ROWS)] = 100,
        offset: Annotated[int, Query(ge=0, le=LARGEST)] = 0,
    ) -> list[JsonObject]:
        """Rollouts, those of the newest step first; `text`: stands in the trajectory."""
        asked = Filter(
            step=step,
            group=group,
            outcome=outcome,
            where=where,
            status=status,
            least=least,
            most=most,
            text=text,
            limit=limit,
            offset=offset,
        )
        return runs.rollouts(name, asked)


def _add_rollouts_api(app: FastAPI, runs: Runs) -> None:
    @app.get("/api/runs/{name}/steps/{step}/rollouts/{rollout}")
    def one_rollout(name: str, step: Number, rollout: Number) -> JsonObject:
        """A rollout's row, and its trajectory, null where it was not kept."""
        row, trajectory = runs.rollout(name, step, rollout), runs.trajectory(name, step, rollout)
        return {"row": row, "trajectory": None if trajectory is None else trajectory.data}

    @app.get("/api/runs/{name}/steps/{step}/diff")
    def two_rollouts(name: str, step: Number, one: int, other: int) -> JsonObject:
        """How many tokens two rollouts begin with alike, and the turns of each from the one on in which they part, with
        [start, end) of the tokens that the other lacks there."""
        rows = [runs.rollout(name, step, each) for each in (one, other)]
        found = runs.parting(name, step, one, other)
        sides = zip(("one", "other"), rows, (found.one, found.other), strict=True)
        return {"same": found.same, **{side: {"row": row, "parts": _as_json(parts)} for side, row, parts in sides}}


def _as_json(parts: Sequence[Part]) -> list[JsonObject]:
    names = ("turn", "role", "start", "ids", "only", "text")
    return [{name: getattr(part, name) for name in names} for part in parts]


def _host(request: Request) -> str:
    """By which name it was asked; empty for none that is one."""
    try:
        return urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    except ValueError:
        return ""


def _stream(
    look: Callable[[], str], since: str | None, request: Request, ending: Callable[[], bool]
) -> StreamingResponse:
    return StreamingResponse(change_events(look, since, request, ending), media_type="text/event-stream")


async def change_events(
    look: Callable[[], str], since: str | None, request: Request, ending: Callable[[], bool]
) -> AsyncGenerator[str, None]:
    """An event for each other thing that `look` says, which may take its time."""
    before = since
    while not (ending() or await request.is_disconnected()):
        began = time.monotonic()
        now = await asyncio.to_thread(look)
        yield f"data: {now}\n\n" if now != before and before is not None else ": nothing new\n\n"
        before = now
        await asyncio.sleep(max(LOOK_SECONDS, (time.monotonic() - began) / LOOK_SHARE))
