"""When the garbage collector has nothing to look for.

Invariant: what it walks over again and again is what may have become garbage. What an import makes is there to stay,
and so is what a process had when it began to serve.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

YOUNG = 50_000
"""New containers between collections of a process that serves. Requests and rollouts leave hardly a cycle behind; to
find that out as often as Python does by itself costs a router with hundreds of them in flight a quarter of its
throughput, and a rollout manager with thousands a fifth of its time."""


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """For a block that imports, and does little else: there, walking over what grows is a fifth of what torch or
    litellm takes. Nothing is collected in it, and after it as before."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def begins_to_serve() -> None:
    """What the process has now is never looked at again, and what it makes from now on seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG)
