"""A port for a test's own server, or for nobody's."""

from __future__ import annotations

from miles_lite.engine.ports import Ports

_HELD = Ports()


def free_port(host: str = "127.0.0.1") -> int:
    """One that nobody listens on, and that stays free until it is used: no outgoing connection is given it, and no
    other test, nor an engine, until this process ends."""
    return _HELD.reserve(host)
