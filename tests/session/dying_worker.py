"""A session worker that kills itself once, at a point that its first argument names; the second is a marker file."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from miles_lite.session import server_main, sessions, shared_request
from miles_lite.session.journal import store


def main(point: str, marker: Path, fd: int) -> int:
    def die() -> None:
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    if point == "before_commit":
        store._add = _dying_after(store._add, die)
    elif point == "after_commit":
        commit = sessions.Sessions.commit

        async def committed(self: Any, *arguments: Any, **named: Any) -> Any:
            turn = await commit(self, *arguments, **named)
            die()
            return turn

        sessions.Sessions.commit = committed  # type: ignore[method-assign]
    elif point == "after_send":
        deliver = shared_request.Call.deliver

        def delivered(self: Any) -> None:
            deliver(self)
            die()

        shared_request.Call.deliver = delivered  # type: ignore[method-assign]
    return server_main.main(fd)


def _dying_after(add: Callable[[sqlite3.Connection, Any], Any], die: Callable[[], None]) -> Any:
    """Adding rows that dies when turns were written, before they are committed."""

    def added(db: sqlite3.Connection, rows: Any) -> Any:
        answers = add(db, rows)
        if any(row.insert.startswith("INSERT INTO turns") for row in rows):
            die()
        return answers

    return added


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
