"""Where the first JSON object in a text ends: what the agent reads of a reply, and where a session may stop sampling.

Invariant: each character is looked at once, and only braces outside strings count.
"""

from __future__ import annotations


def first_object(text: str) -> str | None:
    """The first balanced `{...}` at the top level of `text`; None when there is none."""
    start, depth, in_string, escaped = 0, 0, False, False
    for index, character in enumerate(text):
        if escaped:
            escaped = False
        elif in_string:
            escaped = character == "\\"
            in_string = character != '"'
        elif character == '"':
            in_string = depth > 0  # a quotation mark in prose opens nothing
        elif character == "{":
            start, depth = (index, 1) if depth == 0 else (start, depth + 1)
        elif character == "}" and depth:
            depth -= 1
            if depth == 0:
                return text[start : index + 1]
    return None
