"""System and developer messages anywhere: printed once and in order, and alike whether a turn came between or not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from miles_lite.tito import RenderError, SuffixError, Tito
from miles_lite.tito.compare import compare
from miles_lite.tito.cut_render import Sampled
from tests.tito.material import templates, tito_for

QUICK = (
    "qwen3",
    "qwen3_5_think",
    "qwen3_8",
    "gptoss",
    "deepseekv3",
    "glm4moe",
    "nemotron_3_nano",
    "llama3_2",
    "cohere2",
)
OTHERS = ("local/minimax_m2", "local/smollm3", "local/kimi_k2_5")
NAMES = [name for name in (*(f"trl/{name}" for name in QUICK), *OTHERS) if name in templates()]


def _system(text: str, role: str = "system") -> dict[str, Any]:
    return {"role": role, "content": text}


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _text(tito: Tito, ids: Any) -> str:
    return tito.encoder.decode(ids)


CODEX = [_system("Be Codex."), _system("Permissions1.", "developer"), _system("Style2.", "developer"), _user("Hi3.")]


@pytest.mark.parametrize("name", NAMES)
def test_what_codex_sends_is_printed_once_and_in_order(name: str) -> None:
    tito = tito_for(name)
    text = _text(tito, tito.first(CODEX).ids)
    places = [text.find(message["content"]) for message in CODEX]
    assert [text.count(message["content"]) for message in CODEX] == [1] * 4
    assert places == sorted(places)


def test_qwen35_joins_them_and_qwen3_prints_each() -> None:
    joined, kept = (tito_for(name).first(CODEX) for name in ("trl/qwen3_5_think", "trl/qwen3"))
    assert (joined.joined, joined.placed) == (2, 0)
    text = _text(tito_for("trl/qwen3_5_think"), joined.ids)
    assert "<|im_start|>system\nBe Codex.\n\nPermissions1.\n\nStyle2.<|im_end|>" in text
    assert (kept.joined, kept.placed) == (0, 0)
    assert _text(tito_for("trl/qwen3"), kept.ids).count("<|im_start|>system") == 3


def test_a_later_one_is_the_users_where_the_role_is_refused() -> None:
    tito = tito_for("trl/qwen3_5_think")
    history = [*CODEX, {"role": "assistant", "content": "Said4."}]
    appended = [_system("Remember5.", "developer"), _user("Go6.")]
    assert tito.roles(appended) == {"user"}
    found = tito.append(history, appended, stop=None)
    assert (found.joined, found.placed) == (0, 1)
    assert "<|im_start|>user\nRemember5.<|im_end|>\n<|im_start|>user\nGo6.<|im_end|>" in _text(tito, found.ids)
    assert tito_for("trl/qwen3").roles(appended) == {"system", "user"}


def test_a_buffer_with_joined_messages_is_compared() -> None:
    tito = tito_for("trl/qwen3_5_think")
    first = tito.first(CODEX).ids.tolist()
    reply = tito.encoder.encode("Why.\n</think>\n\nSaid4.").tolist()
    said = {"role": "assistant", "content": "Said4.", "reasoning_content": "Why."}
    more = [_system("Remember5."), _user("Go6.")]
    suffix = tito.append([*CODEX, said], more, stop=tito.encoder.id_of("<|im_end|>"))
    ids = [*first, *reply, tito.encoder.id_of("<|im_end|>"), *suffix.ids.tolist()]
    found = compare(tito, [*CODEX, said, *more], ids, [Sampled(4, len(first), len(first) + len(reply))], open_turn=True)
    assert not [each for each in found if each.is_bug]


_KINDS = st.sampled_from(["system", "developer", "user"])


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(lead=st.integers(0, 3), asked=st.lists(_KINDS, max_size=3), more=st.lists(_KINDS, min_size=1, max_size=3))
def test_a_conversation_that_goes_on_begins_as_it_did(name: str, lead: int, asked: list[str], more: list[str]) -> None:
    tito = tito_for(name)
    begun = [_system(f"Sys{n}x.") for n in range(lead)] + [_user("Ask0x.")]
    begun += [_system(f"Mid{n}x.", role) for n, role in enumerate(asked)]
    history = [*begun, {"role": "assistant", "content": "Saidx."}]
    appended = [_system(f"New{n}x.", role) for n, role in enumerate(more)]
    assume(tito.proved(sorted(tito.roles(appended))))
    try:
        whole, suffix = tito.first([*history, *appended]), tito.append(history, appended, stop=None)
    except (RenderError, SuffixError):
        return  # some take no two messages of the user in a row, or begin a new root
    assert whole.ids[len(whole.ids) - len(suffix.ids) :].tolist() == suffix.ids.tolist()
    text = _text(tito, whole.ids)
    contents = [message["content"] for message in [*history, *appended]]
    assert [text.count(content) for content in contents if content in text] == [1] * len(contents)
    assert [text.index(content) for content in contents] == sorted(text.index(content) for content in contents)
