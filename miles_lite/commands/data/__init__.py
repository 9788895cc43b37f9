"""`miles-lite data look FILE`."""

from __future__ import annotations

from collections.abc import Sequence

from miles_lite.commands.data.look import main as look
from miles_lite.errors import UserError

USAGE = "usage: miles-lite data look FILE [flags]"


def main(argv: Sequence[str]) -> int:
    """Run the named command; the exit code. Raises UserError."""
    name, rest = (argv[0], list(argv[1:])) if argv else ("", [])
    if name in ("-h", "--help"):
        print(USAGE)
        return 0
    if name == "look":
        return look(rest)
    raise UserError(f"miles-lite data: no command '{name}'\n{USAGE}")
