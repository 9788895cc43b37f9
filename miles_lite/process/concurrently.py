"""Several coroutines at once, all or none of them.

Invariant: when `together` is left, however that is, none of them runs any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def together(*doing: Awaitable[T]) -> list[T]:
    """All results; the first failure, or a cancellation, cancels the rest and waits until it has ended."""
    if len(doing) == 1:
        return [await doing[0]]
    tasks = [asyncio.ensure_future(one) for one in doing]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
