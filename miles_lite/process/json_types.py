"""JSON as Python holds it.

Invariant: a value of these types is what a parser gives: None, a boolean, a number, a text, a list, or an object with
texts as keys. Whoever uses a part of one has checked what it is, or names the type that it was checked against.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

Json = Any
"""Any value."""
JsonObject = dict[str, Any]
"""An object of one's own, which may be changed."""
JsonMapping = Mapping[str, Any]
"""An object to read."""


def parsed(text: str | bytes, loads: Callable[[str | bytes], Json] = json.loads) -> Json:
    """What a text says in JSON; None where it is none."""
    try:
        return loads(text)
    except (ValueError, RecursionError):
        return None


def is_unicode(text: str) -> bool:
    """Whether the text has no lone surrogates, which JSON escapes can spell and no UTF-8 text holds."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
