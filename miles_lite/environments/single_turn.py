"""The agent used when no --custom-agent-function-path is given: one prompt, one answer."""

from __future__ import annotations

from typing import Any

import aiohttp

from miles_lite.process.admin_key import bearer


async def run(
    base_url: str,
    prompt: str | list[dict[str, Any]],
    request_kwargs: dict[str, Any],
    metadata: dict[str, Any],
    *,
    api_key: str = "-",
    tools: list[dict[str, Any]] | None = None,
    **_: Any,
) -> dict[str, Any]:
    """Send the prompt as one chat request, with its row's tools; the rollout's timeout bounds it. Returns {"response":
    text}."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    offered = {"tools": tools} if tools else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30)
    async with (
        aiohttp.ClientSession(timeout=timeout, headers=bearer(api_key)) as client,
        client.post(f"{base_url}/chat/completions", json={"messages": messages, **offered, **request_kwargs}) as answer,
    ):
        body = await answer.json()
        if answer.status != 200:
            raise RuntimeError(f"chat completion answered {answer.status}: {body}")
    return {"response": body["choices"][0]["message"].get("content") or "", "turns": 1}
