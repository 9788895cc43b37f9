"""The options of a run under the field's names: what miles' plug-ins call `args`.

Invariant: one flat namespace, read only by plug-ins. An option has its flag's name; --custom-config-path adds others.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

_CURRENT = SimpleNamespace()
"""Of the run that this process belongs to."""


def args_of(*groups: Any, **more: Any) -> SimpleNamespace:
    """Every option of the groups, flat, and `more`."""
    flat: dict[str, Any] = {}
    for group in groups:
        for field in dataclasses.fields(group):
            value = getattr(group, field.name)
            if dataclasses.is_dataclass(value):
                flat |= vars(args_of(value))
            else:
                flat[field.name] = list(value) if isinstance(value, tuple) else value
    return SimpleNamespace(**flat | more)


def use(*groups: Any, **more: Any) -> None:
    """Make these the `args` of plug-ins in this process."""
    _CURRENT.__dict__.update(vars(args_of(*groups, **more)))


def current() -> SimpleNamespace:
    return _CURRENT
