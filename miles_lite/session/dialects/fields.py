"""What requests of all dialects say alike.

Invariant: nothing here raises anything but ApiError 400.
"""

from __future__ import annotations

from collections.abc import Sized

from miles_lite.process.json_types import Json, JsonMapping, JsonObject
from miles_lite.session.dialects.chat_body import Format
from miles_lite.session.dialects.request import Constraint
from miles_lite.session.errors import bad_request
from miles_lite.tito.chat_messages import Tools, nested_beyond

MAX_MESSAGES = 10_000
MAX_NESTING = 64


def check_limits(body: Json) -> None:
    """Refuse what is nested deeper than any request has reason to be."""
    if nested_beyond(body, MAX_NESTING):
        raise bad_request(f"the request is nested deeper than {MAX_NESTING} levels")


def check_count(messages: Sized, name: str) -> None:
    if len(messages) > MAX_MESSAGES:
        raise bad_request(f"{name} has {len(messages)} entries: {MAX_MESSAGES} is the most", param=name)


def needed(text: str | None, path: str) -> str:
    """A text that must be there."""
    if text is None:
        raise bad_request(f"{path} must be a string", param=path)
    return text


def check_choice(constraint: Constraint, tools: Tools | None, path: str) -> Constraint:
    """The constraint, if there are tools to fulfil it with."""
    if constraint.force and not tools:
        raise bad_request("this needs tools to choose from", param=path)
    if constraint.only and constraint.only not in [tool["function"]["name"] for tool in tools or ()]:
        raise bad_request(f"there is no tool named {constraint.only!r}", param=path)
    return constraint


def schema_of(form: Format | None, path: str, *, nested: bool = False) -> JsonMapping | None:
    """The JSON schema that a response format asks for. `nested`: in an object of its own, with a name."""
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return {"type": "object"}
    holder, at = (form.json_schema, f"{path}.json_schema") if nested else (form, f"{path}.schema")
    if holder is None or holder.schema is None:
        raise bad_request(f"{at} must be an object", param=at)
    return holder.schema


def template_options(
    options: JsonObject | None, *, thinks: bool | None = None, effort: str | None = None
) -> JsonObject:
    """chat_template_kwargs over what the dialect has its own fields for; with the effort `none` nobody thinks."""
    made: JsonObject = {} if effort in (None, "none") else {"reasoning_effort": effort}
    thinks = False if effort == "none" and thinks is None else thinks
    made |= {} if thinks is None else {"enable_thinking": thinks}
    return made | (options or {})


def switch(thinking: str | None) -> bool | None:
    """Whether this type of thinking switches it on or off; None when it leaves that to the template."""
    return {"enabled": True, "disabled": False}.get(thinking or "")
