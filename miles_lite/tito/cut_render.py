"""The chat template's render of a conversation, cut at the replies that a model sampled.

Between two replies is a frame: what template and harness wrote, the header of the reply's turn included. Replies are
found by rendering twice, plainly and with an anchor at the end of every reply; the text between anchors is the same.

Invariant: frames and replies, end to end, are the plain render; where the two renders disagree, nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from miles_lite.process.json_types import JsonMapping, JsonObject
from miles_lite.tito.chat_messages import Message, Tools, normalise
from miles_lite.tito.render import unless_refused
from miles_lite.tito.short_context import short_history
from miles_lite.tito.suffix import Cut, SuffixError, in_arguments, in_content
from miles_lite.tito.tito import Tito

PROMPT_END = 16
"""Tokens at the end of a prompt among which its generation prompt is looked for."""


class CompareError(ValueError):
    """The template's render cannot be cut at the replies; the text says at which."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """The model wrote messages[message] as ids[start:end], the stop token left out."""

    message: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Opening:
    """What a generation prompt ends in: the `header` that every assistant turn has, then what begins its reasoning.

    `header` is empty where it holds no control token, and so could be any text.
    """

    header: str
    reasoning: str


@dataclass(frozen=True, slots=True)
class Canonical:
    """The render, cut: a frame before each reply and one after the last. Control-token look-alikes hold `mark`."""

    frames: list[str]
    replies: list[str]
    mark: str


def canonical(
    tito: Tito,
    messages: Sequence[Message],
    sampled: Sequence[Sampled],
    frames: Sequence[Sequence[int]],
    *,
    tools: Tools | None,
    options: JsonMapping,
    open_turn: bool,
) -> Canonical:
    """Render `messages` and cut at `sampled`. Raises CompareError, RenderError.

    A reply begins after the assistant header of its turn. Where the template prints none (some go on after a tool
    result), it begins after as many control tokens as the session's own frame, of `frames`, holds.
    """
    arranged = tito.arranged(messages, options, begins=True)
    shaped = [normalise(message, tito.form) for message in arranged.messages]
    sampled = [replace(each, message=each.message - arranged.joined) for each in sampled]
    plain, mark = _render(tito, shaped, tools, options, open_turn)
    anchored, anchors = _anchored(tito, shaped, sampled, tools, options, open_turn)
    header = opening_of(tito, options).header
    found, done, before = [], 0, -1
    for (place, anchor), own in zip(anchors, frames, strict=False):
        if anchored.count(anchor) != 1:
            raise CompareError(f"messages[{place}]: the template does not print the end of this turn exactly once")
        end = anchored.index(anchor)
        turns = sum(message["role"] == "assistant" for message in shaped[before + 1 : place + 1])
        piece = anchored[done:end]
        found.append(piece[: _reply_start(tito, piece, header, turns, own)])
        rest = _rest_of_call(tito, shaped[place], tools, options) if shaped[place].get("tool_calls") else ""
        done, before = end + len(anchor), place
        done += len(rest) if anchored.startswith(rest, done) else 0
    found.append(anchored[done:])
    return Canonical(found, list(_between(plain, found, sampled)), mark)


def opening_of(tito: Tito, options: JsonMapping) -> Opening:
    """The generation prompt under these template options, divided where turns of a history go on differently.

    A control token that is not flagged special, such as <think>, never belongs to the header.
    """
    whole, encoder = tito.surface_for(options).opening, tito.encoder
    inner = (each.start() for each in encoder.control_pattern.finditer(whole) if each.start())
    marks = [start for start in inner if encoder.control_at(whole, start) not in encoder.special]
    pairs = zip(encoder.encode(whole), encoder.encode(_begun_turn(tito, options)), strict=False)
    common = encoder.decode([left for left, right in takewhile(lambda pair: pair[0] == pair[1], pairs)])
    size = min([*marks, len(common) if common and whole.startswith(common) else len(whole)])
    if encoder.control_pattern.search(whole, 0, size) is None:  # nothing to find a turn by
        return Opening("", "")
    return Opening(whole[:size], whole[size:])


def _begun_turn(tito: Tito, options: JsonMapping) -> str:
    """What the template prints before the content of an earlier assistant turn; "" when that cannot be told."""
    said = [("user", "hi"), ("assistant", "Said0"), ("user", "go on")]
    shaped = [normalise({"role": role, "content": content}, tito.form) for role, content in said]
    texts = unless_refused(
        lambda: [_render(tito, some, None, options, open_turn=False)[0] for some in (shaped[:1], shaped)]
    )
    before, whole = texts or ("", "")
    turn, found, _ = whole.removeprefix(before).partition("Said0")
    return turn if found and whole.startswith(before) else ""


def without_reasoning(tito: Tito, frame: list[int], opening: Opening) -> tuple[list[int], list[int]]:
    """A frame of ids and what its generation prompt says of the reasoning, which belongs to the reply."""
    size = len(tito.encoder.encode(opening.reasoning)) if opening.reasoning else 0
    if size and tito.encoder.decode(frame[-size:]) == opening.reasoning:
        return frame[:-size], frame[-size:]
    return frame, []


def written(
    tito: Tito, messages: Sequence[Message], prompt: Sequence[int], *, tools: Tools | None, options: JsonMapping
) -> str:
    """What a model writes after `prompt`, the ids of all messages but the last, to be printed as the last.

    Raises CompareError, RenderError.
    """
    size = len(prompt)
    frame = without_reasoning(tito, list(map(int, prompt)), opening_of(tito, options))[0]
    reply = Sampled(len(messages) - 1, size, size)
    printed = canonical(tito, messages, [reply], [frame], tools=tools, options=options, open_turn=False)
    return beyond(tito, prompt, printed.replies[-1]).replace(printed.mark, "")


def beyond(tito: Tito, prompt: Sequence[int], reply: str) -> str:
    """The reply without what the end of its prompt has said of it already."""
    end = tito.encoder.decode(list(map(int, prompt[-PROMPT_END:])))
    said = next((size for size in range(len(reply), 0, -1) if end.endswith(reply[:size])), 0)
    return reply[said:]


def _between(plain: str, frames: Sequence[str], sampled: Sequence[Sampled]) -> Iterator[str]:
    """The replies: what the plain render holds between two frames."""
    if not plain.startswith(frames[0]):
        raise CompareError("the beginning of the render depends on what the replies say")
    cursor = len(frames[0])
    for number, (reply, frame) in enumerate(zip(sampled, frames[1:], strict=True), 1):
        last = number == len(sampled)
        end = len(plain) - len(frame) if last and plain.endswith(frame) else plain.find(frame, cursor)
        if end < cursor:
            raise CompareError(f"messages[{reply.message}]: what follows this turn depends on what it says")
        yield plain[cursor:end]
        cursor = end + len(frame)


def _render(
    tito: Tito, shaped: list[JsonObject], tools: Tools | None, options: JsonMapping, open_turn: bool
) -> tuple[str, str]:
    (guarded, tool_list), mark = tito.guard((shaped, tools))
    merged = {**tito.surface.kwargs, **options}
    return tito.renderer.render(guarded, tools=tool_list, open_turn=open_turn, options=merged), mark


def _anchored(
    tito: Tito,
    shaped: list[JsonObject],
    sampled: Sequence[Sampled],
    tools: Tools | None,
    options: JsonMapping,
    open_turn: bool,
) -> tuple[str, list[tuple[int, str]]]:
    """The render with an anchor at the end of each reply: in its last call, or its content where no call is printed."""
    anchors = [(each.message, f"Zq{each.message}reply{each.message}qZ") for each in sampled]
    for put_call in (in_arguments, in_content):
        anchored = list(shaped)
        for place, anchor in anchors:
            put = put_call if shaped[place].get("tool_calls") else in_content
            anchored[place] = put(shaped[place], anchor)
        text, _ = _render(tito, anchored, tools, options, open_turn)
        if all(anchor in text for _, anchor in anchors):
            break
    return text, anchors


def _rest_of_call(tito: Tito, reply: JsonObject, tools: Tools | None, options: JsonMapping) -> str:
    """What the template prints between the last argument of a turn's last call and the closing of the turn.

    Some templates print the content there, after the calls (Gemma).
    """
    anchor, user = "ZqcallqZ", short_history(reply, tito.form)[0]
    text, _ = _render(tito, [user, in_arguments(reply, anchor)], tools, options, open_turn=False)
    tail = text.partition(anchor)[2]
    join = tito.surface_for(options).join
    if join is None or not tail:
        return ""
    try:
        closing = join.after(Cut(tail, ""), tito.encoder.control_pattern).closing
    except SuffixError as error:
        raise CompareError(str(error)) from error
    return tail[: len(tail) - len(closing)]


def _reply_start(tito: Tito, piece: str, header: str, nth: int, own: Sequence[int]) -> int:
    """Where, in the text before a reply's end, the reply begins: after the `nth` assistant header."""
    position = 0
    for _ in range(nth):
        found = piece.find(header, position) if header else -1
        if found < 0:
            return _after_same_frame(tito, piece, own)
        position = found + len(header)
    return position


def _after_same_frame(tito: Tito, piece: str, own: Sequence[int]) -> int:
    control = set(tito.encoder.control.values())
    places = [place for place, token in enumerate(own) if token in control]
    matches = list(tito.encoder.control_pattern.finditer(piece))[: len(places)]
    end = matches[-1].end() if matches else 0
    text = tito.encoder.decode(own[places[-1] + 1 :] if places else own)
    return end + len(text) if piece.startswith(text, end) else end
