"""Paths on a command line."""

from __future__ import annotations

import os
from pathlib import Path

from miles_lite.errors import UserError


def absolute(path: str) -> str:
    """The path from where the command was started; `~` is the user's home."""
    return os.path.abspath(os.path.expanduser(path))


def check_folder(flag: str, path: str | Path) -> None:
    """Refuse a folder that could not be made or written into. Nothing is made. Raises UserError naming `flag`."""
    folder = Path(path).expanduser().absolute()
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not there.is_dir():
        raise UserError(f"{flag} {path}: {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {path}: {there} cannot be written into")
