"""Resolves the user's functions named on the command line.

Invariant: a hook that does not exist, or is not callable, stops the run before anything is started.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from miles_lite.errors import UserError


def load_hook(path: str, *, flag: str) -> Callable[..., Any]:
    """The callable named by `package.module.name`, `package.module:name` or `file.py:name`.

    Raises UserError naming `flag`.
    """
    module_name, _, name = path.rpartition(":") if ":" in path else path.rpartition(".")
    if not module_name or not name:
        raise UserError(f"{flag} {path}: expected package.module.name, package.module:name or file.py:name")
    module = _load_file(module_name, flag=flag) if module_name.endswith(".py") else _load_module(module_name, flag=flag)
    hook = getattr(module, name, None)
    if not callable(hook):
        raise UserError(f"{flag} {path}: {module_name} has no callable named '{name}'")
    return hook  # type: ignore[no-any-return]


def _load_module(name: str, *, flag: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"{flag}: cannot import {name}: {error}. Is its folder on PYTHONPATH?") from error


def _load_file(name: str, *, flag: str) -> ModuleType:
    file = Path(name).expanduser().resolve()
    if not file.is_file():
        raise UserError(f"{flag}: no such file: {file}")
    digest = hashlib.sha256(str(file).encode()).hexdigest()[:8]
    qualified = f"miles_lite_hook_{file.stem}_{digest}"
    if qualified in sys.modules:
        return sys.modules[qualified]
    spec = importlib.util.spec_from_file_location(qualified, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[qualified] = module
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[qualified]
        raise
    finally:
        sys.path.remove(str(file.parent))
    return module
