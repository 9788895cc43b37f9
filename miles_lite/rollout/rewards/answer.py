"""What a built-in reward judges, and what it says.

Invariant: a rule of plain functions is pure, so that it may run in another process; one that asks others is async.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from miles_lite.config.rewards import Rewards
from miles_lite.errors import RolloutError, Where

Score: TypeAlias = float | Mapping[str, Any] | None
"""A reward, or an object of which one key holds it (--reward-key)."""

Ask: TypeAlias = Callable[[list[dict[str, Any]]], Awaitable[str]]
"""Chat messages to an answer of our own engines, which nobody trains."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A response, and what is known of its row. `index`: its rollout's; `seed`: the run's."""

    response: str
    label: Any = None
    prompt: str | list[dict[str, Any]] = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    index: int = 0
    seed: int = 0
    ask: Ask | None = None


class Judge(Protocol):
    """A rule that waits for somebody."""

    async def __call__(self, answer: Answer, options: Rewards, /) -> Score: ...


@dataclass(frozen=True, slots=True)
class Pure:
    """A rule of a response alone.

    apart  whether it parses or runs what a model wrote, and so may hang or crash: then in a process of its own
    needs  the module that it imports, and what installs it
    """

    function: Callable[[Answer], Score]
    apart: bool = False
    needs: tuple[str, str] | None = None


def broken(why: str) -> RolloutError:
    """What judges broke: no reward."""
    return RolloutError(Where.REWARD, why)


def number_in(score: object, key: str) -> float | None:
    """The reward in a score. Raises ValueError for what is no finite number, and for an object without the key."""
    if isinstance(score, Mapping):
        if key not in score:
            raise ValueError(f"the reward is an object without '{key}' (--reward-key); it has {', '.join(score)}")
        score = score[key]
    if score is None:
        return None
    try:
        value = float(score)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ValueError(f"the reward is {score!r:.200}: it must be a number") from error
    if not math.isfinite(value):
        raise ValueError(f"the reward is {score}: it must be a finite number, or None")
    return value
