"""Replies of the tiny model as the scripted engine gives them: whole, or streamed token by token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from miles_lite.tito import Tito
from tests.session.engine import STOP, answer

TEXT = (
    "<think>\nwhy not\n</think>\n\nhé, do 🎈\n"
    '<tool_call>\n{"name": "run", "arguments": {"cmd": "ls"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "run", "arguments": {"cmd": "pwd"}}\n</tool_call> bye'
)
FUNCTION = {"name": "run", "description": "Runs it", "parameters": {"type": "object", "properties": {}}}
CHAT_TOOLS: list[Any] = [{"type": "function", "function": FUNCTION}]
RESPONSES_TOOLS: list[Any] = [{"type": "function", **FUNCTION, "strict": False}]
ANTHROPIC_TOOLS: list[Any] = [{"name": "run", "description": "Runs it", "input_schema": FUNCTION["parameters"]}]


def ids_of(tito: Tito, text: str) -> list[int]:
    return list(map(int, tito.encoder.encode(text)))


def saying(tito: Tito, text: str = TEXT, *, cut: bool = False) -> Callable[[dict[str, Any]], Any]:
    """A script that says `text`; with `cut` it ends for its length and not by a stop token."""
    ids = ids_of(tito, text) if cut else [*ids_of(tito, text), STOP]
    finish = {"type": "length", "length": len(ids)} if cut else {"type": "stop", "matched": STOP}

    def script(body: dict[str, Any]) -> Any:
        if not body["stream"]:
            return answer(ids, finish=finish)
        events = []
        for end, token in enumerate(ids, start=1):
            event = answer([token], finish=finish)
            event["meta_info"] |= {"completion_tokens": end}
            if end < len(ids):
                event["meta_info"]["finish_reason"] = None
            events.append(event)
        return events

    return script
