"""The agent used when no --custom-agent-function-path is given: one prompt, one answer."""

from __future__ import annotations

from typing import Any

from miles_lite.environments.session_chat import Chat


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
    async with Chat(base_url, api_key, request_kwargs, tools=tools) as chat:
        said = await chat.ask(messages)
    return {"response": said.get("content") or "", "turns": 1}
