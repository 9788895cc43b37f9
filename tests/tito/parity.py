"""The law of streams: what a stream hands out, in its order, is what the plain parser says of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from miles_lite.tito.parse import ReplyParser


def check_parity(parser: ReplyParser, text: str, cuts: Sequence[int], *, tools: Any, in_reasoning: bool) -> None:
    """`cuts` are the places up to which the text has grown whenever the stream is fed."""
    whole = parser.parse(text, tools=tools, in_reasoning=in_reasoning)
    stream = parser.stream(tools=tools, in_reasoning=in_reasoning)
    news = [stream.feed(text[:cut]) for cut in sorted(cuts)]
    assert not any(new.tool_calls for new in news)
    news.append(stream.finish(whole))
    parts = [
        (kind, said) for new in news for kind, said in (("reasoning", new.reasoning), ("content", new.content)) if said
    ]
    assert [kind for kind, _ in parts] == sorted((kind for kind, _ in parts), reverse=True), "content before reasoning"
    assert "".join(said for kind, said in parts if kind == "reasoning") == whole.reasoning
    assert "".join(said for kind, said in parts if kind == "content") == whole.content
    assert news[-1].tool_calls == whole.tool_calls
