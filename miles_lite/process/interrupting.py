"""Ends what a thread of this process is at, wherever that is."""

from __future__ import annotations

import ctypes


class Interrupted(SystemExit):
    """Raised in the thread. As SystemExit it passes `except Exception`, and comes out of an event loop, so that
    it takes no other step."""


def interrupt(thread: int) -> None:
    """Raise Interrupted in the thread of this identifier, as soon as it runs Python code again."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Interrupted))
