"""Ends what a thread of this process is at, wherever that is."""

from __future__ import annotations

import ctypes


class Interrupted(BaseException):
    """Raised in the thread; a BaseException, so that `except Exception` does not keep it."""


def interrupt(thread: int) -> None:
    """Raise Interrupted in the thread of this identifier, as soon as it runs Python code again."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Interrupted))
