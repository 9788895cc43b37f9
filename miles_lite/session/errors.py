"""Everything a session refuses or fails at, as the HTTP answer it becomes.

Invariant: every error leaves as JSON in OpenAI's shape, `{"error": {"message", "type", "param", "code"}}`.
"""

from __future__ import annotations

from miles_lite.errors import Where
from miles_lite.process.json_types import JsonObject
from miles_lite.sample import Failure

ENGINE_UNREACHABLE = "engine_unreachable"


class ApiError(Exception):
    """`param` is the path of the field at fault, such as messages[2].content."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> JsonObject:
        kind = "invalid_request_error" if self.status < 500 else "api_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad_request(message: str, *, param: str | None = None) -> ApiError:
    return ApiError(400, message, param=param)


def unknown_session(session_id: str) -> ApiError:
    return ApiError(404, f"there is no session {session_id!r}: POST /sessions makes one", code="session_not_found")


def unknown_answer(answer_id: str) -> ApiError:
    return ApiError(
        400,
        f"this session gave no answer {answer_id!r}: send the whole conversation",
        param="previous_response_id",
        code="previous_response_not_found",
    )


def context_exceeded(limit: int, tokens: int | str) -> ApiError:
    return ApiError(
        400,
        f"This model's maximum context length is {limit} tokens. However, your messages resulted in {tokens} tokens.",
        param="messages",
        code="context_length_exceeded",
    )


def journal_failed(error: Exception) -> ApiError:
    """What cannot be written is not answered; 503, because a full disk may have room again."""
    return ApiError(503, f"the session journal failed: {error}", code="journal_failed")


def upstream_failed(message: str) -> ApiError:
    return ApiError(502, message, code=ENGINE_UNREACHABLE)


def failure_of(error: BaseException | None) -> Failure | None:
    """What let a call down; None where it was answered, or was wrong itself or let go."""
    if error is None or (isinstance(error, ApiError) and error.status < 500):
        return None
    unreachable = isinstance(error, ApiError) and error.code == ENGINE_UNREACHABLE
    return Failure(Where.ENGINE if unreachable else Where.SESSION, str(error) or type(error).__name__)
