"""Runs of a folder in a browser: pages over a JSON API (`/openapi.json`), live by server-sent events.

Invariant: it reads run folders only, and changes nothing. Pages are rendered here, with the charts of a report, so that
both look the same and no chart library is shipped; the one script of a page loads it again when its run goes on. Text
of models, tools and users stands in a page as text.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import cache
from pathlib import Path

import jinja2
from fastapi import FastAPI, Query, Request, Response
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse

from miles_lite.errors import UserError, user_error
from miles_lite.process.json_types import JsonObject
from miles_lite.report import event_rows, page
from miles_lite.report.alarms import WINDOW
from miles_lite.report.index import SHOWN, Filter
from miles_lite.report.record import METRICS, read_record
from miles_lite.report.rollout_table import trajectory_path
from miles_lite.report.runs import Runs
from miles_lite.report.transcript import VERSIONS, Transcript, speller, transcript
from miles_lite.report.visible import visible
from miles_lite.traces import atraj

LOOK_SECONDS = 1.0
MOST_ROWS = 10_000
COOKIE = "miles_lite_token"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'nonce-{}'; connect-src 'self'; form-action 'self'"
Next = Callable[[Request], Awaitable[Response]]


def app_of(runs: Runs, *, token: str | None = None, ending: Callable[[], bool] = lambda: False) -> FastAPI:
    """Serves `runs`; with a `token`, to whoever has it: once in the address, from then on in a cookie. Who follows a
    run does so until the server is `ending`."""
    app = FastAPI(title="miles_lite runs", docs_url=None, redoc_url=None)
    if token is None:  # another site's name that leads here reads nothing
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])

    @app.middleware("http")
    async def guard(request: Request, go_on: Next) -> Response:
        given = request.query_params.get("token") or request.cookies.get(COOKIE) or ""
        if token is not None and not secrets.compare_digest(given.encode(), token.encode()):
            return PlainTextResponse("a token is missing: miles-lite dash has printed it", 401)
        answer = await go_on(request)
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["Referrer-Policy"] = "no-referrer"
        if "token" in request.query_params:
            answer.set_cookie(COOKIE, given, httponly=True, samesite="strict")
        return answer

    @app.exception_handler(UserError)
    async def missing(_: Request, error: UserError) -> Response:
        return JSONResponse({"error": visible(error)}, 404)

    _add_api(app, runs, ending)
    _add_pages(app, runs)
    return app


def _add_api(app: FastAPI, runs: Runs, ending: Callable[[], bool]) -> None:
    @app.get("/api/runs")
    def list_runs() -> list[JsonObject]:
        """How every run stands, the one that was written to last first."""
        return [runs.stands(name) for name in runs.paths()]

    @app.get("/api/runs/{name}")
    def one_run(name: str) -> JsonObject:
        """How a run stands, its options, and its metrics by name and step."""
        record = read_record(runs.path(name), steps=0)
        metrics = {metric: record.by_step(metric) for metric in record.curves.names}
        return {**runs.stands(name), "options": record.options, "metrics": metrics}

    @app.get("/api/runs/{name}/rollouts")
    def list_rollouts(
        name: str,
        step: int | None = None,
        group: int | None = None,
        outcome: str | None = None,
        where: str | None = None,
        status: str | None = None,
        least: float | None = None,
        most: float | None = None,
        text: str | None = None,
        limit: int = Query(100, ge=0, le=MOST_ROWS),
        offset: int = Query(0, ge=0),
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

    @app.get("/api/runs/{name}/steps/{step}/rollouts/{rollout}")
    def one_rollout(name: str, step: int, rollout: int) -> JsonObject:
        """A rollout's row, and its trajectory, null where it was not kept."""
        row, path = runs.rollout(name, step, rollout), trajectory_path(runs.path(name), step, rollout)
        return {"row": row, "trajectory": atraj.read(path).data if path.is_file() else None}

    @app.get("/api/runs/{name}/changes")
    async def changes(name: str, request: Request) -> StreamingResponse:
        """Server-sent events: one whenever the run has logged something."""
        return StreamingResponse(_changes(runs.path(name), request, ending), media_type="text/event-stream")


async def _changes(path: Path, request: Request, ending: Callable[[], bool]) -> AsyncIterator[str]:
    def seen() -> float:
        files = [each for each in (path / METRICS, path / event_rows.FILE) if each.is_file()]
        return max((each.stat().st_mtime for each in files), default=0.0)

    before = seen()
    while not (ending() or await request.is_disconnected()):
        now = seen()
        yield f"data: {now}\n\n" if now != before else ": nothing new\n\n"
        before = now
        await asyncio.sleep(LOOK_SECONDS)


def _add_pages(app: FastAPI, runs: Runs) -> None:
    @app.get("/", include_in_schema=False)
    def home() -> Response:
        return _page("runs", runs=[runs.stands(name) for name in runs.paths()])

    @app.get("/runs/{name}", include_in_schema=False)
    def run(request: Request, name: str) -> Response:
        asked = {name: value for name, value in request.query_params.items() if value and name in ASKED}
        record = runs.record(name, steps=WINDOW)
        return _page(
            "run",
            run=runs.stands(name),
            told=page.tell(record, transcripts=False),
            events=list(record.events)[-20:][::-1],
            rows=runs.rollouts(name, _wanted(asked)),
            asked=asked,
        )

    @app.get("/runs/{name}/steps/{step}/rollouts/{rollout}", include_in_schema=False)
    def rollout(name: str, step: int, rollout: int) -> Response:
        row, folder = runs.rollout(name, step, rollout), runs.path(name)
        path, spoken = trajectory_path(folder, step, rollout), list[Transcript]()
        if path.is_file():
            spell = speller(runs.record(name, steps=0).options)
            spoken.append(transcript(atraj.read(path), row, why="trajectory", spell=spell, most=None))
        return _page("rollout", run={"name": name}, row=row, spoken=spoken)


ASKED: Mapping[str, Callable[[str], object]] = {
    **dict.fromkeys(("step", "group"), int),
    **dict.fromkeys(("outcome", "where", "text"), str),
    **dict.fromkeys(("least", "most"), float),
}
"""What a page's form asks for, and of which type."""


def _wanted(asked: Mapping[str, str]) -> Filter:
    """Raises UserError for what is no number."""
    with user_error("the form takes numbers for step, group, least and most", ValueError):
        return Filter(**{name: ASKED[name](value) for name, value in asked.items()})  # type: ignore[arg-type]


def _page(kind: str, **told: object) -> Response:
    nonce = secrets.token_urlsafe(16)
    text = _template().render(kind=kind, nonce=nonce, columns=SHOWN, versions=VERSIONS, fields=list(ASKED), **told)
    return HTMLResponse(text, headers={"Content-Security-Policy": POLICY.format(nonce)})


@cache
def _template() -> jinja2.Template:
    return page.environment().get_template("dashboard.html")
