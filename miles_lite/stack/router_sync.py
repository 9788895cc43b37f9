"""Keeps the router at what the fleet knows: which weight versions may serve, and which engines there are.

The fleet is the truth. A router may be replaced at any moment, and the next one comes back with what it last wrote
down, or with nothing. So what it goes by is compared again and again with what it should go by, and told when it
differs.
Invariant: `admit` returns once the router that answers has the versions. Whatever becomes of routers, the one that
stands has the fleet's versions and engines a moment later.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from functools import partial

import aiohttp

from miles_lite.engine.announce import deregister, register
from miles_lite.engine.spec import EngineInfo
from miles_lite.errors import UserError
from miles_lite.process.patience import Patience
from miles_lite.router.client import RouterError, RouterState, fetch_state, set_weight_version

ROUTER_SECONDS = 120.0
"""How long a router that does not answer is waited for: one that is replaced is back in far less."""
LOOK_SECONDS = 1.0
RETRY_SECONDS = 0.25


class RouterSync:
    """One router's URL, and what whoever answers there has to know. Lives in one asyncio loop."""

    def __init__(self, url: str, *, key: str | None, notify: Callable[[str], None], patience: float = ROUTER_SECONDS):
        """`key` opens the router's control; `notify` takes what a person must hear; `patience` in seconds."""
        self._url, self._key, self._notify, self._patience = url, key, notify, patience
        self._versions: tuple[int, int | None] | None = None
        self._engines: dict[str, EngineInfo] = {}
        self._left: set[str] = set()
        self._talking = asyncio.Lock()
        self._refused = 0

    async def admit(self, version: int, *, previous: int | None = None) -> list[str]:
        """From now on `version` may serve, and `previous` too while an update runs; returns the engines that have
        neither. Raises UserError when the router refuses, UnavailableError when none takes it within `patience`."""
        patience = Patience(f"the router to take weight version {version}", self._patience, self._notify)
        while True:
            try:
                async with self._talking:  # nobody who looks meanwhile compares what was before with it
                    self._versions = (version, previous)
                    return await self._push_versions()
            except RouterError as error:
                if patience.over(partial(str, error)):
                    raise patience.ended(
                        f"{error}.\n  Without it no engine would be given a request. Is the router there?"
                    ) from error
            await asyncio.sleep(RETRY_SECONDS)

    def joined(self, engine: EngineInfo) -> None:
        """An engine serves and is registered."""
        self._left.discard(engine.url)
        self._engines[engine.url] = engine

    async def leave(self, engine: EngineInfo) -> None:
        """An engine serves no longer: take it out of the router. One that is away is told when it is back."""
        self._engines.pop(engine.url, None)
        self._left.add(engine.url)
        await self._deregister(engine.url)

    async def run(self, updating: Callable[[], bool]) -> None:
        """Look every LOOK_SECONDS, for ever. While `updating`, engines may have neither version."""
        while True:
            with contextlib.suppress(RouterError, UserError):  # it is away, and looked at again
                await self._check(updating)
            await asyncio.sleep(LOOK_SECONDS)

    async def _check(self, updating: Callable[[], bool]) -> None:
        async with self._talking:
            quiet = updating()
            found = await fetch_state(self._url)
            if found is not None:
                await self._mend(found)
                self._watch(found, quiet=quiet or updating())

    async def _mend(self, found: RouterState) -> None:
        """Tell the router what it does not go by."""
        if self._versions is not None and found.versions != self._accepted():
            self._notify(
                f"the router at {self._url} admitted weight version {_format_versions(found.versions)}: told again"
            )
            await self._push_versions()
        for url in self._engines.keys() - found.workers.keys():
            self._notify(f"the router at {self._url} did not know the engine at {url}: told again")
            await register(self._engines[url], router_url=self._url, key=self._key)
        for url in self._left & found.workers.keys():
            await self._deregister(url)

    def _watch(self, found: RouterState, *, quiet: bool) -> None:
        """Say so when the router refuses every engine though nobody is changing them. A router that has just begun asks
        them first; so it is looked at twice."""
        ours = {url: found.workers[url] for url in self._engines if url in found.workers}
        told = self._versions is None or found.versions == self._accepted()
        refused = bool(ours) and told and not quiet and all(worker["state"] == "stale" for worker in ours.values())
        self._refused = self._refused + 1 if refused else 0
        if self._refused == 2:
            self._notify(_all_stale(self._url, found.versions, ours))

    async def _push_versions(self) -> list[str]:
        assert self._versions is not None
        version, previous = self._versions
        return await set_weight_version(self._url, version, previous=previous, key=self._key)

    async def _deregister(self, url: str) -> None:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            await deregister(url, router_url=self._url, key=self._key)

    def _accepted(self) -> frozenset[str]:
        return frozenset(str(version) for version in self._versions or () if version is not None)


def _all_stale(router: str, versions: frozenset[str], workers: Mapping[str, Mapping[str, object]]) -> str:
    served = ", ".join(f"{url} serves {worker['weight_version']}" for url, worker in workers.items())
    return (
        f"ALARM: no engine gets requests: the router at {router} admits weight version {_format_versions(versions)}, "
        f"but {served}, and no update is running.\n"
        "  Somebody else changed the engines' weights or the router's version. Leave both to this run: end who did it; "
        "the next update mends it, or stop with Ctrl-C and go on with --load."
    )


def _format_versions(versions: frozenset[str]) -> str:
    return " or ".join(sorted(versions)) or "any"
