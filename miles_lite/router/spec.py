"""What a router is asked to be, and the socket it listens on.

Invariant: the socket is open before anybody is told the URL.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass, field

from miles_lite.config.engines import Routing
from miles_lite.config.places import Hosts
from miles_lite.errors import UserError
from miles_lite.process.addresses import bracketed, reachable
from miles_lite.router.replies import Limits

BACKLOG = 1024


@dataclass(frozen=True, kw_only=True)
class RouterSpec:
    """One router.

    hosts, port   where it listens, and what others are told; port None: a free one
    routing       who takes a request, and how long it waits
    state_file    workers and weight version, kept for the next start; None: only as long as it is supervised
    gateway_port  the Rust gateway listens there for data, and this router is its control plane; None: no gateway, or
                  one on a free port
    admin_key     what a request must show that changes workers or weight versions; None: nothing
    """

    hosts: Hosts = field(default_factory=Hosts)
    routing: Routing = field(default_factory=Routing)
    port: int | None = None
    state_file: str | None = None
    gateway_port: int | None = None
    admin_key: str | None = field(default=None, repr=False)

    @property
    def limits(self) -> Limits:
        return Limits(idle=self.routing.router_timeout, queue=self.routing.router_queue_seconds)


def listen(spec: RouterSpec) -> socket.socket:
    """A listening socket. Raises UserError when there can be none, as on a port in use."""
    try:
        family = socket.AF_INET6 if ":" in spec.hosts.bind_host else socket.AF_INET
        return socket.create_server((spec.hosts.bind_host, spec.port or 0), family=family, backlog=BACKLOG)
    except OSError as error:
        mend = "Give --bind-host an address of this machine."
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            mend = "Choose another port (--port, in a run --sglang-router-port), or none: then a free one is taken."
        raise UserError(f"the router cannot listen: {error.strerror or error}.\n  {mend}") from error


def url_of(spec: RouterSpec, listener: socket.socket) -> str:
    """What others are told."""
    return f"http://{bracketed(reachable(spec.hosts.public_host))}:{listener.getsockname()[1]}"
