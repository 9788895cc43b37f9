"""One request to an environment server of verifiers v1.

The protocol is that of verifiers 0.4 (`verifiers/v1/serve`), over ZMQ in msgpack: requests are [id, method, payload],
answers [id, `delta` or `reply`, payload].
"""

from __future__ import annotations

import asyncio
import uuid

from miles_lite.process.json_types import JsonMapping, JsonObject

HEALTH_SECONDS = 10.0


class Call:
    """On a socket of its own. `traces`: what was streamed, by the trace's id."""

    def __init__(self, url: str) -> None:
        import msgpack
        import zmq
        import zmq.asyncio

        self._url, self._codec = url, msgpack
        self._socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, int(1000 * HEALTH_SECONDS))
        self._socket.connect(url)
        self.traces: dict[str, JsonObject] = {}

    async def ask(self, method: str, payload: JsonMapping) -> JsonObject:
        """The reply. One that is not waited for any more is cancelled there. Raises RuntimeError for a refusal."""
        name = uuid.uuid4().hex
        await self._send(name, method, payload)
        try:
            while True:
                _, kind, data = await self._socket.recv_multipart()
                told = self._codec.unpackb(data, raw=False, strict_map_key=False)
                if kind == b"reply":
                    break
                self._note(told)
        except asyncio.CancelledError:
            await self._send(uuid.uuid4().hex, "cancel", {"request_id": name})
            raise
        finally:
            self._socket.close()
        if not told.get("success"):
            raise RuntimeError(f"{self._url} refused {method}: {told.get('error')}")
        return dict(told)

    async def _send(self, name: str, method: str, payload: JsonMapping) -> None:
        await self._socket.send_multipart([name.encode(), method.encode(), self._codec.packb(payload)])

    def _note(self, delta: JsonMapping) -> None:
        trace = self.traces.setdefault(delta["trace"], {})
        trace.update(delta.get("set") or {})
        trace["errors"] = [*trace.get("errors", ()), *(delta.get("errors") or ())]
