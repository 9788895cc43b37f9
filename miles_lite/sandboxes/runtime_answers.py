"""What the programs that run containers are asked, and what their answers mean.

Invariant: a start that may end otherwise another time (`RolloutError`) is told from one that cannot (`SetupError`, with
what to do).
"""

from __future__ import annotations

import re
import subprocess
from typing import IO

from miles_lite.errors import RolloutError, SetupError
from miles_lite.sandboxes.sandbox import broken

ANSWER_SECONDS, START_SECONDS = 60.0, 600.0
"""For anything small, and for a start with the download of an image."""
NOT_RUN = (126, 127)
"""How the programs end, as shells do, where a container's command cannot be run, or is not there."""
PASSING = re.compile(
    r"time[d -]*out|too *many *requests|temporar|try again|reset by peer|unexpected EOF|deadline exceeded"
    r"|server misbehaving|(?:HTTP status|StatusCode)\W+(?:429|5\d\d)",
    re.IGNORECASE,
)
"""What registries and networks say that may say otherwise soon. No such host, and nobody that listens, will not."""


def run_program(
    argv: list[str], seconds: float = ANSWER_SECONDS, given: bytes = b"", *, stdout: IO[bytes] | int = subprocess.PIPE
) -> subprocess.CompletedProcess[bytes]:
    """What a program answered. Raises RolloutError when there is no answer in time."""
    try:
        return subprocess.run(argv, input=given, timeout=seconds, check=False, stdout=stdout, stderr=subprocess.PIPE)
    except subprocess.TimeoutExpired as error:
        raise broken(f"{' '.join(argv[:2])} gave no answer within {seconds:g} s") from error


def error_tail(done: subprocess.CompletedProcess[bytes]) -> str:
    """The end of its words."""
    return (done.stderr or b"").decode(errors="replace").strip()[-300:] or f"exit code {done.returncode}"


def flaw(program: str) -> str | None:
    """Why nothing can be asked of the program: its daemon is not there, or does not let us in; None where it can."""
    done = run_program([program, "ps", "--quiet"])
    return error_tail(done) if done.returncode else None


def unstarted(program: str, image: str, why: str) -> SetupError | RolloutError:
    """The error of an image that is not here, or that no command runs in."""
    return lasting(
        f"sandboxes of {program}: nothing runs in the image {image}: {why}",
        f"Mend its name, or bring it here first ('{program} pull', after '{program} login' where it is private). It "
        "must have bash, tar, mkdir and timeout.",
    )


def lasting(what: str, mend: str) -> SetupError | RolloutError:
    """The error of a program that failed: the user's to mend, unless it says that another time it may not."""
    return broken(what) if PASSING.search(what) else SetupError(f"{what}\n  {mend}")
