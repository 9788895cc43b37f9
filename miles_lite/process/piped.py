"""Commands that print for a reader, who may leave before the end: `head`, say."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

READER_GONE = 128 + signal.SIGPIPE


def printed(say: Callable[[], None]) -> int:
    """Let `say` print; the exit code, READER_GONE where nobody read to the end."""
    try:
        say()
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has seen enough; the interpreter's own flush must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    return 0
