"""The one model, as the clients of all dialects read a list of models and one of them.

Invariant: whatever a client calls the model, it is the one there is: requests may name any model, and so is any found.
"""

from __future__ import annotations

from miles_lite.process.json_types import JsonObject

_VERBS = ["generateContent", "streamGenerateContent", "countTokens"]


def models(name: str) -> JsonObject:
    """OpenAI's and Anthropic's clients read `data`, Google's `models`."""
    one = model_named(name)
    return {"object": "list", "data": [one], "models": [one], "has_more": False, "first_id": name, "last_id": name}


def model_named(name: str) -> JsonObject:
    openai = {"id": name, "object": "model", "created": 0, "owned_by": "miles_lite"}
    anthropic = {"type": "model", "display_name": name, "created_at": "1970-01-01T00:00:00Z"}
    return openai | anthropic | {"name": f"models/{name}", "displayName": name, "supportedGenerationMethods": _VERBS}
