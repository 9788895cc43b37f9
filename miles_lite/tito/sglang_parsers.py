"""SGLang's own reply parsers, by the names its server takes (`qwen25`, `deepseek-r1`, ...).

SGLang's streaming parsers do not add up to what its plain ones say, so only the plain ones are asked, and only for what
takes a grammar: the calls from the first mark on. Where reasoning stands between two tags, we find it by the tags.

Invariant: only a process that never serves a model may call `load_sglang_parser` (see sglang_compat.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from miles_lite.errors import UserError
from miles_lite.tito import sglang_compat
from miles_lite.tito.chat_messages import Tools
from miles_lite.tito.harmony import HarmonyCalls, HarmonyReasoning
from miles_lite.tito.parse import Calls, Marks, ReplyParser, ToolCall
from miles_lite.tito.reasoning import Reasoning, Thoughts

_KIMI_ID = re.compile(r"<\|tool_call_begin\|>\s*(\S+?)\s*<\|tool_call_argument_begin\|>")
"""Kimi names its calls itself, as in `functions.search:0`; SGLang's parser does not pass that on."""

_MARKS: Mapping[str, Marks] = MappingProxyType(
    {
        "apertus2509": Marks(("<|tools_prefix|>",)),
        "deepseekv32": Marks(("<｜DSML｜",)),
        "deepseekv4": Marks(("<｜DSML｜",)),
        "deepseekv41": Marks(("<｜DSML｜",)),
        "gigachat3": Marks(("function call<|role_sep|>\n", "<|function_call|>")),
        "inkling": Marks(),
        "k2_horizon": Marks(("<ifm|tool_call",)),
        "kimi_k3": Marks(),
        "llama3": Marks(("<|python_tag|>",), first="{"),
        "minimax-m3": Marks(),
        "mistral": Marks(("[TOOL_CALLS",)),
        "pythonic": Marks(("[", "<|python_start|>")),
        "trinity": Marks(("<tool_call>",)),
    }
)
"""Of detectors that do not name one mark that begins every call. Empty: the whole content is theirs to read."""

_NEEDS_TEMPLATE = "response_template"
"""A detector that SGLang makes out of a model's own response template."""

_PLAIN = ("granite_thinking_parser", "minimax-m3")
"""They differ from the detector that knows two tags only under options that are never given here."""


@dataclass(frozen=True, slots=True)
class SGLangCalls:
    """Tool calls as SGLang's server reads them."""

    name: str
    marks: Marks
    _module: Any
    _tool: Any

    def read(self, text: str, tools: Tools) -> tuple[str, tuple[ToolCall, ...]]:
        try:
            parser = self._module.FunctionCallParser([self._tool.model_validate(tool) for tool in tools], self.name)
            rest, found = parser.parse_non_stream(text)
        except Exception:  # noqa: BLE001  a detector may fail in any way on what a model wrote: it stays content
            return text, ()
        ids = _KIMI_ID.findall(text)
        named = ids if len(ids) == len(found) else [None] * len(found)
        calls = [
            ToolCall(each.name or "", each.parameters or "{}", name) for each, name in zip(found, named, strict=True)
        ]
        known = {tool["function"]["name"] for tool in tools}
        if all(call.name in known and call.well_formed for call in calls):
            return rest or "", tuple(calls)
        return text, ()


@dataclass(frozen=True, slots=True)
class AppendThink:
    """MiniMax's prompts open the reasoning; it stays in the content, with the tag that opened it."""

    name: str

    def split(self, text: str, *, inside: bool) -> tuple[str, str]:
        return "", f"<think>{text}"

    begun = split


HARMONY = "gpt-oss"
_OURS: Mapping[str, Callable[[str], Reasoning]] = {HARMONY: HarmonyReasoning, "minimax-append-think": AppendThink}
"""Names of SGLang's that are read by ourselves."""


@dataclass(frozen=True, slots=True)
class SGLangReasoning:
    """Reasoning in channels, as SGLang's server reads a whole reply; until then nothing is certain."""

    name: str
    _module: Any
    _with_calls: bool

    def split(self, text: str, *, inside: bool) -> tuple[str, str]:
        try:
            parser = self._module.ReasoningParser(
                self.name, force_reasoning=inside or None, tool_call_parser_active=self._with_calls
            )
            thought, content = parser.parse_non_stream(text)
        except Exception:  # noqa: BLE001  a detector may fail in any way on what a model wrote: it stays content
            return "", text
        return thought or "", content or ""

    def begun(self, text: str, *, inside: bool) -> tuple[str, str]:
        return "", ""


def load_sglang_parser(*, reasoning: str | None, tool_calls: str | None) -> ReplyParser:
    """Raises UserError when SGLang is not installed or knows no parser of that name."""
    found = _SGLang.load()
    for flag, name, known in (
        ("--sglang-reasoning-parser", reasoning, found.reasoning_names),
        ("--sglang-tool-call-parser", tool_calls, found.call_names),
    ):
        if name is not None and name not in known:
            raise UserError(f"{flag} {name}: this SGLang knows {', '.join(sorted(known))}")
    thoughts = found.reasoning(reasoning, with_calls=tool_calls is not None) if reasoning else None
    return ReplyParser(thoughts, found.calls(tool_calls) if tool_calls else None)


def every_sglang_parser(reasoning: Reasoning | None, *, first: str | None) -> Iterator[ReplyParser]:
    """Each form of tool calls with `reasoning`, and with SGLang's reasoning parser of the same name if there is one.

    The form of the name `first` comes first.
    """
    found = _SGLang.load()
    for name in sorted(found.call_names - {_NEEDS_TEMPLATE}, key=lambda name: name != first):
        calls = found.calls(name)
        yield ReplyParser(reasoning, calls)
        if name in found.reasoning_names:
            yield ReplyParser(found.reasoning(name, with_calls=True), calls)


@dataclass(frozen=True, slots=True)
class _SGLang:
    """SGLang's modules."""

    _reasoning_module: Any
    _calls_module: Any
    _tool: Any

    @classmethod
    def load(cls) -> _SGLang:
        """Raises UserError when SGLang is not installed."""
        modules = map(sglang_compat.load, (sglang_compat.REASONING, sglang_compat.CALLS, sglang_compat.PROTOCOL))
        reasoning, calls, protocol = modules
        return cls(reasoning, calls, protocol.Tool)

    @property
    def reasoning_names(self) -> frozenset[str]:
        return frozenset(self._reasoning_module.ReasoningParser.DetectorMap)

    @property
    def call_names(self) -> frozenset[str]:
        return frozenset(self._calls_module.FunctionCallParser.ToolCallParserEnum)

    def reasoning(self, name: str, *, with_calls: bool) -> Reasoning:
        if name in _OURS:
            return _OURS[name](name)
        module = self._reasoning_module
        kind, base = module.ReasoningParser.DetectorMap[name], module.BaseReasoningFormatDetector
        inherits = getattr(kind, "detect_and_parse", None) is base.detect_and_parse
        if not (name in _PLAIN or inherits):
            return SGLangReasoning(name, module, with_calls)
        detector = module.ReasoningParser(name).detector
        return Thoughts(
            opens=detector.think_start_token + detector.think_start_self_label,
            closes=detector.think_end_token,
            ends=detector.tool_start_token or None,
            always=sglang_compat.begins_inside(detector),
            name=name,
        )

    def calls(self, name: str) -> Calls:
        if name == HARMONY:
            return HarmonyCalls(name)
        marks = _MARKS.get(name)
        if marks is None:
            detector = self._calls_module.FunctionCallParser.ToolCallParserEnum[name]()
            mark = getattr(detector, "bot_token", "") or getattr(detector, "tool_call_start_token", "")
            marks = Marks((mark,)) if mark and detector.has_tool_call(mark) else Marks()
        return SGLangCalls(name, marks, self._calls_module, self._tool)
