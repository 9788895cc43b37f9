"""Who teaches: a model folder or a server's URL, several of them under names.

Invariant: the order of names is that of the command line; an only teacher may go without one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from miles_lite.config.folders import absolute


def is_url(where: str) -> bool:
    return where.startswith(("http://", "https://"))


def named(given: Sequence[str]) -> Mapping[str, str]:
    """NAME=FOLDER, NAME=URL, FOLDER or URL: where each name is; "" is the name of one that has none."""
    return dict(_split(each) for each in given)


def absolute_folders(given: object) -> object:
    """The same, with absolute folders."""
    if not isinstance(given, tuple):
        return given
    pairs = [_split(str(each)) for each in given]
    return tuple(f"{name}={_absolute(where)}" if name else _absolute(where) for name, where in pairs)


def _absolute(where: str) -> str:
    return where if is_url(where) else absolute(where)


def _split(given: str) -> tuple[str, str]:
    name, equals, where = given.partition("=")
    plain = not equals or "/" in name
    return ("", given) if plain else (name, where)
