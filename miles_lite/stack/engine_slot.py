"""One engine's place in a fleet, whatever fills it now."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import ray

from miles_lite.config.choices import WorkerType
from miles_lite.engine.actor import EngineActor
from miles_lite.engine.spec import EngineInfo
from miles_lite.process.remote import Remote
from miles_lite.stack.actors import end_actor
from miles_lite.stack.engine_plans import EnginePlan


@dataclass
class EngineSlot:
    """What fills the place: an actor per node of the engine, the first one's first; none before it is filled. What the
    engine serves once it does, and how often it was replaced."""

    plan: EnginePlan
    nodes: list[Remote[EngineActor]] = field(default_factory=list)
    info: EngineInfo | None = None
    restarts: int = 0
    given_up: bool = False

    @property
    def index(self) -> int:
        return self.plan.index

    @property
    def role(self) -> WorkerType:
        return self.plan.role

    @property
    def actor(self) -> Remote[EngineActor]:
        """The engine's own: that of its first node."""
        return self.nodes[0]

    async def end(self) -> None:
        """End whatever fills it, on all its nodes."""
        await asyncio.gather(*(end_actor(actor) for actor in self.nodes))

    async def wait_for_failure(self) -> str:
        """What is wrong with the engine, as soon as something is on any of its nodes."""
        watches = [asyncio.ensure_future(_watched(node)) for node in self.nodes]
        try:
            done, _ = await asyncio.wait(watches, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for watch in watches:
                watch.cancel()


async def _watched(actor: Remote[EngineActor]) -> str:
    try:
        return await actor.call(EngineActor.watch)
    except ray.exceptions.RayActorError:
        return "its actor has died"
