"""Keys and passwords where SGLang's options are shown: in config.json, in wandb, in engines' logs.

Invariant: names stay, so that what was set can be seen; our own options hold no secret.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

HIDDEN = "***"
_SECRET = re.compile(r"(^|_)(key|password|passwd|secret|credentials?|(auth|access|api|hf)_token)$")


def is_secret(name: str) -> bool:
    """Whether an option of this name holds a key or a password."""
    return bool(_SECRET.search(name))


def secrets_in(options: Mapping[str, object]) -> list[str]:
    """The texts that are secrets by the names of their options."""
    return [str(value) for name, value in options.items() if is_secret(name) and value]


def redacted(options: Mapping[str, object]) -> dict[str, object]:
    """`options` with HIDDEN in their place."""
    return {name: HIDDEN if is_secret(name) and value else value for name, value in options.items()}


def redacted_arguments(argv: Sequence[str]) -> list[str]:
    """A command line with HIDDEN in their place."""
    shown, secret = [], False
    for token in argv:
        flag, equals, _ = token.partition("=")
        if flag.startswith("--"):
            secret = is_secret(flag.removeprefix("--").removeprefix("sglang-").replace("-", "_"))
            shown.append(f"{flag}={HIDDEN}" if secret and equals else token)
        else:
            shown.append(HIDDEN if secret else token)
    return shown


def write_private(path: Path, text: str) -> None:
    """Write a file that its owner alone can read."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o600)  # it may have been there
        file.write(text)
