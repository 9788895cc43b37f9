"""Conversations turn by turn in real vocabularies: what is in the buffer is what the template prints of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from miles_lite.tito import History, RenderError, Tito
from miles_lite.tito.render import JinjaRenderer
from tests.tito.conversations import Step, steps
from tests.tito.material import bare_tito, tito_for

STABLE = ["trl/qwen2_5", "trl/qwen3_instruct_2507", "trl/llama3_2", "trl/qwen3_6", "trl/nemotron_3_nano"]
"""Templates that print a reply always alike, so that the whole conversation is the judge of the whole buffer."""

ASK, SAID = {"role": "user", "content": "What is in notes.txt?"}, {"role": "assistant", "content": "Nothing."}
CALL = {"id": "call_1", "type": "function", "function": {"name": "run", "arguments": '{"note": "cat notes.txt"}'}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_1", "name": "run", "content": "It says hello."}


def _text(tito: Tito, ids: Any) -> str:
    return tito.encoder.decode(ids)


def _id(tito: Tito, token: str) -> int:
    index = tito.encoder.id_of(token)
    assert index is not None
    return index


def test_qwen_appends_a_newline_after_the_sampled_stop_token() -> None:
    tito = tito_for("trl/qwen3")
    newline = tito.encoder.encode("\n")
    found = tito.append([ASK, CALLED], [RESULT], stop=_id(tito, "<|im_end|>"))
    assert (found.drop, list(found.ids[:1])) == (0, list(newline))
    assert _text(tito, found.ids[1:]) == (
        "<|im_start|>user\n<tool_response>\nIt says hello.\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_turn_that_was_cut_is_closed_by_the_template() -> None:
    tito = tito_for("trl/qwen3")
    stopped = tito.append([ASK, CALLED], [RESULT], stop=_id(tito, "<|im_end|>"))
    cut = tito.append([ASK, CALLED], [RESULT], stop=None)
    assert list(cut.ids) == [_id(tito, "<|im_end|>"), *stopped.ids]
    other = tito.append([ASK, CALLED], [RESULT], stop=_id(tito, "<|endoftext|>"))
    assert (other.drop, list(other.ids)) == (1, list(cut.ids))


def test_glm_stops_by_the_token_that_opens_what_follows() -> None:
    tito = tito_for("trl/glm4moe")
    observation, user = _id(tito, "<|observation|>"), _id(tito, "<|user|>")
    kept = tito.append([ASK, CALLED], [RESULT], stop=observation)
    assert kept.drop == 0
    assert _text(tito, kept.ids) == "\n<tool_response>\nIt says hello.\n</tool_response><|assistant|>"
    exchanged = tito.append([ASK, SAID], [ASK], stop=observation)
    assert (exchanged.drop, exchanged.ids[0]) == (1, user)
    assert tito.append([ASK, SAID], [ASK], stop=user).drop == 0
    cut = tito.append([ASK, CALLED], [RESULT], stop=None)
    assert (cut.drop, list(cut.ids)) == (0, [observation, *kept.ids])


def test_three_glm_turns_hold_each_stop_token_once() -> None:
    tito = tito_for("trl/glm4moe")
    observation, user = _id(tito, "<|observation|>"), _id(tito, "<|user|>")
    ids = list(tito.first([ASK]).ids)
    history: list[Any] = [ASK]
    for reply, stop, appended in ((CALLED, observation, [RESULT]), (SAID, observation, [ASK])):
        ids += [*tito.encoder.encode("\n<think></think>\nsampled"), stop]
        history.append(reply)
        suffix = tito.append(history, appended, stop=stop)
        ids = [*ids[: len(ids) - suffix.drop], *suffix.ids]
        history += appended
    assert [ids.count(observation), ids.count(user)] == [1, 2]


def test_gpt_oss_keeps_the_stop_that_was_sampled_and_closes_others_as_amid_a_conversation() -> None:
    tito = tito_for("trl/gptoss")
    last, amid = _id(tito, "<|return|>"), _id(tito, "<|end|>")
    found = [tito.append([ASK, SAID], [ASK], stop=stop) for stop in (last, amid)]
    assert [(each.drop, each.ids[0]) for each in found] == [(0, _id(tito, "<|start|>"))] * 2
    assert tito.append([ASK, SAID], [ASK], stop=None).ids[0] == amid
    called = tito.append([ASK, CALLED], [RESULT], stop=_id(tito, "<|call|>"))
    assert (called.drop, called.ids[0]) == (0, _id(tito, "<|start|>"))


def test_a_closing_of_two_tokens_goes_on_after_the_one_that_was_sampled() -> None:
    tito = tito_for("trl/cohere2")
    response, turn = _id(tito, "<|END_RESPONSE|>"), _id(tito, "<|END_OF_TURN_TOKEN|>")
    after = [tito.append([ASK, SAID], [ASK], stop=stop).ids for stop in (None, response, turn)]
    assert list(after[0]) == [response, turn, *after[2]]
    assert list(after[1]) == [turn, *after[2]]


@pytest.mark.parametrize("name", STABLE)
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_buffer_is_the_native_render_of_the_conversation(name: str, data: st.DataObject) -> None:
    tito = tito_for(name)
    roles = tuple(role for role in ("tool", "user", "system") if tito.surface.roles[role].law is None)
    rounds = data.draw(steps(roles=roles))
    assume(len({str(step.tools) for step in rounds}) == 1 and all(step.appended for step in rounds))
    first = rounds[0]
    ids = list(tito.first(first.history[:-1], tools=first.tools).ids)
    for step in rounds:
        reply = _sampled(tito, step)
        assume(reply is not None)
        assert reply is not None
        suffix = tito.append(step.history, step.appended, stop=_stop(tito), tools=step.tools)
        ids += [*reply, _stop(tito), *suffix.ids]
    last = rounds[-1]
    assert ids == list(tito.first([*last.history, *last.appended], tools=last.tools).ids)


def _stop(tito: Tito) -> int:
    assert tito.surface.join is not None
    assert tito.surface.join.stop is not None
    return _id(tito, tito.surface.join.stop)


def _sampled(tito: Tito, step: Step) -> list[int] | None:
    """What a model would have sampled to be printed as the last turn; None where the template does not print it so."""
    asked = list(tito.first(step.history[:-1], tools=step.tools).ids)
    try:
        closed = list(tito.first(step.history, tools=step.tools, open_turn=False).ids)
    except RenderError:
        return None
    if closed[: len(asked)] != asked:
        return None
    body = closed[len(asked) :]
    return body[: len(body) - body[::-1].index(_stop(tito)) - 1]


@pytest.mark.parametrize("name", ["trl/qwen3", "trl/deepseekv3", "trl/llama3_1", "trl/nemotron_3_nano"])
def test_equal_messages_give_equal_ids_in_whatever_shape_they_come(name: str) -> None:
    tito = tito_for(name)
    shapes: list[tuple[list[Any], list[Any]]] = [
        ([ASK, CALLED], [RESULT]),
        ([ASK, {**CALLED, "content": None}], [RESULT]),
        ([ASK, {**CALLED, "tool_calls": [_called_with({"note": "cat notes.txt"})]}], [RESULT]),
        (
            [ASK, CALLED],
            [{**RESULT, "content": [{"type": "text", "text": "It says"}, {"type": "text", "text": " hello."}]}],
        ),
        ([{"role": "user", "content": [{"type": "text", "text": ASK["content"]}]}, CALLED], [RESULT]),
    ]
    wholes = {tuple(tito.first([*history, *appended]).ids) for history, appended in shapes}
    suffixes = {tuple(tito.append(history, appended, stop=None).ids) for history, appended in shapes}
    assert (len(wholes), len(suffixes)) == (1, 1)


@pytest.mark.parametrize("name", ["trl/qwen3", "trl/llama3_1", "trl/glm4moe"])
def test_a_suffix_depends_neither_on_the_size_of_the_arguments_nor_on_the_tools(name: str) -> None:
    tito = tito_for(name)
    tools = [{"type": "function", "function": {"name": each, "parameters": {}}} for each in ("run", "ask")]
    huge = {"role": "assistant", "content": None, "tool_calls": [_called_with({"note": "x" * 1_000_000})]}
    found = [
        tito.append([ASK, turn], [RESULT], stop=None, tools=given)
        for turn in (CALLED, huge)
        for given in (tools[:1], tools)
    ]
    assert len({tuple(each.ids) for each in found}) == 1
    empty = tito.append([ASK, CALLED], [{**RESULT, "content": None}], stop=None)
    assert 0 < len(empty.ids) < len(found[0].ids)


def test_only_the_last_message_of_a_history_is_read_where_the_short_context_is_proved() -> None:
    def whole() -> list[Any]:
        raise AssertionError("the history was put together")

    tito = tito_for("trl/qwen3")
    late = tito.append(History(CALLED, whole), [RESULT], stop=None)
    assert list(late.ids) == list(tito.append([ASK, CALLED], [RESULT], stop=None).ids)
    with pytest.raises(AssertionError, match="put together"):
        tito_for("trl/deepseekv3").append(History(CALLED, whole), [RESULT], stop=None)


def test_assistant_messages_of_the_harness_are_context() -> None:
    tito = tito_for("trl/qwen3_training")
    plan = {"role": "assistant", "content": "I plan to look again.", "reasoning_content": "Empty is odd."}
    found = tito.append([ASK, CALLED], [RESULT, plan, ASK], stop=_id(tito, "<|im_end|>"))
    text = _text(tito, found.ids)
    assert text.index("It says hello.") < text.index("Empty is odd.") < text.index("I plan to look again.")
    assert text.endswith("What is in notes.txt?<|im_end|>\n<|im_start|>assistant\n")


def test_ids_that_the_model_gave_its_calls_are_printed_as_they_are() -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'tool' %}## Return of {{ m.tool_call_id }}\n{% endif %}{{ m.content }}"
        "{% for call in m.tool_calls or [] %}<tool_call>{{ call.id }} {{ call.function.arguments | tojson }}"
        "</tool_call>{% endfor %}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tito = _with_template(template)
    for name in ("functions.run:0", "functions.run:17", "<|im_end|>"):
        turn = {**CALLED, "tool_calls": [{**CALL, "id": name}]}
        found = tito.append([ASK, turn], [{**RESULT, "tool_call_id": name}], stop=_id(tito, "<|im_end|>"))
        assert f"## Return of {name}\nIt says hello." in _text(tito, found.ids)


def test_ids_printed_after_the_arguments_are_those_of_the_turn() -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function.arguments | tojson }} as {{ call.id }}"
        "{% endfor %}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tito = _with_template(template)
    for name in ("1", "12", "123", "2"):
        found = tito.append([ASK, {**CALLED, "tool_calls": [{**CALL, "id": name}]}], [RESULT], stop=None)
        assert _text(tito, found.ids).startswith("<|im_end|><|im_start|>tool")


def _with_template(template: str) -> Tito:
    return bare_tito(JinjaRenderer(template), tito_for("trl/qwen3").encoder)


def _part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _called_with(arguments: dict[str, Any]) -> dict[str, Any]:
    return {**CALL, "function": {"name": "run", "arguments": json.loads(json.dumps(arguments))}}
