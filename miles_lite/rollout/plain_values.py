"""Values that agents, rewards and rows put anywhere, as everybody can read them again.

Invariant: what comes out can be pickled and read by a process that knows none of a user's modules.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

PLAIN = type(None), bool, int, float, str, bytes


def plain(value: object) -> Any:
    """`value` of built-in types and tensors alone: NumPy's as Python's, and what is neither as its text."""
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist()) if type(value.tolist()) is not type(value) else str(value)
    if isinstance(value, Mapping):
        return {plain(name): plain(each) for name, each in value.items()}
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    if isinstance(value, list | set | frozenset):
        return [plain(each) for each in value]
    if type(value) in PLAIN or _is_tensor(value):
        return value
    with contextlib.suppress(Exception):  # its words are users' code
        return str.__str__(str(value))
    return object.__repr__(value)


def _is_tensor(value: object) -> bool:
    """Nobody has one without torch, which need not be imported to know."""
    return "torch" in sys.modules and isinstance(value, sys.modules["torch"].Tensor)
