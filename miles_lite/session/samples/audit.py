"""Whether a timeline holds what the chat template prints of its messages: `tito_session_mismatch` of a sample.

Invariant: reads only. What cannot be compared is None, never an empty list: turns that the journal gave back, whose
tools and template options it does not keep, and messages that the template prints in a way that cannot be cut.
"""

from __future__ import annotations

from miles_lite.process.json_types import JsonObject
from miles_lite.session.history.turn_record import Turn
from miles_lite.tito import RenderError, Tito
from miles_lite.tito.compare import compare
from miles_lite.tito.cut_render import CompareError
from miles_lite.tito.timeline import Added, timeline

MISMATCH = "tito_session_mismatch"


def mismatches(tito: Tito, leaf: Turn) -> list[JsonObject] | None:
    """The entries of `miles_lite.tito.compare`, as plain data, for the path to `leaf`.

    Renders and encodes the whole conversation: about 0.3 s for 100,000 tokens.
    """
    if leaf.caller.options is None:
        return None
    held = timeline(map(_added, leaf.path()))
    try:
        found = compare(
            tito, held.messages, held.ids, held.sampled, tools=leaf.caller.tools, options=leaf.caller.options
        )
    except (RenderError, CompareError):
        return None
    return [each.as_json() for each in found]


def _added(turn: Turn) -> Added:
    return Added(
        messages=turn.messages,
        reply=turn.reply,
        drop=turn.drop,
        prompt_ids=turn.prompt_ids.tolist(),
        output_ids=turn.output.ids.tolist(),
        stopped=turn.output.stop is not None,
    )
