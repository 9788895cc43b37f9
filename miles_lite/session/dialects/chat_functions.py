"""Chat completions in their older form: `functions`, `function_call`, and messages of the role `function`.

Invariant: what is read from the older form is what the newer one would have said, and what is answered in it also holds
`tool_calls` when the model made more calls than the older form can say.
"""

from __future__ import annotations

from collections.abc import Sequence

from miles_lite.process.json_types import Json, JsonMapping, JsonObject
from miles_lite.session.errors import bad_request
from miles_lite.tito.chat_messages import Message


def modern(body: JsonMapping) -> JsonMapping:
    """The body with `tools` and `tool_choice` for `functions` and `function_call`. Raises ApiError 400."""
    if not uses_functions(body):
        return body
    if body.get("tools") or body.get("tool_choice"):
        raise bad_request("functions and function_call are the older form of tools and tool_choice", param="functions")
    functions = body.get("functions") or []
    if not isinstance(functions, list):
        raise bad_request("functions must be a list", param="functions")
    tools = [{"type": "function", "function": function} for function in functions]
    choice = body.get("function_call")
    if isinstance(choice, dict):
        choice = {"type": "function", "function": choice}
    elif choice not in (None, "auto", "none"):
        raise bad_request("function_call must be auto, none or a function's name", param="function_call")
    rest = {name: value for name, value in body.items() if name not in ("functions", "function_call")}
    return rest | {"tools": tools, "tool_choice": choice}


def uses_functions(body: JsonMapping) -> bool:
    """Whether the answer is expected in the older form."""
    return body.get("functions") is not None or body.get("function_call") is not None


def old(message: Json) -> bool:
    return isinstance(message, dict) and (message.get("role") == "function" or "function_call" in message)


def modernised(messages: Sequence[Json], held: Sequence[Message]) -> list[Json]:
    """The messages in the newer form. The older one says no ids: those of the conversation `held` are taken."""
    made: list[Json] = []
    last = ""
    for index, message in enumerate(messages):
        known = held[index] if index < len(held) else {}
        if old(message) and message.get("role") == "function":
            message = {**message, "role": "tool", "tool_call_id": last}
        elif old(message):
            message = _called(message, known, f"messages[{index}]")
            last = _first_call(message).get("id") or ""
        made.append(message)
    return made


def _called(message: JsonMapping, known: Message, path: str) -> JsonObject:
    rest = {name: value for name, value in message.items() if name != "function_call"}
    function = message["function_call"]
    if function is None or rest.get("tool_calls"):
        return rest
    if not isinstance(function, dict):
        raise bad_request("function_call must be an object", param=f"{path}.function_call")
    told = _first_call(known)
    same = (told.get("function") or {}).get("name") == function.get("name")
    return rest | {"tool_calls": [{"id": told.get("id") if same else "", "type": "function", "function": function}]}


def _first_call(message: JsonMapping) -> JsonMapping:
    calls = message.get("tool_calls")
    return calls[0] if isinstance(calls, list) and calls and isinstance(calls[0], dict) else {}


def answered(message: JsonMapping) -> JsonObject:
    """A reply in the older form."""
    made = dict(message)
    if calls := message.get("tool_calls"):
        made["function_call"] = calls[0]["function"]
        if len(calls) == 1:
            del made["tool_calls"]
    return made


class FunctionCallStream:
    """Tool calls of a stream in the older form, as they come."""

    def __init__(self) -> None:
        self._calls: list[JsonMapping] = []

    def delta(self, calls: Sequence[JsonMapping]) -> JsonObject:
        first = not self._calls
        told = 0 if len(self._calls) == 1 else len(self._calls)
        self._calls += calls
        made: JsonObject = {"function_call": self._calls[0]["function"]} if first else {}
        if len(self._calls) > 1:
            made["tool_calls"] = [{"index": n, **self._calls[n]} for n in range(told, len(self._calls))]
        return made
