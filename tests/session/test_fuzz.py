"""Schemathesis against the OpenAPI document: whatever is sent, the server has an answer that the document allows."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error

from miles_lite.session.http.openapi import openapi
from tests.session.engine import STOP, answer, bench

pytestmark = pytest.mark.slow

schema = schemathesis.openapi.from_dict(openapi())


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[tuple[str, str, str]]:
    """(URL, an open session, its key) of a server in a thread of its own."""
    ready: list[tuple[str, str, str]] = []
    up, down = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with bench(tiny_model, lambda body: answer([5, STOP])) as b:
            session = await b.client.create()
            ready.append((b.client.url, session, b.client.api_key(session)))
            up.set()
            await down.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert up.wait(30)
    yield ready[0]
    loop.call_soon_threadsafe(down.set)
    thread.join(30)
    loop.close()


@schema.parametrize()
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_nothing_breaks_the_server(case: schemathesis.Case, server: tuple[str, str, str]) -> None:
    url, session, key = server
    if "{session_id}" in case.path and case.method != "DELETE":
        case.path_parameters["session_id"] = session
    case.headers["Authorization"] = f"Bearer {key}"
    case.call_and_validate(base_url=url, checks=[not_a_server_error])


async def test_the_document_names_every_route(server: tuple[str, str, str]) -> None:
    async with aiohttp.ClientSession() as http:
        for path, verbs in openapi()["paths"].items():
            for verb in set(verbs) - {"parameters"}:
                target = server[0] + path.replace("{session_id}", "nobody").replace("{model}", "m")
                async with http.request(verb, target, json={}) as response:
                    assert response.status not in (405, 500)
                    operation = openapi()["paths"][path][verb]["responses"]
                    told = operation.get(str(response.status), {}).get("content", {"application/json": {}})
                    assert response.content_type in told
