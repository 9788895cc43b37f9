"""Ray actors of a run: named, with the driver's environment, started and ended within bounds."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import ray

from miles_lite.errors import UserError
from miles_lite.stack.environment import actor_env

STOP_TIMEOUT = 6.0


def named_actor(actor_class: type, name: str, *, gpu: bool = False, **options: Any) -> Any:
    """`actor_class` as a Ray actor with a name in the dashboard and the driver's environment; call `.remote(...)`."""
    runtime_env = {"env_vars": actor_env(gpu=gpu)}
    return ray.remote(actor_class).options(name=name, runtime_env=runtime_env, **options)


def restarted(name: str, restarts: int) -> str:
    """The name of an actor that was replaced so often: Ray keeps that of a dead one for a while."""
    return f"{name}-restart-{restarts}" if restarts else name


async def started(actor: Any, what: str, timeout: float, **options: Any) -> Any:
    """What the actor's `start(**options)` returns. Raises UserError naming `what` after `timeout` seconds."""
    try:
        return await asyncio.wait_for(actor.start.remote(**options), timeout)
    except TimeoutError:
        raise UserError(
            f"{what} did not start within {timeout:.0f} s; see Ray's dashboard and the logs folder"
        ) from None


async def lives(actor: Any, timeout: float, *, unbroken: float = 0.0) -> bool:
    """Whether its `alive` says so, for the last `unbroken` seconds, and within `timeout` seconds."""
    try:
        return bool(await asyncio.wait_for(actor.alive.remote(unbroken), timeout))
    except (ray.exceptions.RayActorError, TimeoutError):
        return False


async def end_actor(actor: Any) -> None:
    """Stop an actor politely, then for good."""
    with contextlib.suppress(ray.exceptions.RayError, TimeoutError):
        await asyncio.wait_for(actor.stop.remote(), STOP_TIMEOUT)
    with contextlib.suppress(ray.exceptions.RayError):
        ray.kill(actor)
