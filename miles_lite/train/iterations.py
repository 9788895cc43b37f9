"""The checkpoints of a folder by their numbers, as `checkpoint` writes them.

Invariant: this module imports no torch: whoever only asks which iteration there is need not wait for it.
"""

from __future__ import annotations

from pathlib import Path

from miles_lite.errors import UserError

LATEST = "latest_checkpointed_iteration.txt"


def iteration_folder(folder: Path, iteration: int) -> Path:
    return folder / f"iter_{iteration:07d}"


def latest_iteration(folder: Path) -> int | None:
    """The iteration that `folder` holds, or None. Raises UserError when the text file and the folder disagree."""
    marker = folder / LATEST
    if not marker.is_file():
        return None
    text = marker.read_text(errors="replace").strip()
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise UserError(f"{marker} holds {text!r:.40}, expected an iteration number")
    if not iteration_folder(folder, int(text)).is_dir():
        raise UserError(f"{marker} names iteration {text}, but {iteration_folder(folder, int(text))} does not exist")
    return int(text)


def retained(iteration: int, interval: int | None) -> bool:
    """Whether a checkpoint stays when a newer one is complete: every `interval`-th does, or all."""
    return interval is None or (iteration + 1) % interval == 0
