from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given

from miles_lite.tito import Tito
from miles_lite.tito.chat_messages import normalise
from miles_lite.tito.render import JinjaRenderer
from miles_lite.tito.suffix import Join, SuffixError, cut
from tests.tito.material import ALIAS, CHATML, OVERLAP
from tests.tito.texts import hostile

CONTROL = re.compile(r"<[a-z/|_]+>")
STOP = 2

USER, REPLY, MORE = ({"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c")))


def _cut(template: str, history: list[dict[str, Any]], appended: list[dict[str, Any]]) -> Any:
    return cut(JinjaRenderer(template), history, appended, tools=None, options={}, control=CONTROL)


def test_glue_is_what_the_template_prints_after_the_stop_token() -> None:
    found = _cut(CHATML, [USER, REPLY], [MORE])
    assert found.tail == "<|im_end|>\n"
    assert found.suffix == "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    join = Join(found.tail, "<|im_end|>")
    assert join.glue("<|im_end|>", found.suffix, CONTROL) == (0, "\n" + found.suffix)
    assert join.glue(None, found.suffix, CONTROL) == (0, "<|im_end|>\n" + found.suffix)
    assert join.glue("<|endoftext|>", found.suffix, CONTROL) == (1, "<|im_end|>\n" + found.suffix)


def test_a_stop_token_that_is_the_next_opener_stays_when_sampled() -> None:
    found = _cut(OVERLAP, [USER, REPLY], [MORE])
    assert (found.tail, found.suffix) == ("", "<|user|>\nc<|assistant|>\n")
    join = Join("", None)
    assert join.glue("<|user|>", found.suffix, CONTROL) == (0, "\nc<|assistant|>\n")
    assert join.glue("<|observation|>", found.suffix, CONTROL) == (1, found.suffix)
    assert join.glue(None, found.suffix, CONTROL) == (0, found.suffix)


def test_a_template_that_closes_the_last_turn_differently_has_a_stop_alias() -> None:
    found = _cut(ALIAS, [USER, REPLY], [MORE])
    assert found.alias == ("<|return|>", "<|end|>")
    assert found.suffix == "<|start|>user<|message|>c<|end|><|start|>assistant"
    join = Join(found.tail, "<|return|>", found.alias)
    assert join.glue("<|return|>", found.suffix, CONTROL) == (0, found.suffix)
    assert join.glue("<|end|>", found.suffix, CONTROL) == (0, found.suffix)


def test_appended_text_that_holds_the_anchor_is_no_obstacle() -> None:
    hostile_text = {"role": "user", "content": "Zq0anchor0qZ Zq1anchor1qZ"}
    assert "Zq0anchor0qZ" in _cut(CHATML, [USER, REPLY], [hostile_text]).suffix


def test_a_template_that_does_not_print_the_reply_has_no_suffix() -> None:
    with pytest.raises(SuffixError, match="anchor"):
        _cut("{{ messages | length }}", [USER, REPLY], [MORE])


@given(user=hostile, result=hostile, more=hostile)
def test_appending_gives_the_ids_of_the_native_render(tito: Tito, user: str, result: str, more: str) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": [1, "<think>"]}'}}
    messages: list[dict[str, Any]] = [{"role": "user", "content": user}]
    ids = list(tito.first(messages).ids)
    for reply, appended in (
        ({"role": "assistant", "content": "one"}, [{"role": "user", "content": more}]),
        ({"role": "assistant", "content": None, "tool_calls": [call]}, [{"role": "tool", "content": result}]),
    ):
        before = len(ids)
        ids += [*_reply_ids(tito, messages, reply), STOP]
        messages.append(reply)
        suffix = tito.append(messages, appended, stop=STOP)
        assert suffix.drop == 0
        assert ids[before:]
        ids += list(suffix.ids)
        messages += appended
        assert ids == list(tito.first(messages).ids)


@given(text=hostile)
def test_a_turn_that_was_cut_is_closed_as_the_template_closes_it(tito: Tito, text: str) -> None:
    history = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    appended = [{"role": "user", "content": text}]
    cut_short = tito.append(history, appended, stop=None)
    stopped = tito.append(history, appended, stop=STOP)
    assert list(cut_short.ids) == [STOP, *stopped.ids]


def test_short_and_real_context_agree(tito: Tito) -> None:
    long = [{"role": "system", "content": "s"}, *[{"role": r, "content": "z"} for r in ("user", "assistant")] * 9]
    appended = [{"role": "user", "content": "more"}]
    renderer, control = tito.renderer, tito.encoder.control_pattern
    real = cut(renderer, [*map(normalise, long)], appended, tools=None, options={}, control=control)
    assert real.suffix == tito.encoder.decode(tito.append(long, appended, stop=STOP).ids)[1:]


def _reply_ids(tito: Tito, messages: list[dict[str, Any]], reply: dict[str, Any]) -> list[int]:
    """The ids a model that writes `reply` would sample: what the template prints of it, control tokens and all."""
    (guarded, said), mark = tito.guard(([*map(normalise, messages)], normalise(reply)))
    opened = tito.renderer.render(guarded, tools=None, open_turn=True, options={})
    whole = tito.renderer.render([*guarded, said], tools=None, open_turn=False, options={})
    body = whole[len(opened) :].removesuffix("<|im_end|>\n")
    return list(tito.encoder.encode(body, mark=mark))
