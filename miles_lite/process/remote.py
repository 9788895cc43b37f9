"""Ray actors with types: a call names the method of the actor's class, and is checked as a call of it.

Invariant: whoever holds a `Remote[T]` can call what T has, and nothing else; T may be a Protocol that the actor's class
fulfils.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Concatenate, Generic, ParamSpec, TypeVar, cast, overload

import ray
from ray import ObjectRef
from ray.actor import ActorHandle

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")


@dataclass(frozen=True)
class Remote(Generic[T_co]):
    """An actor of class T in a process of its own."""

    handle: ActorHandle

    @overload
    def call(
        self, method: Callable[Concatenate[T_co, P], Awaitable[R]], *args: P.args, **options: P.kwargs
    ) -> ObjectRef[R]: ...

    @overload
    def call(self, method: Callable[Concatenate[T_co, P], R], *args: P.args, **options: P.kwargs) -> ObjectRef[R]: ...

    def call(self, method: Callable[Concatenate[T_co, P], object], *args: P.args, **options: P.kwargs) -> object:
        """Begin `method` there: `actor.call(Engine.load, path)`. What it returns is to be awaited, or got from Ray."""
        called: object = getattr(self.handle, method.__name__).remote(*args, **options)
        return called

    def call_parts(
        self,
        method: Callable[Concatenate[T_co, P], Awaitable[tuple[R, *tuple[S, ...]]]],
        parts: int,
        *args: P.args,
        **options: P.kwargs,
    ) -> tuple[ObjectRef[R], list[ObjectRef[S]]]:
        """The same of a method that returns a thing and so many `parts`: each has a reference, and a life, of its
        own."""
        first, *rest = getattr(self.handle, method.__name__).options(num_returns=1 + parts).remote(*args, **options)
        return first, rest

    def ready(self) -> ObjectRef[object]:
        """Comes once the actor has done what it was told before, and fails once it has died."""
        called: ObjectRef[object] = self.handle.__ray_ready__.remote()
        return called

    def kill(self) -> None:
        """End its process; what waits for it fails."""
        ray.kill(self.handle)


def remote(
    kind: Callable[P, T], *, name: str | None = None, env: Mapping[str, str], **options: object
) -> Callable[P, Remote[T]]:
    """What makes actors of class `kind`: called with its arguments, it returns at once.

    `name` is shown in the dashboard, `env` is the actor's environment beyond its node's; `options` are Ray's.
    """
    made = ray.remote(cast("type[T]", kind)).options(name=name, runtime_env={"env_vars": dict(env)}, **options)

    def make(*args: P.args, **kwargs: P.kwargs) -> Remote[T]:
        return Remote(cast(ActorHandle, made.remote(*args, **kwargs)))

    return make
