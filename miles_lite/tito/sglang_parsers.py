"""SGLang's own reply parsers, by the names its server takes (`qwen25`, `deepseek-r1`, ...).

Invariant: they are imported by a route without torch, which leaves a bare `sglang` package behind in this process; only
a process that never serves a model may call `load_sglang_parser`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from dataclasses import dataclass
from typing import Any

from miles_lite.errors import UserError
from miles_lite.tito.messages import Tools
from miles_lite.tito.parse import Reply, ToolCall


@dataclass(frozen=True, slots=True)
class SGLangParser:
    """Reasoning and tool calls as SGLang's server reads them. Streams only once the reply is complete."""

    reasoning: str | None
    tool_calls: str | None
    _reasoning_module: Any
    _calls_module: Any
    _tool: Any

    def parse(self, text: str, *, tools: Tools | None, in_reasoning: bool) -> Reply:
        thought, content = "", text
        if self.reasoning:
            parser = self._reasoning_module.ReasoningParser(self.reasoning, force_reasoning=in_reasoning or None)
            found, rest = parser.parse_non_stream(text)
            thought, content = found or "", rest or ""
        if not (self.tool_calls and tools):
            return Reply(content, thought)
        try:
            known = [self._tool.model_validate(tool) for tool in tools]
            parser = self._calls_module.FunctionCallParser(known, self.tool_calls)
            rest, calls = parser.parse_non_stream(content)
        except Exception:  # noqa: BLE001  a detector may fail in any way on what a model wrote: it stays content
            return Reply(content, thought)
        if not calls:
            return Reply(content, thought)
        return Reply(rest, thought, tuple(ToolCall(call.name or "", call.parameters or "{}") for call in calls))

    def visible(self, text: str, *, tools: Tools | None, in_reasoning: bool) -> Reply:
        return Reply()


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
