"""What a router is asked to be, and the socket it listens on.

Invariant: the socket is open before anybody is told the URL.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass, field

from miles_lite.config.options import Engines, Topology
from miles_lite.errors import UserError
from miles_lite.process.addresses import bracketed, reachable
from miles_lite.router.policies import PolicyName
from miles_lite.router.replies import Limits

BACKLOG = 1024


@dataclass(frozen=True, kw_only=True)
class RouterSpec:
    """One router.

    bind_host, port   where it listens; port None: a free one
    advertise_host    what others are told
    timeout           seconds it waits for a worker's bytes
    policy            who takes a request without a key, or with a new one
    concurrency       requests in flight per worker; None: any number
    queue_seconds     how long a request waits for a worker with room
    state_file        workers and weight version, kept for the next start; None: only as long as it is supervised
    gateway_port      the Rust gateway listens there for data, and this router is its control plane; None: no gateway
    admin_key         what a request must show that changes workers or weight versions; None: nothing
    """

    bind_host: str = "127.0.0.1"
    advertise_host: str = "127.0.0.1"
    port: int | None = None
    timeout: float = 600.0
    policy: PolicyName = "least_in_flight"
    concurrency: int | None = None
    queue_seconds: float = 60.0
    state_file: str | None = None
    gateway_port: int | None = None
    admin_key: str | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        topology: Topology,
        engines: Engines,
        *,
        port: int | None,
        state_file: str | None,
        admin_key: str | None,
        gateway_port: int | None = None,
    ) -> RouterSpec:
        """The router that a command line asks for. Raises UserError for what no router can be."""
        rules = {
            "--sglang-server-concurrency must be at least 1": engines.sglang_server_concurrency >= 1,
            "--router-timeout must be above 0": engines.router_timeout > 0,
            "--router-queue-seconds must not be negative": engines.router_queue_seconds >= 0,
            f"port {port}: the router's port is a number up to 65535": port is None or 0 <= port < 65536,
        }
        for rule, kept in rules.items():
            if not kept:
                raise UserError(rule)
        return cls(
            bind_host=topology.bind_host,
            advertise_host=topology.public_host,
            port=port,
            timeout=engines.router_timeout,
            policy=engines.router_policy,
            concurrency=engines.sglang_server_concurrency,
            queue_seconds=engines.router_queue_seconds,
            state_file=state_file,
            gateway_port=gateway_port,
            admin_key=admin_key,
        )

    @property
    def limits(self) -> Limits:
        return Limits(idle=self.timeout, queue=self.queue_seconds)


def listen(spec: RouterSpec) -> socket.socket:
    """A listening socket. Raises UserError when there can be none, as on a port in use."""
    try:
        family = socket.AF_INET6 if ":" in spec.bind_host else socket.AF_INET
        return socket.create_server((spec.bind_host, spec.port or 0), family=family, backlog=BACKLOG)
    except OSError as error:
        mend = "Give --bind-host an address of this machine."
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            mend = "Choose another port (--port, in a run --sglang-router-port), or none: then a free one is taken."
        raise UserError(f"the router cannot listen: {error.strerror or error}.\n  {mend}") from error


def url_of(spec: RouterSpec, listener: socket.socket) -> str:
    """What others are told."""
    return f"http://{bracketed(reachable(spec.advertise_host))}:{listener.getsockname()[1]}"
