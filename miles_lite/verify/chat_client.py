"""A harness's side of the chat route: streaming by default, whole replies when asked.

Invariant: the message handed back is the one the server said, however many events it came in.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import httpx

from miles_lite.process.admin_key import bearer
from miles_lite.process.json_types import JsonMapping, JsonObject
from miles_lite.process.server_sent_events import DONE, Events, payload


class ChatError(RuntimeError):
    """The session server answered with anything but 200, or its stream ended in an error or too early."""


@dataclass(frozen=True, slots=True)
class Chat:
    """Completions in one session; `base_url` is the session's OpenAI base URL, `api_key` its key."""

    http: httpx.AsyncClient
    base_url: str
    tools: Sequence[JsonMapping]
    max_tokens: int
    stream: bool = True
    api_key: str = "-"

    async def __call__(self, messages: Sequence[JsonMapping], tool_choice: str) -> JsonObject:
        """The reply to `messages` as an assistant message. Raises ChatError."""
        body = {"model": "default", "messages": list(messages), "tools": list(self.tools), "stream": self.stream}
        body |= {"max_tokens": self.max_tokens, "tool_choice": tool_choice}
        url, headers = f"{self.base_url}/chat/completions", bearer(self.api_key)
        try:
            async with self.http.stream("POST", url, json=body, headers=headers) as response:
                if response.status_code != 200:
                    raise ChatError(f"HTTP {response.status_code}: {(await response.aread())[:500].decode()}")
                if not self.stream:
                    return dict(json.loads(await response.aread())["choices"][0]["message"])
                return await _gather(response.aiter_bytes())
        except httpx.HTTPError as error:
            raise ChatError(f"POST {url}: {error or type(error).__name__}") from error


async def _gather(chunks: AsyncIterator[bytes]) -> JsonObject:
    """The message that the deltas of a stream add up to."""
    reply: JsonObject = {"role": "assistant", "content": ""}
    calls: dict[int, JsonObject] = {}
    ended, events = False, Events()
    async for chunk in chunks:
        for event in events.feed(chunk):
            ended = ended or event == DONE
            if (data := payload(event)) is not None:
                _add(reply, calls, json.loads(data))
    if not ended:
        raise ChatError("the stream ended without its end mark")
    if calls:
        reply |= {"tool_calls": [calls[index] for index in sorted(calls)], "content": reply["content"] or None}
    return reply


def _add(reply: JsonObject, calls: dict[int, JsonObject], event: JsonMapping) -> None:
    if "error" in event:
        raise ChatError(f"the stream ended in an error: {event['error'].get('message')}")
    for choice in event["choices"]:
        delta = choice["delta"]
        for name in ("content", "reasoning_content"):
            if delta.get(name):
                reply[name] = reply.get(name, "") + delta[name]
        for call in delta.get("tool_calls") or []:
            _add_call(calls, call)


def _add_call(calls: dict[int, JsonObject], delta: JsonMapping) -> None:
    """A call may come whole, or its arguments piece by piece."""
    call = calls.setdefault(delta["index"], {"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
    function = delta.get("function") or {}
    call["id"] = delta.get("id") or call["id"]
    call["function"]["name"] = function.get("name") or call["function"]["name"]
    call["function"]["arguments"] += function.get("arguments") or ""
