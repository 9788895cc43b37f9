"""One rollout's conversation with its session, over the chat dialect."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypeAlias

import aiohttp

from miles_lite.process.admin_key import bearer
from miles_lite.process.json_types import JsonMapping, JsonObject

Message: TypeAlias = JsonObject
TOO_LONG, TOO_LARGE = "context_length_exceeded", 413


class RefusedError(RuntimeError):
    """The session cannot take these messages."""


class ContextFullError(RuntimeError):
    """The conversation does not fit into the model's context any more."""


REFUSALS = {400: RefusedError, 422: RefusedError}


@dataclass
class Chat:
    """An async context; `ask` gives the model's next message. `seconds`: spent waiting for it; `cut`: the last one was
    longer than it may be."""

    base_url: str
    api_key: str
    request_kwargs: JsonMapping
    tools: list[Message] | None = None
    seconds: float = 0.0
    cut: bool = False
    _client: aiohttp.ClientSession = field(init=False, repr=False)

    async def __aenter__(self) -> Chat:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30)
        self._client = aiohttp.ClientSession(timeout=timeout, headers=bearer(self.api_key))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def ask(self, messages: list[Message]) -> Message:
        """The answer to `messages`, as it is to be sent again. A rollout's timeout bounds it. Raises ContextFullError,
        RefusedError, and RuntimeError for what is nobody's fault who asked."""
        offered = {"tools": self.tools} if self.tools else {}
        body = {"messages": messages, **offered, **self.request_kwargs}
        began = time.monotonic()
        async with self._client.post(f"{self.base_url}/chat/completions", json=body) as answer:
            said = await answer.json()
            self.seconds += time.monotonic() - began
            if answer.status != 200:
                error = said.get("error") if isinstance(said, dict) else None
                full = answer.status == TOO_LARGE or (isinstance(error, dict) and error.get("code") == TOO_LONG)
                kind = ContextFullError if full else REFUSALS.get(answer.status, RuntimeError)
                raise kind(f"chat completion answered {answer.status}: {said}")
        choice = said["choices"][0]
        self.cut = choice.get("finish_reason") == "length"
        message: Message = choice["message"]
        return message
