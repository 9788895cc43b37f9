"""Ports for servers on this node, each held from the moment it is chosen until its server has ended.

Invariant: two holders on one node, in whatever processes, never hold the same port. Ports come from below the range
that the kernel gives to outgoing connections, so that none is taken in between by a client.
"""

from __future__ import annotations

import random
import socket

from miles_lite.errors import UserError

FIRST, LAST = 20000, 32000
"""Ray's workers use ports below; Linux's ephemeral ports begin at 32768."""


class Ports:
    """What one server holds. `release` once it has ended."""

    def __init__(self) -> None:
        self._locks: list[socket.socket] = []

    def reserve(self, host: str, *, consecutive: int = 1) -> int:
        """The first of `consecutive` ports that nobody holds, and nobody listens on at `host`. Raises UserError."""
        begin = random.SystemRandom().randrange(FIRST, LAST)
        for at in range(LAST - FIRST):
            port = FIRST + (begin - FIRST + at) % (LAST - FIRST)
            if port + consecutive <= LAST and self._hold_run(host, port, consecutive):
                return port
        raise UserError(f"no {consecutive} free ports in a row between {FIRST} and {LAST} on this node")

    def release(self) -> None:
        """Others may have them. Idempotent."""
        while self._locks:
            self._locks.pop().close()

    def _hold_run(self, host: str, port: int, count: int) -> bool:
        held: list[socket.socket] = []
        for one in range(port, port + count):
            lock = _lock(one) if listenable(host, one) is None else None
            if lock is None:
                for other in held:
                    other.close()
                return False
            held.append(lock)
        self._locks += held
        return True


def _lock(port: int) -> socket.socket | None:
    """A name in the kernel's abstract socket namespace (unix(7)) that stands for `port`; None when somebody else has
    it. It leaves no file, and the kernel frees it when its owner dies."""
    name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        name.bind(f"\0miles_lite-port-{port}")
    except OSError:
        name.close()
        return None
    return name


def listenable(host: str, port: int) -> OSError | None:
    """None when one can listen on `port` of `host`, else why not."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None


def require_free(host: str, port: int, flag: str) -> int:
    """`port`, when it is free at `host`. Raises UserError naming `flag` otherwise."""
    error = listenable(host, port)
    if error is not None:
        raise UserError(
            f"{flag} {port}: cannot listen on {host}:{port}: {error.strerror}.\n"
            f"  End the process that uses it, choose another port, or leave {flag} out: a free one is found."
        ) from error
    return port
