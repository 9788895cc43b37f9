"""Who speaks in a request: an agent by its name, with the tools it may call.

Invariant: equal seeds are equal names and tools, so that turns of different callers never share a path. Agents without
a name are told apart by their system prompts, which begin their paths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

from miles_lite.process.json_types import JsonMapping, JsonObject
from miles_lite.session.errors import bad_request
from miles_lite.session.history.match import canonical_json
from miles_lite.session.http.headers import header
from miles_lite.tito.chat_messages import Tools

AGENT_HEADER = "X-Agent-Name"
HINTS = ("X-Claude-Code-Agent-Id", "X-OpenAI-Subagent")
"""Headers in which harnesses say which of their agents asks: Claude Code, and Codex."""
MAX_NAME = 200

Hints = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Caller:
    """`name` is None for an agent that gave none; `seed` digests name and tools.

    `tools` and `options` are what the template was given; None where only the journal knows the turn.
    """

    name: str | None
    seed: bytes
    tools: Tools | None = field(default=None, compare=False, repr=False)
    options: JsonMapping | None = field(default=None, compare=False, repr=False)


def caller_of(name: str | None, tools: Tools | None, options: JsonMapping | None = None) -> Caller:
    seed = blake2b(canonical_json([name, list(tools or ())]), digest_size=16).digest()
    return Caller(name, seed, tools, options)


def hints_of(headers: Mapping[str, str]) -> Hints:
    """What the harness says about who asks, by the names of its headers in lower case. Raises ApiError 400."""
    return tuple((name.lower(), value[:MAX_NAME]) for name in HINTS if (value := header(headers, name)))


def agent_name(headers: Mapping[str, str], body: JsonMapping) -> str | None:
    """The agent's name from the header X-Agent-Name, else from `metadata.agent` or `metadata.agent_name`.

    Raises ApiError 400 for a name that is no text, or is too long.
    """
    metadata = body.get("metadata")
    named: JsonObject = {AGENT_HEADER: header(headers, AGENT_HEADER)}
    if isinstance(metadata, dict):
        named |= {f"metadata.{key}": metadata.get(key) for key in ("agent", "agent_name")}
    for path, name in named.items():
        if name in (None, ""):
            continue
        if not isinstance(name, str) or len(name) > MAX_NAME:
            raise bad_request(f"an agent's name is a text of at most {MAX_NAME} characters", param=path)
        return name
    return None
