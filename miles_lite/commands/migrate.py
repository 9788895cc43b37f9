"""`miles-lite migrate LAUNCHER | --flags FILE --json OUT`: a launcher of the field as one of ours.

Invariant: nothing is started or sourced; a launcher is read as text.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from miles_lite.config.flags import parser_of, take
from miles_lite.config.migration import Flag, Translation, translate
from miles_lite.config.option import option
from miles_lite.errors import UserError, user_error

_ARRAY = re.compile(r"^[ \t]*(\w*ARGS\w*)\+?=\((.*?)^[ \t]*\)", re.MULTILINE | re.DOTALL)
_ONE_LINE = re.compile(r"^[ \t]*(\w*ARGS\w*)\+?=\(([^()\n]*)\)", re.MULTILINE)
_TRAIN = re.compile(r"train(?:_async)?\.py(.*?)(?:\n\s*\n|\Z)", re.DOTALL)
_VARIABLE = re.compile(r"^[ \t]*(?:export[ \t]+)?([A-Z][A-Z0-9_]*)=(?!\()(\S.*)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Migrate:
    """migration: what is translated."""

    launcher: tuple[str, ...] = option(
        (), positional=True, nargs="*", help="shell script or Python file that starts a run of miles or slime"
    )
    flags: str | None = option(None, help="JSON file of {launcher: [[flag, value ...], ...]} instead", path=True)
    json: str | None = option(None, help="write what becomes of each flag to this file", path=True)


def main(argv: Sequence[str]) -> int:
    """The launcher in our words on stdout, what is to be known of it on stderr. Raises UserError."""
    options = take(parser_of(Migrate, prog="miles-lite migrate").parse_args(list(argv)), Migrate)
    if bool(options.launcher) == (options.flags is not None):
        raise UserError("miles-lite migrate: give a LAUNCHER, or --flags FILE")
    if options.flags is not None:
        said = {name: translate(flags) for name, flags in _flags_file(Path(options.flags)).items()}
        _summary(said)
    else:
        said = {}
        for name in options.launcher:
            with user_error(f"LAUNCHER {name}: cannot be read", OSError, UnicodeDecodeError):
                text = Path(name).expanduser().read_text(encoding="utf-8")
            arrays = python_flags(text) if name.endswith(".py") else shell_flags(text)
            if not any(arrays.values()):
                raise UserError(f"LAUNCHER {name}: no array *_ARGS=(...) and no flags of a train.py in it")
            said[name] = _printed(name, text, arrays)
    if options.json is not None:
        with user_error(f"--json {options.json}: cannot be written", OSError):
            content = {name: each.as_json() for name, each in said.items()}
            Path(options.json).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


def shell_flags(text: str) -> dict[str, list[Flag]]:
    """The flags of each array, and under `MISC_ARGS` those behind train.py."""
    text = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*$", "", text))
    arrays: dict[str, list[Flag]] = {}
    for name, body in [*_ARRAY.findall(text), *_ONE_LINE.findall(text)]:
        arrays.setdefault(name, []).extend(_split(body))
    for behind in _TRAIN.findall(text):
        arrays.setdefault("MISC_ARGS", []).extend(_split(behind))
    return {name: flags for name, flags in arrays.items() if name != "MODEL_ARGS"}


def python_flags(text: str) -> dict[str, list[Flag]]:
    """The flags in the strings that a Python launcher puts its command together of; expressions are `$name`."""
    found: list[Flag] = []
    with user_error("LAUNCHER: no Python", SyntaxError):
        tree = ast.parse(text)
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (str(each.value) if isinstance(each, ast.Constant) else "$x" for each in node.values)
            found += _split("".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            found += _split(node.value) if node.value.lstrip().startswith("--") else []
    return {"MISC_ARGS": found}


def _split(text: str) -> list[Flag]:
    """Flags and values as a shell has them; other words, such as "${CKPT_ARGS[@]}", are not."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters = True, "#"
    flags: list[tuple[str, list[str]]] = []
    try:
        words = list(lexer)
    except ValueError:  # a quotation mark that is not closed: what is left is no command line
        words = text.split()
    for word in words:
        if re.match(r"--[a-z]", word):
            flag, equals, value = word.partition("=")
            flags.append((flag, [value] if equals else []))
        elif flags and "ARGS[@]" not in word and word != "\\":
            flags[-1][1].append(word)
    return list(flags)


def _flags_file(path: Path) -> dict[str, list[Flag]]:
    with user_error(f"--flags {path}: cannot be read", OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise UserError(f"--flags {path}: expected an object of {{launcher: [[flag, value ...], ...]}}")
    read: dict[str, list[Flag]] = {}
    for name, flags in content.items():
        if not isinstance(flags, list) or not all(isinstance(each, list) and each for each in flags):
            raise UserError(f"--flags {path}, {name}: expected a list of [flag, value ...]")
        read[name] = [(str(each[0]), [word for value in each[1:] for word in _words(str(value))]) for each in flags]
    return read


def _words(value: str) -> list[str]:
    """Values that were written as one text."""
    return [value] if value.startswith("{") or "$" in value else value.split()


def _printed(name: str, text: str, arrays: dict[str, list[Flag]]) -> Translation:
    """Print our launcher; what became of all flags."""
    whole = Translation()
    print(f"#!/usr/bin/env bash\n# Translated from {Path(name).name} by miles-lite migrate.\nset -euo pipefail\n")
    used = {word for flags in arrays.values() for _, values in flags for word in re.findall(r"\w+", " ".join(values))}
    for variable, value in dict(_VARIABLE.findall(text)).items():
        if variable in used:
            print(f"{variable}={value}")
    for array, flags in arrays.items():
        each = translate(flags)
        print(f"\n{array}=(")
        for line in _lines(each.argv):
            print(f"  {line}")
        print(")")
        for kind in ("accepted", "unknown", "argv"):
            getattr(whole, kind).extend(getattr(each, kind))
        for kind in ("mapped", "ignored", "refused"):
            getattr(whole, kind).update(getattr(each, kind))
    command = "train-async" if "train_async.py" in text else "train"
    print(f"\nexec miles-lite {command}", " ".join(f'"${{{array}[@]}}"' for array in arrays), '"$@"')
    _told(whole)
    return whole


def _lines(argv: Sequence[str]) -> list[str]:
    lines: list[str] = []
    for word in argv:
        shown = f'"{word}"' if "$" in word else shlex.quote(word)
        if word.startswith("--"):
            lines.append(word)
        else:
            lines[-1] += f" {shown}"
    return lines


def _told(said: Translation) -> None:
    for title, rows in (
        ("mapped", said.mapped),
        ("changes nothing", said.ignored),
        ("by hand: refused", said.refused),
        ("by hand: not known", dict.fromkeys(said.unknown, "no flag of this name")),
    ):
        for flag, why in rows.items():
            print(f"{title}: {flag}: {why}", file=sys.stderr)


def _summary(said: dict[str, Translation]) -> None:
    refused = {name: each.refused for name, each in said.items() if each.refused}
    unknown = {flag for each in said.values() for flag in each.unknown}
    print(f"{len(said)} launchers, {len(refused)} with a flag that is refused, {len(unknown)} flags that are not known")
    for name, flags in refused.items():
        for flag, why in flags.items():
            print(f"  {name}: {flag}: {why}")
    for flag in sorted(unknown):
        print(f"  not known: {flag}")
