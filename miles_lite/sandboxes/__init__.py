"""Where an agent's commands run: a folder of this machine, a container, or another machine.

    with pool("docker").open("python:3.11") as lease:
        put(lease.sandbox, {"main.py": b"print(1)"})
        lease.sandbox.run("python main.py", seconds=10).stdout

Each is a module with a provider, and a line in `SANDBOXES`.
"""

from __future__ import annotations

import atexit
import sys
import tarfile
from collections.abc import Callable, Mapping
from functools import cache, partial

from miles_lite.config.spelling import nearest
from miles_lite.errors import SetupError
from miles_lite.sandboxes.containers import Containers
from miles_lite.sandboxes.lending import Limits, Pool
from miles_lite.sandboxes.local import ApptainerFolders, BubblewrapFolders, Folders
from miles_lite.sandboxes.over_http import Remote
from miles_lite.sandboxes.sandbox import Provider

SANDBOXES: Mapping[str, Callable[[], Provider]] = {
    "local": Folders,
    "bwrap": BubblewrapFolders,
    "docker": partial(Containers, "docker"),
    "podman": partial(Containers, "podman"),
    "apptainer": ApptainerFolders,
}
"""What provides each; a URL is the address of a machine that serves them (`miles-lite sandboxes`)."""


def provider(kind: str) -> Provider:
    """What provides sandboxes of a kind. Raises SetupError for one that there is not, or not on this machine."""
    if not hasattr(tarfile, "data_filter"):
        raise SetupError(
            f"sandboxes need Python 3.11.4 or newer, for safe archives (PEP 706): {sys.executable} is older"
        )
    if kind.startswith(("http://", "https://")):
        return Remote(kind)
    if kind not in SANDBOXES:
        raise SetupError(
            f"no sandboxes of '{kind}'{nearest(kind, tuple(SANDBOXES))}; there are {', '.join(SANDBOXES)}, or the URL "
            "of a machine that serves them"
        )
    return SANDBOXES[kind]()


@cache
def pool(kind: str, limits: Limits = Limits()) -> Pool:  # noqa: B008  # frozen
    """This process's sandboxes of a kind; what is left of them ends with the process. Raises SetupError."""
    made = Pool(provider(kind), limits)
    atexit.register(made.close)
    return made
