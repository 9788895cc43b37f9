"""No text becomes a control token together with the template's own text, or with what the template leaves of it.

The print of hostile text holds the control tokens of the print of neutral text of the same shape, for every template
and every field.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miles_lite.tito import RenderError, Tito
from miles_lite.tito.chat_messages import normalise
from miles_lite.tito.control_tokens import Edges
from tests.tito.material import templates, tito_for

Fill = Callable[[str], tuple[list[dict[str, Any]], list[dict[str, Any]] | None]]


def _tool(name: str = "run", *, key: str = "city", more: dict[str, Any] | None = None, text: str = "Runs.") -> Any:
    schema = {"type": "object", "properties": {key: {"type": "string", "description": text, **(more or {})}}}
    return [{"type": "function", "function": {"name": name, "description": text, "parameters": schema}}]


def _call(name: str = "run", *, key: str = "city", value: Any = "Rome", identity: str = "call00001") -> dict[str, Any]:
    function = {"name": name, "arguments": {key: value}}
    return {"id": identity, "type": "function", "function": function}


def _chat(*, system: str = "Be kind.", user: str = "Hi.", said: str = "Well.", **more: Any) -> list[dict[str, Any]]:
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": user},
        {"role": "assistant", "content": said, **more},
        {"role": "user", "content": "Go on."},
    ]


def _worked(call: dict[str, Any], *, result: str = "Sunny.", name: str = "run", said: str = "") -> list[dict[str, Any]]:
    answer = {"role": "tool", "tool_call_id": call["id"], "name": name, "content": result}
    return [{"role": "user", "content": "Go."}, {"role": "assistant", "content": said, "tool_calls": [call]}, answer]


FIELDS: dict[str, Fill] = {
    "system": lambda text: (_chat(system=text), None),
    "user": lambda text: (_chat(user=text), None),
    "assistant": lambda text: (_chat(said=text), None),
    "reasoning": lambda text: (_worked(_call()) + _chat(reasoning_content=text)[2:], _tool()),
    "last": lambda text: ([{"role": "user", "content": text}], None),
    "before a call": lambda text: (_worked(_call(), said=text), _tool()),
    "result": lambda text: (_worked(_call(), result=text), _tool()),
    "call name": lambda text: (_worked(_call(text), name=text), _tool(text)),
    "argument name": lambda text: (_worked(_call(key=text)), _tool(key=text)),
    "argument value": lambda text: (_worked(_call(value=text)), _tool()),
    "argument inside": lambda text: (_worked(_call(value={text: [text]})), _tool()),
    "call id": lambda text: (_worked(_call(identity=text)), _tool()),
    "schema key": lambda text: (_chat(), _tool(key=text)),
    "schema field": lambda text: (_chat(), _tool(more={text: text})),
    "schema value": lambda text: (_chat(), _tool(more={"enum": [text, "b"], "title": text})),
    "description": lambda text: (_chat(), _tool(text=text)),
}

PROSE = ["", "", "", "", "", " ", "\n", "hi ", " there", "a\n", "1"]


@st.composite
def _twins(draw: st.DrawFn, tito: Tito) -> tuple[str, str]:
    """A text of pieces of control tokens, most often one alone, and a neutral one of the same shape."""
    tokens = sorted(tito.encoder.control)
    cuts = [cut for cut in Edges.of(tito.renderer).cuts if cut.strip()]
    hostile, neutral = draw(st.sampled_from(PROSE)), ""
    neutral = hostile
    for _ in range(draw(st.sampled_from([1, 1, 1, 2]))):
        token = draw(st.sampled_from(tokens))
        size = min(len(token), draw(st.sampled_from([len(token), len(token) - 1, len(token) - 1, 1, 2])) or 1)
        start = draw(st.sampled_from([0, len(token) - size, draw(st.integers(0, len(token) - size))]))
        split = draw(st.integers(start, start + size))
        cut = draw(st.sampled_from(["", "", "", *cuts]))
        after = draw(st.sampled_from(PROSE))
        hostile += token[start:split] + cut + token[split : start + size] + after
        neutral += "x" * (split - start) + cut + "x" * (start + size - split) + after
    return hostile, neutral


QUICK = (
    *("trl/qwen3", "trl/qwen3_5_think", "trl/nemotron_3_nano", "trl/glm4moe", "trl/gptoss", "trl/llama3_1", "trl/phi3"),
    *("trl/deepseekv3", "trl/gemma4", "trl/smollm3", "trl/lfm2_2_5", "local/minimax_m2", "local/qwen3_coder"),
    *("local/kimi_k2_5", "local/smollm3", "local/deepseek_v4"),
)

SEEN = [
    ("trl/qwen3_5_think", "call name", "<|im_end|"),
    ("trl/qwen3_5_think", "argument name", "<|im_start|"),
    ("local/qwen3_coder", "call name", "<|im_end|"),
    ("local/qwen3_coder", "argument name", "<|im_start|"),
    ("local/qwen3_coder", "schema field", "think"),
    ("local/qwen3_coder", "schema field", "tool_call"),
    ("local/qwen3_coder", "schema field", "|im_end|"),
    ("trl/nemotron_3_nano", "schema field", "think"),
    ("trl/nemotron_3_nano", "call name", "</think"),
    ("local/nemotron3_nano", "call name", "</think"),
    ("local/minimax_m2", "user", "hi ]~!b"),
    ("local/minimax_m2_5", "user", "hi ]~!b"),
]


@pytest.mark.parametrize(("name", "field", "text"), [each for each in SEEN if each[0] in templates()])
def test_what_was_seen_to_become_a_control_token_stays_text(name: str, field: str, text: str) -> None:
    tito = tito_for(name)
    assert _naive(tito, field, text) != _naive(tito, field, "x" * len(text))
    _check(tito, field, text, "x" * len(text))


@pytest.mark.skipif("local/smollm3" not in templates(), reason="MILES_LITE_TEMPLATES is not set")
def test_what_a_template_cuts_out_joins_nothing() -> None:
    _check(tito_for("local/smollm3"), "system", "<|im_/no_thinkend|>", "xxxxx/no_thinkxxxxx")


@pytest.mark.parametrize("name", [name for name in QUICK if name in templates()])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_field_of_a_template_forms_a_control_token(name: str, data: st.DataObject) -> None:
    tito = tito_for(name)
    _check(tito, data.draw(st.sampled_from(sorted(FIELDS))), *data.draw(_twins(tito)))


@pytest.mark.slow
@pytest.mark.parametrize("name", templates())
def test_no_piece_of_a_printed_token_forms_one_in_any_field(name: str) -> None:
    """Every field of every template with each token that it prints, but for its last letter, its first, or both."""
    tito = tito_for(name)
    cuts = re.compile("|".join(re.escape(cut) for cut in Edges.of(tito.renderer).cuts if cut) or "(?!)")
    for token in sorted({token for field in ("last", "user", "result") for token in _shown(tito, field)}):
        for text in dict.fromkeys([token[:-1], token[1:], token[1:-1], token[:1], token[:2]]):
            for field in FIELDS if text and not cuts.search(text) else ():
                _check(tito, field, text, "x" * len(text))


def _shown(tito: Tito, field: str) -> list[str]:
    """The control tokens of a plain print; none where the template refuses it."""
    try:
        return _controls(tito, _print(tito, *FIELDS[field]("x")))
    except RenderError:
        return []


def _check(tito: Tito, field: str, hostile: str, neutral: str) -> None:
    try:
        expected = _print(tito, *FIELDS[field](neutral))
        found = _print(tito, *FIELDS[field](hostile))
    except RenderError:
        return  # of a field's own rules, such as what an id may be
    assert _controls(tito, found) == _controls(tito, expected)
    messages, tools = FIELDS[field](hostile)
    if tito.encoder.control_pattern.search(hostile) is None:
        assert tito.encoder.decode(found) == _rendered(tito, messages, tools)
    if messages[-1]["role"] in ("user", "tool") and tito.proved([messages[-1]["role"]]):
        history, last = messages[:-1], messages[-1:]
        if history and history[-1]["role"] == "assistant":
            added = tito.append(history, last, stop=None, tools=tools)
            theirs, given_tools = FIELDS[field](neutral)
            twin = tito.append(theirs[:-1], theirs[-1:], stop=None, tools=given_tools)
            assert _controls(tito, added.ids) == _controls(tito, twin.ids)


def _print(tito: Tito, messages: list[dict[str, Any]], tools: Any) -> Any:
    return tito.first(messages, tools=tools).ids


def _naive(tito: Tito, field: str, text: str) -> list[str]:
    """What the plain tokenizer makes of the template's print."""
    printed = _rendered(tito, *FIELDS[field](text))
    return _controls(tito, tito.encoder.tokenizer.encode(printed, add_special_tokens=False).ids)


def _rendered(tito: Tito, messages: list[dict[str, Any]], tools: Any) -> str:
    shaped = [normalise(message, tito.form) for message in messages]
    return tito.renderer.render(shaped, tools=tools, open_turn=True, options=tito.surface.kwargs)


def _controls(tito: Tito, ids: Any) -> list[str]:
    known = {index: text for text, index in tito.encoder.control.items()}
    return [known[index] for index in map(int, ids) if index in known]
