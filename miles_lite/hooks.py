"""The user's functions named on the command line: what each flag's is called with, and how it is found.

Invariant: a function that cannot be found, imported or called as its flag calls it is a UserError that names the flag;
`check_hooks` says so of a run's before anything is started, in a process of its own, so that no module is trusted with
the run's.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from miles_lite.errors import UserError

CHECK_SECONDS = 300.0
"""Importing torch from a slow disk takes a minute."""
LAST_LINES = 5
LOADING, DONE = "loading ", "done"


@dataclass(frozen=True, slots=True)
class Signature:
    """How a flag's function is called: awaited or not, how many positional arguments, which keywords."""

    is_async: bool
    positional: int
    keywords: tuple[str, ...] = ()


AGENT = ("base_url", "api_key", "prompt", "request_kwargs", "metadata", "label")
SIGNATURES: Mapping[str, Signature] = {
    "--custom-agent-function-path": Signature(True, 0, AGENT),
    "--custom-rm-path": Signature(True, 2, ("response", "label", "metadata")),
    "--dynamic-sampling-filter-path": Signature(False, 1),
    "--session-sample-picker-path": Signature(False, 2),
    "--session-sample-postprocessor-path": Signature(False, 2),
    "--session-message-matcher": Signature(False, 2),
}


def load_hook(path: str, *, flag: str) -> Callable[..., Any]:
    """The function named by `package.module.name`, `package.module:name` or `file.py:name`, as `flag` calls it.

    Raises UserError naming `flag`.
    """
    module_name, _, name = path.rpartition(":") if ":" in path else path.rpartition(".")
    if not module_name or not name:
        raise UserError(f"{flag} {path}: expected package.module.name, package.module:name or file.py:name")
    hook = getattr(_load(module_name, flag=flag), name, None)
    if not callable(hook):
        raise UserError(f"{flag} {path}: {module_name} has no callable named '{name}'")
    _check_call(hook, SIGNATURES[flag], where=f"{flag} {path}")
    return hook  # type: ignore[no-any-return]


def hooks_of(*groups: Any) -> dict[str, str]:
    """What the flags of SIGNATURES name in these option groups, matchers that are built in left out."""
    named = {flag: flag.removeprefix("--").replace("-", "_") for flag in SIGNATURES}
    given = {
        flag: getattr(group, name, None) for flag, name in named.items() for group in groups if hasattr(group, name)
    }
    return {flag: path for flag, path in given.items() if path and ("." in path or ":" in path)}


def check_hooks(hooks: Mapping[str, str]) -> None:
    """Load the function of each flag in another process. Raises UserError for the first that cannot be used."""
    if not hooks:
        return
    with tempfile.TemporaryDirectory(prefix="miles_lite-hooks-") as folder:
        verdict, said = Path(folder, "verdict"), Path(folder, "said")
        with said.open("wb") as output:
            try:
                done = subprocess.run(
                    [sys.executable, "-m", "miles_lite.hooks", json.dumps(dict(hooks)), str(verdict)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                    timeout=CHECK_SECONDS,
                    check=False,
                )
                code = done.returncode
            except subprocess.TimeoutExpired:
                code = None
        progress = verdict.read_text().split("\0") if verdict.exists() else [""]
        if progress[-1] == DONE:
            return
        loading = progress[-1].removeprefix(LOADING)
        if loading == progress[-1]:
            raise UserError(progress[-1])
        how = f"ended the process (exit code {code})" if code is not None else f"took over {CHECK_SECONDS:g} s"
        last = said.read_bytes()[-4096:].decode(errors="replace").splitlines()[-LAST_LINES:]
        raise UserError("\n  ".join([f"{loading}: its import {how}", *last]))


def _judge(hooks: Mapping[str, str], verdict: Path) -> None:
    """Append to `verdict`, between NULs, what is loaded and then the first flaw, or DONE."""
    with verdict.open("w", encoding="utf-8", errors="replace") as file:
        for flag, path in hooks.items():
            file.write(f"\0{LOADING}{flag} {path}")
            file.flush()
            try:
                load_hook(path, flag=flag)
            except UserError as error:
                file.write(f"\0{error}")
                return
        file.write(f"\0{DONE}")


def _check_call(hook: Callable[..., Any], wanted: Signature, *, where: str) -> None:
    inner = inspect.unwrap(hook)
    is_async = any(map(inspect.iscoroutinefunction, (hook, inner, getattr(hook, "__call__", None))))  # noqa: B004
    if wanted.is_async and not is_async:
        raise UserError(f"{where}: is not async: write `async def`")
    if is_async and not wanted.is_async:
        raise UserError(f"{where}: is async, and this one is not awaited: write a plain `def`")
    try:
        inspect.signature(hook).bind(*range(wanted.positional), **dict.fromkeys(wanted.keywords))
    except TypeError as error:
        called = [*(f"<{at + 1}>" for at in range(wanted.positional)), *(f"{name}=" for name in wanted.keywords)]
        raise UserError(f"{where}: cannot be called with ({', '.join(called)}): {error}") from error
    except ValueError:  # written in C, and it does not say
        pass


def _load(name: str, *, flag: str) -> ModuleType:
    """The module of that name or file. Raises UserError for whatever its import raises, sys.exit included."""
    file = Path(name).expanduser().resolve() if name.endswith(".py") else None
    if file is not None and not file.is_file():
        raise UserError(f"{flag}: no such file: {file}")
    try:
        return importlib.import_module(name) if file is None else _load_file(file)
    except ModuleNotFoundError as error:
        raise UserError(f"{flag}: cannot import {name}: {error}. Is its folder on PYTHONPATH?") from error
    except (Exception, SystemExit) as error:
        raised = traceback.TracebackException.from_exception(error)
        where = f"\n  {raised.stack[-1].filename}, line {raised.stack[-1].lineno}"
        what = "".join(raised.format_exception_only()).strip().replace("\n", "\n  ")
        raise UserError(
            f"{flag}: cannot import {name}: {what}{'' if isinstance(error, SyntaxError) else where}"
        ) from error


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


if __name__ == "__main__":
    _judge(json.loads(sys.argv[1]), Path(sys.argv[2]))
