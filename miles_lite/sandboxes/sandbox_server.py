"""This machine's sandboxes, for others by HTTP.

    PUT    /sandboxes/NAME            {image, workdir}: one of this name, or the one that there is
    POST   /sandboxes/NAME/commands   {number, command, seconds}: an Outcome; the same number again: the same Outcome
    PUT    /sandboxes/NAME/files      a tar archive, into its folder
    GET    /sandboxes/NAME/files?path a file or folder below its folder, as a tar archive; 204 where there is none
    DELETE /sandboxes/NAME            its end
    GET    /health                    {sandboxes}: how many there are

Invariant: a sandbox that nobody has asked anything for `idle` seconds ends, so a client that is gone leaves none; and
what is asked twice, since an answer was lost, is done once.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Annotated

import anyio
import anyio.to_thread
from fastapi import FastAPI, HTTPException, Path, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from miles_lite.errors import RolloutError, SetupError
from miles_lite.process.admin_key import authorizes, needed
from miles_lite.process.json_types import JsonObject
from miles_lite.sandboxes.lending import Pool
from miles_lite.sandboxes.sandbox import ARCHIVE_BYTES, Sandbox

Name = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]
LOOK_SECONDS = 5.0
"""Between looks for idle ones."""


class Wanted(BaseModel):
    """A sandbox, as it is asked for."""

    image: str | None = None
    workdir: str | None = None


class Command(BaseModel):
    """`number`: its client's, so that it is done once."""

    number: str
    command: str
    seconds: float = Field(gt=0, le=86400)


@dataclass
class Kept:
    """A client's sandbox. `lock`: one request at a time; `sandbox`: None until it has started."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    lent: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    sandbox: Sandbox | None = None
    asked: float = field(default_factory=time.monotonic)
    last: tuple[str, JsonObject] | None = None


class GoneError(LookupError):
    """There is no sandbox of that name."""


class Sandboxes:
    """Those of all clients, by name."""

    def __init__(self, pool: Pool, *, idle: float) -> None:
        """`idle`: seconds after which one that is asked nothing ends."""
        self._pool, self._idle = pool, idle
        self._kept: dict[str, Kept] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def start(self, name: str, wanted: Wanted) -> None:
        """Raises GoneError where it was ended, or its first start failed, before it had started."""
        kept = self._kept.setdefault(name, Kept())
        with kept.lock:
            if kept.sandbox is None and self._kept.get(name) is kept:
                try:
                    lease = kept.lent.enter_context(self._pool.open(wanted.image, workdir=wanted.workdir))
                except BaseException:
                    self._kept.pop(name, None)
                    raise
                kept.sandbox = lease.sandbox
            if self._kept.get(name) is not kept:
                kept.lent.close()
                raise GoneError(f"sandbox {name} has ended")

    def run(self, name: str, command: Command) -> JsonObject:
        with self._found(name) as (kept, sandbox):
            if kept.last is None or kept.last[0] != command.number:
                kept.last = (command.number, asdict(sandbox.run(command.command, seconds=command.seconds)))
            return kept.last[1]

    def unpack(self, name: str, archive: bytes) -> None:
        with self._found(name) as (_, sandbox):
            sandbox.unpack(archive)

    def pack(self, name: str, path: str) -> bytes:
        with self._found(name) as (_, sandbox):
            return sandbox.pack(path)

    def end(self, name: str) -> None:
        """Also of one that runs a command, which ends with it."""
        kept = self._kept.pop(name, None)
        if kept is not None:
            kept.lent.close()

    def end_idle(self) -> None:
        """Those of clients that are gone."""
        now = time.monotonic()
        for name, kept in list(self._kept.items()):
            if now - kept.asked > self._idle and not kept.lock.locked():
                self.end(name)

    def close(self) -> None:
        self._pool.close()
        for name in list(self._kept):
            self.end(name)

    @contextlib.contextmanager
    def _found(self, name: str) -> Iterator[tuple[Kept, Sandbox]]:
        """Raises GoneError."""
        kept = self._kept.get(name)
        if kept is None:
            raise GoneError(f"no sandbox {name}: it was never started, or has ended")
        with kept.lock:
            if kept.sandbox is None or self._kept.get(name) is not kept:
                raise GoneError(f"sandbox {name} has ended")
            try:
                yield kept, kept.sandbox
            finally:
                kept.asked = time.monotonic()


def application(pool: Pool, *, idle: float, at_once: int, admin_key: str | None) -> FastAPI:
    """The server. `admin_key`: what every request but /health must show; `at_once`: starts that are waited for, ends,
    and other requests that are worked on. None of the three kinds keeps another waiting: who waits for a sandbox waits
    for the work and the end of those who have one."""
    sandboxes = Sandboxes(pool, idle=idle)
    starts, ends = anyio.CapacityLimiter(at_once), anyio.CapacityLimiter(at_once)

    @contextlib.asynccontextmanager
    async def lifetime(_: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = at_once
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_end_idle, sandboxes)
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()
        sandboxes.close()

    app = FastAPI(title="miles_lite sandboxes", lifespan=lifetime)
    if admin_key is not None:
        app.middleware("http")(_keyed(admin_key))
    for kind, code in ((GoneError, 404), (RolloutError, 503), (SetupError, 424)):
        app.exception_handler(kind)(lambda _, error, code=code: JSONResponse({"detail": str(error)}, code))

    @app.get("/health")
    async def health() -> JsonObject:
        return {"sandboxes": len(sandboxes)}

    @app.put("/sandboxes/{name}", status_code=204)
    async def start(name: Name, wanted: Wanted) -> None:
        await anyio.to_thread.run_sync(sandboxes.start, name, wanted, limiter=starts)

    @app.post("/sandboxes/{name}/commands")
    def run(name: Name, command: Command) -> JsonObject:
        return sandboxes.run(name, command)

    @app.put("/sandboxes/{name}/files", status_code=204)
    async def unpack(name: Name, request: Request) -> None:
        archive = bytearray()
        async for part in request.stream():
            archive += part
            if len(archive) > ARCHIVE_BYTES:
                raise HTTPException(413, f"an archive has at most {ARCHIVE_BYTES >> 20} MB")
        await anyio.to_thread.run_sync(sandboxes.unpack, name, bytes(archive))

    @app.get("/sandboxes/{name}/files")
    def pack(name: Name, path: str) -> Response:
        try:
            return Response(sandboxes.pack(name, path), media_type="application/x-tar")
        except FileNotFoundError:
            return Response(status_code=204)

    @app.delete("/sandboxes/{name}", status_code=204)
    async def end(name: Name) -> None:
        await anyio.to_thread.run_sync(sandboxes.end, name, limiter=ends)

    return app


def _keyed(admin_key: str) -> Callable[[Request, Callable[[Request], Awaitable[Response]]], Awaitable[Response]]:
    async def keyed(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        if request.url.path != "/health" and not authorizes(request.headers, admin_key):
            return JSONResponse({"detail": needed("a sandbox")}, 401)
        return await answer(request)

    return keyed


async def _end_idle(sandboxes: Sandboxes) -> None:
    while True:
        await anyio.sleep(LOOK_SECONDS)
        await anyio.to_thread.run_sync(sandboxes.end_idle)
