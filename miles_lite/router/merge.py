"""One reply out of a prefill worker's and a decode worker's.

What the prompt did is the prefill worker's to say: logprobs of input tokens, cached tokens, the experts of the prompt's
rows, the version that sampled the first token. The rest is the decode worker's. Its experts of the prompt's rows come
from a buffer that never saw the prompt, so they are replaced: prefill returns exactly the rows before the prompt's end,
whatever row the client asked to start with.
Invariant: pure; a decode reply that the prefill reply cannot complete keeps its bytes.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import orjson

from miles_lite.process.json_types import JsonObject
from miles_lite.process.server_sent_events import payload

FROM_PROMPT = ("cached_tokens", "cached_tokens_details")


@dataclass
class Prompt:
    """What a prefill worker says of one prompt: meta_info fields, expert rows in base64, weight version."""

    fields: JsonObject = field(default_factory=dict)
    experts: str = ""
    version: str | None = None

    def learn(self, meta: JsonObject) -> None:
        """Take what a prefill worker's meta_info holds."""
        self.fields |= {name: value for name, value in meta.items() if name.startswith("input_") and value}
        self.fields |= {name: meta[name] for name in FROM_PROMPT if name in meta}
        self.experts = meta.get("routed_experts") or self.experts
        self.version = meta.get("weight_version") or self.version

    def complete(self, meta: JsonObject) -> bool:
        """Complete a decode worker's meta_info in place; True when that changed it."""
        told = {name: value for name, value in self.fields.items() if meta.get(name, value) != value}
        if self.experts and meta.get("routed_experts"):
            told["routed_experts"] = spliced(self.experts, meta["routed_experts"])
        spans = meta.get("weight_versions")
        if spans and self.version is not None and spans[0]["version"] != self.version:
            first = {"version": self.version, "start": 0, "end": 1}
            rest = [{**span, "start": max(span["start"], 1)} for span in spans if span["end"] > 1]
            told["weight_versions"] = [first, *rest]
        meta |= told
        return bool(told)


def spliced(first: str, whole: str) -> str:
    """base64 of the bytes of `first`, then those of `whole` behind as many (RFC 4648, section 4).

    Four characters are three bytes, so only those at the seam are decoded: replies with experts are long.
    """
    seam = len(first) - 4 if first.endswith("=") else len(first)
    ahead = base64.b64decode(first[seam:])
    across = ahead + base64.b64decode(whole[seam : seam + 4])[len(ahead) :]
    return first[:seam] + base64.b64encode(across).decode() + whole[seam + 4 :]


def prompts_of(replies: Iterable[JsonObject | list[JsonObject]]) -> dict[int, Prompt]:
    """What a prefill worker says, by index in the batch: of its whole reply, or of the events of its stream."""
    prompts: dict[int, Prompt] = {}
    for reply in replies:
        for index, meta in _metas(reply):
            prompts.setdefault(index, Prompt()).learn(meta)
    return prompts


def merged(decode: bytes, prompts: Mapping[int, Prompt]) -> bytes:
    """A decode worker's JSON, completed: an object, a batch's list, or one event's. Raises ValueError: not JSON."""
    reply = orjson.loads(decode)
    changed = [prompts[index].complete(meta) for index, meta in _metas(reply) if index in prompts]
    return orjson.dumps(reply) if any(changed) else decode


def merged_event(event: bytes, prompts: Mapping[int, Prompt]) -> bytes:
    """One event of a decode worker's stream, completed, with the empty line that ends it."""
    data = payload(event)
    return (event if data is None else b"data: " + merged(data, prompts)) + b"\n\n"


def _metas(reply: JsonObject | list[JsonObject]) -> Iterator[tuple[int, JsonObject]]:
    """Where a reply of /generate, chat completions or completions says such things, with the index it is about."""
    if isinstance(reply, list):
        for index, one in enumerate(reply):
            yield from ((index, meta) for _, meta in _metas(one))
        return
    for choice in reply.get("choices") or ():
        if meta := choice.get("meta_info"):
            yield int(choice.get("index") or 0), meta
    index = int(reply.get("index") or 0)
    for name in ("meta_info", "sglext", "metadata"):
        if meta := reply.get(name):
            yield index, meta
