"""How a process is asked to end: Ctrl-C, or SIGTERM."""

from __future__ import annotations

import asyncio
import signal


def stop_requested() -> asyncio.Event:
    """Set when SIGINT or SIGTERM arrives; from now on neither ends the process by itself. Needs a running loop."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop
