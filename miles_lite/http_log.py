"""The log of an HTTP server, without what its clients do wrong: who sends something else than HTTP gets a 400."""

from __future__ import annotations

import logging

from aiohttp.http_exceptions import HttpProcessingError


def server_log(module: str) -> logging.Logger:
    """What aiohttp's server in `module` logs to."""
    log = logging.getLogger(f"{module}.server")
    log.addFilter(_is_ours)
    return log


def _is_ours(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))
