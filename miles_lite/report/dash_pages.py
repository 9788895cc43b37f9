"""The pages of the dash.

Invariant: they are rendered here, with the charts of a report, so that both look the same and no chart library is
shipped; a chart is drawn when a browser asks for it. The one script of a page loads it again when its run goes on. Text
of models, tools and users stands in a page as text.
"""

from __future__ import annotations

import math
import secrets
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import zip_longest
from pathlib import Path
from threading import Lock
from typing import Annotated
from urllib.parse import quote, urlencode

import fastapi
import jinja2
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse

from miles_lite.errors import UserError, user_error
from miles_lite.report import page
from miles_lite.report.alarms import WINDOW
from miles_lite.report.index import LARGEST, SHOWN, Filter
from miles_lite.report.parting import damaged
from miles_lite.report.pictures import pictures
from miles_lite.report.rollout_table import Row, trajectory_path
from miles_lite.report.runs import Runs
from miles_lite.report.transcript import PLACES, Transcript, compared, speller, transcript

Number = Annotated[int, fastapi.Path(ge=0, le=LARGEST)]
"""A step or a rollout in an address."""
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'; script-src 'nonce-{}'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)


def add_pages(app: FastAPI, runs: Runs) -> None:
    """All of them, in `app`."""
    _add_runs(app, runs)
    _add_rollouts(app, runs)


def _add_runs(app: FastAPI, runs: Runs) -> None:
    drawing = Lock()  # matplotlib's settings are the process's

    @app.get("/favicon.ico", include_in_schema=False)
    def icon() -> Response:
        """Browsers ask for one, and complain."""
        return Response(status_code=204)

    @app.get("/", include_in_schema=False)
    def home() -> Response:
        state = runs.state()
        return _page("runs", runs=runs.all(), state=state, changes="/api/changes")

    @app.get("/api", include_in_schema=False)
    def api() -> Response:
        return _page("api", paths=app.openapi()["paths"])

    @app.get("/runs/{name}", include_in_schema=False)
    def run(request: Request, name: str) -> Response:
        asked = {name: value for name, value in request.query_params.items() if value and name in ASKED}
        state, record = runs.record(name)
        wanted = _wanted(asked)
        rows = runs.rollouts(name, wanted)
        return _page(
            "run",
            run=runs.status(name),
            view=page.run_view(record, whole=False),
            state=state,
            changes=f"/api/runs/{quote(name, safe='')}/changes",
            events=list(record.events)[-20:][::-1],
            rows=rows,
            asked=asked,
            steps=WINDOW,
            turned=[(name, _query(asked, offset)) for name, offset in _turned(wanted, len(rows))],
            pairs=_kept(runs.path(name), rows) if {"step", "group"} <= asked.keys() and len(rows) > 1 else (),
        )

    @app.get("/runs/{name}/pictures/{title}", include_in_schema=False)
    def picture(name: str, title: str, state: str = "") -> Response:
        now, record = runs.record(name)
        found = next((each for each in pictures(record) if each.title == title), None)
        if found is None:
            raise UserError(f"run {name} has no picture {title}")
        with drawing:
            svg = page.standalone_svg(found.draw())
        kept = "private, max-age=86400" if state == now else "no-store"
        return Response(svg, media_type="image/svg+xml", headers={"Cache-Control": kept})


def _add_rollouts(app: FastAPI, runs: Runs) -> None:
    @app.get("/runs/{name}/steps/{step}/rollouts/{rollout}", include_in_schema=False)
    def rollout(name: str, step: Number, rollout: Number) -> Response:
        row, spoken = runs.rollout(name, step, rollout), list[Transcript]()
        if (found := runs.trajectory(name, step, rollout)) is not None:
            spell = speller(runs.record(name)[1].options)
            with damaged(f"the trajectory of rollout {rollout}"):
                spoken.append(transcript(found, row, why="trajectory", spell=spell, most=None))
        replay = shlex.join(["miles-lite", "replay", str(runs.path(name)), str(rollout)])
        return _page("rollout", run={"name": name}, row=row, spoken=spoken, replay=replay)

    @app.get("/runs/{name}/steps/{step}/diff", include_in_schema=False)
    def diff(name: str, step: Number, one: int, other: int) -> Response:
        rows = [runs.rollout(name, step, each) for each in (one, other)]
        kept = _kept(runs.path(name), rows)
        missing = [f"rollout {row['rollout']}" for row in rows if row["rollout"] not in kept]
        parted = None if missing else runs.parting(name, step, one, other)
        spell = speller(runs.record(name)[1].options)
        sides = (parted.one, parted.other) if parted else ((), ())
        with damaged(f"the trajectory of rollout {one} or {other}"):
            told = [[compared(part, spell) for part in side] for side in sides]
        return _page(
            "diff",
            run={"name": name},
            rows=rows,
            parted=parted,
            missing=missing,
            pairs=list(zip_longest(*told)),
            colours=("difference", *PLACES),
        )


def _kept(folder: Path, rows: Sequence[Row]) -> list[int]:
    """Those of which there is a trajectory."""
    return [row["rollout"] for row in rows if trajectory_path(folder, row["step"], row["rollout"]).is_file()]


def _place(text: str) -> int:
    if not 0 <= (number := int(text)) <= LARGEST:
        raise ValueError(f"{text} is none")
    return number


def _bound(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is none")
    return number


ASKED: Mapping[str, Callable[[str], object]] = {
    **dict.fromkeys(("step", "group"), _place),
    **dict.fromkeys(("outcome", "status", "where", "text"), str),
    **dict.fromkeys(("least", "most"), _bound),
    "offset": _place,
}
"""What a page asks for, and how it is read: the form all but the last."""


def _wanted(asked: Mapping[str, str]) -> Filter:
    """Raises UserError for what is no number."""
    with user_error("the form takes numbers for step, group, least and most", ValueError):
        return Filter(**{name: ASKED[name](value) for name, value in asked.items()})  # type: ignore[arg-type]


def _turned(wanted: Filter, shown: int) -> Iterator[tuple[str, int]]:
    """The pages before and after this one, by what their rollouts are, and where each begins."""
    if wanted.offset:
        yield "newer", max(0, wanted.offset - wanted.limit)
    if shown == wanted.limit:
        yield "older", wanted.offset + wanted.limit


def _query(asked: Mapping[str, str], offset: int) -> str:
    return urlencode({**asked, "offset": offset})


def refusal(said: str, status: int) -> Response:
    """Why there is no such page."""
    return _page("refusal", status=status, said=said)


def _page(kind: str, *, status: int = 200, **told: object) -> Response:
    nonce = secrets.token_urlsafe(16)
    text = _template().render(kind=kind, nonce=nonce, columns=SHOWN, fields=list(ASKED)[:-1], **told)
    return HTMLResponse(text, status, headers={"Content-Security-Policy": POLICY.format(nonce)})


@cache
def _template() -> jinja2.Template:
    return page.environment().get_template("dashboard.html")
