"""JSON that strangers wrote, read into types: what a body must be, and what the OpenAPI page says of it, in one place.

Invariant: what is no such JSON raises ApiError 400, which names the path of the field at fault, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, TypeVar

import msgspec

from miles_lite.process.json_types import Json, JsonObject
from miles_lite.session.errors import ApiError, bad_request

Body = TypeVar("Body", bound=msgspec.Struct)

Count = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
NotEmpty = Annotated[str, msgspec.Meta(min_length=1)]

_REFUSAL = re.compile(r"(?P<why>.*?)(?: - at `\$(?P<path>.*)`)?", re.DOTALL)
_EXPECTED = re.compile(r"Expected `(?P<types>[^`]*)`(?P<bound>[^,]*)")
_KINDS = {
    "str": "a string",
    "bool": "a boolean",
    "int": "an integer",
    "float": "a number",
    "object": "an object",
    "array": "a list",
}
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")


class Struct(msgspec.Struct, kw_only=True):
    """The fields of an object that are read; what else it has is for others to say. A field may always be null."""


def read(value: Json, kind: type[Body], at: str = "", *, whole: Json = None) -> Body:
    """`value` as `kind`; `at` is its path. Raises ApiError 400.

    Where `value` stands for more than it holds, `whole` is what it stands for: the path of a refusal is one in there.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        found = error
    if whole is not None:
        return read(whole, kind, at)
    raise _refused(str(found), kind, at)


def _refused(text: str, kind: type[msgspec.Struct], at: str) -> ApiError:
    parts = _REFUSAL.fullmatch(text)
    assert parts is not None
    why, path = parts["why"], parts["path"] or ""
    if missing := re.match(r"Object missing required field `(.*)`", why):
        path += f".{missing[1]}"
    steps = [name or "[]" for name, _ in _STEP.findall(path)]
    path = (at + path).removeprefix(".")
    if expected := _EXPECTED.match(why):
        kinds = [_KINDS.get(name, name) for name in expected["types"].split(" | ") if name != "null"]
        bound = expected["bound"].rstrip().replace(" of length >= ", " of at least ")
        return bad_request(f"{path or 'it'} must be {' or '.join(kinds)}{bound}", param=path)
    if missing:
        return bad_request(f"{path} is missing", param=path)
    choices = ", ".join(map(str, dict.fromkeys(_choices(kind, steps))))
    return bad_request(f"{steps[-1] if steps else path} must be one of {choices}", param=path)


def _choices(kind: type[msgspec.Struct], steps: list[str]) -> Iterator[Json]:
    """The values that the field at the end of a path may have."""
    whole = msgspec.json.schema(kind)
    nodes = [whole]
    for step in [*steps, None]:
        nodes = [one for node in nodes for one in _alternatives(node, whole)]
        if step is None:
            break
        inner = (node.get("items") if step == "[]" else node.get("properties", {}).get(step) for node in nodes)
        nodes = [node for node in inner if node]
    for node in nodes:
        yield from node.get("enum", ())


def _alternatives(node: JsonObject, whole: JsonObject) -> Iterator[JsonObject]:
    if "$ref" in node:
        yield from _alternatives(whole["$defs"][node["$ref"].rpartition("/")[2]], whole)
    elif "anyOf" in node:
        for one in node["anyOf"]:
            yield from _alternatives(one, whole)
    else:
        yield node
