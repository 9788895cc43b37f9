"""Environments: an agent function, its prompts and its reward.

Each of the ecosystems' is a module with a `make`, and a line in `config/environments.py`; its package is imported only
when it is named.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache

from miles_lite.config.environments import ENVIRONMENTS, arguments, named
from miles_lite.errors import UserError
from miles_lite.hooks import Environment, EnvironmentFactory, load_hook

PACKAGES: Mapping[str, str] = {"reasoning_gym": "reasoning-gym", "gem": "gem-llm", "ors": "ors-sdk"}
"""Of a module, the package that brings it, where that has another name."""


@cache
def load(spec: str, args: str | None, *, seed: int) -> Environment:
    """The environment of --environment and --environment-args, one in a process. Raises UserError."""
    known, argument = named(spec)
    make: EnvironmentFactory
    if known in ENVIRONMENTS.values():
        module, _, function = known.make.partition(":")
        make = getattr(importlib.import_module(module), function)
    else:
        make = load_hook(known.make, flag="--environment")
    given = arguments(args)
    try:
        return make(argument, given, seed=seed)
    except ImportError as error:
        if error.name is None:
            raise
        package = PACKAGES.get(error.name, error.name)
        raise UserError(f"--environment {spec}: needs {package}: pip install {package}") from error
