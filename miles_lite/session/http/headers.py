"""Headers of a request as text.

Invariant: what is read from a header can be encoded again; bytes that are no UTF-8 are refused by the header's name.
"""

from __future__ import annotations

from collections.abc import Mapping

from miles_lite.session.errors import bad_request


def header(headers: Mapping[str, str], name: str) -> str:
    """The header's text, "" where there is none. Raises ApiError 400."""
    text = headers.get(name, "")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise bad_request("the header is no UTF-8", param=name) from error
    return text
