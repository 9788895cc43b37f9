"""Tools of a Responses request, as the model is shown them and as the client calls them.

Invariant: a model sees functions whose names are unique. What the client named otherwise, inside a namespace or as a
tool of free text, goes back under its own name and in its own form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from miles_lite.session.dialects.field_tables import RESPONSES_TOOLS
from miles_lite.session.dialects.fields import items, need, take, unsupported

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

    def item(self, call: Mapping[str, Any], arguments: str) -> dict[str, Any]:
        """What an item of this call says beside its id and status."""
        kind, told = ("custom_tool_call", "input") if self.custom else ("function_call", "arguments")
        made = {"type": kind, "call_id": call["id"], "name": self.name, told: arguments}
        return made if self.namespace is None else made | {"namespace": self.namespace}

    def argument(self, call: Mapping[str, Any]) -> str:
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

    functions: list[dict[str, Any]] = field(default_factory=list)
    called: dict[str, Called] = field(default_factory=dict)

    def as_called(self, shown: str) -> Called:
        return self.called.get(shown) or Called(shown)

    def shown(self, name: str, namespace: str | None = None) -> str:
        """What the model knows the tool by."""
        names = (shown for shown, called in self.called.items() if (called.name, called.namespace) == (name, namespace))
        return next(names, name if namespace is None else _joined(namespace, name))

    def add(
        self, kind: str, tool: Mapping[str, Any], path: str, *, namespace: str | None = None, head: str = ""
    ) -> None:
        """`head` begins the description."""
        name = need(tool, "name", "a string", f"{path}.")
        function: dict[str, Any] = {"name": self._free(name if namespace is None else _joined(namespace, name))}
        texts = [head, take(tool, "description", "a string", f"{path}.") or ""]
        if kind == "custom":
            texts.append(_grammar(tool, path))
        if description := "\n\n".join(filter(None, texts)):
            function["description"] = description
        schema = take(tool, "parameters", "an object", f"{path}.") or {}
        function["parameters"] = _INPUT if kind == "custom" else schema
        self.functions.append({"type": "function", "function": function})
        called = Called(name, namespace, kind == "custom")
        if called != Called(function["name"]):
            self.called[function["name"]] = called

    def _free(self, name: str) -> str:
        taken = {function["function"]["name"] for function in self.functions}
        number, made = 2, name
        while made in taken:
            number, made = number + 1, f"{name}_{number}"
        return made


def tools_of(body: Mapping[str, Any]) -> ResponseTools:
    """The request's tools, checked. Plain functions come first, so that they keep their names. Raises ApiError 400."""
    made = ResponseTools()
    spaces = []
    for path, tool in items(body, "tools"):
        kind = need(tool, "type", "a string", f"{path}.")
        if kind == "namespace":
            spaces.append((path, tool))
        elif RESPONSES_TOOLS.shows(kind, f"{path}.type"):
            made.add(kind, tool, path)
    for path, space in spaces:
        namespace = need(space, "name", "a string", f"{path}.")
        head = take(space, "description", "a string", f"{path}.") or ""
        for at, tool in items(space, "tools", f"{path}."):
            kind = need(tool, "type", "a string", f"{at}.")
            if kind not in ("function", "custom"):
                raise unsupported(f"a namespace holds functions and custom tools, not {kind!r}", f"{at}.type")
            made.add(kind, tool, at, namespace=namespace, head=head)
            head = ""
    return made


def arguments_of(text: str) -> str:
    """The arguments of the function that stands for a tool of free text."""
    return orjson.dumps({"input": text}).decode()


def _joined(namespace: str, name: str) -> str:
    return f"{namespace}__{name}"


def _grammar(tool: Mapping[str, Any], path: str) -> str:
    form = take(tool, "format", "an object", f"{path}.") or {}
    if form.get("type") != "grammar":
        return ""
    syntax = take(form, "syntax", "a string", f"{path}.format.") or ""
    return f"The input follows this {syntax} grammar:\n{need(form, 'definition', 'a string', f'{path}.format.')}"
