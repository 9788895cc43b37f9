"""Fields of requests that nobody here knows: counted in each session, and named in the log when they are first met.

Invariant: a name is logged once; how many are remembered is bounded, because strangers choose them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from miles_lite.session.dialects.known_fields import UNSUPPORTED
from miles_lite.session.errors import ApiError

_REMEMBERED = 256

log = logging.getLogger(__name__)


class Unknown:
    def __init__(self, refuses: bool) -> None:
        self._refuses = refuses
        self._met: set[str] = set()

    def check(self, names: Sequence[str]) -> None:
        """Raises ApiError 400 where such fields are refused."""
        if names and self._refuses:
            why = "it is not known here, and --session-unknown-fields refuse says to refuse what is not"
            raise ApiError(400, f"{names[0]}: {why}", param=names[0], code=UNSUPPORTED)
        for name in set(names) - self._met if len(self._met) < _REMEMBERED else ():
            self._met.add(name)
            log.warning("requests have the field %.200r, which is not known here and is ignored", name)
