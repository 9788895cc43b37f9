"""Environments: an agent function, its prompts and its reward.

Each of the ecosystems' is a module with a `make`, and a line in `config/environments.py`; its package is imported only
when it is named.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from functools import cache

from miles_lite.config.environments import ENVIRONMENTS, arguments, named
from miles_lite.errors import UserError
from miles_lite.hooks import (
    AgentFunction,
    Environment,
    EnvironmentFactory,
    RewardFunction,
    check_hook,
    load_hook,
)
from miles_lite.process.user_code import users_code

PACKAGES: Mapping[str, str] = {"reasoning_gym": "reasoning-gym", "gem": "gem-llm", "ors": "ors-sdk", "zmq": "pyzmq"}
"""Of a module, the package that brings it, where that has another name."""


@cache
def load(spec: str, args: str | None, *, seed: int) -> Environment:
    """The environment of --environment and --environment-args, one in a process. Raises UserError."""
    known, argument = named(spec)
    given = arguments(args)
    if known not in ENVIRONMENTS.values():
        make: EnvironmentFactory = load_hook(known.make, flag="--environment")
        with users_code(f"--environment {spec}: cannot be made"), installed(spec):
            return _complete(spec, make(argument, given, seed=seed))
    module, _, function = known.make.partition(":")
    with installed(spec):
        return _complete(spec, getattr(importlib.import_module(module), function)(argument, given, seed=seed))


@contextlib.contextmanager
def installed(spec: str) -> Iterator[None]:
    """Raises UserError for an import of what is not installed."""
    try:
        yield
    except ImportError as error:
        if error.name is None:  # a package that says itself what it lacks
            raise UserError(f"--environment {spec}: {error}") from error
        package = PACKAGES.get(error.name, error.name)
        raise UserError(f"--environment {spec}: needs {package}: pip install {package}") from error


def _complete(spec: str, made: Environment) -> Environment:
    missing = [name for name in ("agent", "reward", "rows") if not hasattr(made, name)]
    if missing:
        raise UserError(f"--environment {spec}: what it made, {made!r:.200}, has no {', '.join(missing)}")
    check_hook(made.agent, AgentFunction, where=f"--environment {spec}: its agent")
    if made.reward is not None:
        check_hook(made.reward, RewardFunction, where=f"--environment {spec}: its reward")
    return made
