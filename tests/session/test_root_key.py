"""A session's key alone says which session is meant, in every dialect, at the server's root."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import openai
import pytest

from miles_lite.session.http.keys import Keys
from miles_lite.tito import Tito
from tests.session.engine import STOP, answer, bench
from tests.session.replies import saying

ASK: list[Any] = [{"role": "user", "content": "go"}]
GOOGLE: dict[str, Any] = {"contents": [{"parts": [{"text": "go"}]}]}
PATHS: dict[str, dict[str, Any]] = {
    "v1/chat/completions": {"messages": ASK},
    "v1/responses": {"input": "go"},
    "v1/messages": {"messages": ASK, "max_tokens": 5},
    "v1beta/models/m:generateContent": GOOGLE,
    "v1beta/models/m:streamGenerateContent": GOOGLE,
    "v1/models/a/b:generateContent": GOOGLE,
}
COUNTS = {"v1/messages/count_tokens": PATHS["v1/messages"], "v1beta/models/m:countTokens": GOOGLE}


@pytest.mark.parametrize("bind_host", ["127.0.0.1", "0.0.0.0"])
async def test_clients_with_a_key_and_no_path(tiny_model: Path, tito: Tito, tmp_path: Path, bind_host: str) -> None:
    async with bench(tiny_model, saying(tito), run_dir=tmp_path, bind_host=bind_host) as b:
        one, two = await b.client.create(), await b.client.create()
        keys = [b.client.api_key(session) for session in (one, two)]
        for key in keys:
            async with openai.AsyncOpenAI(base_url=f"{b.client.url}/v1", api_key=key, max_retries=0) as agent:
                await agent.chat.completions.create(model="m", messages=ASK)
                await agent.responses.create(model="m", input="go")
                assert (await agent.models.retrieve("some/model")).id == "some/model"
            async with anthropic.AsyncAnthropic(base_url=b.client.url, api_key=key, max_retries=0) as claude:
                await claude.messages.create(model="m", max_tokens=50, messages=ASK)
                assert (await claude.messages.count_tokens(model="m", messages=ASK)).input_tokens > 3
            async with anthropic.AsyncAnthropic(base_url=b.client.url, auth_token=key, max_retries=0) as claude:
                await claude.messages.create(model="m", max_tokens=50, messages=ASK)
        for session in (one, two):
            assert len((await b.client.describe(session))["turns"]) == 4
            assert (await b.client.describe(session)).get("recreated") is None
    async with bench(tiny_model, saying(tito), run_dir=tmp_path, bind_host=bind_host) as b:
        headers = {"x-goog-api-key": keys[1]}
        async with aiohttp.ClientSession() as http:
            for where, shown in ((f"?key={keys[1]}", {}), ("", headers)):
                url = f"{b.client.url}/v1beta/models/m:generateContent{where}"
                async with http.post(url, json=GOOGLE, headers=shown) as response:
                    assert response.status == 200
        async with openai.AsyncOpenAI(base_url=b.client.base_url(two), api_key=keys[1]) as agent:
            await agent.chat.completions.create(model="m", messages=ASK)
        assert b.server.service is not None
        found = await b.server.service.describe(two)
        assert len(found["turns"]) == 7


async def test_without_a_sessions_key_the_root_leads_nowhere(tiny_model: Path) -> None:
    async with bench(tiny_model, lambda body: answer([5, STOP])) as b, aiohttp.ClientSession() as http:
        session = await b.client.create()
        key = b.client.api_key(session)
        wrong = [
            "",
            "none",
            key[:-1],
            key + "0",
            key.replace(session, "0" * 32),
            Keys("x", required=True).key_of("a"),
        ]
        for path, body in (PATHS | COUNTS).items():
            for shown in wrong:
                async with http.post(
                    f"{b.client.url}/{path}", json=body, headers={"Authorization": f"Bearer {shown}"}
                ) as response:
                    assert response.status == 401
                    error = (await response.json())["error"]
                    assert all(word in error["message"] for word in ("POST /sessions", "Bearer", "x-goog-api-key"))
                    google = "models" in path
                    assert error.get("status") == ("UNAUTHENTICATED" if google else None)
        assert b.engine.requests == []
        assert b.server.service is not None
        assert b.server.service.live() == 1


async def test_a_base_url_that_got_v1_twice_reaches_its_session(tiny_model: Path) -> None:
    async with bench(tiny_model, lambda body: answer([5, STOP])) as b:
        session = await b.client.create()
        base = b.client.base_url(session)
        async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="-", max_retries=0) as agent:
            await agent.chat.completions.create(model="m", messages=ASK)
            assert [model.id async for model in agent.models.list()] == [tiny_model.name]
        async with anthropic.AsyncAnthropic(base_url=base, api_key="-", max_retries=0) as claude:
            await claude.messages.create(model="m", max_tokens=5, messages=ASK)
        assert len((await b.client.describe(session))["turns"]) == 2


def test_a_key_says_whose_it_is() -> None:
    keys = Keys("secret", required=False)
    for session in ("a", "a-b", "-", "é", "\udce9", "0" * 32):
        assert keys.session_of(keys.key_of(session)) == session
    assert keys.key_of("a") != Keys("other", required=False).key_of("a")
