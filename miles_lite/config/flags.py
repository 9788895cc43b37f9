"""Turns frozen dataclasses of options into a command line and back.

A group is a dataclass whose fields are options; a command's options are a dataclass whose fields are groups, and
options of its own. Invariant: a flag's name is its field's name (`rollout_batch_size` is `--rollout-batch-size`), its
default the field's default, its help the field's help; there is no second list of options anywhere.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import NoReturn, TypeVar

from miles_lite.config.launcher_flags import Leftovers, carried_over, sort_leftovers, unknown_flag, with_values
from miles_lite.config.option import Declared, declared
from miles_lite.errors import UserError

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises `UserError` instead of printing its whole usage, and says what it does not know
    before what it lacks: a required flag that is misspelled is both."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> argparse.Namespace:  # type: ignore[override]
        """Refuses what it does not know, with the nearest that it does."""
        found, unknown = self.parse_incomplete(args)
        for flag, _ in with_values(unknown):
            raise unknown_flag(self, flag)
        self.refuse_incomplete(found)
        return found

    def parse_incomplete(self, args: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
        """As `parse_known_args`; what is required and not given is None."""
        required = [action for action in self._actions if action.required]
        for action in required:
            action.required = False
        try:
            return self.parse_known_args(args)
        finally:
            for action in required:
                action.required = True

    def refuse_incomplete(self, found: argparse.Namespace) -> None:
        """Raises UserError for what is required and not given."""
        lacking = [action for action in self._actions if action.required and getattr(found, action.dest) is None]
        if lacking:
            names = ("/".join(action.option_strings) or action.metavar or action.dest for action in lacking)
            self.error(f"the following arguments are required: {', '.join(map(str, names))}")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}\n  see: {self.prog} --help")


def parser_of(options: type, *, prog: str, usage: str | None = None) -> Parser:
    """A parser with one flag per option of `options` and of its groups, each group under its title."""
    parser = Parser(prog=prog, usage=usage, allow_abbrev=False)
    _add(parser, options)
    return parser


def parse_known(parser: Parser, argv: Sequence[str], options: type[T]) -> tuple[T, Leftovers]:
    """`options` from a command line that may hold SGLang's flags, of which a group with `sglang_args` is told, and
    ignored ones. Raises UserError."""
    ours, replaced = carried_over(argv, parser._option_string_actions)
    namespace, unknown = parser.parse_incomplete(ours)
    leftovers = dataclasses.replace(sort_leftovers(parser, unknown), replaced=replaced)
    parser.refuse_incomplete(namespace)
    namespace.sglang_args = leftovers.sglang
    return take(namespace, options), leftovers


def take(namespace: argparse.Namespace, options: type[T]) -> T:
    """Build `options` from parsed arguments. Raises UserError for a value that its option cannot have."""
    kind: type = options
    values: dict[str, object] = {name: take(namespace, group) for name, group in _groups(options)}
    hints = types_of(kind)
    for each in declared(options):
        values[each.field.name] = _value(each, hints[each.field.name], getattr(namespace, each.field.name))
    if "sglang_args" in hints:
        values["sglang_args"] = namespace.sglang_args
    return options(**values)


def every_option(options: type) -> Iterator[Declared]:
    """The options of a group, or of a command with all its groups."""
    for _, group in _groups(options):
        yield from every_option(group)
    yield from declared(options)


@functools.cache
def types_of(options: type) -> Mapping[str, typing.Any]:
    """The type of each field by its name, read from the source's words once: that is most of what parsing costs."""
    return typing.get_type_hints(options)


def _groups(options: type) -> Iterator[tuple[str, type]]:
    """Fields of `options` that are groups themselves."""
    hints = types_of(options)
    for field in dataclasses.fields(options):
        if dataclasses.is_dataclass(hints[field.name]):
            yield field.name, hints[field.name]


def _add(parser: Parser, options: type) -> None:
    for _, group in _groups(options):
        _add(parser, group)
    own, hints = list(declared(options)), types_of(options)
    if own:
        section = parser.add_argument_group((options.__doc__ or options.__name__).strip().splitlines()[0].rstrip("."))
        for each in own:
            keywords = _argument(each, hints[each.field.name])
            if each.option.positional:
                parser.add_argument(each.field.name, **keywords)
            else:
                section.add_argument(each.flag, *each.option.aka, **keywords)


def _plain(hint: object) -> tuple[object, bool]:
    """The type of one value, and whether there may be several: T | None is T, tuple[T, ...] several."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    several = typing.get_origin(hint) is tuple
    return (typing.get_args(hint)[0] if several else hint), several


def _choices(each: Declared, kind: object) -> tuple[str, ...]:
    if each.option.spelled:
        return ("true", "false")
    if isinstance(kind, type) and issubclass(kind, Enum):
        return tuple(member.value for member in kind)
    return typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else each.option.choices


def _argument(each: Declared, hint: object) -> dict[str, typing.Any]:
    """argparse's keywords for an option; a bool gets --no-."""
    kind, several = _plain(hint)
    told = each.option
    required = each.field.default is dataclasses.MISSING
    shown = "" if required or each.default in (None, (), False) else " (default: %(default)s)"
    keywords: dict[str, typing.Any] = {"help": told.help.replace("%", "%%") + shown}
    if not told.positional:
        keywords |= {"required": True} if required else {"default": each.default}
    if kind is bool and not told.spelled:
        return keywords | {"action": argparse.BooleanOptionalAction}
    nargs, const = ("?", "true") if told.spelled else (told.nargs or ("+" if several else None), told.const)
    choices = _choices(each, kind)
    offered = {"nargs": nargs, "const": const, "choices": choices or None, "metavar": told.metavar}
    keywords |= {name: value for name, value in offered.items() if value is not None}
    if told.aka:
        keywords["action"] = _OneOption
    return keywords | {"type": (lambda value: told.read.get(value, value)) if choices else kind}


def _value(each: Declared, hint: object, given: object) -> object:
    """What the field is to hold."""
    kind, _ = _plain(hint)
    value = each.option.settled(each.flag, tuple(given) if isinstance(given, list) else given)
    if each.option.spelled:
        return value == "true"
    if isinstance(kind, type) and issubclass(kind, Enum) and value is not None:
        return kind(value)
    return value


class _OneOption(argparse.Action):
    """A flag with several names, which must not be given different values by two of them."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        flag: str | None = None,
    ) -> None:
        given = namespace.__dict__.setdefault("_given", {})
        before, value = given.setdefault(self.dest, (flag, values))
        if before != flag and value != values:
            raise UserError(f"{flag} {values} contradicts {before} {value}: they are one option here, give it once")
        given[self.dest] = (flag, values)
        setattr(namespace, self.dest, values)
