"""Models by their id on a Hugging Face hub, such as Qwen/Qwen3-4B: the folder that its cache has, or gets.

Invariant: a folder that is there goes first, so that no path is taken for an id; what is cached is taken without asking
the hub.
"""

from __future__ import annotations

import re
from pathlib import Path

from miles_lite.config.folders import absolute
from miles_lite.errors import UserError

ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""OWNER/NAME; a path is told apart by ./ in front, or by being there."""


def model_path(given: str | None) -> str | None:
    """The absolute path of a model folder, or of the hub's model of that id. Raises UserError for an id that is neither
    cached nor to be had."""
    if given is None or not ID.fullmatch(given) or Path(given).exists() or Path(given).parent.exists():
        return None if given is None else absolute(given)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return str(snapshot_download(given, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    try:
        return str(snapshot_download(given))
    except (HfHubHTTPError, OSError) as error:
        raise UserError(
            f"{given}: no such folder, not in the cache of huggingface_hub (HF_HOME), and the hub does not give it: "
            f"{type(error).__name__}\n  Give a folder, or run `hf download {given}` where there is a network"
        ) from error
