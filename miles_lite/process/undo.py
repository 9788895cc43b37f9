"""What is undone when the rest fails."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable


@contextlib.asynccontextmanager
async def undone(undo: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """When the block fails or is cancelled, `undo` is awaited before its error goes on."""
    try:
        yield
    except BaseException:
        await undo()
        raise
