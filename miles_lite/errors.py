"""One exception for everything a user can mend, one for a run that lost a part of itself."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input or a bad environment. The message says what is wrong, where, and how to mend it.

    The CLI prints the message alone and exits with 2; any other exception is a bug and keeps its traceback.
    """


class RunLostError(RuntimeError):
    """A process that a run cannot do without has died. The message says which, why, what is lost and how to go on.

    The CLI prints the message alone and exits with 1.
    """


def plain(error: BaseException) -> BaseException:
    """The exception itself: Ray wraps what an actor raised into one that carries the remote traceback as its text."""
    cause = getattr(error, "cause", None)
    return plain(cause) if isinstance(cause, BaseException) else error
