"""Text to token ids and back, such that only a template can write a control token.

Invariant: text that holds no mark encodes exactly as the plain tokenizer encodes it, template and content jointly; what
would read as a control token but for a mark in it encodes as ordinary text and decodes to itself.

How: before rendering, `Guard` (control_tokens.py) puts a mark into whatever could become a control token inside message
strings or across their edges. What still reads as one in the rendered text therefore comes from the template. Stretches
with a mark lose it and are encoded by a tokenizer that knows no control tokens; so is every stretch where normalising
text could make a control token of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

import numpy as np
from tokenizers import AddedToken, Encoding, Tokenizer
from tokenizers.decoders import DecodeStream

from miles_lite.tito.byte_level import ByteTokens

_START = "\ufdd0start\ufdd1"
"""Stands before a stretch for the control token that the stretch follows: some tokenizers begin a text differently."""


_FAR = 6
"""Characters per token that texts seldom have."""
_PIECE, _CUT = 2**17, 16
"""Characters that are encoded at a time to learn that a text is too long, and tokens that a cut may add."""


class TooLongError(Exception):
    """A text has at least so many `tokens`, which are too many."""

    def __init__(self, tokens: int) -> None:
        super().__init__(f"at least {tokens} tokens")
        self.tokens = tokens


class Encoder:
    """A fast tokenizer that keeps what messages say apart from what the template says.

    `special` are the control tokens that frame messages: those flagged special, or all where none is flagged.
    """

    def __init__(self, tokenizer: Tokenizer, *, longest: int | None = None) -> None:
        """Text that is far too long for `longest` tokens is not encoded to its end.

        Raises ValueError when the tokenizer builds a control token out of ordinary text.
        """
        self.tokenizer, self._longest = tokenizer, longest
        self._bytes = ByteTokens.of(tokenizer)
        added = tokenizer.get_added_tokens_decoder()
        self.control = {token.content: index for index, token in added.items()}
        flagged = frozenset(index for index, token in added.items() if token.special)
        self.special = flagged or frozenset(added)
        self._apart = tokenizer.normalizer is not None and any(token.normalized for token in added.values())
        longest_first = sorted(self.control, key=len, reverse=True)
        self.control_pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._plain = _without_added_tokens(tokenizer)
        for text in self.control:
            if set(self._plain.encode(text, add_special_tokens=False).ids) & set(self.control.values()):
                raise ValueError(f"the tokenizer builds the control token {text!r} out of ordinary text")

    def encode(self, text: str, *, mark: str = "") -> np.ndarray:
        """int32 ids of rendered text; `mark` is what the guard returned. No beginning-of-text token is added.

        Raises TooLongError.
        """
        if self._longest is not None and len(text) > _FAR * self._longest:
            self._check_length(text, self._longest)
        if mark:
            text = text.replace(_escaped(mark), mark)
        if not self._apart and (not mark or mark not in text):
            return np.asarray(_ids(self.tokenizer, text), np.int32)
        ids: list[int] = []
        for start, piece, plain in self._pieces(text, mark):
            if plain:
                ids += self._encode_plain(piece.replace(mark, "") if mark else piece, follows=start > 0)
            else:
                ids += _ids(self.tokenizer, piece)
        return np.asarray(ids, np.int32)

    def _check_length(self, text: str, longest: int) -> None:
        """Raises TooLongError. A cut of the text adds a few tokens at most."""
        tokens = 0
        for start in range(0, len(text), _PIECE):
            tokens += len(_encoding(self.tokenizer, text[start : start + _PIECE])) - _CUT
            if tokens > longest:
                raise TooLongError(tokens)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids, control tokens included. A cut UTF-8 character ends in U+FFFD."""
        if self._bytes is not None:
            return self._bytes.text(_as_list(ids))
        return self.tokenizer.decode(_as_list(ids), skip_special_tokens=False)

    def stream(self) -> TextStream:
        return TextStream(self.tokenizer)

    def id_of(self, control: str) -> int | None:
        return self.control.get(control)

    def control_at(self, text: str, start: int) -> int | None:
        """The control token that `text` holds at `start`."""
        found = self.control_pattern.match(text, start)
        return self.control[found[0]] if found else None

    def text_of(self, token: int) -> str | None:
        return self.tokenizer.id_to_token(token)

    def _encode_plain(self, text: str, *, follows: bool) -> list[int]:
        """Ids of text that holds no control token; `follows`: one is before it."""
        if not follows or _START in text:
            return _ids(self._plain, text)
        return _ids(self._plain, _START + text)[1:]

    def _pieces(self, text: str, mark: str) -> Iterator[tuple[int, str, bool]]:
        """(start, piece, whether it is plain): stretches between control tokens that hold a mark, or all, apart."""
        start = 0
        bounds = [0, *(end for match in self.control_pattern.finditer(text) for end in match.span()), len(text)]
        for left, right in zip(bounds[::2], bounds[1::2], strict=True):
            if left < right and (self._apart or mark in text[left:right]):
                if start < left:
                    yield start, text[start:left], False
                yield left, text[left:right], True
                start = right
        if start < len(text):
            yield start, text[start:], False


class TextStream:
    """The text of ids that come a few at a time, at a cost that does not grow with what came before.

    It never ends inside a UTF-8 character: such bytes wait for the rest. What was said stays a prefix of `decode`.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._stream = tokenizer, DecodeStream(skip_special_tokens=False)
        self._taken, self._text = 0, ""

    def feed(self, ids: Sequence[int] | np.ndarray) -> str:
        """All text so far, when `ids` are all ids so far."""
        self._text += "".join(self._stream.step(self._tokenizer, token) or "" for token in _as_list(ids[self._taken :]))
        self._taken = max(self._taken, len(ids))
        return self._text


def _escaped(mark: str) -> str:
    """As templates that print JSON in ASCII write it."""
    return json.dumps(mark)[1:-1]


def _as_list(ids: Sequence[int] | np.ndarray) -> list[int]:
    return ids.tolist() if isinstance(ids, np.ndarray) else list(ids)


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(_encoding(tokenizer, text).ids)


def _encoding(tokenizer: Tokenizer, text: str) -> Encoding:
    """Without the offsets into the text that `encode` spends a third of its time on, and while other threads run."""
    return tokenizer.encode_batch_fast([text], add_special_tokens=False)[0]


def _without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """The same model and text rules, and `_START` alone; the model is shared, not copied."""
    plain = Tokenizer(tokenizer.model)
    if tokenizer.normalizer is not None:
        plain.normalizer = tokenizer.normalizer
    if tokenizer.pre_tokenizer is not None:
        plain.pre_tokenizer = tokenizer.pre_tokenizer
    plain.add_tokens([AddedToken(_START, normalized=False)])
    return plain
