"""Reading JSON that strangers wrote: each wrong type is refused with the path of its field.

Invariant: nothing here raises anything but ApiError 400.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from miles_lite.session.dialects.known_fields import UNSUPPORTED
from miles_lite.session.dialects.request import Constraint
from miles_lite.session.errors import ApiError, bad_request
from miles_lite.tito.chat_messages import Tools, nested_beyond

MAX_MESSAGES = 10_000
MAX_NESTING = 64

Kind = Literal["a string", "a boolean", "an integer", "a number", "an object", "a list"]

_TYPES: dict[str, tuple[type, ...]] = {
    "a string": (str,),
    "a boolean": (bool,),
    "an integer": (int,),
    "a number": (int, float),
    "an object": (dict,),
    "a list": (list,),
}


def take(body: Mapping[str, Any], name: str, kind: Kind, at: str = "") -> Any:
    """The field's value, None when it is absent or null."""
    value = body.get(name)
    return None if value is None else _checked(value, kind, at + name)


def need(body: Mapping[str, Any], name: str, kind: Kind, at: str = "") -> Any:
    """The field's value, which must be there."""
    return _checked(body.get(name), kind, at + name)


def obj(value: Any, path: str) -> dict[str, Any]:
    """`value`, which must be an object."""
    checked: dict[str, Any] = _checked(value, "an object", path)
    return checked


def items(body: Mapping[str, Any], name: str, at: str = "") -> list[tuple[str, dict[str, Any]]]:
    """(path, object) of each element of a list of objects; empty when it is absent."""
    values = take(body, name, "a list", at) or []
    return [(path, obj(value, path)) for path, value in ((f"{at}{name}[{n}]", v) for n, v in enumerate(values))]


def choice(body: Mapping[str, Any], name: str, among: Sequence[str], at: str = "") -> str:
    value = body.get(name)
    if value not in among or not isinstance(value, str):
        raise bad_request(f"{name} must be one of {', '.join(among)}", param=at + name)
    return value


def check_limits(body: Any) -> None:
    """Refuse what is nested deeper than any request has reason to be."""
    if nested_beyond(body, MAX_NESTING):
        raise bad_request(f"the request is nested deeper than {MAX_NESTING} levels")


def check_count(messages: Sequence[Any], name: str) -> None:
    if len(messages) > MAX_MESSAGES:
        raise bad_request(f"{name} has {len(messages)} entries: {MAX_MESSAGES} is the most", param=name)


def check_choice(constraint: Constraint, tools: Tools | None, path: str) -> Constraint:
    """The constraint, if there are tools to fulfil it with."""
    if constraint.force and not tools:
        raise bad_request("this needs tools to choose from", param=path)
    if constraint.only and constraint.only not in [tool["function"]["name"] for tool in tools or ()]:
        raise bad_request(f"there is no tool named {constraint.only!r}", param=path)
    return constraint


def template_options(body: Mapping[str, Any], *, thinks: bool | None = None, effort: Any = None) -> dict[str, Any]:
    """chat_template_kwargs over what the dialect has its own fields for; with the effort `none` nobody thinks."""
    made = {} if effort in (None, "none") else {"reasoning_effort": effort}
    thinks = False if effort == "none" and thinks is None else thinks
    made |= {} if thinks is None else {"enable_thinking": thinks}
    return made | (take(body, "chat_template_kwargs", "an object") or {})


def switch(thinking: Mapping[str, Any] | None) -> bool | None:
    """Whether `{"type": ...}` switches thinking on or off; None when it leaves that to the template."""
    return {"enabled": True, "disabled": False}.get(str((thinking or {}).get("type")))


def unsupported(message: str, path: str) -> ApiError:
    return ApiError(400, message, param=path, code=UNSUPPORTED)


def _checked(value: Any, kind: Kind, path: str) -> Any:
    if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "a boolean"):
        raise bad_request(f"{path} must be {kind}", param=path)
    return value
