from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from miles_lite.tito import Tito
from miles_lite.tito.control_tokens import Edges, Guard
from miles_lite.tito.encode import Encoder
from miles_lite.tito.render import JinjaRenderer
from tests.models import CONTROL_TOKENS
from tests.tito.material import CHATML
from tests.tito.texts import hostile, unicode


def _controls(tito: Tito, ids: np.ndarray) -> list[str | None]:
    return [tito.encoder.text_of(index) for index in ids if index in tito.encoder.control.values()]


@given(text=hostile, result=hostile)
def test_message_text_never_becomes_a_control_token(tito: Tito, text: str, result: str) -> None:
    user = {"role": "user", "content": text}
    expected = tito.first([{"role": "user", "content": "x"}])
    found = tito.first([user])
    assert _controls(tito, found.ids) == _controls(tito, expected.ids)
    assert text in tito.encoder.decode(found.ids)
    called = {"role": "assistant", "content": "", "tool_calls": [_call({"q": text})]}
    suffix = tito.append([user, called], [{"role": "tool", "content": result}], stop=2)
    assert _controls(tito, suffix.ids)[1:-2] == ["<tool_response>", "</tool_response>"]
    assert result in tito.encoder.decode(suffix.ids)


@given(text=hostile)
def test_tool_call_arguments_and_tool_descriptions_are_guarded(tito: Tito, text: str) -> None:
    tools, other = ([{"type": "function", "function": {"name": "f", "description": t}}] for t in (text, "x"))
    messages: list[Any] = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "tool_calls": [_call({text: [text]})]},
    ]
    plain: list[Any] = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [_call({"a": ["b"]})]}]
    found, expected = tito.first(messages, tools=tools), tito.first(plain, tools=other)
    assert _controls(tito, found.ids) == _controls(tito, expected.ids)


@given(text=unicode.filter(lambda text: "<" not in text))
def test_benign_text_encodes_as_the_plain_tokenizer_does(tito: Tito, tiny_model, text: str) -> None:
    plain = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    rendered = f"<|im_start|>user\n{text}<|im_end|>\n"
    guarded, mark = tito.guard([text])
    assert (guarded, mark) == ([text], "")
    assert list(tito.encoder.encode(rendered, mark=mark)) == plain.encode(rendered, add_special_tokens=False).ids


@given(ids=st.lists(st.integers(0, 520), max_size=40), cuts=st.lists(st.integers(0, 40)))
def test_a_text_stream_says_what_decoding_says_and_never_part_of_a_character(
    tito: Tito, ids: list[int], cuts: list[int]
) -> None:
    stream, said = tito.encoder.stream(), ""
    for cut in sorted([*cuts, len(ids)]):
        text = stream.feed(ids[:cut])
        assert text.startswith(said)
        said = text
    assert tito.encoder.decode(ids).startswith(said)
    assert set(tito.encoder.decode(ids)[len(said) :]) <= {"\ufffd"}


@given(texts=st.lists(hostile, min_size=1, max_size=3))
def test_marks_leave_the_rest_of_the_text_as_the_plain_tokenizer_encodes_it(tito: Tito, texts: list[str]) -> None:
    guarded, mark = tito.guard(texts)
    rendered = "<|im_end|>\n" + "<|im_end|>\n".join(guarded) + "<|im_start|>tail of the text"
    ids = list(tito.encoder.encode(rendered, mark=mark))
    assert tito.encoder.decode(ids) == "<|im_end|>\n" + "<|im_end|>\n".join(texts) + "<|im_start|>tail of the text"
    tail = list(tito.encoder.encode("<|im_start|>tail of the text"))
    assert ids[-len(tail) :] == tail


@pytest.mark.parametrize("text", ["\ue000", "\\ue000", "\ue000\ue001", "".join(map(chr, range(0xE000, 0xF900)))])
def test_text_that_holds_marks_is_kept(tito: Tito, text: str) -> None:
    (guarded,), mark = tito.guard([f"{text}<think>"])
    assert mark not in text
    assert tito.encoder.decode(tito.encoder.encode(guarded, mark=mark)) == f"{text}<think>"


def test_template_options_are_guarded(tito: Tito) -> None:
    renderer = JinjaRenderer("{{ note }}" + CHATML)
    noted = dataclasses.replace(tito, renderer=renderer)
    found = noted.first([{"role": "user", "content": "x"}], options={"note": "<|im_end|>"})
    assert _controls(tito, found.ids) == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]


def test_every_look_alike_is_plain_text(tito: Tito) -> None:
    for token in CONTROL_TOKENS:
        (guarded,), mark = tito.guard([token])
        ids = tito.encoder.encode(guarded, mark=mark)
        assert len(ids) > 1
        assert tito.encoder.decode(ids) == token


def test_a_tokenizer_that_cannot_keep_text_plain_is_refused() -> None:
    words = Tokenizer(models.WordLevel({"<stop>": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.add_special_tokens([AddedToken("<stop>", special=True)])
    with pytest.raises(ValueError, match="<stop>"):
        Encoder(words)


def test_a_stretch_is_encoded_as_what_follows_a_control_token() -> None:
    """SentencePiece tokenizers put a space before text that begins a document, and only there."""
    tokenizer = _letters()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    encoder = Encoder(tokenizer)
    for text in ("see", "see [B]", "[B]", "\ufdd0start\ufdd1[B]"):
        (guarded,), mark = Guard(encoder.control, Edges())([text])
        shown = [encoder.text_of(index) for index in encoder.encode(f"[A]{guarded}[A]", mark=mark)]
        assert shown[0] == shown[-1] == "[A]"
        assert "[B]" not in shown
        assert shown[1] != "▁" or text.startswith("\ufdd0")


def test_text_that_normalises_to_a_control_token_stays_text() -> None:
    tokenizer = _letters(normalized=True)
    tokenizer.normalizer = normalizers.NFKC()
    encoder = Encoder(tokenizer)
    wide = "［Ａ］"
    assert tokenizer.encode(wide).tokens == ["[A]"]
    assert [encoder.text_of(index) for index in encoder.encode(f"[B]{wide}x")] == ["[B]", "[", "A", "]", "x"]


def _letters(*, normalized: bool = False) -> Tokenizer:
    letters = {chr(code): code - 33 for code in range(33, 127)} | {"▁": 94, "[UNK]": 95}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[], unk_token="[UNK]"))
    tokenizer.add_tokens([AddedToken(text, normalized=normalized) for text in ("[A]", "[B]")])
    return tokenizer


def _call(arguments: dict) -> dict:
    return {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}
