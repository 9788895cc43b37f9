"""Requests as bytes, some as only proxies and attackers send them: for raw sockets, because clients repair them."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import zlib
from collections.abc import Sequence
from typing import Any

_PIECES = [
    b"\x00",
    b"\n",
    b"\x7f",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"%00",
    b"%0a",
    b"%ff",
    b"%ED%A0%80",
    b"a" * 300,
    b"\xc2\xb2",
]
_PIECES += [
    b"9" * 5000,
    b"",
    b" ",
    b"\t",
    b"../..",
    b"?",
    b"%",
    b"%zz",
    "é".encode(),
    "🎈".encode(),
    b";",
    b",",
    b":",
    b'"',
]
_HEADERS = [
    b"Expect", b"X-Agent-Name", b"Idempotency-Key", b"X-Stainless-Retry-Count", b"Content-Encoding", b"Content-Type",
    b"Authorization", b"X-Api-Key", b"X-Claude-Code-Agent-Id", b"Connection", b"Transfer-Encoding", b"Accept-Encoding",
    b"X-SMG-Routing-Key", b"Host", b"Upgrade", b"Cookie", b"Range", b"If-Match", b"anthropic-version", b"X-\xff",
]  # fmt: skip
_VALUES = [
    b"gzip",
    b"deflate",
    b"br",
    b"zstd",
    b"identity",
    b"100-continue",
    b"close",
    b"chunked",
    b"application/json",
    b"1",
]
_BODIES = [
    {"messages": [{"role": "user", "content": "go"}]},
    {"messages": [{"role": "user", "content": "go"}], "stream": True, "metadata": {"agent": "a"}},
    {"input": "go", "previous_response_id": "resp_1"},
    {"contents": [{"role": "user", "parts": [{"text": "go"}]}]},
    {"sampling": {"temperature": 1.0, "max_new_tokens": 3}},
    {"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 2}},
    {"url": "http://127.0.0.1:9", "worker_type": "regular"},
]
_JUNK: list[Any] = [None, True, -1, 2**70, 1e308, "", "x", "\ud800", "\x00"]
_JUNK += [[], {}, [[]], {"type": "text"}, [{"role": "tool"}]]


def request(chance: random.Random, paths: Sequence[str]) -> bytes:
    """One request, mostly well formed, to one of the `paths`."""
    path = chance.choice(paths).encode()
    if chance.random() < 0.2:
        at = chance.randrange(1, len(path) + 1)
        path = path[:at] + chance.choice(_PIECES) + path[at:]
    method = chance.choice([b"POST"] * 6 + [b"GET", b"GET", b"DELETE", b"PUT", b"HEAD", b"OPTIONS", b"FOO"])
    body = _body(chance)
    lines = [method + b" " + path + b" HTTP/1.1", b"Host: x", b"Connection: close"]
    for _ in range(chance.choice([0, 0, 1, 1, 2])):
        value = chance.choice(_VALUES) if chance.random() < 0.5 else chance.choice(_PIECES) + chance.choice(_PIECES)
        lines.append(chance.choice(_HEADERS) + b": " + value)
    if chance.random() < 0.1:
        lines.append(b"Content-Encoding: gzip")
        body = gzip.compress(body) if chance.random() < 0.5 else zlib.compress(body)
        body = body[: chance.randrange(len(body) + 1)] if chance.random() < 0.3 else body
    if chance.random() < 0.95:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def ask(port: int, data: bytes, *, patience: float = 30.0) -> int:
    """The status; 0 for none within `patience` seconds, as for a request that is not complete."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        async with asyncio.timeout(patience):
            line = await reader.readline()
        return int(line.split()[1]) if line.startswith(b"HTTP/") else 0
    except (ConnectionError, TimeoutError):
        return 0
    finally:
        writer.close()


async def ask_many(
    port: int, paths: Sequence[str], *, count: int, seed: int, at_once: int = 8
) -> dict[int, list[bytes]]:
    """Requests by the status that answered them; of each status a few."""
    chance, told = random.Random(seed), dict[int, list[bytes]]()

    async def some(share: int) -> None:
        for _ in range(share):
            data = request(chance, paths)
            seen = told.setdefault(await ask(port, data, patience=1.0), [])
            if len(seen) < 5:
                seen.append(data)

    await asyncio.gather(*(some(count // at_once) for _ in range(at_once)))
    return told


def _body(chance: random.Random) -> bytes:
    body = json.loads(json.dumps(chance.choice(_BODIES)))
    for _ in range(chance.choice([0, 1, 2])):
        name = chance.choice([*body, "tools", "tool_choice", "n", "stop", "temperature", "metadata", "system", "user"])
        body[name] = chance.choice(_JUNK)
    data = json.dumps(body).encode()
    if chance.random() < 0.2:
        at = chance.randrange(len(data))
        data = data[:at] + chance.choice(_PIECES) + data[at + chance.randrange(3) :]
    return data
