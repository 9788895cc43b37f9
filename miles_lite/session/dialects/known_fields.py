"""What becomes of each field that a dialect's requests are known to have.

Invariant: a table is the only place that says it. The check of requests, the tables of docs/dialects.md and the tests
against the clients' own request types all come from it. A field that asks for nothing (null, empty, or a value that
changes nothing) is never refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from miles_lite.session.errors import ApiError

Verdict = Literal["served", "harmless", "refused"]
UNSUPPORTED = "unsupported_parameter"
_VERSION = re.compile(r"_\d{8}$|_\d{4}_\d{2}_\d{2}$")


def _anything(value: Any) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Known:
    """`why`: what is done instead, for a refused field how to go on. `asks`: whether a value asks for anything."""

    verdict: Verdict
    why: str = ""
    asks: Callable[[Any], bool] = _anything
    code: str = UNSUPPORTED


def served(names: str, why: str = "") -> dict[str, Known]:
    return dict.fromkeys(names.split(), Known("served", why))


def harmless(names: str, why: str) -> dict[str, Known]:
    return dict.fromkeys(names.split(), Known("harmless", why))


def refused(names: str, why: str, *, unless: Any = (), code: str = UNSUPPORTED) -> dict[str, Known]:
    """`unless` are the values that ask for nothing, or tells whether a value does."""
    asks = (lambda value: not unless(value)) if callable(unless) else (lambda value: value not in unless)
    return dict.fromkeys(names.split(), Known("refused", why, asks, code))


class Table:
    """`rows` by name; the name `a.b` is the field `b` of the object `a`."""

    def __init__(self, *rows: Mapping[str, Known]) -> None:
        self.rows: dict[str, Known] = {}
        for some in rows:
            self.rows |= some
        inner: dict[str, dict[str, Known]] = {}
        for name, row in self.rows.items():
            holder, dot, field = name.partition(".")
            if dot:
                inner.setdefault(holder, {})[field] = row
        self._inner = {name: Table(fields) for name, fields in inner.items()}

    def check(self, body: Mapping[str, Any], at: str = "") -> list[str]:
        """The paths of fields that are not known. Raises ApiError 400 with the path of one that is refused."""
        unknown: list[str] = []
        for name, value in body.items():
            if value is None:
                continue
            row, inner = self.rows.get(name), self._inner.get(name)
            if row is not None and row.verdict == "refused":
                refuse(row, value, at + name)
            elif inner is not None and isinstance(value, dict):
                unknown += inner.check(value, f"{at}{name}.")
            elif row is None and inner is None:
                unknown.append(at + name)
        return unknown

    def kind(self, name: str) -> Known | None:
        """The row of a kind; the date that ends its name is its version."""
        return self.rows.get(name) or self.rows.get(_VERSION.sub("", name))

    def shows(self, kind: str, path: str) -> bool:
        """Whether what is of this kind is shown to the model. Raises ApiError 400 for a kind that is refused."""
        row = self.kind(kind)
        if row is None:
            raise ApiError(400, f"{kind!r} is not known here", param=path, code=UNSUPPORTED)
        if row.verdict == "refused":
            raise ApiError(400, f"{kind!r} is not served: {row.why}", param=path, code=row.code)
        return row.verdict == "served"


def refuse(row: Known, value: Any, path: str) -> None:
    """Raises ApiError 400 when the value of a refused field asks for something."""
    if value not in ("", [], {}) and row.asks(value):
        raise ApiError(400, f"{path} is not served: {row.why}", param=path, code=row.code)
