"""Shapes that Anthropic's answers, streams and errors share.

Invariant: these are functions of their arguments alone.
"""

from __future__ import annotations

from hashlib import blake2b

from miles_lite.process.json_types import JsonObject
from miles_lite.session.dialects.request import ChatAnswer
from miles_lite.session.errors import ApiError

_ERRORS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def envelope(answer_id: str, model: str) -> JsonObject:
    return {"id": answer_id, "type": "message", "role": "assistant", "model": model}


def stop_reason(answer: ChatAnswer) -> str:
    if answer.finish_reason == "length":
        return "max_tokens"
    if answer.finish_reason == "tool_calls":
        return "tool_use"
    return "end_turn" if answer.stop_sequence is None else "stop_sequence"


def usage(answer: ChatAnswer) -> dict[str, int]:
    """Tokens read from the cache are not in input_tokens."""
    return {
        "input_tokens": answer.prompt_tokens - answer.cached_tokens,
        "cache_read_input_tokens": answer.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": answer.completion_tokens,
    }


def signature(thinking: str) -> str:
    """Clients drop thinking blocks that carry none, and send this back unread."""
    return blake2b(thinking.encode(), digest_size=16).hexdigest()


def error_body(error: ApiError) -> JsonObject:
    """With the code where clients look for one, such as `thread_unsupported_request` to go on without threads."""
    kind = _ERRORS.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    message = (
        error.message if error.param is None or error.param in error.message else f"{error.param}: {error.message}"
    )
    if error.code == "context_length_exceeded":
        message = f"prompt is too long: {error.message}"
    details = {} if error.code is None else {"details": {"error_code": error.code}}
    return {"type": "error", "error": {"type": kind, "message": message} | details}
