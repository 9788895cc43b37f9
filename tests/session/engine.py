"""A scripted engine beneath a session server: it speaks /generate and does what each test's script says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from aiohttp import web

from miles_lite.config.engines import Engines, Routing
from miles_lite.config.places import Hosts
from miles_lite.config.session_options import Session as SessionOptions
from miles_lite.session.client import SessionClient
from miles_lite.session.server import SessionServer, SessionSpec

STOP = 2
"""<|im_end|> of the tiny model."""


def answer(ids: list[int], *, finish: dict[str, Any] | None = None, version: str = "3") -> dict[str, Any]:
    """What SGLang answers; by default a turn that sampled its stop token."""
    return {
        "text": "",
        "output_ids": ids,
        "meta_info": {
            "finish_reason": finish or {"type": "stop", "matched": STOP},
            "completion_tokens": len(ids),
            "cached_tokens": 1,
            "weight_version": version,
            "weight_versions": [{"version": version, "start": 0, "end": len(ids)}],
            "output_token_logprobs": [[-0.5, token, None] for token in ids],
        },
    }


def failure(status: int, message: str = "no", headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": {"message": message}}, status=status, headers=headers)


@dataclass
class Engine:
    """`script` makes the answer to each request: a dict (sent as JSON), stream events, or a Response.

    One that raises ConnectionResetError resets the connection.
    """

    script: Callable[[dict[str, Any]], Any]
    requests: list[dict[str, Any]] = field(default_factory=list)
    cancelled: int = 0

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        told = {"key": request.headers.get("X-SMG-Routing-Key"), "traceparent": request.headers.get("traceparent")}
        self.requests.append(body | told)
        try:
            made = self.script(body)
            if asyncio.iscoroutine(made):
                made = await made
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        except ConnectionResetError:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if isinstance(made, web.Response):
            return made
        if not body["stream"]:
            return web.json_response(made)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if isinstance(made, AsyncIterator):
            try:
                async for event in made:
                    await response.write(b"data: " + orjson.dumps(event) + b"\n\n")
            except (asyncio.CancelledError, ConnectionError):
                self.cancelled += 1
                raise
            return response
        for event in made if isinstance(made, list) else [made]:
            await response.write(b"data: " + orjson.dumps(event) + b"\n\n")
        if isinstance(made, list) and not made[-1]["meta_info"]["finish_reason"]:
            assert request.transport is not None
            request.transport.close()
            return response
        await response.write(b"data: [DONE]\n\n")
        return response


@dataclass
class Bench:
    """A running session server, its client and its engine."""

    client: SessionClient
    engine: Engine
    server: SessionServer
    closing: AsyncExitStack

    async def chat(self, session_id: str, messages: list[dict[str, Any]], **body: Any) -> tuple[int, Any]:
        url = f"{self.client.base_url(session_id)}/chat/completions"
        async with aiohttp.ClientSession() as http, http.post(url, json={"messages": messages, **body}) as response:
            return response.status, orjson.loads(await response.read())

    async def raw(self, session_id: str, path: str, body: dict[str, Any]) -> bytes:
        url = f"{self.client.base_url(session_id)}/{path}"
        async with aiohttp.ClientSession() as http, http.post(url, json=body) as response:
            return await response.read()

    async def stream(self, session_id: str, messages: list[dict[str, Any]], **body: Any) -> tuple[int, list[Any]]:
        url = f"{self.client.base_url(session_id)}/chat/completions"
        request = {"messages": messages, "stream": True, **body}
        async with aiohttp.ClientSession() as http, http.post(url, json=request) as response:
            lines = [line[6:] for line in (await response.read()).splitlines() if line.startswith(b"data: ")]
            return response.status, [line if line == b"[DONE]" else orjson.loads(line) for line in lines]


@asynccontextmanager
async def scripted(script: Callable[[dict[str, Any]], Any]) -> AsyncIterator[tuple[Engine, str]]:
    """A scripted engine and its URL."""
    engine = Engine(script)
    app = web.Application()
    app.router.add_post("/generate", engine.generate)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield engine, f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def bench(
    model: Path,
    script: Callable[[dict[str, Any]], Any],
    *,
    keep_alive: float = 15.0,
    run_dir: Path | None = None,
    routed_experts: bool = False,
    bind_host: str = "127.0.0.1",
    context_length: int = 2048,
    otlp_endpoint: str | None = None,
    **options: Any,
) -> AsyncIterator[Bench]:
    """With `run_dir` the server keeps a journal there."""
    async with scripted(script) as (engine, url):
        settings: dict[str, Any] = {"tito_allowed_append_roles": ("tool", "user"), "session_retry_seconds": 2.0}
        served = spec(model, url, **settings | options)
        journal = None if run_dir is None else str(run_dir)
        hosts = Hosts(bind_host=bind_host, advertise_host="127.0.0.1")
        engines = Engines(sglang_args={"enable_return_routed_experts": routed_experts})
        served = replace(served, hosts=hosts, context_length=context_length, keep_alive_seconds=keep_alive)
        server = SessionServer(replace(served, run_dir=journal, engines=engines, otlp_endpoint=otlp_endpoint))
        try:
            async with SessionClient(await server.start()) as client, AsyncExitStack() as closing:
                yield Bench(client, engine, server, closing)
        finally:
            await server.stop()


def spec(model: Path, router_url: str = "http://127.0.0.1:9", port: int | None = None, **options: Any) -> SessionSpec:
    return SessionSpec(
        index=0,
        model_path=str(model),
        router_url=router_url,
        port=port,
        options=SessionOptions(**options),
        context_length=2048,
        routing=Routing(router_timeout=20.0),
    )
