"""Options in YAML files: `--config FILE`, in front of the flags of a command line.

    include: [base.yaml]          files that this one goes on from, found beside it
    hf_checkpoint: /models/m      an option by its name, with _ or -
    rollouts:                     or in its group
      rollout_batch_size: 32
    sglang: {mem_fraction_static: 0.7}

Invariant: a file says what flags could say and nothing else; of two that say something of an option the later one
counts, and a flag counts over all.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from miles_lite.config.flags import every_option
from miles_lite.config.option import Declared, option
from miles_lite.config.spelling import nearest
from miles_lite.config.yaml_text import read_yaml
from miles_lite.errors import UserError, user_error

Content: TypeAlias = Mapping[str, Any]

INCLUDE, SGLANG = "include", "sglang"
MOST = 100
"""Files that one includes, those of its own too."""


@dataclass(frozen=True, kw_only=True)
class ConfigFiles:
    """configuration files: options in YAML, in the place of flags."""

    config: tuple[str, ...] = option((), help="YAML files of options; later ones count over earlier, flags over all")
    custom_config_path: str | None = option(
        None,
        help="miles' YAML of flags, which counts over the command line; plug-ins' args have all of it",
        path=True,
    )
    print_config: bool = option(False, help="print every option as YAML that --config takes, and end")
    print_config_schema: bool = option(False, help="print the JSON schema of such files, for editors, and end")


OWN = frozenset(field.name for field in dataclasses.fields(ConfigFiles))


@dataclass(frozen=True)
class FileValue:
    """What a file says of an option."""

    value: Any
    file: str


@dataclass(frozen=True)
class OptionNames:
    """The options of a command by name, and the names of its groups."""

    options: Mapping[str, Declared]
    groups: frozenset[str]

    @classmethod
    def of(cls, command: type) -> OptionNames:
        options = {each.field.name: each for each in every_option(command)}
        names = (field.name for field in dataclasses.fields(command))
        return cls(options, frozenset(name for name in names if name not in options))


def expanded(argv: Sequence[str], parser: argparse.ArgumentParser, command: type) -> list[str]:
    """A command line with the options of its files in it. Raises UserError naming file and key."""
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--config", nargs="+", action="extend", default=[])
    files.add_argument("--custom-config-path")
    found, rest = files.parse_known_args(list(argv))
    if not found.config and found.custom_config_path is None:
        return list(argv)
    known = OptionNames.of(command)
    given = {action.dest for flag in rest if (action := _action(parser, flag)) is not None}
    told: dict[str, FileValue] = {}
    for file in found.config:
        told |= read(Path(file), known)
    tokens = [word for name, each in told.items() if name not in given for word in _checked(name, each, known, parser)]
    if found.custom_config_path is not None:
        path = found.custom_config_path
        over = {name: FileValue(value, path) for name, value in _load(Path(path)).items() if name in known.options}
        rest = [*rest, *(word for name, each in over.items() for word in _checked(name, each, known, parser))]
        rest += ["--custom-config-path", path]
    return [*tokens, *(["--config", *found.config] if found.config else []), *rest]


def read(
    path: Path, known: OptionNames, *, including: tuple[Path, ...] = (), read_already: list[Path] | None = None
) -> dict[str, FileValue]:
    """What a file, and those that it includes, says of each option. Raises UserError."""
    read_already = [] if read_already is None else read_already
    if path.resolve() in [each.resolve() for each in including]:
        raise UserError(f"--config {path}: it includes itself: {' > '.join(map(str, (*including, path)))}")
    if len(read_already) > MOST:
        raise UserError(f"--config {(*including, path)[0]}: it includes more than {MOST} files, by {including[-1]}")
    read_already.append(path)
    content = _load(path, f"{including[-1]}, which includes " if including else "")
    included = content.get(INCLUDE) or []
    included = [included] if isinstance(included, str) else included
    if not isinstance(included, list) or not all(isinstance(each, str) for each in included):
        raise UserError(f"--config {path}, {INCLUDE}: expected a file or a list of files, found {included!r:.80}")
    told: dict[str, FileValue] = {}
    for other in included:
        there = path.expanduser().parent / Path(other).expanduser()
        told |= read(there, known, including=(*including, path), read_already=read_already)
    for name, value in _flat(content, known, path):
        told.pop(name, None)
        told[name] = FileValue(value, str(path))
    return told


def plugin_args(path: str | None) -> dict[str, Any]:
    """All keys of --custom-config-path. Raises UserError."""
    return {} if path is None else dict(_load(Path(path)))


def _flat(content: Content, known: OptionNames, path: Path) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name == INCLUDE:
            continue
        if name == SGLANG or (name in known.groups and isinstance(value, Mapping)):
            if not isinstance(value, Mapping):
                raise UserError(f"--config {path}: {SGLANG}: expected SGLang's options by name")
            inner = {(f"{SGLANG}_{each}" if name == SGLANG else str(each)): one for each, one in value.items()}
            yield from inner.items() if name == SGLANG else _flat(inner, known, path)
        elif name in OWN:
            instead = f"'{INCLUDE}: FILE'" if name == "config" else "a flag"
            raise UserError(f"--config {path}: {key} is said by {instead}, not in a file")
        elif name in known.options:
            yield name, value
        else:
            hint = nearest(name, [*known.options, *known.groups, INCLUDE, SGLANG])
            raise UserError(f"--config {path}: unknown key {key}{hint}\n  keys are the names of flags")


def _words(name: str, value: object, known: OptionNames) -> list[str]:
    """As it would be on a command line."""
    each = known.options.get(name)
    flag = "--" + name.replace("_", "-")
    spelled = each is not None and each.option.spelled
    if value is None or (isinstance(value, list | tuple) and not value):
        return []
    if isinstance(value, bool) and not spelled and (each is None or isinstance(each.default, bool)):
        return [flag] if value else [] if each is None else [flag.replace("--", "--no-", 1)]
    if not isinstance(value, list | tuple):
        return [f"{flag}={_word(value)}"]
    return [flag, *(_word(one) for one in value)]


def _checked(name: str, told: FileValue, known: OptionNames, parser: argparse.ArgumentParser) -> list[str]:
    """Its words. Raises UserError naming file and key for a value that the flag does not take."""
    words = _words(name, told.value, known)
    action = _action(parser, words[0]) if words else None
    if action is not None and action.nargs == 0 and "=" in words[0]:
        raise UserError(f"--config {told.file}, {name}: expected true or false, found {told.value!r:.80}")
    if action is not None and action.nargs is None and len(words) > 2:
        raise UserError(f"--config {told.file}, {name}: expected one value, found {told.value!r:.80}")
    if action is not None and action.nargs != 0:
        values = [words[0].partition("=")[2]] if len(words) == 1 and "=" in words[0] else words[1:]
        with user_error(f"--config {told.file}, {name}", UserError, argparse.ArgumentError, argparse.ArgumentTypeError):
            read = parser._get_values(action, values)
            if name in known.options:
                known.options[name].option.settled(
                    known.options[name].flag, tuple(read) if isinstance(read, list) else read
                )
    return words


def _word(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return json.dumps(value)
    return str(value.value if isinstance(value, Enum) else value)


def _load(path: Path, whence: str = "") -> Content:
    with user_error(f"--config {whence}{path}: cannot be read", OSError, UnicodeDecodeError, yaml.YAMLError):
        content = read_yaml(path.expanduser().read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise UserError(f"--config {path}: expected options by name")
    return content


def _action(parser: argparse.ArgumentParser, flag: str) -> argparse.Action | None:
    return parser._option_string_actions.get(flag.partition("=")[0])
