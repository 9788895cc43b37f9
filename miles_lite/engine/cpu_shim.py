"""The CPU profile: a folder that makes the stock SGLang wheel run without CUDA, put on a server's PYTHONPATH.

Invariant: the profile is applied only to CPU servers on machines without a real `sgl_kernel`, always in front of the
PYTHONPATH the user set and never instead of it.
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "cpu_profile"


def needs_profile(device: str, path: list[str] | None = None) -> bool:
    """True for a CPU server when no `sgl_kernel` but our own is importable from `path` (default: sys.path)."""
    if device != "cpu":
        return False
    entries = [entry for entry in (sys.path if path is None else path) if Path(entry or ".").resolve() != FOLDER]
    return importlib.machinery.PathFinder.find_spec("sgl_kernel", entries) is None


def with_profile(pythonpath: str | None) -> str:
    """`pythonpath` with the profile's folder in front, once."""
    entries = [entry for entry in (pythonpath or "").split(os.pathsep) if entry and entry != str(FOLDER)]
    return os.pathsep.join([str(FOLDER), *entries])
