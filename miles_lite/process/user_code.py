"""Loads what users wrote and named: `package.module.name`, `package.module:name` or `file.py:name`.

Invariant: whatever an import raises, sys.exit included, is a UserError that says under which name it was given.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from miles_lite.errors import UserError
from miles_lite.process.uncollected import uncollected


def load_named(path: str, *, given_as: str) -> Any:
    """The callable of that path. Raises UserError naming `given_as`, a flag or what else it was given as."""
    module_name, _, name = path.rpartition(":") if ":" in path else path.rpartition(".")
    if not module_name or not name:
        raise UserError(f"{given_as} {path}: expected package.module.name, package.module:name or file.py:name")
    found = getattr(_module(module_name, given_as=given_as), name, None)
    if not callable(found):
        raise UserError(f"{given_as} {path}: {module_name} has no callable named '{name}'")
    return found


def _module(name: str, *, given_as: str) -> ModuleType:
    """The module of that name or file. Raises UserError for whatever its import raises, sys.exit included."""
    file = Path(name).expanduser().resolve() if name.endswith(".py") else None
    if file is not None and not file.is_file():
        raise UserError(f"{given_as}: no such file: {file}")
    with uncollected(), users_code(f"{given_as}: cannot import {name}"):
        return importlib.import_module(name) if file is None else _load_file(file)


@contextlib.contextmanager
def users_code(what: str) -> Iterator[None]:
    """Whatever is raised in its block, sys.exit included, is a UserError that begins with `what` and says where."""
    try:
        yield
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise UserError(f"{what}: {error}. Is its folder on PYTHONPATH?") from error
    except (Exception, SystemExit) as error:
        raised = traceback.TracebackException.from_exception(error)
        where = f"\n  {raised.stack[-1].filename}, line {raised.stack[-1].lineno}"
        said = "".join(raised.format_exception_only()).strip().replace("\n", "\n  ")
        raise UserError(f"{what}: {said}{'' if isinstance(error, SyntaxError) else where}") from error


def _load_file(file: Path) -> ModuleType:
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
