"""What --environment-args may say.

Invariant: an argument is declared once, with its kind, its default and its bounds; what several environments are told
is declared here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from miles_lite.errors import UserError
from miles_lite.process.json_types import Json, JsonMapping

T = TypeVar("T")
D = TypeVar("D")


@dataclass(frozen=True, slots=True)
class Argument(Generic[T]):
    """`kind`: of its values, where a number of a float may be whole; `least`: of a number; `choices`: where there are
    no others."""

    name: str
    kind: type
    default: T
    least: float | None = None
    choices: Collection[str] = ()

    def of(self, args: JsonMapping) -> T:
        """Its value. Raises UserError for what is none."""
        if self.name not in args or args[self.name] is self.default:
            return self.default
        value: Json = args[self.name]
        kinds = (int, float) if self.kind is float else (self.kind,)
        if not isinstance(value, kinds) or isinstance(value, bool):
            expected = " or ".join(each.__name__ for each in kinds)
            raise UserError(f"--environment-args, {self.name}: expected {expected}, found {value!r}")
        if self.least is not None and isinstance(value, int | float) and not value >= self.least:
            raise UserError(f"--environment-args, {self.name}: {value} must be at least {self.least:g}")
        if self.choices and value not in self.choices:
            raise UserError(f"--environment-args, {self.name}: {value!r} is none of {', '.join(self.choices)}")
        made: T = self.kind(value)
        return made

    def by_default(self, default: D) -> Argument[D]:
        """The same, where another value is taken when none is given."""
        return replace(self, default=default)  # type: ignore[return-value, arg-type]


def seconds(name: str, default: float) -> Argument[float]:
    """One that bounds a wait."""
    return Argument(name, float, default, least=0.001)


SIZE = Argument("size", int, 1_000_000, least=1)
"""Tasks of a split, of an environment that makes them as it goes."""
MAX_TURNS = Argument("max_turns", int, 32, least=1)
"""Answers of the model in an episode."""
STEP_TIMEOUT = seconds("step_timeout", 60.0)
"""That an environment may take to begin, or to answer."""
TIMEOUT = seconds("timeout", 1800.0)
"""That a whole harness may take for a task."""
AT_ONCE: Argument[int | None] = Argument("at_once", int, None, least=1)
"""Of them in each agent worker."""
TASKS: Argument[str | None] = Argument("tasks", str, None)
"""A file of tasks, or a folder of SPLIT.jsonl."""


def others(args: JsonMapping, own: Iterable[Argument[Json]]) -> dict[str, Json]:
    """What is said besides: a game's or a task's own."""
    known = {each.name for each in own}
    return {name: value for name, value in args.items() if name not in known}


def refuse_others(args: JsonMapping, own: Collection[Argument[Json]]) -> None:
    """Raises UserError for an argument that nothing reads."""
    for name in others(args, own):
        known = ", ".join(sorted(each.name for each in own))
        raise UserError(f"--environment-args: no '{name}'; there are {known}")
