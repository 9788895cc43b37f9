"""Constraints as grammars that the engine enforces: structural tags and JSON schemas, in xgrammar's notation.

Invariant: what a grammar lets through is what the model's own chat template prints, so that the reply's parser reads
it and the tokens look like the model's own.
"""

from __future__ import annotations

import json
import sys

from miles_lite.process.json_types import JsonMapping
from miles_lite.session.dialects.request import Constraint
from miles_lite.session.errors import bad_request
from miles_lite.tito.chat_messages import Tools
from miles_lite.tito.parse import CLOSE_CALL, OPEN_CALL, JsonCalls, ReplyParser
from miles_lite.tito.reasoning import Thoughts

Format = JsonMapping


def grammar(constraint: Constraint, *, tools: Tools | None, parser: ReplyParser, in_reasoning: bool) -> dict[str, str]:
    """The engine's sampling parameter for `constraint`, empty where there is none; interned, as turns keep it.

    Raises ApiError 400.
    """
    calls = isinstance(parser.calls, JsonCalls)
    thoughts = parser.reasoning if isinstance(parser.reasoning, Thoughts) else None
    if (constraint.force or constraint.only) and not calls:
        raise bad_request(
            "this model writes tool calls in a form there is no grammar for: use tool_choice auto or none",
            param="tool_choice",
        )
    body = _body(constraint, tools if calls else None)
    if body is None:
        return {}
    if thoughts is None and body["type"] == "json_schema":
        return {"json_schema": sys.intern(json.dumps(body["json_schema"]))}
    if thoughts is not None:
        body = _after_reasoning(body, thoughts, inside=in_reasoning or thoughts.always)
    return {"structural_tag": sys.intern(json.dumps({"type": "structural_tag", "format": body}))}


def _body(constraint: Constraint, tools: Tools | None) -> Format | None:
    """What comes after the reasoning."""
    calls = _calls(constraint, tools) if tools else None
    if constraint.force or constraint.only:
        return calls
    if constraint.schema is not None:
        schema = {"type": "json_schema", "json_schema": constraint.schema}
        return schema if calls is None else {"type": "or", "elements": [calls, schema]}
    if tools and not constraint.parallel:
        return {
            "type": "triggered_tags",
            "triggers": [OPEN_CALL],
            "tags": _tags(tools),
            "at_least_one": False,
            "stop_after_first": True,
        }
    return None


def _calls(constraint: Constraint, tools: Tools) -> Format:
    named = [tool for tool in tools if constraint.only in (None, tool["function"]["name"])]
    return {
        "type": "tags_with_separator",
        "tags": _tags(named),
        "separator": "\n",
        "at_least_one": True,
        "stop_after_first": not constraint.parallel or constraint.only is not None,
    }


def _tags(tools: Tools) -> list[Format]:
    tags: list[Format] = []
    for tool in tools:
        name = json.dumps(tool["function"]["name"], ensure_ascii=False)
        schema = {"type": "object", **(tool["function"].get("parameters") or {})}
        tags.append(
            {
                "type": "tag",
                "begin": f'{OPEN_CALL}\n{{"name": {name}, "arguments": ',
                "content": {"type": "json_schema", "json_schema": schema},
                "end": f"}}\n{CLOSE_CALL}",
            }
        )
    return tags


def _after_reasoning(body: Format, thoughts: Thoughts, *, inside: bool) -> Format:
    """Free reasoning, finished where the prompt began it and left to the model where not, and then `body`."""
    thought = {
        "type": "tag",
        "begin": "" if inside else thoughts.opens,
        "content": {"type": "any_text"},
        "end": thoughts.closes,
    }
    both = {"type": "sequence", "elements": [thought, {"type": "regex", "pattern": r"\n{0,2}"}, body]}
    return both if inside else {"type": "or", "elements": [body, both]}
