"""A router that is kept alive on one port, and where its clients find it.

Invariant: while the routing process is started again clients wait in the socket's backlog instead of being refused, and
the next one knows the workers and the weight version of the last.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from miles_lite.config.choices import RouterKind
from miles_lite.process import scratch
from miles_lite.process.supervisor import SILENCE_SECONDS, Program, Supervised
from miles_lite.router.gateway import free_port
from miles_lite.router.spec import RouterSpec, listen, url_of

COMMAND = (sys.executable, "-m", "miles_lite.router.server_main")


class Supervisor:
    """One router: its socket, and the process that serves it."""

    def __init__(self, spec: RouterSpec, *, silence: float = SILENCE_SECONDS) -> None:
        """The port of a gateway is chosen here once, where `spec` has none. A process that shows no life for `silence`
        seconds is replaced."""
        self._scratch = None if spec.state_file else Path(scratch.make())
        gateway = spec.routing.router == RouterKind.GATEWAY
        port = spec.gateway_port or free_port() if gateway else None
        state_file = spec.state_file or f"{self._scratch}/state.json"
        self._spec = replace(spec, gateway_port=port, state_file=state_file)
        self._supervised = Supervised(Program(name="the router", command=COMMAND, spec=self._spec), silence=silence)
        self.url = ""

    @property
    def data_url(self) -> str:
        """Where generation requests go: the gateway, else the router itself."""
        if self._spec.gateway_port is None:
            return self.url
        return f"{self.url.rpartition(':')[0]}:{self._spec.gateway_port}"

    @property
    def pid(self) -> int | None:
        """The routing process's."""
        return self._supervised.pid

    @property
    def restarts(self) -> int:
        return self._supervised.restarts

    async def start(self) -> str:
        """Listen and serve; returns the URL others are told. Idempotent. Raises UserError when it cannot."""
        if self.pid is None:
            try:
                listener = listen(self._spec)
                self.url = url_of(self._spec, listener)
                await self._supervised.start(listener)
            except BaseException:
                await self.stop()
                raise
        return self.url

    async def stop(self) -> None:
        """End the process and release the port; requests in flight are cut. Idempotent."""
        await self._supervised.stop()
        if self._scratch is not None:
            scratch.remove(str(self._scratch))
