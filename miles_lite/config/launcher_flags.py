"""Flags that are none of ours: SGLang's own, and those of the field's launchers that a launcher may keep."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

from miles_lite.config.field_flags import Fate, answer_to
from miles_lite.config.spelling import nearest
from miles_lite.errors import UserError

SglangValue = str | bool | list[str]


@dataclass(frozen=True)
class Replaced:
    """A flag of other launchers, and what took its place, with the reason."""

    flag: str
    ours: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Leftovers:
    """What a command line held besides our own flags: SGLang's options by underscored name, and other launchers'; and
    those of our own that change nothing, by what is missing."""

    sglang: Mapping[str, SglangValue] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    replaced: tuple[Replaced, ...] = ()
    alone: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def show_ignored(self) -> None:
        """Say on stderr which flags were accepted and change nothing, and which became others."""
        for each in self.replaced:
            print(f"--{each.flag}: {' '.join(each.ours) or 'left out'}: {each.why}", file=sys.stderr)
        reasons: dict[str, list[str]] = {}
        for name in self.ignored:
            answer = answer_to(name, ())
            reasons.setdefault(answer.why if answer else "", []).append(f"--{name}")
        reasons |= {f"nothing is changed {why}": list(flags) for why, flags in self.alone.items()}
        for why, names in reasons.items():
            print(f"ignored: {', '.join(names)}: {why}", file=sys.stderr)


def carried_over(argv: Sequence[str], own: Container[str]) -> tuple[list[str], tuple[Replaced, ...]]:
    """A command line with our flags in the place of those that are mapped. `own`: flags that are declared.

    A mapped value of a declared flag is mapped too (`--train-backend megatron`).
    """
    kept: list[str] = []
    replaced: list[Replaced] = []
    at = 0
    while at < len(argv):
        end = next((to for to in range(at + 1, len(argv)) if argv[to].startswith("--")), len(argv))
        flag, equals, value = argv[at].partition("=")
        values = [value] if equals else list(argv[at + 1 : end])
        answer = answer_to(flag.removeprefix("--"), values) if flag.startswith("--") else None
        applies = answer is not None and not answer.translated and (flag not in own or bool(answer.values))
        if answer is not None and answer.fate is Fate.REFUSED and answer.values and flag in own:
            raise UserError(f"{flag} {values[0]}: {answer.why}")
        if answer is not None and answer.ours is not None and applies:
            ours = answer.ours(values)
            replaced.append(Replaced(flag.removeprefix("--"), tuple(ours), answer.why))
            kept += ours
        else:
            kept += argv[at:end]
        at = end
    return kept, tuple(replaced)


def sort_leftovers(parser: argparse.ArgumentParser, unknown: Sequence[str]) -> Leftovers:
    """Divide what argparse did not know into SGLang's own flags and those that are answered; refuse the rest."""
    sglang: dict[str, SglangValue] = {}
    ignored: list[str] = []
    for flag, values in with_values(unknown):
        name = flag.removeprefix("--")
        answer = answer_to(name, values)
        if name.startswith("sglang-router-"):
            raise UserError(f"{flag}: the router has no such option{nearest(flag, _known(parser))}")
        if name.startswith("sglang-"):
            key = name.removeprefix("sglang-").replace("-", "_")
            sglang[key] = True if not values else values[0] if len(values) == 1 else values
        elif answer is not None and answer.fate is Fate.IGNORED:
            ignored.append(name)
        elif answer is not None:
            raise UserError(f"{flag}: {answer.why}")
        else:
            raise unknown_flag(parser, flag)
    return Leftovers(sglang=sglang, ignored=tuple(ignored))


def unknown_flag(parser: argparse.ArgumentParser, flag: str) -> UserError:
    """What is said of a flag that a command does not have."""
    hint = nearest(flag, _known(parser))
    return UserError(f"{parser.prog}: unknown flag {flag}{hint}\n  see: {parser.prog} --help")


def with_values(tokens: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Flags and their values. Raises UserError for a value without a flag."""
    pairs: list[tuple[str, list[str]]] = []
    for token in tokens:
        if token.startswith("--"):
            flag, _, value = token.partition("=")
            pairs.append((flag, [value] if value else []))
        elif pairs:
            pairs[-1][1].append(token)
        else:
            raise UserError(f"unexpected argument '{token}': flags start with --")
    return pairs


def _known(parser: argparse.ArgumentParser) -> list[str]:
    return [name for action in parser._actions for name in action.option_strings]
