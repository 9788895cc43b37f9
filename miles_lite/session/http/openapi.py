"""The OpenAPI document of a session server, at /openapi.json.

Invariant: every route that exists is here, with the statuses it answers; what a body holds is said by the types that
requests are checked against. What is below a session is also at the root, for those whose key says which session is
meant, and behind a second `/v1`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from miles_lite.process.json_types import Json, JsonObject
from miles_lite.session.dialects import DIALECTS, Dialect, Route
from miles_lite.session.opening import Opening
from miles_lite.session.samples.collect import Collecting

_TEXT = {"type": "string"}
_WORD = {"type": "string", "pattern": "^[A-Za-z0-9_-]+$"}
_REFS = "#/components/schemas/{name}"
_ERROR: JsonObject = {"type": "object", "properties": {"error": {"type": "object"}}, "required": ["error"]}
_REFUSAL: JsonObject = {
    "description": "An error in the dialect's own shape",
    "content": {"application/json": {"schema": _ERROR}},
}
_SESSION = ("401", "404")
_TURN = ("400", "401", "404", "413", "502", "503")


def openapi() -> JsonObject:
    """OpenAPI 3.1."""
    dialects: list[Dialect] = [dialect() for dialect in DIALECTS.values()]
    types = [Opening, Collecting, *(dialect.body for dialect in dialects)]
    _, schemas = msgspec.json.schema_components(types, ref_template=_REFS)
    one = "/sessions/{session_id}"
    session = [_parameter("session_id", "path", {"type": "string", "minLength": 1})]
    samples = _operation("Samples, as safetensors", kind="application/octet-stream", body=Collecting)
    return {
        "openapi": "3.1.0",
        "info": {"title": "miles_lite session server", "version": "1"},
        "components": {"securitySchemes": {"session": {"type": "http", "scheme": "bearer"}}, "schemas": schemas},
        "paths": {
            "/health": {"get": _operation("Counters of the server")},
            "/metrics": {"get": _operation("Counters, as Prometheus reads them", kind="text/plain")},
            "/openapi.json": {"get": _operation("This document")},
            "/sessions": {"post": _refusing(_operation("Open a session", body=Opening), "400", "401", "413")},
            one: {
                "parameters": session,
                "get": _refusing(_operation("Turns, leaves and counts; empty when nobody opened it"), *_SESSION),
                "delete": _refusing(
                    {"summary": "Forget the session", "responses": {"204": {"description": "Forgotten"}}}, *_SESSION
                ),
            },
            f"{one}/turns": {
                "parameters": session,
                "get": _refusing(_operation("Every turn with its messages and ids"), *_SESSION),
            },
            f"{one}/training_trace": {
                "parameters": session,
                "get": _refusing(_operation("The turns that are trained, as OpenEnv's TrainingTrace"), *_SESSION),
            },
            f"{one}/samples": {"parameters": session, "post": _refusing(samples, "400", *_SESSION, "413", "422")},
            **{
                at + (route.shown or route.path): _spoken(dialect, route, parameters)
                for at, parameters in ((one, session), ("", []))
                for dialect in dialects
                for route in dialect.routes
            },
        },
    }


def _spoken(dialect: Dialect, route: Route, session: Sequence[JsonObject]) -> JsonObject:
    parameters = [*session]
    if "{model}" in (route.shown or route.path):
        parameters.append(_parameter("model", "path", {"type": "string", "pattern": "^[\\w.-]+$"}))
    if route.does in ("models", "model"):
        return {"parameters": parameters, "get": _refusing(_operation(route.about), *(["401"] if session else []))}
    parameters += [_parameter(name, "query", {**_TEXT, "enum": list(values)}) for name, values in route.query.items()]
    made = _refusing(_operation(route.about, body=dialect.body), *_TURN)
    made["requestBody"]["required"] = True
    if route.does == "turn":
        made["responses"]["200"]["content"]["text/event-stream"] = {}
        parameters.append(_parameter("Idempotency-Key", "header", _WORD))
        parameters.append(_parameter("X-Stainless-Retry-Count", "header", {"type": "integer", "minimum": 0}))
        parameters.append(_parameter("X-Agent-Name", "header", _WORD))
    return {"parameters": parameters, "post": made}


def _parameter(name: str, where: str, schema: Json) -> JsonObject:
    return {"name": name, "in": where, "schema": schema} | ({"required": True} if where == "path" else {})


def _operation(summary: str, *, kind: str = "application/json", body: type[msgspec.Struct] | None = None) -> JsonObject:
    made: JsonObject = {"summary": summary, "responses": {"200": {"description": summary, "content": {kind: {}}}}}
    if body is not None:
        schema = {"$ref": _REFS.format(name=body.__name__)}
        made["requestBody"] = {"required": False, "content": {"application/json": {"schema": schema}}}
    return made


def _refusing(operation: JsonObject, *statuses: str) -> JsonObject:
    operation["responses"] |= dict.fromkeys(statuses, _REFUSAL)
    return operation
