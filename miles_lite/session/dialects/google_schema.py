"""Google's Schema objects as JSON Schema.

Invariant: JSON Schema comes out as it went in, but for the spelling of types and of names with underscores.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from miles_lite.process.json_types import Json

_UNDERSCORE = re.compile(r"_([a-z])")
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
_OF_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")
_DROPPED = ("nullable", "propertyOrdering")


def camel_case(name: str) -> str:
    """A name of Google's, spelled as in JSON and not as in protocol buffers."""
    return _UNDERSCORE.sub(lambda found: found[1].upper(), name) if "_" in name else name


def json_schema(schema: Json) -> Json:
    """Types in small letters, `nullable` as a type, bounds as numbers (Google writes 64-bit integers as text)."""
    if not isinstance(schema, dict):
        return schema
    named = ((camel_case(name), value) for name, value in schema.items())
    made = {name: _value(name, value) for name, value in named if name not in _DROPPED}
    if schema.get("nullable") and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    return made


def _value(name: str, value: Json) -> Json:
    if name == "type":
        return value.lower() if isinstance(value, str) else value
    if name in _COUNTS and isinstance(value, str) and value.isdigit():
        return int(value)
    if name in ("properties", "$defs", "defs") and isinstance(value, Mapping):
        return {key: json_schema(inner) for key, inner in value.items()}
    if name in ("items", "additionalProperties"):
        return json_schema(value)
    if name in _OF_SCHEMAS and isinstance(value, list):
        return [json_schema(inner) for inner in value]
    return value
