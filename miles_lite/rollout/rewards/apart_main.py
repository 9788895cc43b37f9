"""The process of `apart`: reads a rule and an answer, writes its score, until its standard input ends."""

from __future__ import annotations

import os
import pickle
import signal
import sys


def main() -> None:
    """Pickles in, pickles out: (function, answer, seconds) to (True, score) or (False, message).

    What a rule prints goes to stderr. A clock of the process itself ends it shortly after its time, should its owner
    be gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
        pickle.dump(said, writes)
        writes.flush()


if __name__ == "__main__":
    main()
