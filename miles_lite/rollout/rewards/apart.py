"""Rewards in processes of their own: what parses or runs a model's text may hang, crash or eat memory there.

Invariant: a call ends at most one process start after its time; a process that overran or died is replaced, and none
outlives this one (they end with their standard input).
"""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from miles_lite.rollout.rewards.answer import Answer, Pure, Score, broken

START_SECONDS = 60.0
"""Python and what a rule imports, from a slow disk."""


class Apart:
    """A few processes; each belongs to a thread, which waits for it."""

    def __init__(self, processes: int) -> None:
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="rewards")
        self._mine = threading.local()
        self._started: set[subprocess.Popen[bytes]] = set()

    async def score(self, rule: Pure, answer: Answer, *, seconds: float) -> Score:
        """What the rule says. Raises RolloutError when it takes longer than `seconds`, dies, or raises."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._score, rule, answer, seconds)

    def close(self) -> None:
        """End the processes."""
        for process in self._started:
            process.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process in self._started:
            process.communicate()

    def _score(self, rule: Pure, answer: Answer, seconds: float) -> Score:
        process, first = self._process()
        overran = threading.Event()

        def end() -> None:
            overran.set()
            process.kill()

        clock = threading.Timer(seconds + (START_SECONDS if first else 0.0), end)
        clock.start()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            pickle.dump((rule.function, answer, seconds), process.stdin)
            process.stdin.flush()
            worked, said = pickle.load(process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            process.kill()
            code, name = process.wait(), rule.function.__name__
            if overran.is_set():
                raise broken(f"{name} took over {seconds:g} s (--rm-timeout)") from None
            raise broken(f"the process of {name} died (exit code {code})") from None
        finally:
            clock.cancel()
        if not worked:
            raise broken(said)
        score: Score = said
        return score

    def _process(self) -> tuple[subprocess.Popen[bytes], bool]:
        """This thread's, and whether it is new."""
        process: subprocess.Popen[bytes] | None = getattr(self._mine, "process", None)
        if process is not None and process.poll() is None:
            return process, False
        if process is not None:
            process.communicate()
            self._started.discard(process)
        path = os.pathsep.join(filter(None, sys.path))
        process = subprocess.Popen(
            [sys.executable, "-m", "miles_lite.rollout.rewards.apart_main"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
            start_new_session=True,
        )
        self._mine.process = process
        self._started.add(process)
        return process, True
