"""What becomes of each field that a dialect's requests are known to have.

Invariant: what is served is what the type of a dialect's body reads, what is harmless or refused stands beside it. The
check of requests, the tables of docs/dialects.md and the tests against the clients' own request types all come from
there. A field that changes what the model sees, or what its answer may be, is served or refused; one that asks for
nothing (null, empty, or a value that changes nothing) is never refused.

Harmless is what a service does around a model (storage, caches, billing, tracing), hints that no open model reads, and
bounds on what never happens here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import msgspec

from miles_lite.process.json_types import Json, JsonMapping
from miles_lite.session.dialects.typed_json import Struct
from miles_lite.session.errors import ApiError

Verdict = Literal["served", "harmless", "refused"]
UNSUPPORTED = "unsupported_parameter"
_VERSION = re.compile(r"_\d{8}$|_\d{4}_\d{2}_\d{2}$")

SERVICE = "nothing here is stored, billed, ranked or routed by it"
HINT = "a hint that no open model reads"
GRAMMAR = "constrain the answer with tool_choice or a JSON schema"
HOSTED = "not shown to the model: nobody here runs it"
OWN = "its definition is built into other models: give the tool as a function with a schema"
SEE_CONSTRAINTS = "see Constraints"
THE_RUNS = "gives way to the run's"


def _anything(value: Json) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class FieldRule:
    """`why`: what is done instead, for a refused field how to go on. `asks`: whether a value asks for anything."""

    verdict: Verdict
    why: str = ""
    asks: Callable[[Json], bool] = _anything
    code: str = UNSUPPORTED


class Group(Struct):
    """An object whose fields are known one by one, as `name.field`."""


def why(text: str) -> msgspec.Meta:
    """Says of a field of a body's type how it is served."""
    return msgspec.Meta(description=text)


def served(kind: type[msgspec.Struct], at: str = "") -> dict[str, FieldRule]:
    """The fields that a body's type reads."""
    rows: dict[str, FieldRule] = {}
    for field in msgspec.structs.fields(kind):
        parts = list(_parts(field.type))
        groups = [part for part in parts if isinstance(part, type) and issubclass(part, Group)]
        for group in groups:
            rows |= served(group, f"{at}{field.encode_name}.")
        if not groups:
            texts = (part.description or "" for part in parts if isinstance(part, msgspec.Meta))
            rows[at + field.encode_name] = FieldRule("served", "".join(texts))
    return rows


def _parts(kind: object) -> Iterator[object]:
    """The types that a field's type is made of, and what is said of them; not what a list holds."""
    yield kind
    if not isinstance(kind, type):
        for part in get_args(kind):
            yield from _parts(part)


def kinds(names: str, why: str = "") -> dict[str, FieldRule]:
    """Kinds that are served."""
    return dict.fromkeys(names.split(), FieldRule("served", why))


def harmless(names: str, why: str) -> dict[str, FieldRule]:
    return dict.fromkeys(names.split(), FieldRule("harmless", why))


def refused(names: str, why: str, *, unless: Json = (), code: str = UNSUPPORTED) -> dict[str, FieldRule]:
    """`unless` are the values that ask for nothing, or tells whether a value does."""
    asks = (lambda value: not unless(value)) if callable(unless) else (lambda value: value not in unless)
    return dict.fromkeys(names.split(), FieldRule("refused", why, asks, code))


class Table:
    """`rows` by name; the name `a.b` is the field `b` of the object `a`."""

    def __init__(self, *rows: Mapping[str, FieldRule]) -> None:
        self.rows: dict[str, FieldRule] = {}
        for some in rows:
            self.rows |= some
        inner: dict[str, dict[str, FieldRule]] = {}
        for name, row in self.rows.items():
            holder, dot, field = name.partition(".")
            if dot:
                inner.setdefault(holder, {})[field] = row
        self._inner = {name: Table(fields) for name, fields in inner.items()}

    def check(self, body: JsonMapping, at: str = "") -> list[str]:
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

    def kind(self, name: str) -> FieldRule | None:
        """The row of a kind; the date that ends its name is its version."""
        return self.rows.get(name) or self.rows.get(_VERSION.sub("", name))

    def is_served(self, kind: str, path: str) -> bool:
        """Whether what is of this kind is shown to the model. Raises ApiError 400 for a kind that is refused."""
        row = self.kind(kind)
        if row is None:
            raise ApiError(400, f"{kind!r} is not known here", param=path, code=UNSUPPORTED)
        if row.verdict == "refused":
            raise ApiError(400, f"{kind!r} is not served: {row.why}", param=path, code=row.code)
        return row.verdict == "served"


def refuse(row: FieldRule, value: Json, path: str) -> None:
    """Raises ApiError 400 when the value of a refused field asks for something."""
    if value not in ("", [], {}) and row.asks(value):
        raise ApiError(400, f"{path} is not served: {row.why}", param=path, code=row.code)
