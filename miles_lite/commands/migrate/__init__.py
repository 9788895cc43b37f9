"""`miles-lite migrate LAUNCHER | --flags FILE --json OUT`: a launcher of the field as one of ours.

Invariant: nothing is started or sourced; a launcher is read as text. Each of its words that looks like a flag is
printed, or told of, with its line where a hand is needed.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from miles_lite.commands.migrate.field_launcher import NAME, Found, Launcher
from miles_lite.commands.migrate.python_script import python_launcher
from miles_lite.commands.migrate.shell_script import shell_launcher
from miles_lite.config.flags import parser_of, take
from miles_lite.config.migration import Flag, Translation, translate
from miles_lite.config.option import option
from miles_lite.errors import UserError, user_error


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
            with user_error(f"LAUNCHER {name}", UserError):
                launcher = python_launcher(text) if name.endswith(".py") else shell_launcher(text)
            if not launcher.command:
                raise UserError(f"LAUNCHER {name}: no array *_ARGS=(...) and no flags of a train.py in it")
            said[name] = _printed(name, launcher, "train-async" if "train_async.py" in text else "train")
    if options.json is not None:
        with user_error(f"--json {options.json}: cannot be written", OSError):
            content = {name: each.as_json() for name, each in said.items()}
            Path(options.json).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


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


def _printed(name: str, launcher: Launcher, command: str) -> Translation:
    """Print our launcher, which calls `command`; what became of all flags."""
    whole = Translation()
    head = f"#!/usr/bin/env bash\n# Translated from {Path(name).name} by miles-lite migrate.\nset -euo pipefail"
    written = [(line, "\n", text) for line, text in launcher.variables]
    called = [f"exec miles-lite {command}"]
    for each in launcher.command:
        lines = [line for found in launcher.found(each) for line in _lines(found, whole)]
        if isinstance(each, Found):
            called += lines
        elif lines:
            called.append(f'"${{{each}[@]}}"')
            last = max(found.line for found in launcher.arrays[each])
            written.append((last, "\n\n", "\n  ".join([f"{each}=(", *lines]) + "\n)"))
    written.sort(key=itemgetter(0))  # an array sees what its variables were there
    blocks = [sep.join(each[2] for each in group) for sep, group in groupby(written, key=itemgetter(1))]
    print("\n\n".join([head, *blocks, " \\\n  ".join([*called, '"$@"'])]))
    lines_of: dict[str, list[int]] = {}
    for found in launcher.flags():
        lines_of.setdefault(found.flag, []).append(found.line)
    _print_translation(whole, lines_of, launcher.by_hand)
    return whole


def _lines(found: Found, whole: Translation) -> list[str]:
    """Ours in the place of a flag, each with its values; what became of it is added to `whole`."""
    texts = [f"${{\0{at}}}" if value.said is None else value.said for at, value in enumerate(found.values)]
    stands = {text: value.source for text, value in zip(texts, found.values, strict=True) if value.said is None}
    stand = re.compile(f"({'|'.join(map(re.escape, stands)) or '(?!)'})")
    each = translate([(found.flag, texts)])
    each.mapped = {flag: stand.sub(lambda match: stands[match[0]], why) for flag, why in each.mapped.items()}
    whole.add(each)
    if each.argv == [found.flag, *texts]:
        return [found.source]
    lines: list[str] = []
    for word in each.argv:
        if NAME.match(word):
            lines.append(word)
        else:
            parts = [part for part in stand.split(word) if part] or [""]
            lines[-1] += " " + "".join(stands.get(part) or shlex.quote(part) for part in parts)
    return lines


def _print_translation(said: Translation, lines: Mapping[str, Sequence[int]], rest: Sequence[tuple[int, str]]) -> None:
    """What there is to know of each flag; what is left by hand with its line."""
    for title, rows in (("mapped", said.mapped), ("changes nothing", said.ignored)):
        for flag, why in rows.items():
            print(f"{title}: {flag}: {why}", file=sys.stderr)
    unknown = dict.fromkeys(said.unknown, "not known: no flag of this name")
    refused = {flag: f"refused: {why}" for flag, why in said.refused.items()}
    by_hand = [(line, f"{flag}: {why}") for flag, why in (unknown | refused).items() for line in lines[flag]]
    for line, what in sorted({*by_hand, *rest}):
        print(f"by hand: line {line}: {what}", file=sys.stderr)


def _summary(said: dict[str, Translation]) -> None:
    refused = {name: each.refused for name, each in said.items() if each.refused}
    unknown = {flag for each in said.values() for flag in each.unknown}
    print(f"{len(said)} launchers, {len(refused)} with a flag that is refused, {len(unknown)} flags that are not known")
    for name, flags in refused.items():
        for flag, why in flags.items():
            print(f"  {name}: {flag}: {why}")
    for flag in sorted(unknown):
        print(f"  not known: {flag}")
