"""Renderers for models that ship a Python encoder instead of a chat template.

Invariant: an encoder is a function `(messages, *, tools, add_generation_prompt, **options) -> str`; whatever it raises
is its refusal of the messages.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from miles_lite.process.json_types import JsonMapping, JsonObject
from miles_lite.process.user_code import load_named
from miles_lite.tito.chat_messages import Message, Tools
from miles_lite.tito.render import RenderError
from miles_lite.tito.sglang_compat import encoding


class CallableRenderer:
    """A Python encoder as a renderer."""

    def __init__(self, encode: Callable[..., str], *, name: str) -> None:
        self._encode = encode
        self.name = name

    def render(self, messages: Sequence[Message], *, tools: Tools | None, open_turn: bool, options: JsonMapping) -> str:
        given = copy.deepcopy(list(messages))
        try:
            return self._encode(given, tools=tools or None, add_generation_prompt=open_turn, **options)
        except Exception as error:
            raise RenderError(str(error) or type(error).__name__) from error


def load_encoder(path: str) -> CallableRenderer:
    """The encoder at `package.module:function`. Raises UserError when there is none."""
    return CallableRenderer(load_named(path, given_as="--tito-model"), name=path)


def encode_deepseek_v32(
    messages: list[JsonObject],
    *,
    tools: Tools | None,
    add_generation_prompt: bool,
    thinking: bool = True,
    drop_thinking: bool = True,
) -> str:
    """DeepSeek V3.2 by the encoder that SGLang ships; it opens the reply by itself after users and tool results."""
    if messages[0].get("role") != "system":
        messages.insert(0, {"role": "system", "content": ""})
    if tools:
        messages[0]["tools"] = list(tools)
    for message in messages:
        if message.get("role") == "assistant":
            message["reasoning_content"] = _Reasoning(message.get("reasoning_content") or "")
    mode = "thinking" if thinking else "chat"
    text = encoding("encoding_dsv32").encode_messages(messages, mode, drop_thinking=drop_thinking)
    return str(text)


class _Reasoning(str):
    """Counts as given even when it is empty: the encoder refuses a turn that may think and did not."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return True
