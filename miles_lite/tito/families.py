"""Model families: one table of rows, and the signs by which a chat template shows which reply format it is in.

Invariant: a row never changes how tokens are joined, which the template alone decides; it names reply parsers, template
options, and the Python encoder of a model that ships no template.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from types import MappingProxyType

from miles_lite.errors import UserError
from miles_lite.process.json_types import JsonMapping

NONE: JsonMapping = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Family:
    """`reasoning` and `tool_calls` are SGLang's parser names; `encoder` a dotted path, used without a template.

    `verified` is False where no template of the family was at hand when the row was written; like any other it is
    verified when a checkpoint is loaded. `model_types` are those of config.json for which `auto` takes the encoder.
    """

    name: str
    reasoning: str | None = None
    tool_calls: str | None = None
    kwargs: JsonMapping = field(default_factory=lambda: NONE)
    encoder: str | None = None
    model_types: tuple[str, ...] = ()
    verified: bool = True


CLEAR, KEEP = {"clear_thinking": False}, {"preserve_thinking": True}
FAMILIES = {
    row.name: row
    for row in (
        Family("default"),
        Family("qwen3", "qwen3", "qwen25"),
        Family("qwen35", "qwen3", "qwen3_coder"),
        Family("qwennext", "qwen3", "qwen25"),
        Family("glm47", "glm45", "glm47", CLEAR),
        Family("nemotron3", "nemotron_3", "qwen3_coder", {"truncate_history_thinking": False}),
        Family("kimi25", "kimi_k2", "kimi_k2"),
        Family("kimi26", "kimi_k2", "kimi_k2", KEEP, verified=False),
        Family("minimax_m25", "minimax-append-think", "minimax-m2"),
        Family("minimax_m27", "minimax-append-think", "minimax-m2"),
        Family(
            "deepseekv32",
            "deepseek-v3",
            "deepseekv32",
            {"drop_thinking": False},
            "miles_lite.tito.encoders:encode_deepseek_v32",
            ("deepseek_v32",),
        ),
        Family("deepseekv4", "deepseek-v4", "deepseekv4", {"drop_thinking": False}, None, ("deepseek_v4",), False),
        Family("inkling", "inkling", "inkling", verified=False),
        Family("gpt_oss", "gpt-oss", "gpt-oss"),
    )
}

_SIGNS = (
    ("<function=", "qwen3", "qwen3_coder"),
    ("<arg_key>", "glm45", "glm47"),
    ("<|tool_calls_section_begin|>", "kimi_k2", "kimi_k2"),
    ("<minimax:tool_call>", "minimax-append-think", "minimax-m2"),
    ("<|channel|>analysis", "gpt-oss", "gpt-oss"),
    ("dsml_token", "deepseek-v3", "deepseekv32"),
    ("<｜tool▁calls▁begin｜>", "deepseek-v3", "deepseekv3"),
    ("<|python_tag|>", None, "llama3"),
    ("<|tool_call>call:", "gemma4", "gemma4"),
)
"""(what a template prints, reasoning parser, tool call parser): formats that the built-in parser does not read."""


def family_named(name: str) -> Family | None:
    """The row; None for `auto`. `module:function` is a row of its own with that encoder. Raises UserError."""
    if name == "auto":
        return None
    if ":" in name:
        return Family(name, encoder=name)
    if name not in FAMILIES:
        raise UserError(
            f"--tito-model {name}: known are auto, {', '.join(FAMILIES)}, or module:function, a Python encoder"
        )
    return FAMILIES[name]


def family_of_type(model_type: str | None) -> Family | None:
    """The row that has an encoder for a config.json model_type."""
    return next((row for row in FAMILIES.values() if model_type in row.model_types and row.encoder), None)


def parsers_for(template: str) -> tuple[str | None, str | None]:
    """SGLang's (reasoning, tool call) parsers for the format a template prints; (None, None): the built-in reads it."""
    for sign, reasoning, calls in _SIGNS:
        if sign in template:
            thinks = "think" in template or "<|channel" in template
            return (reasoning if thinks else None), calls
    return None, None


def sglang_installed() -> bool:
    return importlib.util.find_spec("sglang") is not None
