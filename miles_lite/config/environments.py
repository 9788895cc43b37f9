"""The environments that a name stands for, and what of an environment the flags say.

Invariant: nothing is imported here; a name's module is when it is named (`environments.load`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from miles_lite.config.spelling import nearest
from miles_lite.config.yaml_text import read_yaml
from miles_lite.errors import UserError, user_error
from miles_lite.process.json_types import JsonObject

SOURCE = "environment"
"""As a source of prompts: those of --environment; `environment:SPLIT` those of another split than `train`."""
TRAIN = "train"


@dataclass(frozen=True)
class Preset:
    """Where its `make` is (see `hooks.EnvironmentFactory`), and the role of the messages that it answers with."""

    make: str
    answers_as: str | None = None


def _here(module: str, answers_as: str | None = None) -> Preset:
    return Preset(f"miles_lite.environments.{module}:make", answers_as)


ENVIRONMENTS: Mapping[str, Preset] = {
    "reasoning-gym": _here("reasoning_gym"),
    "gem": _here("gem", "user"),
    "textarena": _here("text_arena", "user"),
    "openenv": _here("open_env", "user"),
    "ors": _here("ors", "tool"),
    "harbor": _here("harbor", "tool"),
    "verifiers": _here("verifiers", "user"),
    "nemo-gym": _here("nemo_gym", "user"),
    "program": _here("program", "user"),
}


def named(spec: str) -> tuple[Preset, str]:
    """What NAME[:ARGUMENT] names, or PATH:NAME of the user's own, and its argument. Raises UserError."""
    name, _, argument = spec.partition(":")
    if name in ENVIRONMENTS:
        return ENVIRONMENTS[name], argument
    if {".", "/"} & set(name):
        function, _, argument = argument.partition(":")
        return Preset(f"{name}:{function}"), argument
    known = ", ".join(ENVIRONMENTS)
    raise UserError(
        f"--environment {name}: not known{nearest(name, tuple(ENVIRONMENTS))}; known are {known}, others by "
        "package.module:name or file.py:name"
    )


def arguments(given: str | None) -> JsonObject:
    """--environment-args: an object of JSON or YAML, or the name of a file that holds one. Raises UserError."""
    if given is None:
        return {}
    text, where = given, "--environment-args"
    if not given.lstrip().startswith("{") and given.endswith((".yaml", ".yml", ".json")):
        where = f"--environment-args {given}"
        with user_error(f"{where}: cannot be read", OSError, UnicodeDecodeError):
            text = Path(given).expanduser().read_text(encoding="utf-8")
    with user_error(f"{where}: neither JSON nor YAML", yaml.YAMLError):
        told = read_yaml(text)
    if not isinstance(told, dict):
        raise UserError(f'{where}: expected an object, as {{"max_turns": 5}}, found {type(told).__name__}')
    for key in told:
        if not isinstance(key, str):
            raise UserError(f"{where}: an argument's name is text, and {key!r} is none")
    return told


def is_source(source: str) -> bool:
    """Whether a source of prompts is the environment's."""
    return source.partition("@")[0].partition(":")[0] == SOURCE
