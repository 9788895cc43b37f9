"""The pages of the dash.

Invariant: they are rendered here, with the charts of a report, so that both look the same and no chart library is
shipped; a chart is drawn when a browser asks for it. The one script of a page loads it again when its run goes on. Text
of models, tools and users stands in a page as text.
"""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import zip_longest
from pathlib import Path
from threading import Lock

import jinja2
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse

from miles_lite.errors import UserError, user_error
from miles_lite.report import page
from miles_lite.report.index import SHOWN, Filter
from miles_lite.report.pictures import pictures
from miles_lite.report.rollout_table import Row, trajectory_path
from miles_lite.report.runs import Runs
from miles_lite.report.transcript import PLACES, Transcript, compared, speller, transcript

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'; script-src 'nonce-{}'; connect-src 'self'; "
    "form-action 'self'"
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
        return _page("runs", runs=runs.all())

    @app.get("/runs/{name}", include_in_schema=False)
    def run(request: Request, name: str) -> Response:
        asked = {name: value for name, value in request.query_params.items() if value and name in ASKED}
        state, record = runs.record(name)
        rows = runs.rollouts(name, _wanted(asked))
        return _page(
            "run",
            run=runs.stands(name),
            told=page.tell(record, transcripts=False),
            state=state,
            events=list(record.events)[-20:][::-1],
            rows=rows,
            asked=asked,
            pairs=_kept(runs.path(name), rows) if {"step", "group"} <= asked.keys() and len(rows) > 1 else (),
        )

    @app.get("/runs/{name}/pictures/{title}", include_in_schema=False)
    def picture(name: str, title: str, state: str = "") -> Response:
        now, record = runs.record(name)
        found = next((each for each in pictures(record) if each.title == title), None)
        if found is None:
            raise UserError(f"run {name} has no picture {title}")
        with drawing:
            svg = page.standing_alone(found.draw())
        kept = "private, max-age=86400" if state == now else "no-store"
        return Response(svg, media_type="image/svg+xml", headers={"Cache-Control": kept})


def _add_rollouts(app: FastAPI, runs: Runs) -> None:
    @app.get("/runs/{name}/steps/{step}/rollouts/{rollout}", include_in_schema=False)
    def rollout(name: str, step: int, rollout: int) -> Response:
        row, spoken = runs.rollout(name, step, rollout), list[Transcript]()
        if (found := runs.trajectory(name, step, rollout)) is not None:
            spell = speller(runs.record(name)[1].options)
            spoken.append(transcript(found, row, why="trajectory", spell=spell, most=None))
        replay = shlex.join(["miles-lite", "replay", str(runs.path(name)), str(rollout)])
        return _page("rollout", run={"name": name}, row=row, spoken=spoken, replay=replay)

    @app.get("/runs/{name}/steps/{step}/diff", include_in_schema=False)
    def diff(name: str, step: int, one: int, other: int) -> Response:
        rows = [runs.rollout(name, step, each) for each in (one, other)]
        kept = _kept(runs.path(name), rows)
        missing = [f"rollout {row['rollout']}" for row in rows if row["rollout"] not in kept]
        parted = None if missing else runs.parting(name, step, one, other)
        spell = speller(runs.record(name)[1].options)
        sides = (parted.one, parted.other) if parted else ((), ())
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


def refusal(said: str, status: int) -> Response:
    """Why there is no such page."""
    return _page("refusal", status=status, said=said)


def _page(kind: str, *, status: int = 200, **told: object) -> Response:
    nonce = secrets.token_urlsafe(16)
    text = _template().render(kind=kind, nonce=nonce, columns=SHOWN, fields=list(ASKED), **told)
    return HTMLResponse(text, status, headers={"Content-Security-Policy": POLICY.format(nonce)})


@cache
def _template() -> jinja2.Template:
    return page.environment().get_template("dashboard.html")
