"""Whether a Ray actor that is left to itself still lives.

Invariant: a look never waits. An actor that is busy for hours is not called dead.
"""

from __future__ import annotations

import time

import ray
from ray import ObjectRef
from ray.exceptions import RayActorError

from miles_lite.process.remote import Remote

BEAT_SECONDS = 2.0


class Pulse:
    """One actor, which is asked for nothing again and again: the question fails as soon as the actor has died."""

    def __init__(self, actor: Remote[object]) -> None:
        self.actor = actor
        self._asked = actor.ready()
        self._since = time.monotonic()

    def lost(self) -> RayActorError | None:
        """How it died, once it has."""
        if not ray.wait([self._asked], timeout=0)[0]:
            return None
        if (error := death(self._asked)) is not None:
            return error
        if time.monotonic() - self._since > BEAT_SECONDS:
            self._asked, self._since = self.actor.ready(), time.monotonic()
        return None


def death(asked: ObjectRef[object]) -> RayActorError | None:
    """What an answer that is there says of its actor's death."""
    try:
        ray.get(asked)
    except RayActorError as error:
        return error
    return None
