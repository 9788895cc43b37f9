"""What is used of SGLang beside its server: reply parsers and an encoder, which are no public API of it.

Invariant: this is the only module that imports them, by a route without torch. The route leaves a bare `sglang` package
behind in this process: only a process that never serves a model may take it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from miles_lite.errors import UserError

TESTED = ("0.5.23",)
REASONING = "sglang.srt.parser.reasoning_parser"
CALLS = "sglang.srt.function_call.function_call_parser"
PROTOCOL = "sglang.srt.entrypoints.openai.protocol"
USED: Mapping[str, tuple[str, ...]] = {
    REASONING: ("ReasoningParser.DetectorMap", "ReasoningParser.parse_non_stream", "BaseReasoningFormatDetector"),
    CALLS: ("FunctionCallParser.ToolCallParserEnum", "FunctionCallParser.parse_non_stream"),
    PROTOCOL: ("Tool.model_validate",),
}
"""By module."""


def changed() -> Iterator[str]:
    """The names that this SGLang does not have. Raises UserError when it is not installed."""
    for name, used in USED.items():
        module = load(name)
        for path in used:
            found: object = module
            for part in path.split("."):
                found = getattr(found, part, None)
            if found is None:
                yield f"{name}.{path}"


def load(name: str) -> ModuleType:
    """A module of SGLang's. Raises UserError when it is not installed."""
    _open_light_route()
    return importlib.import_module(name)


def begins_inside(detector: object) -> bool:
    """Whether a reply begins with reasoning, as a detector of SGLang's has it before it has read anything."""
    return bool(detector._in_reasoning)  # type: ignore[attr-defined]


@cache
def encoding(name: str) -> ModuleType:
    """A module of SGLang's that stands by itself, without importing SGLang. Raises UserError."""
    spec = importlib.util.find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("--tito-model deepseekv32 uses the encoder that SGLang ships: install sglang")
    file = Path(next(iter(spec.submodule_search_locations)), "srt", "entrypoints", "openai", f"{name}.py")
    if not file.is_file():
        raise UserError(f"this SGLang ships no {name}: give the model's own encoder as --tito-model module:function")
    found = importlib.util.spec_from_file_location(f"miles_lite_{name}", file)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


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
