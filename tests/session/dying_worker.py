"""A session worker that kills itself once, at a point that its first argument names; the second is a marker file."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from miles_lite.session import calls, journal, sessions, worker


def main(point: str, marker: Path, fd: int) -> int:
    def die() -> None:
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    if point == "before_commit":
        journal._statement = _dying_statement(die)
    elif point == "after_commit":
        commit = sessions.Sessions.commit

        async def committed(self: Any, *arguments: Any) -> Any:
            turn = await commit(self, *arguments)
            die()
            return turn

        sessions.Sessions.commit = committed  # type: ignore[method-assign]
    elif point == "after_send":
        deliver = calls.Call.deliver

        def delivered(self: Any) -> None:
            deliver(self)
            die()

        calls.Call.deliver = delivered  # type: ignore[method-assign]
    return worker.main(fd)


def _dying_statement(die: Callable[[], None]) -> Any:
    """A statement that dies after it was written and before it is committed."""

    def statement(sql: str, row: tuple[Any, ...]) -> Callable[[sqlite3.Connection], None]:
        def work(db: sqlite3.Connection) -> None:
            db.execute(sql, row)
            if sql.startswith("INSERT INTO turns"):
                die()

        return work

    return statement


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
