"""How a function of a user's is called, and whether it can be: refused before anything depends on it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from miles_lite.errors import UserError


@dataclass(frozen=True)
class Call:
    """What it is called with, by position and by name; `more` it is given where it has parameters of these names.

    `waits` is whether it is awaited; None: as it wants.
    """

    positional: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    waits: bool | None = False

    @classmethod
    def of(cls, protocol: type, *, more: tuple[str, ...] = ()) -> Call:
        """As a Protocol's `__call__` is."""
        call = protocol.__call__
        wanted = list(inspect.signature(call).parameters.values())[1:]
        positional = tuple(f"<{one.name}>" for one in wanted if one.kind is one.POSITIONAL_ONLY)
        keywords = tuple(one.name for one in wanted if one.kind is one.KEYWORD_ONLY)
        return cls(positional, keywords, more, inspect.iscoroutinefunction(call))


def parameters(hook: Callable[..., Any]) -> tuple[inspect.Parameter, ...] | None:
    """None: it is written in C, and does not say."""
    try:
        return tuple(inspect.signature(hook).parameters.values())
    except ValueError:
        return None


def check_call(hook: Callable[..., Any], call: Call, *, where: str) -> None:
    """Refuse what cannot be called, or awaited, so. Raises UserError, which begins with `where`."""
    inner = inspect.unwrap(hook)
    calls = () if isinstance(hook, type) else (getattr(hook, "__call__", None),)  # noqa: B004
    is_async = any(map(inspect.iscoroutinefunction, (hook, inner, *calls)))
    if call.waits and not is_async:
        raise UserError(f"{where}: is not async: write `async def`")
    if is_async and call.waits is False:
        raise UserError(f"{where}: is async, and this one is not awaited: write a plain `def`")
    names = parameters(hook)
    if names is None:
        return
    has = {one.name for one in names}
    keywords = [*call.keywords, *(name for name in call.more if name in has)]
    try:
        inspect.Signature(names).bind(*call.positional, **dict.fromkeys(keywords))
    except TypeError as error:
        called = ", ".join([*call.positional, *(f"{name}=" for name in keywords)])
        others = f"; it may also have {', '.join(call.more)}" if call.more else ""
        raise UserError(f"{where}: cannot be called with ({called}): {error}{others}") from error


def check_made(made: type, *, of: Call, then: Call, where: str) -> None:
    """Refuse a class whose objects cannot be made, or called, so. Raises UserError, which begins with `where`."""
    check_call(made, of, where=where)
    if not any("__call__" in vars(base) for base in made.__mro__[:-1]):
        raise UserError(f"{where}: its objects are called, and have no __call__")
    bound = replace(then, positional=("<self>", *then.positional))
    check_call(made.__call__, bound, where=f"{where}.__call__")
