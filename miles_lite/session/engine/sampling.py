"""Sampling parameters of a turn: the run's, unless the run leaves them to the client.

Invariant: what an engine is sent depends on the run's parameters and the request alone, and always fits the context.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from miles_lite.session.errors import bad_request, context_exceeded

NUMBERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "repetition_penalty": "repetition_penalty",
    "seed": "sampling_seed",
}
"""Client field -> engine field, of everything that shapes the distribution."""

_NEUTRAL = {
    "top_p": 1,
    "top_k": -1,
    "min_p": 0,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "repetition_penalty": 1,
}

_GRAMMARS = ("json_schema", "structural_tag", "regex", "ebnf")


@dataclass(frozen=True, slots=True)
class Sampling:
    """`params` in the engine's names; `overridden` client parameters gave way to the run's."""

    params: dict[str, Any]
    overridden: int

    @property
    def stop(self) -> list[str]:
        return list(self.params.get("stop", ()))


def resolve(
    run: Mapping[str, Any], body: Mapping[str, Any], *, client_chooses: bool, prompt_tokens: int, context_length: int
) -> Sampling:
    """The parameters of one call. Without a run's, or with `client_chooses`, the client's are taken over the run's.

    max_new_tokens is the least of the run's, the client's and the room left. Raises ApiError.
    """
    room = context_length - prompt_tokens
    if room < 1:
        raise context_exceeded(context_length, prompt_tokens)
    client = {NUMBERS[name]: _number(body, name) for name in NUMBERS if body.get(name) is not None}
    params = {"temperature": 1.0} | dict(run)
    overridden = 0
    if client_chooses or not run:
        params |= client
    else:
        overridden = sum(params.get(name, _NEUTRAL.get(name)) != value for name, value in client.items())
    limits = [run.get("max_new_tokens"), _limit(body, "max_tokens"), _limit(body, "max_completion_tokens"), room]
    params["max_new_tokens"] = min(limit for limit in limits if limit is not None)
    stop = list(dict.fromkeys([*_strings(run, "stop"), *_strings(body, "stop")]))
    params.pop("stop", None)
    if stop:
        params["stop"] = stop
    params |= {"skip_special_tokens": False, "spaces_between_special_tokens": False}
    return Sampling(params, overridden)


def inexact(params: Mapping[str, Any]) -> list[str]:
    """The parameters under which a token's logprob is not that of logits / temperature alone."""
    shaped = [name for name, neutral in _NEUTRAL.items() if params.get(name, neutral) != neutral]
    return shaped + [name for name in _GRAMMARS if params.get(name) is not None]


def check_run(sampling: Any) -> dict[str, Any]:
    """The `sampling` object of POST /sessions. Raises ApiError."""
    if sampling is None:
        return {}
    if not isinstance(sampling, dict):
        raise bad_request("sampling must be an object", param="sampling")
    for name in NUMBERS.values():
        if sampling.get(name) is not None:
            _number(sampling, name, path="sampling.")
    _limit(sampling, "max_new_tokens", path="sampling.")
    if isinstance(n := sampling.get("n"), bool) or n not in (None, 1):
        raise bad_request("n must be 1: a request asks for its choices itself", param="sampling.n")
    _strings(sampling, "stop", path="sampling.")
    return {name: value for name, value in sampling.items() if value is not None}


def _number(body: Mapping[str, Any], name: str, path: str = "") -> float:
    value = body[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise bad_request(f"{name} must be a number, got {value!r}", param=path + name)
    if name == "temperature" and value < 0:
        raise bad_request(f"temperature must not be negative, got {value}", param=path + name)
    return value


def _limit(body: Mapping[str, Any], name: str, path: str = "") -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise bad_request(f"{name} must be a positive integer, got {value!r}", param=path + name)
    return value


def _strings(body: Mapping[str, Any], name: str, path: str = "") -> list[str]:
    value = body.get(name) or []
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list | tuple) or not all(isinstance(text, str) and text for text in strings):
        raise bad_request(f"{name} must be a string or a list of strings", param=path + name)
    return list(strings)
