"""Whether a timeline holds what the chat template prints of its messages: `tito_session_mismatch` of a sample.

Invariant: reads only. What cannot be compared is None, never an empty list: turns that the journal gave back, whose
tools and template options it does not keep, and messages that the template prints in a way that cannot be cut.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from miles_lite.session.history.tree import Turn
from miles_lite.tito import RenderError, Tito
from miles_lite.tito.compare import compare
from miles_lite.tito.cut_render import CompareError, Sampled

MISMATCH = "tito_session_mismatch"


def mismatches(tito: Tito, leaf: Turn) -> list[dict[str, Any]] | None:
    """The entries of `miles_lite.tito.compare`, as plain data, for the path to `leaf`.

    Renders and encodes the whole conversation: about 0.3 s for 100,000 tokens.
    """
    if leaf.caller.options is None:
        return None
    messages, ids, sampled = _timeline(leaf)
    try:
        found = compare(tito, messages, ids, sampled, tools=leaf.caller.tools, options=leaf.caller.options)
    except (RenderError, CompareError):
        return None
    return [each.as_json() for each in found]


def _timeline(leaf: Turn) -> tuple[list[Any], list[int], list[Sampled]]:
    """(messages, ids, what of them was sampled) from the root to `leaf`."""
    messages: list[Any] = []
    ids: list[int] = []
    sampled: list[Sampled] = []
    for turn in leaf.path():
        if turn.drop:
            del ids[-turn.drop :]
            sampled[-1] = replace(sampled[-1], end=min(sampled[-1].end, len(ids)))
        messages += turn.messages
        ids += turn.prompt_ids.tolist()
        written = turn.output.size - (turn.output.stop is not None)
        sampled.append(Sampled(len(messages), len(ids), len(ids) + written))
        ids += turn.output.ids.tolist()
        messages.append(turn.reply)
    return messages, ids, sampled
