"""Sampling parameters of a turn: the run's, unless the run leaves them to the client.

Invariant: what an engine is sent depends on the run's parameters and the request alone, and always fits the context.
"""

from __future__ import annotations

from dataclasses import dataclass

from miles_lite.process.json_types import Json, JsonMapping, JsonObject
from miles_lite.session.dialects.typed_json import Count, NotEmpty, NotNegative, Struct, read
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


class RunSampling(Struct):
    temperature: NotNegative | None = None
    top_p: float | None = None
    top_k: float | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    sampling_seed: float | None = None
    max_new_tokens: Count | None = None
    stop: str | list[NotEmpty] | None = None
    stop_token_ids: list[Count] | None = None


class _Sampled(Struct):
    sampling: RunSampling | None = None


_GRAMMARS = ("json_schema", "structural_tag", "regex", "ebnf")


@dataclass(frozen=True, slots=True)
class Sampling:
    """`params` in the engine's names; `overridden` client parameters gave way to the run's."""

    params: JsonObject
    overridden: int

    @property
    def stop(self) -> list[str]:
        return list(self.params.get("stop", ()))


def resolve(
    run: JsonMapping, body: JsonMapping, *, client_chooses: bool, prompt_tokens: int, context_length: int
) -> Sampling:
    """The parameters of one call. Without a run's, or with `client_chooses`, the client's are taken over the run's.

    max_new_tokens is the least of the run's, the client's and the room left. Raises ApiError.
    """
    room = context_length - prompt_tokens
    if room < 1:
        raise context_exceeded(context_length, prompt_tokens)
    client = {NUMBERS[name]: body[name] for name in NUMBERS if body.get(name) is not None}
    params = {"temperature": 1.0} | dict(run)
    overridden = 0
    if client_chooses or not run:
        params |= client
    else:
        overridden = sum(params.get(name, _NEUTRAL.get(name)) != value for name, value in client.items())
    limits = [run.get("max_new_tokens"), body.get("max_tokens"), body.get("max_completion_tokens"), room]
    params["max_new_tokens"] = min(limit for limit in limits if limit is not None)
    stop = list(dict.fromkeys([*_strings(run, "stop"), *_strings(body, "stop")]))
    params.pop("stop", None)
    if stop:
        params["stop"] = stop
    params |= {"skip_special_tokens": False, "spaces_between_special_tokens": False}
    return Sampling(params, overridden)


def inexact(params: JsonMapping) -> list[str]:
    """The parameters under which a token's logprob is not that of logits / temperature alone."""
    shaped = [name for name, neutral in _NEUTRAL.items() if params.get(name, neutral) != neutral]
    return shaped + [name for name in _GRAMMARS if params.get(name) is not None]


def check_run(sampling: Json) -> JsonObject:
    """The `sampling` object of POST /sessions. Raises ApiError."""
    read({"sampling": sampling}, _Sampled)
    given: JsonObject = sampling or {}
    if isinstance(n := given.get("n"), bool) or n not in (None, 1):
        raise bad_request("n must be 1: a request asks for its choices itself", param="sampling.n")
    return {name: value for name, value in given.items() if value is not None}


def _strings(body: JsonMapping, name: str) -> list[str]:
    value = body.get(name) or []
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list | tuple) or not all(isinstance(text, str) and text for text in strings):
        raise bad_request(f"{name} must be a string or a list of strings", param=name)
    return list(strings)
