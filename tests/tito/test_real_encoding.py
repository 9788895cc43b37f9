"""Safe encoding with real vocabularies: only a template writes control tokens, and nothing else changes."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from miles_lite.tito import Tito
from tests.tito.material import tito_for
from tests.tito.texts import unicode

NAMES = ["trl/qwen3", "trl/deepseekv3", "trl/llama3_1", "trl/glm4moe", "trl/gptoss"]


def _hostile(tito: Tito) -> st.SearchStrategy[str]:
    """Text that is full of the model's own control tokens, of halves of them, and of marks."""
    control = sorted(tito.encoder.control)
    halves = [text[: len(text) // 2] for text in control] + [text[len(text) // 2 :] for text in control]
    pieces = st.sampled_from([*control, *halves, "\n", " ", "e\u0301", "\u1e9b\u0323", "🏴‍☠️", "\ue000", "\\ue000"])
    return st.lists(st.one_of(unicode, pieces), max_size=6).map("".join)


def _control(tito: Tito, ids: list[int]) -> list[int]:
    known = set(tito.encoder.control.values())
    return [index for index in ids if index in known]


def _own(tito: Tito, text: str) -> str:
    """The tokenizer's own normalisation of text: NFC for Qwen, nothing for the others."""
    rules = tito.encoder.tokenizer.normalizer
    return rules.normalize_str(text) if rules else text


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_no_message_becomes_a_control_token(name: str, data: st.DataObject) -> None:
    tito = tito_for(name)
    text = data.draw(_hostile(tito))
    said, plain = ({"role": "user", "content": each} for each in (f"a{text}z", "az"))
    found, expected = tito.first([said]).ids, tito.first([plain]).ids
    assert _control(tito, list(found)) == _control(tito, list(expected))
    history = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    found, expected = (tito.append(history, [each], stop=None).ids for each in (said, plain))
    assert _control(tito, list(found)) == _control(tito, list(expected))
    assert _own(tito, f"a{text}z") in tito.encoder.decode(found)


@pytest.mark.parametrize("name", NAMES)
@given(text=unicode, edge=st.sampled_from(["", "\n", "  ", "\t", "\r\n", "{", '"', "'s"]))
def test_benign_text_is_encoded_jointly_with_the_template_around_it(name: str, text: str, edge: str) -> None:
    tito = tito_for(name)
    assume(not tito.encoder.control_pattern.search(text))  # hypothesis tries the strings that it finds in the sources
    content = f"{edge}{text}{edge}"
    tails = [content.rstrip()[-size:] for size in range(1, 1 + max(map(len, tito.encoder.control)))]
    assume(not any(token.startswith(tail) for token in tito.encoder.control for tail in tails if tail))
    said = [{"role": "user", "content": content}]
    plain = tito.renderer.render(said, tools=None, open_turn=True, options=tito.surface.kwargs)
    assert tito.guard(said)[1] == ""
    assert list(tito.first(said).ids) == tito.encoder.tokenizer.encode(plain, add_special_tokens=False).ids


@pytest.mark.parametrize("name", NAMES)
def test_one_look_alike_leaves_the_other_messages_as_they_are(name: str) -> None:
    tito = tito_for(name)
    token = max(tito.encoder.control, key=len)
    others = [{"role": "user", "content": "Read notes.txt"}, {"role": "assistant", "content": "It is empty."}]
    dirty = tito.first([*others, {"role": "user", "content": f"see {token} there"}]).ids
    clean = tito.first([*others, {"role": "user", "content": "see  there"}]).ids
    same = next(index for index, (one, other) in enumerate(zip(dirty, clean, strict=False)) if one != other)
    assert tito.encoder.decode(dirty[:same]).endswith("see")
    assert _control(tito, list(dirty)) == _control(tito, list(clean))
