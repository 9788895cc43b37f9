"""What is used of aiohttp beneath its client and server: a connection, its parser and their errors, which are no public
API of it.

Invariant: this is the only module that imports them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage
from aiohttp.http_exceptions import HttpProcessingError

__all__ = ["HttpProcessingError", "RawResponseMessage", "ResponseHandler", "changed"]

TESTED = ("3.13", "3.14")
USED: Mapping[type, tuple[str, ...]] = {
    ResponseHandler: (
        "set_response_params",
        "start_timeout",
        "read",
        "abort",
        "close",
        "is_connected",
        "should_close",
        "connection_made",
    ),
    RawResponseMessage: ("code", "reason", "headers"),
    HttpProcessingError: ("with_traceback",),
}


def changed() -> Iterator[str]:
    """The names that this aiohttp does not have."""
    for kind, names in USED.items():
        yield from (f"{kind.__module__}.{kind.__name__}.{name}" for name in names if not hasattr(kind, name))
