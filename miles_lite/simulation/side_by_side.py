"""Several simulations at once: as many as there are CPUs, each in a process of its own.

Invariant: what comes out is what `simulate` gives for each of them, and no process is left behind.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from miles_lite.process.uncollected import begins_to_serve
from miles_lite.simulation.case import Case, simulate
from miles_lite.simulation.world import Outcome


def simulate_all(cases: Sequence[Case]) -> list[Outcome]:
    """Outcomes in the order of `cases`."""
    if len(cases) == 1:
        return [simulate(cases[0])]
    processes, spawn = min(len(cases), len(os.sched_getaffinity(0))), multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=_begin) as pool:
        try:
            return list(pool.map(simulate, cases))
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C comes here, too; who waits for us tells of it
    begins_to_serve()
