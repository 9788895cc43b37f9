"""Renderers for models that ship a Python encoder instead of a chat template.

Invariant: an encoder is a function `(messages, *, tools, add_generation_prompt, **options) -> str`; whatever it raises
is its refusal of the messages.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from miles_lite.errors import UserError
from miles_lite.tito.chat_messages import Message, Tools
from miles_lite.tito.render import RenderError


class CallableRenderer:
    """A Python encoder as a renderer."""

    def __init__(self, encode: Callable[..., str], *, name: str) -> None:
        self._encode = encode
        self.name = name

    def render(
        self, messages: Sequence[Message], *, tools: Tools | None, open_turn: bool, options: Mapping[str, Any]
    ) -> str:
        given = copy.deepcopy(list(messages))
        try:
            return self._encode(given, tools=tools or None, add_generation_prompt=open_turn, **options)
        except Exception as error:
            raise RenderError(str(error) or type(error).__name__) from error


def load_encoder(path: str) -> CallableRenderer:
    """The encoder at `package.module:function`. Raises UserError when there is none."""
    module, _, name = path.rpartition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"--tito-model {path}: no such encoder ({error}); give module:function") from error
    if not callable(found):
        raise UserError(f"--tito-model {path}: {name} is not a function")
    return CallableRenderer(found, name=path)


def encode_deepseek_v32(
    messages: list[dict[str, Any]],
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
    text = _sglang_encoding("encoding_dsv32").encode_messages(messages, mode, drop_thinking=drop_thinking)
    return str(text)


class _Reasoning(str):
    """Counts as given even when it is empty: the encoder refuses a turn that may think and did not."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return True


def _sglang_encoding(name: str) -> Any:
    """A module of SGLang's that stands by itself, without importing SGLang."""
    spec = importlib.util.find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("--tito-model deepseekv32 uses the encoder that SGLang ships: install sglang")
    file = Path(next(iter(spec.submodule_search_locations)), "srt", "entrypoints", "openai", f"{name}.py")
    if not file.is_file():
        raise UserError(f"this SGLang ships no {name}: give the model's own encoder as --tito-model module:function")
    return _loaded(name, file)


def _loaded(name: str, file: Path) -> Any:
    if name not in _MODULES:
        spec = importlib.util.spec_from_file_location(f"miles_lite_{name}", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        _MODULES[name] = module
    return _MODULES[name]


_MODULES: dict[str, Any] = {}
