"""Wire dialects: OpenAI chat completions and Responses, Anthropic Messages, Google generateContent.

Each is around the same exchange. One more is a module, and a line here.
"""

from collections.abc import Mapping

from miles_lite.session.dialects.base import Dialect, Events, Route, Stamp
from miles_lite.session.dialects.chat import ChatCompletions
from miles_lite.session.dialects.google import Google
from miles_lite.session.dialects.media import Media
from miles_lite.session.dialects.messages import Messages
from miles_lite.session.dialects.responses import Responses

DIALECTS: Mapping[str, type[Dialect]] = {
    "Chat completions": ChatCompletions,
    "Responses": Responses,
    "Messages": Messages,
    "generateContent": Google,
}
"""By the name that people know them by."""


_SPOKEN: list[Dialect] = [make() for make in DIALECTS.values()]
_ROUTES = sorted(
    ((route, dialect) for dialect in _SPOKEN for route in dialect.routes),
    key=lambda each: each[0].does.startswith("model"),
)
"""Those of turns first: what a model is listed under may hold anything."""


def dialect_at(path: str) -> Dialect:
    """The dialect whose clients read what is answered at a path; at one that is nobody's, the first."""
    return next((dialect for route, dialect in _ROUTES if route.begins(path)), _SPOKEN[0])


__all__ = [
    "DIALECTS",
    "ChatCompletions",
    "Dialect",
    "Events",
    "Google",
    "Media",
    "Messages",
    "Responses",
    "Route",
    "Stamp",
    "dialect_at",
]
