"""Text of models, tools and users as people can read it: what would steer a terminal or turn a line round is spelled.

Invariant: what comes out has no control character but line breaks and tabs, and no mark that changes the direction of
what follows; all else is as it was.
"""

from __future__ import annotations

from datetime import datetime

LATEST = 1e11
"""Seconds since the epoch: a greater number is no time."""
_CONTROLS = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: "\u2421"}
_SPELLED = {
    code: f"\\u{code:04x}"
    for code in (
        *range(0x80, 0xA0),
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
        *range(0xD800, 0xE000),
        0x200E,
        0x200F,
    )
}
_TABLE = _CONTROLS | _SPELLED


def visible(text: object) -> str:
    """`\\x1b` becomes U+241B, U+202E six characters."""
    return str(text).translate(_TABLE)


def moment(seconds: float) -> str:
    """Seconds since the epoch by the clock of this machine; as they are where no calendar has them."""
    if abs(seconds) >= LATEST:
        return f"{seconds:g}"
    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "milliseconds")


def first(text: str, most: int) -> str:
    """At most so many characters of it, and how many more there are."""
    return text if len(text) <= most else f"{text[:most]} … and {len(text) - most:,} characters more"
