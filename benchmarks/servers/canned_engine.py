"""An engine that answers every POST with the same generation at once: the floor beneath the session benchmarks.

    python benchmarks/servers/canned_engine.py --ids FILE.json [--experts LAYERS TOPK]

Prints its port, then serves until it is ended. `GET /last` returns the body of the request before. Bodies are not
parsed, unless routed experts are asked for: a request is its headers, Content-Length and as many bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import uvloop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ids", type=Path, required=True, help="JSON: the ids of every answer, the stop last")
    parser.add_argument("--experts", type=int, nargs=2, metavar=("LAYERS", "TOPK"), help="answer routed experts too")
    args = parser.parse_args()
    uvloop.run(_serve(Answers(json.loads(args.ids.read_text()), args.experts)))


class Answers:
    """What SGLang says to /generate with return_logprob, without the text that nobody reads."""

    def __init__(self, ids: list[int], experts: list[int] | None) -> None:
        self._ids, self._experts = ids, experts
        self._plain = _response(self._body())

    def to(self, body: bytes) -> bytes:
        """The whole HTTP response."""
        if self._experts is None:
            return self._plain
        asked = orjson.loads(body)
        rows = len(asked["input_ids"]) + len(self._ids) - 1 - asked.get("routed_experts_start_len", 0)
        chosen = np.arange(rows * self._experts[0] * self._experts[1], dtype=np.int32) % 128
        return _response(self._body(routed_experts=base64.b64encode(chosen.tobytes()).decode()))

    def _body(self, **more: str) -> bytes:
        ids = self._ids
        meta = {
            "id": "canned",
            "finish_reason": {"type": "stop", "matched": ids[-1]},
            "prompt_tokens": 1,
            "completion_tokens": len(ids),
            "cached_tokens": 0,
            "weight_version": "1",
            "weight_versions": [{"version": "1", "start": 0, "end": len(ids)}],
            "output_token_logprobs": [[-0.6931471824645996 - n / 1024, token, None] for n, token in enumerate(ids)],
        }
        return orjson.dumps({"text": "", "output_ids": ids, "meta_info": meta | more})


def _response(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


class _Connection(asyncio.Protocol):
    last = b""

    def __init__(self, answers: Answers) -> None:
        self._answers, self._parts, self._have, self._need = answers, [b""], 0, 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parts.append(data)
        self._have += len(data)
        if self._need and self._have < self._need:
            return
        request = b"".join(self._parts)
        head, found, _ = request.partition(b"\r\n\r\n")
        if not found:
            self._parts = [request]
            return
        self._need = len(head) + 4 + _length(head)
        if self._have < self._need:
            self._parts = [request]
            return
        last = _Connection.last
        if head.startswith(b"GET"):
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(last), last))
        else:
            _Connection.last = request[len(head) + 4 :]
            self._transport.write(self._answers.to(_Connection.last))
        self._parts, self._have, self._need = [], 0, 0


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            return int(line[15:])
    return 0


async def _serve(answers: Answers) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(answers), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    main()
