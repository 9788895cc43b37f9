"""Models that ship a Python encoder instead of a template: the one of DeepSeek V3.2, in its real vocabulary."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miles_lite.errors import UserError
from miles_lite.tito import RenderError, Tito
from miles_lite.tito.encode import Encoder
from miles_lite.tito.encoders import load_encoder
from miles_lite.tito.families import FAMILIES
from tests.tito.material import bare_tito, deepseek
from tests.tito.surfaces import line_of
from tests.tito.test_laws import check_conversation

needs_sglang = pytest.mark.skipif(importlib.util.find_spec("sglang") is None, reason="sglang is not installed")


@pytest.fixture(scope="module")
def v32() -> Tito:
    row = FAMILIES["deepseekv32"]
    assert row.encoder is not None
    return bare_tito(load_encoder(row.encoder), Encoder(deepseek()), options=row.kwargs)


@needs_sglang
def test_the_encoder_takes_tools_and_users_but_opens_no_reply_after_a_system_message(v32: Tito) -> None:
    assert line_of("v32", v32.surface) == "v32 stop short~ short !opens short~ drop_thinking=False"
    assert v32.surface.opening == "<｜Assistant｜><think>"


@needs_sglang
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_its_suffixes_are_what_it_prints_natively(v32: Tito, data: st.DataObject) -> None:
    check_conversation(v32, data)


def test_what_an_encoder_raises_is_its_refusal() -> None:
    renderer = load_encoder(f"{__name__}:refuse")
    with pytest.raises(RenderError, match="not this"):
        renderer.render([{"role": "user", "content": "x"}], tools=None, open_turn=True, options={})
    for path in ("nowhere:encode", f"{__name__}:nothing", f"{__name__}:NOT_CALLABLE"):
        with pytest.raises(UserError, match="--tito-model"):
            load_encoder(path)


NOT_CALLABLE = 1


def refuse(messages: list[Any], **_: Any) -> str:
    raise KeyError("not this")
