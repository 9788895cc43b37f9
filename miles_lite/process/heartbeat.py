"""Whether a Ray actor that is left to itself still lives.

Invariant: a look never waits. An actor that is busy for hours is not called dead.
"""

from __future__ import annotations

import time

import ray
from ray.exceptions import RayActorError

from miles_lite.process.remote import Remote

BEAT_SECONDS = 2.0


class Pulse:
    """One actor, which is asked for nothing again and again: the question fails as soon as the actor has died."""

    def __init__(self, actor: Remote[object]) -> None:
        self._actor = actor
        self._asked = actor.ready()
        self._since = time.monotonic()

    def lost(self) -> RayActorError | None:
        """How it died, once it has."""
        if not ray.wait([self._asked], timeout=0)[0]:
            return None
        try:
            ray.get(self._asked)
        except RayActorError as error:
            return error
        if time.monotonic() - self._since > BEAT_SECONDS:
            self._asked, self._since = self._actor.ready(), time.monotonic()
        return None
