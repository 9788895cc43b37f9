"""Work in a process of its own on this node: what it imports and what it holds is gone once it is done.

Invariant: what it returns is owned by who had it done, and so outlives that process; what it raises is raised here, as
if it had been done here.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import ray
from ray import ObjectRef
from ray.exceptions import RayError, RayTaskError

from miles_lite.errors import UnavailableError, plain
from miles_lite.stack.environment import actor_env
from miles_lite.stack.placement import pinned

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")


async def aside(function: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
    """What `function`, one of a module, returns. Raises what it raises, and UnavailableError where no process can do
    it, or the one that does dies."""
    return await _outcome(_task(function, 1).remote(*args, **options))


async def parts_aside(
    function: Callable[P, tuple[R, *tuple[S, ...]]], parts: int, *args: P.args, **options: P.kwargs
) -> tuple[R, list[ObjectRef[S]]]:
    """The same of one that returns a thing and so many `parts`, at least one: each has a reference, and a life, of its
    own, and is not brought here."""
    first, *rest = _task(function, 1 + parts).remote(*args, **options)
    try:
        return await _outcome(first), rest
    except Exception:
        await asyncio.gather(*rest, return_exceptions=True)  # the same error, which Ray tells of if unread
        raise


async def _outcome(ended: ObjectRef[R]) -> R:
    try:
        return await ended
    except RayTaskError as error:
        raise plain(error) from error
    except RayError as error:
        raise UnavailableError(f"a process of its own could not do it: {error}") from error


def _task(function: Callable[..., object], returns: int) -> Any:
    """Ray's, with this process's environment. It is not tried again: who waits hears of it at once."""
    here = pinned(ray.get_runtime_context().get_node_id())
    environment = {"env_vars": actor_env()}
    return _remote(function).options(num_returns=returns, runtime_env=environment, **here)


@functools.cache
def _remote(function: Callable[..., object]) -> Any:
    return cast(Any, ray.remote(num_cpus=0, max_calls=1, max_retries=0)(function))
