"""One exception for everything a user can mend, one for a run that lost a part of itself, and where rollouts break."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path


class UserError(ValueError):
    """Bad input or a bad environment. The message says what is wrong, where, and how to mend it.

    The CLI prints the message alone and exits with 2; any other exception is a bug and keeps its traceback.
    """


class UnavailableError(UserError):
    """Something that runs does not answer, or is gone, though nothing is wrong with the input: another attempt may end
    otherwise."""


class RunLostError(RuntimeError):
    """A process that a run cannot do without has died. The message says which, why, what is lost and how to go on.

    The CLI prints the message alone and exits with 1.
    """

    def __init__(self, message: str, *, log: str = "") -> None:
        """`log`: the end of what the process wrote."""
        super().__init__(message)
        self.log = log


PASSING = (RunLostError, UnavailableError)
"""What a run may try again after: errors of the infrastructure, never of the input or the program."""


class Where(StrEnum):
    """The boundary at which a rollout broke; see FAILURES."""

    AGENT = "agent"
    ENVIRONMENT = "environment"
    TOOL = "tool"
    SESSION = "session"
    ENGINE = "engine"
    REWARD = "reward"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    SETUP = "setup"


FAILURES: Mapping[Where, str] = {
    Where.AGENT: "the agent function raised, blocked its event loop, ended its process, or asked the model nothing",
    Where.ENVIRONMENT: "what the agent works in could not be made, reached or reset; its function says so",
    Where.TOOL: "a tool broke, which is not a tool's answer that something is wrong; the agent function says so",
    Where.SESSION: "the session could not be opened, written or collected",
    Where.ENGINE: "no engine answered a model call",
    Where.REWARD: "the reward function raised, or gave no finite number",
    Where.TIMEOUT: "it was not done within `--rollout-timeout`",
    Where.CANCELLED: "it was ended from outside, though nothing was wrong with it",
    Where.SETUP: "what it needs is not there, or not as it must be, as an image; no other attempt can end otherwise, "
    "so the run ends and says what",
}
"""What each means. All are of the infrastructure and none is a verdict: a rollout that broke has no reward. What the
model did badly is no failure: the agent function returns, with the reward for it."""


class SetupError(UserError):
    """What rollouts need of this machine is not there, or not as it must be: a program, an image, a permission. The
    first that meets it ends the run."""

    where = Where.SETUP


class RolloutError(RuntimeError):
    """An agent or a reward function raises it to say where its rollout broke.

    Any exception may say so, by an attribute `where` of its own.
    """

    def __init__(self, where: Where | str, why: str) -> None:
        """Raises ValueError for a `where` that FAILURES does not have."""
        super().__init__(why)
        self.where = Where(where)

    def __reduce__(self) -> tuple[type[RolloutError], tuple[Where, str]]:
        return type(self), (self.where, str(self))


def plain(error: BaseException) -> BaseException:
    """The exception itself: Ray wraps what an actor raised into one that carries the remote traceback as its text."""
    cause = getattr(error, "cause", None)
    return plain(cause) if isinstance(cause, BaseException) else error


_FULL_DISK = re.compile(
    r"No space left on device|Disk quota exceeded|disk is full|inline_container\.cc.*unexpected pos"
)
"""How safetensors, SQLite and torch (whose writer only sees that less was written) say it."""


def disk_is_full(error: BaseException) -> bool:
    """Whether a full disk is behind the error."""
    error = plain(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return bool(_FULL_DISK.search(str(error)))


@contextlib.contextmanager
def user_error(what: str, *kinds: type[Exception], kind: type[UserError] = UserError) -> Iterator[None]:
    """In its block an error of these kinds is the user's to mend. Raises UserError (`kind`): `what`, and the error's
    reason."""
    try:
        yield
    except kinds as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise kind(f"{what}: {reason or plain(error)}") from error


@contextlib.contextmanager
def writing(what: str, path: Path) -> Iterator[None]:
    """Writes `what` at `path` in its block. Raises UserError when the disk is full."""
    try:
        yield
    except Exception as error:
        if not disk_is_full(error):
            raise
        raise UserError(
            f"the disk is full: {what} could not be written: {path}\n"
            "  Free space there, or write elsewhere; what was complete before stays."
        ) from error
