"""The options of a command as a JSON schema (draft 2020-12), and as the YAML that says them again."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any

import yaml

from miles_lite.config.flags import every_option, types_of
from miles_lite.config.option import Declared, declared
from miles_lite.config.yaml_files import INCLUDE, SGLANG, ConfigFiles

_TYPES: Mapping[object, str] = {bool: "boolean", int: "integer", float: "number", str: "string"}
_FILES = frozenset(each.field.name for each in declared(ConfigFiles))


def schema(command: type) -> dict[str, Any]:
    """Of the files that --config takes: every option by name, and in its group."""
    hints = types_of(command)
    groups = {
        field.name: hints[field.name]
        for field in dataclasses.fields(command)
        if dataclasses.is_dataclass(hints[field.name]) and hints[field.name] is not ConfigFiles
    }
    flat = {name: told for group in groups.values() for name, told in _properties(group).items()}
    nested = {
        name: {"type": "object", "properties": _properties(group), "additionalProperties": False}
        for name, group in groups.items()
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": command.__doc__,
        "type": "object",
        "properties": {
            INCLUDE: {"type": ["string", "array"], "description": "files that this one goes on from"},
            SGLANG: {"type": "object", "description": "SGLang's own options, by name"},
            **flat,
            **nested,
        },
        "additionalProperties": False,
    }


def as_yaml(shown: Mapping[str, Mapping[str, Any]]) -> str:
    """Options by group, as `Config.as_dict` has them, in the form that --config takes."""
    told: dict[str, Any] = {}
    for group, values in shown.items():
        kept = {name: _plain(value) for name, value in values.items() if name not in _FILES and value is not None}
        if SGLANG + "_args" in kept:
            told[SGLANG] = kept.pop(SGLANG + "_args")
        told[group] = kept
    return str(yaml.safe_dump({name: values for name, values in told.items() if values}, sort_keys=False))


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return {key: _plain(each) for key, each in value.items()} if isinstance(value, Mapping) else value


def _properties(group: type) -> dict[str, Any]:
    hints = types_of(group)
    return {each.field.name: _property(each, hints[each.field.name]) for each in every_option(group)}


def _property(each: Declared, hint: Any) -> dict[str, Any]:
    """What a value may be; null is the same as leaving it out."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    several = typing.get_origin(hint) is tuple
    kind = typing.get_args(hint)[0] if several else hint
    told: dict[str, Any] = {"type": [_TYPES.get(kind, "string"), "null"]}
    if isinstance(kind, type) and issubclass(kind, Enum):
        told = {"enum": [*(member.value for member in kind), *each.option.read, None]}
    elif typing.get_origin(kind) is typing.Literal:
        told = {"enum": [*typing.get_args(kind), None]}
    bounds = {"least": "minimum", "above": "exclusiveMinimum", "most": "maximum", "below": "exclusiveMaximum"}
    told |= {word: bound for name, word in bounds.items() if (bound := getattr(each.option, name)) is not None}
    if several:
        told = {"anyOf": [{"type": "array", "items": told}, told]}
    return told | {"description": each.option.help}
