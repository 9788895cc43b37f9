"""Real gloo ranks: processes of their own, which meet on this machine. They are forked from one that has imported what
they import: seven CPU seconds for each would be most of what they take."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from miles_lite.job.forked_workers import RANKS
from miles_lite.train.mesh import open_store

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([*RANKS, "miles_lite.train.mesh"])


@contextmanager
def running(run_rank: Callable[..., None], *arguments: Any, ranks: int, timeout: float = 240) -> Iterator[None]:
    """`run_rank(rank, ranks, port, *arguments)` in each of them while the block runs; at its end all have succeeded."""
    store = open_store("127.0.0.1", ranks=ranks, timeout=60)
    processes = [FORKS.Process(target=run_rank, args=(rank, ranks, store.port, *arguments)) for rank in range(ranks)]
    for process in processes:
        process.start()
    yield
    for process in processes:
        process.join(timeout)
    assert [process.exitcode for process in processes] == [0] * ranks


def run(run_rank: Callable[..., None], *arguments: Any, ranks: int, timeout: float = 240) -> None:
    """The same with nothing beside it."""
    with running(run_rank, *arguments, ranks=ranks, timeout=timeout):
        pass
