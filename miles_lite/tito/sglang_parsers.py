"""SGLang's own reply parsers, by the names its server takes (`qwen25`, `deepseek-r1`, ...).

Invariant: they are imported by a route without torch, which leaves a bare `sglang` package behind in this process; only
a process that never serves a model may call `load_sglang_parser`.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import types
from dataclasses import dataclass
from typing import Any

from miles_lite.errors import UserError
from miles_lite.tito.messages import Tools
from miles_lite.tito.parse import Reply, ToolCall, Visible

_KIMI_ID = re.compile(r"<\|tool_call_begin\|>\s*(\S+?)\s*<\|tool_call_argument_begin\|>")
"""Kimi names its calls itself, as in `functions.search:0`; SGLang's parser does not pass that on."""


@dataclass(frozen=True, slots=True)
class SGLangParser:
    """Reasoning and tool calls as SGLang's server reads them."""

    reasoning: str | None
    tool_calls: str | None
    _reasoning_module: Any
    _calls_module: Any
    _tool: Any

    def parse(self, text: str, *, tools: Tools | None, in_reasoning: bool) -> Reply:
        thought, content = "", text
        try:
            if self.reasoning:
                found, rest = self._reasoner(in_reasoning).parse_non_stream(text)
                thought, content = found or "", rest or ""
            caller = self._caller(tools)
            rest, calls = caller.parse_non_stream(content) if caller else (content, [])
        except Exception:  # noqa: BLE001  a detector may fail in any way on what a model wrote: it stays content
            return Reply(content, thought)
        known = {tool["function"]["name"] for tool in tools or ()}
        if not calls or any(not call.name or (call.name not in known) for call in calls):
            return Reply(content, thought)
        ids = _KIMI_ID.findall(content)
        named = ids if len(ids) == len(calls) else [None] * len(calls)
        return Reply(
            rest,
            thought,
            tuple(ToolCall(call.name, _object(call.parameters), name) for call, name in zip(calls, named, strict=True)),
        )

    def stream(self, *, tools: Tools | None, in_reasoning: bool) -> Visible:
        return _Increments(self._reasoner(in_reasoning) if self.reasoning else None, self._caller(tools)).visible

    def _reasoner(self, in_reasoning: bool) -> Any:
        active = self.tool_calls is not None
        return self._reasoning_module.ReasoningParser(
            self.reasoning, force_reasoning=in_reasoning or None, tool_call_parser_active=active
        )

    def _caller(self, tools: Tools | None) -> Any:
        if not (self.tool_calls and tools):
            return None
        known = [self._tool.model_validate(tool) for tool in tools]
        return self._calls_module.FunctionCallParser(known, self.tool_calls)


class _Increments:
    """SGLang's streaming parsers, fed what is new. What they fail on is shown when the reply is complete."""

    def __init__(self, reasoner: Any, caller: Any) -> None:
        self._reasoner, self._caller = reasoner, caller
        self._fed, self._seen = "", Reply()
        self._stopped = False

    def visible(self, text: str) -> Reply:
        if self._stopped or not text.startswith(self._fed) or text == self._fed:
            return self._shown()
        new, self._fed = text[len(self._fed) :], text
        try:
            thought, content = self._reasoner.parse_stream_chunk(new) if self._reasoner else ("", new)
            calls: list[Any] = []
            if self._caller and content:
                content, calls = self._caller.parse_stream_chunk(content)
        except Exception:  # noqa: BLE001  a detector may fail in any way on what a model wrote
            self._stopped = True
            return self._shown()
        self._stopped = bool(calls)  # text between calls is shown with the whole reply
        self._seen = Reply(self._seen.content + (content or ""), self._seen.reasoning + (thought or ""))
        return self._shown()

    def _shown(self) -> Reply:
        """Without white space at the end: whole replies come without."""
        return Reply(self._seen.content.rstrip(), self._seen.reasoning.rstrip())


def _object(parameters: str | None) -> str:
    return parameters or "{}"


def load_sglang_parser(*, reasoning: str | None, tool_calls: str | None) -> SGLangParser:
    """Raises UserError when SGLang is not installed or knows no parser of that name."""
    _open_light_route()
    reasoning_module = importlib.import_module("sglang.srt.parser.reasoning_parser")
    calls_module = importlib.import_module("sglang.srt.function_call.function_call_parser")
    tool = importlib.import_module("sglang.srt.entrypoints.openai.protocol").Tool
    for flag, name, known in (
        ("--sglang-reasoning-parser", reasoning, reasoning_module.ReasoningParser.DetectorMap),
        ("--sglang-tool-call-parser", tool_calls, calls_module.FunctionCallParser.ToolCallParserEnum),
    ):
        if name is not None and name not in known:
            raise UserError(f"{flag} {name}: this SGLang knows {', '.join(sorted(known))}")
    return SGLangParser(reasoning, tool_calls, reasoning_module, calls_module, tool)


def _open_light_route() -> None:
    """Make `sglang.srt...` importable without running sglang/__init__.py, and xgrammar a set of empty names."""
    if "sglang" in sys.modules:
        return
    spec = importlib.util.find_spec("sglang")
    if spec is None or spec.submodule_search_locations is None:
        raise UserError("SGLang's parsers were asked for by name, but sglang is not installed: install it")
    package = types.ModuleType("sglang")
    package.__spec__, package.__path__ = spec, list(spec.submodule_search_locations)
    sys.modules["sglang"] = package
    for name in ("xgrammar", "xgrammar.structural_tag"):
        sys.modules.setdefault(name, _EmptyNames(name))


class _EmptyNames(types.ModuleType):
    """Any name is an empty pydantic model, which SGLang's request types can mention."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        from pydantic import create_model

        setattr(self, name, create_model(name))
        return self.__dict__[name]
