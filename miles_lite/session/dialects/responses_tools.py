"""Tools of a Responses request, as the model is shown them and as the client calls them.

Invariant: a model sees functions whose names are unique. What the client named otherwise, inside a namespace or as a
tool of free text, goes back under its own name and in its own form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson

from miles_lite.process.json_types import JsonMapping, JsonObject
from miles_lite.session.dialects.fields import needed
from miles_lite.session.dialects.known_fields import UNSUPPORTED
from miles_lite.session.dialects.responses_body import TOOLS, ResponsesTool
from miles_lite.session.errors import ApiError

_INPUT = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Called:
    """A tool as its client knows it. `custom`: its argument is text, not JSON."""

    name: str
    namespace: str | None = None
    custom: bool = False

    def item(self, call: JsonMapping, arguments: str) -> JsonObject:
        """What an item of this call says beside its id and status."""
        kind, told = ("custom_tool_call", "input") if self.custom else ("function_call", "arguments")
        made = {"type": kind, "call_id": call["id"], "name": self.name, told: arguments}
        return made if self.namespace is None else made | {"namespace": self.namespace}

    def argument(self, call: JsonMapping) -> str:
        """JSON, or the text of a tool of free text: all of what the model wrote, where it is no `input` alone."""
        arguments: str = call["function"]["arguments"]
        if not self.custom:
            return arguments
        given = orjson.loads(arguments)
        alone = isinstance(given, dict) and given.keys() == {"input"} and isinstance(given["input"], str)
        return str(given["input"]) if alone else arguments


@dataclass(slots=True)
class ResponseTools:
    """`functions` in chat shape; `called` tells how the client calls those that it calls otherwise."""

    functions: list[JsonObject] = field(default_factory=list)
    called: dict[str, Called] = field(default_factory=dict)

    def as_called(self, shown: str) -> Called:
        return self.called.get(shown) or Called(shown)

    def model_name(self, name: str, namespace: str | None = None) -> str:
        """What the model knows the tool by."""
        names = (shown for shown, called in self.called.items() if (called.name, called.namespace) == (name, namespace))
        return next(names, name if namespace is None else _joined(namespace, name))

    def add(self, tool: ResponsesTool, path: str, *, namespace: str | None = None, head: str = "") -> None:
        """`head` begins the description."""
        name = needed(tool.name, f"{path}.name")
        function: JsonObject = {"name": self._free(name if namespace is None else _joined(namespace, name))}
        custom = tool.type == "custom"
        texts = [head, tool.description or "", _grammar(tool, path) if custom else ""]
        if description := "\n\n".join(filter(None, texts)):
            function["description"] = description
        function["parameters"] = _INPUT if custom else tool.parameters or {}
        self.functions.append({"type": "function", "function": function})
        called = Called(name, namespace, custom)
        if called != Called(function["name"]):
            self.called[function["name"]] = called

    def _free(self, name: str) -> str:
        taken = {function["function"]["name"] for function in self.functions}
        number, made = 2, name
        while made in taken:
            number, made = number + 1, f"{name}_{number}"
        return made


def tools_of(tools: Sequence[ResponsesTool]) -> ResponseTools:
    """A request's tools, checked. Plain functions come first, so that they keep their names. Raises ApiError 400."""
    made = ResponseTools()
    spaces = []
    for number, tool in enumerate(tools):
        if tool.type == "namespace":
            spaces.append((f"tools[{number}]", tool))
        elif TOOLS.is_served(tool.type, f"tools[{number}].type"):
            made.add(tool, f"tools[{number}]")
    for path, space in spaces:
        namespace, head = needed(space.name, f"{path}.name"), space.description or ""
        for number, tool in enumerate(space.tools or ()):
            at = f"{path}.tools[{number}]"
            if tool.type not in ("function", "custom"):
                why = f"a namespace holds functions and custom tools, not {tool.type!r}"
                raise ApiError(400, why, param=f"{at}.type", code=UNSUPPORTED)
            made.add(tool, at, namespace=namespace, head=head)
            head = ""
    return made


def arguments_of(text: str) -> str:
    """The arguments of the function that stands for a tool of free text."""
    return orjson.dumps({"input": text}).decode()


def _joined(namespace: str, name: str) -> str:
    return f"{namespace}__{name}"


def _grammar(tool: ResponsesTool, path: str) -> str:
    if tool.format is None or tool.format.type != "grammar":
        return ""
    definition = needed(tool.format.definition, f"{path}.format.definition")
    return f"The input follows this {tool.format.syntax or ''} grammar:\n{definition}"
