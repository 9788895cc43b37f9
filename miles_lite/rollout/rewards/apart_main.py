"""The process of `apart`: reads a rule and an answer, writes its score, until its standard input ends.

Invariant: what a rule started has ended when its score is written, also what left its group or its session.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
ROUNDS = 1000
"""How often it is looked for children, which those that are ended leave."""


def main() -> None:
    """Pickles in, pickles out: (function, answer, seconds) to (True, score) or (False, message).

    What a rule prints goes to stderr. A clock of the process itself ends it shortly after its time, should its owner
    be gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    reads, writes = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            function, answer, seconds = pickle.load(reads)
        except EOFError:
            return
        signal.alarm(int(seconds) + 5)
        try:
            said = True, function(answer)
        except Exception as error:  # noqa: BLE001 - a rule may trip over anything that a model wrote
            said = False, f"{function.__name__}: {type(error).__name__}: {error}"[:2000]
        signal.alarm(0)
        end_children()
        pickle.dump(said, writes)
        writes.flush()


def end_children() -> None:
    """End what is left of what was started: an orphan of it is this process's child."""
    for _ in range(ROUNDS):
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        if not children:
            return
        for child in children:
            os.kill(int(child), signal.SIGKILL)
            os.waitpid(int(child), 0)


if __name__ == "__main__":
    main()
