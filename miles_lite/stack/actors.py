"""Ray actors of a run: named, with the driver's environment, started and ended within bounds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

import ray

from miles_lite.process.patience import Patience, patiently
from miles_lite.process.remote import Remote, remote
from miles_lite.process.stacks import stacks_folder, write_stacks
from miles_lite.process.standing import describe_actor, processes
from miles_lite.stack.environment import actor_env

STOP_TIMEOUT = 6.0
NO_SLOT: Mapping[str, object] = {"num_cpus": 0}
P = ParamSpec("P")
T = TypeVar("T")


class Stops(Protocol):
    """An actor that can be asked to end what it holds."""

    async def stop(self) -> None: ...


def named_actor(
    kind: Callable[P, T], name: str, where: Mapping[str, object] = NO_SLOT, *, gpu: bool = False
) -> Callable[P, Remote[T]]:
    """Makes actors of class `kind`, with a name in the dashboard and the driver's environment; see `remote`.

    `where` are Ray's options of its place, `gpu` is for an engine on GPUs.
    """
    return remote(kind, name=name, env=actor_env(gpu=gpu), **where)


def restarted(name: str, restarts: int) -> str:
    """The name of an actor that was replaced so often: Ray keeps that of a dead one for a while."""
    return f"{name}-restart-{restarts}" if restarts else name


@dataclass(frozen=True)
class Waiting:
    """How who starts actors waits for them: `notify` tells a person one line, in `logs` stacks are left."""

    notify: Callable[[str], None]
    logs: Path

    async def started(self, actor: Remote[object], starting: Awaitable[T], what: str, timeout: float) -> T:
        """What the call of an actor's `start` returns. At half of `timeout` seconds says what Ray knows of it. Raises
        UnavailableError naming `what` after them, and leaves the stacks of an actor on this node."""

        def look() -> None:
            write_stacks(stacks_folder(self.logs), processes(actor))

        return await patiently(
            starting,
            Patience(f"{what} to start", timeout, self.notify),
            lambda: describe_actor(actor),
            hint=f"see Ray's dashboard and {self.logs}",
            at_end=look,
        )


async def end_actor(actor: Remote[Stops]) -> None:
    """Stop an actor politely, then for good."""
    with contextlib.suppress(ray.exceptions.RayError, TimeoutError):
        async with asyncio.timeout(STOP_TIMEOUT):
            await actor.call(Stops.stop)
    with contextlib.suppress(ray.exceptions.RayError):
        actor.kill()
