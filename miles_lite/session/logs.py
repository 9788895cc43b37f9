"""Log lines as `key=value` pairs that name the session they are about.

Invariant: a line is one line; `session` is that of the request, or of the turn, that was being answered.
"""

from __future__ import annotations

import json
import logging
import time
from contextvars import ContextVar

SESSION: ContextVar[str | None] = ContextVar("session", default=None)
"""The session that the running request or turn belongs to; tasks inherit it."""


class KeyValues(logging.Formatter):
    """logfmt: ts=... level=... logger=... session=... msg="..."."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        pairs = [f"ts={moment}", f"level={record.levelname.lower()}", f"logger={record.name}"]
        if (session := SESSION.get()) is not None:
            pairs.append(f"session={json.dumps(session) if not session.isalnum() else session}")
        pairs.append(f"msg={json.dumps(record.getMessage(), ensure_ascii=False)}")
        if record.exc_info:
            pairs.append(f"error={json.dumps(self.formatException(record.exc_info), ensure_ascii=False)}")
        return " ".join(pairs)


def configure(level: int = logging.INFO) -> None:
    """Send the process's log to stderr in this form."""
    handler = logging.StreamHandler()
    handler.setFormatter(KeyValues())
    logging.basicConfig(level=level, handlers=[handler], force=True)
