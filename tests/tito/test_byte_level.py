from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

from miles_lite.tito.byte_level import ByteTokens
from tests.tito import material


def _odd() -> Tokenizer:
    """Every single byte, and tokens that are no bytes: wide letters, spaces, a byte's letter beside another letter."""
    odd = ["<｜User｜>", "<|two words|>", "Ġ<ﾠ>", "ÿé", "<|im_end|>", "日本"]
    vocabulary = {letter: index for index, letter in enumerate(material.byte_letters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(text, special=index % 2 == 0, normalized=False) for index, text in enumerate(odd)])
    return tokenizer


_TOKENIZERS: Mapping[str, Callable[[], Tokenizer]] = {
    "qwen3": material.qwen3,
    "deepseek": material.deepseek,
    "odd": _odd,
}


@pytest.mark.parametrize("name", _TOKENIZERS)
def test_the_text_of_ids_is_what_the_tokenizer_says(name: str) -> None:
    tokenizer = _TOKENIZERS[name]()
    tokens = ByteTokens.of(tokenizer)
    assert tokens is not None
    size = tokenizer.get_vocab_size()
    control = list(tokenizer.get_added_tokens_decoder())
    ids = st.lists(st.one_of(st.integers(0, size + 9), st.integers(0, 260), st.sampled_from(control)), max_size=60)

    @settings(max_examples=300, deadline=None)
    @given(ids=ids)
    @example(ids=[])
    def law(ids: list[int]) -> None:
        assert tokens.text(ids) == tokenizer.decode(ids, skip_special_tokens=False)

    law()


def test_bytes_that_are_no_text_are_replaced_as_the_tokenizer_does() -> None:
    tokenizer = _odd()
    tokens = ByteTokens.of(tokenizer)
    assert tokens is not None

    ids = {byte: tokenizer.token_to_id(letter) for byte, letter in enumerate(material.byte_letters())}
    broken = [b"a", b"\xed\xa0\x80", b"\xf0\x9f", b"\x98\x80", b"\xc0\xaf", b"\xff", b"\xe2\x82"]

    @settings(max_examples=500, deadline=None)
    @given(data=st.lists(st.sampled_from(broken)))
    @example(data=[bytes([byte]) for byte in range(256)])
    def law(data: list[bytes]) -> None:
        letters = [letter for byte in b"".join(data) if (letter := ids[byte]) is not None]
        assert len(letters) == sum(map(len, data))
        assert tokens.text(letters) == tokenizer.decode(letters, skip_special_tokens=False)

    law()


def test_other_tokenizers_are_left_to_themselves() -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    assert ByteTokens.of(tokenizer) is None
