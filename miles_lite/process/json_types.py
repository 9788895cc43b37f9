"""JSON as Python holds it.

Invariant: a value of these types is what a parser gives: None, a boolean, a number, a text, a list, or an object with
texts as keys. Whoever uses a part of one has checked what it is, or names the type that it was checked against.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Json = Any
"""Any value."""
JsonObject = dict[str, Any]
"""An object of one's own, which may be changed."""
JsonMapping = Mapping[str, Any]
"""An object to read."""
