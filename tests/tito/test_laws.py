"""What is appended to a turn is what the model's own template prints, for any conversation and any accepted role.

The native render of the whole conversation is the judge: its ids must end in the ids of the suffix, and what is before
them must be the history up to the end of its last turn. That holds whether or not the template rewrites what is older.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from miles_lite.tito import RenderError, Suffix, SuffixError, Tito
from tests.tito.conversations import Step, steps
from tests.tito.material import templates, tito_for

QUICK = [
    name
    for name in (
        *("trl/qwen3", "trl/qwen3_5_think", "trl/qwen3_6", "trl/glm4moe", "trl/nemotron_3_nano", "trl/llama3_1"),
        *("trl/gptoss", "trl/deepseekv3", "trl/idefics3", "trl/muse_glimmer", "local/qwen3_thinking_2507"),
        *("local/glm4_7", "local/glm5_1", "local/minimax_m2_5", "local/kimi_k2_5", "local/deepseek_v4"),
    )
    if name in templates()
]


@pytest.mark.parametrize("name", QUICK)
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_suffix_is_what_the_native_render_ends_with(name: str, data: st.DataObject) -> None:
    check_conversation(tito_for(name), data)


@pytest.mark.slow
@pytest.mark.parametrize("name", templates())
@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_template_has_a_wrong_suffix(name: str, data: st.DataObject) -> None:
    check_conversation(tito_for(name), data)


def check_conversation(tito: Tito, data: st.DataObject) -> None:
    roles = tuple(role for role, verdict in tito.surface.roles.items() if verdict.law is None)
    assume(roles)
    for step in data.draw(steps(roles=roles)):
        if step.appended:
            _check(tito, step)


def _check(tito: Tito, step: Step) -> None:
    try:
        whole = tito.first([*step.history, *step.appended], tools=step.tools)
    except RenderError:
        return  # the template refuses the conversation, with an error of its own
    suffix = tito.append(step.history, step.appended, stop=None, tools=step.tools)
    before, after = whole.ids[: -len(suffix.ids)], whole.ids[-len(suffix.ids) :]
    assert list(after) == list(suffix.ids)
    assert suffix.opens_reasoning == whole.opens_reasoning
    _keeps_reasoning(tito, step, suffix)
    closed = tito.encoder.decode(tito.first(step.history, tools=step.tools, open_turn=False).ids)
    if step.word in closed:  # not where the template prints no tool calls
        *_, rest = tito.encoder.decode(before).rpartition(step.word)
        assert step.word in tito.encoder.decode(before)
        assert closed.rpartition(step.word)[2].startswith(rest)


def _keeps_reasoning(tito: Tito, step: Step, suffix: Suffix) -> None:
    """Of inserted turns, where the template prints reasoning at all and verification gave no warning of its loss."""
    thought = [text for message in step.appended if (text := message.get("reasoning_content"))]
    if not thought or tito.surface.roles["assistant"].warning:
        return
    asked = {"role": "user", "content": "x"}
    shown = tito.first([asked, {"role": "assistant", "content": "y", "reasoning_content": "zzz"}], open_turn=False)
    if "zzz" in tito.encoder.decode(shown.ids):
        text = tito.encoder.decode(suffix.ids)
        assert [text.count(each) for each in thought] == [1] * len(thought)


def test_refusals_raise_and_never_guess() -> None:
    tito = tito_for("trl/cohere2")
    history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(SuffixError, match="conserve"):
        tito.append(history, [{"role": "tool", "content": "rain"}], stop=None)
    with pytest.raises(RenderError, match="alternate"):
        tito_for("trl/gemma3").append(history, [{"role": "assistant", "content": "c"}], stop=None)
