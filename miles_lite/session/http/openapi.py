"""The OpenAPI document of a session server, at /openapi.json.

Invariant: every route that exists is here, with the statuses it answers; bodies name the fields that are checked. What
is below a session is also at the root, for those whose key says which session is meant, and behind a second `/v1`.
"""

from __future__ import annotations

from typing import Any

from miles_lite.session.dialects.chat import MAX_CHOICES

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_ANYTHING: Schema = {"type": "object"}
_NUMBER: Schema = {"type": "number", "minimum": 0}
_COUNT: Schema = {"type": "integer", "minimum": 1}
_STOP: Schema = {"type": "array", "items": {"type": "string", "minLength": 1}}


def openapi() -> dict[str, Any]:
    """OpenAPI 3.1."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "miles_lite session server", "version": "1"},
        "components": {"securitySchemes": {"session": {"type": "http", "scheme": "bearer"}}},
        "paths": {
            "/health": {"get": _operation("Counters of the server")},
            "/metrics": {"get": _operation("Counters, as Prometheus reads them", kind="text/plain")},
            "/openapi.json": {"get": _operation("This document")},
            "/sessions": {
                "post": _operation("Open a session", _object(sampling=_SAMPLING), refusals=("400", "401", "413"))
            },
            "/sessions/{session_id}": {
                "parameters": [_SESSION],
                "get": _operation("Turns, leaves and counts; empty when nobody opened it", refusals=("401", "404")),
                "delete": _deletion(),
            },
            "/sessions/{session_id}/turns": {
                "parameters": [_SESSION],
                "get": _operation("Every turn with its messages and ids", refusals=("401", "404")),
            },
            "/sessions/{session_id}/samples": {
                "parameters": [_SESSION],
                "post": _samples(),
            },
            **_spoken("/sessions/{session_id}", [_SESSION]),
            **_spoken("", []),
        },
    }


def _object(*required: str, **fields: Schema) -> Schema:
    return {"type": "object", "properties": fields, "required": list(required)}


def _list(of: Schema) -> Schema:
    return {"type": "array", "items": of, "minItems": 1}


def _one_of(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


_SESSION: Schema = {"name": "session_id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
_MODEL: Schema = {
    "name": "model",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[\\w.-]+$"},
}
_ALT: Schema = {"name": "alt", "in": "query", "schema": {"type": "string", "enum": ["sse", "json"]}}
_REPEATS: tuple[Schema, ...] = (
    {"name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]+$"}},
    {"name": "X-Stainless-Retry-Count", "in": "header", "schema": {"type": "integer", "minimum": 0}},
    {"name": "X-Agent-Name", "in": "header", "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]+$"}},
)
_SAMPLING = _object(temperature=_NUMBER, top_p=_NUMBER, top_k={"type": "integer"}, max_new_tokens=_COUNT, stop=_STOP)
_FUNCTION = _object("name", name=_TEXT, description=_TEXT, parameters=_ANYTHING)
_COMMON: dict[str, Schema] = {"model": _TEXT, "stream": _FLAG, "temperature": _NUMBER, "top_p": _NUMBER}

_CHAT = _object(
    "messages",
    **_COMMON,
    messages=_list(
        _object(
            "role",
            "content",
            role=_one_of("system", "developer", "user", "assistant", "tool", "function"),
            content=_TEXT,
            reasoning_content=_TEXT,
            tool_call_id=_TEXT,
            tool_calls={
                "type": "array",
                "items": _object("function", id=_TEXT, function=_object("name", name=_TEXT, arguments=_TEXT)),
            },
        )
    ),
    tools={"type": "array", "items": _object("function", type=_one_of("function"), function=_FUNCTION)},
    functions={"type": "array", "items": _FUNCTION},
    function_call={"anyOf": [_one_of("auto", "none"), _object("name", name=_TEXT)]},
    tool_choice={
        "anyOf": [
            _one_of("auto", "none", "required"),
            _object("type", "function", type=_one_of("function"), function=_object("name", name=_TEXT)),
        ]
    },
    parallel_tool_calls=_FLAG,
    response_format=_object("type", type=_one_of("text", "json_object", "json_schema"), json_schema=_ANYTHING),
    max_tokens=_COUNT,
    max_completion_tokens=_COUNT,
    stop=_STOP,
    n={"type": "integer", "minimum": 1, "maximum": MAX_CHOICES},
    logprobs=_FLAG,
    stream_options=_object(include_usage=_FLAG),
    chat_template_kwargs=_ANYTHING,
)

_RESPONSES = _object(
    "input",
    **_COMMON,
    input={
        "anyOf": [
            _TEXT,
            _list(
                _object(
                    type=_one_of("message", "function_call", "function_call_output", "custom_tool_call", "reasoning"),
                    role=_one_of("user", "system", "developer", "assistant"),
                    content=_TEXT,
                    call_id=_TEXT,
                    name=_TEXT,
                    arguments=_TEXT,
                    output=_TEXT,
                )
            ),
        ]
    },
    instructions=_TEXT,
    previous_response_id=_TEXT,
    tools={
        "type": "array",
        "items": _object(
            "type",
            "name",
            type=_one_of("function", "custom", "namespace"),
            name=_TEXT,
            parameters=_ANYTHING,
            tools={"type": "array", "items": _object("type", "name", type=_one_of("function", "custom"), name=_TEXT)},
        ),
    },
    tool_choice={
        "anyOf": [
            _one_of("auto", "none", "required"),
            _object("type", "name", type=_one_of("function"), name=_TEXT),
        ]
    },
    parallel_tool_calls=_FLAG,
    text=_object(
        format=_object("type", type=_one_of("text", "json_object", "json_schema"), schema=_ANYTHING, name=_TEXT)
    ),
    max_output_tokens=_COUNT,
    include={"type": "array", "items": _TEXT},
)

_BLOCK = _object(
    "type",
    type=_one_of("text", "thinking", "tool_use", "tool_result"),
    text=_TEXT,
    thinking=_TEXT,
    id=_TEXT,
    name=_TEXT,
    input=_ANYTHING,
    tool_use_id=_TEXT,
    content=_TEXT,
)
_MESSAGES = _object(
    "messages",
    **_COMMON,
    messages=_list(
        _object(
            "role",
            "content",
            role=_one_of("user", "assistant", "system"),
            content={"anyOf": [_TEXT, {"type": "array", "items": _BLOCK}]},
        )
    ),
    system=_TEXT,
    max_tokens=_COUNT,
    stop_sequences=_STOP,
    tools={"type": "array", "items": _object("name", name=_TEXT, description=_TEXT, input_schema=_ANYTHING)},
    tool_choice=_object(
        "type", type=_one_of("auto", "any", "tool", "none"), name=_TEXT, disable_parallel_tool_use=_FLAG
    ),
    thinking=_object(type=_one_of("enabled", "disabled", "adaptive")),
)


_PART = _object(
    text=_TEXT,
    thought=_FLAG,
    functionCall=_object("name", id=_TEXT, name=_TEXT, args=_ANYTHING),
    functionResponse=_object("name", id=_TEXT, name=_TEXT, response=_ANYTHING),
)
_CONTENT = _object("parts", role=_one_of("user", "model"), parts=_list(_PART))
_GOOGLE = _object(
    "contents",
    contents=_list(_CONTENT),
    systemInstruction=_CONTENT,
    tools=_list(
        _object(
            functionDeclarations=_list(
                _object("name", name=_TEXT, description=_TEXT, parameters=_ANYTHING, parametersJsonSchema=_ANYTHING)
            )
        )
    ),
    toolConfig=_object(
        functionCallingConfig=_object(
            mode=_one_of("AUTO", "ANY", "NONE", "VALIDATED"), allowedFunctionNames={"type": "array", "items": _TEXT}
        )
    ),
    generationConfig=_object(
        maxOutputTokens=_COUNT,
        stopSequences=_STOP,
        temperature=_NUMBER,
        topP=_NUMBER,
        topK={"type": "integer"},
        seed={"type": "integer"},
        responseMimeType=_one_of("text/plain", "application/json"),
        responseSchema=_ANYTHING,
        responseJsonSchema=_ANYTHING,
        responseLogprobs=_FLAG,
        thinkingConfig=_object(includeThoughts=_FLAG, thinkingBudget={"type": "integer"}, thinkingLevel=_TEXT),
    ),
)


def _operation(
    summary: str, body: Schema | None = None, *, refusals: tuple[str, ...] = (), kind: str = "application/json"
) -> Schema:
    answers: Schema = {"200": {"description": summary, "content": {kind: {}}}}
    answers |= dict.fromkeys(refusals, _REFUSAL)
    made: Schema = {"summary": summary, "responses": answers}
    if body is not None:
        made["requestBody"] = {"required": False, "content": {"application/json": {"schema": body}}}
    return made


_REFUSAL: Schema = {
    "description": "An error in the dialect's own shape",
    "content": {"application/json": {"schema": _object("error", error=_ANYTHING)}},
}


def _deletion() -> Schema:
    return {
        "summary": "Forget the session",
        "responses": {"204": {"description": "Forgotten"}, "401": _REFUSAL, "404": _REFUSAL},
    }


def _samples() -> Schema:
    limit = {"anyOf": [_COUNT, {"type": "null"}]}
    return _operation(
        "Samples, as safetensors",
        _object(max_seq_len=limit),
        refusals=("400", "401", "404", "413", "422"),
        kind="application/octet-stream",
    )


def _spoken(at: str, session: list[Schema]) -> dict[str, Any]:
    """The routes of all dialects at a place."""
    google, named = f"{at}/v1beta/models/{{model}}", [*session, _MODEL]
    return {
        f"{at}/v1/models": _got("The model", session),
        f"{at}/v1/models/{{model}}": _got("The model, under any name", named),
        f"{at}/v1beta/models": _got("The model, for clients of Google", session),
        google: _got("The model, under any name, for clients of Google", named),
        f"{at}/v1/chat/completions": _turn("OpenAI chat completions", _CHAT, session),
        f"{at}/v1/responses": _turn("OpenAI Responses", _RESPONSES, session),
        f"{at}/v1/messages": _turn("Anthropic Messages", _MESSAGES, session),
        f"{at}/v1/messages/count_tokens": _turn("Tokens of a prompt", _MESSAGES, session, streams=False),
        f"{google}:generateContent": _turn("Google generateContent", _GOOGLE, named),
        f"{google}:streamGenerateContent": _turn("Google streamGenerateContent", _GOOGLE, [*named, _ALT]),
        f"{google}:countTokens": _turn("Tokens of a prompt", _GOOGLE, named, streams=False),
    }


def _got(summary: str, parameters: list[Schema]) -> Schema:
    refusals = ("401",) if _SESSION in parameters else ()
    return {"parameters": parameters, "get": _operation(summary, refusals=refusals)}


def _turn(summary: str, body: Schema, parameters: list[Schema], *, streams: bool = True) -> Schema:
    made = _operation(summary, body, refusals=("400", "401", "404", "413", "502", "503"))
    made["requestBody"]["required"] = True
    if streams:
        made["responses"]["200"]["content"]["text/event-stream"] = {}
    return {"parameters": [*parameters, *(_REPEATS if streams else ())], "post": made}
