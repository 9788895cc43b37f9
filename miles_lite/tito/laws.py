"""Laws that prove, before the first rollout, which roles may be appended after an assistant turn of a given template.

    renders     the template renders the role at all (what it refuses by an error of its own is no boundary)
    anchor/tail the renders give a suffix at all (see suffix.py)
    native      the native render of the whole conversation ends with the suffix
    conserve    every appended content is in the suffix once and in order; so is reasoning, if the template prints any
    no-leak     nothing old is in the suffix
    prefix      the messages before it that no assistant wrote are printed as before
    opens       it ends with the generation prompt (tool and assistant: a warning, some models go on without one)
    closes      a turn ends in the plain closing, or in a control token of its own
    seam        encode(turn) + encode(what follows its stop token) = encode(both)

Invariant: a role is in the surface only when every boundary tried keeps every law.
"""

from __future__ import annotations

from collections.abc import Sequence

from miles_lite.process.json_types import Json, JsonMapping, JsonObject
from miles_lite.tito.chat_messages import Form, normalise
from miles_lite.tito.encode import Encoder
from miles_lite.tito.render import Renderer, RenderError, unless_refused
from miles_lite.tito.short_context import short_history
from miles_lite.tito.suffix import Cut, Join, SuffixError, cut
from miles_lite.tito.surface import AppendSurface, Context, Verdict
from miles_lite.tito.verification_cases import ROLES, TOOLS, Boundary, boundaries, contents


class _Broken(ValueError):
    def __init__(self, law: str, reason: str) -> None:
        super().__init__(reason)
        self.law = law


def verify(
    renderer: Renderer, encoder: Encoder, *, form: Form | None = None, options: JsonMapping | None = None
) -> AppendSurface:
    """Try every role at boundaries with and without tools and reasoning. Raises RenderError when plain chat fails."""
    given = dict(options or {})
    try:
        laws = _Laws(renderer, encoder, form or find_form(renderer), given)
    except SuffixError as error:
        law, _, reason = str(error).partition(": ")
        return AppendSurface(dict.fromkeys(ROLES, Verdict(law, reason)), None, "", given)
    roles = {role: laws.judge(role) for role in ROLES}
    return AppendSurface(roles, laws.join, laws.opening, given, joins=not laws.takes_several())


def find_form(renderer: Renderer) -> Form:
    """What the template takes: the first form in which a plain chat and a tool call are printed."""
    return Form(arguments=_form_of_arguments(renderer), content=_form_of_content(renderer))


def _form_of_content(renderer: Renderer) -> Json:
    chat = [{"role": "user", "content": "Ask0 this."}, {"role": "assistant", "content": "Said0 so."}]
    for form in (Form(), Form(content="parts")):
        text = _try_render(renderer, chat, form, None)
        if text.count("Said0") == 1:
            return form.content
    return "text"


def _form_of_arguments(renderer: Renderer) -> Json:
    boundary = next(iter(boundaries("tool")))
    for form in (Form(), Form(arguments="text")):
        if "City0" in _try_render(renderer, [*boundary.history, *boundary.appended], form, TOOLS):
            return form.arguments
    return "object"


def _try_render(renderer: Renderer, messages: Sequence[JsonMapping], form: Form, tools: Json) -> str:
    shaped = [normalise(each, form) for each in messages]
    return unless_refused(lambda: renderer.render(shaped, tools=tools, open_turn=False, options={})) or ""


class _Laws:
    def __init__(self, renderer: Renderer, encoder: Encoder, form: Form, options: JsonObject) -> None:
        self.renderer, self.encoder, self.form, self.options = renderer, encoder, form, options
        self.control = encoder.control_pattern
        asked: JsonObject = {"role": "user", "content": "Ask0 this."}
        said: JsonObject = {"role": "assistant", "content": "Said0 so."}
        self.join = Join.of(self.cut(Boundary([asked, said], [{**asked, "content": "go on"}], None)), self.control)
        self.opening = self._opening(asked, said)
        self.reasons = self._prints_reasoning()
        self.warnings: list[str] = []

    def judge(self, role: str) -> Verdict:
        context: Context = "short"
        tried, refused, reason = list(boundaries(role)), 0, ""
        self.warnings = []
        for boundary in tried:
            try:
                found = self.check(boundary, role)
                if self.short(boundary) != self.joined(found):
                    context = "real"
            except RenderError as error:
                refused, reason = refused + 1, str(error)
            except SuffixError as error:
                law, _, why = str(error).partition(": ")
                return Verdict(law, why, context)
            except _Broken as error:
                return Verdict(error.law, str(error), context)
        if refused == len(tried):
            return Verdict("renders", reason)
        return Verdict(context=context, warning="; ".join(dict.fromkeys(self.warnings)))

    def check(self, boundary: Boundary, role: str) -> Cut:
        found = self.cut(boundary)
        suffix = found.suffix
        native = self.render([*boundary.history, *boundary.appended], boundary.tools, open_turn=True)
        if not native.endswith(suffix):
            raise _Broken("native", "the native render does not end with the suffix")
        self._conserved(boundary, suffix)
        if any(text in suffix for text in contents(boundary.history)):
            raise _Broken("no-leak", "an earlier message is printed again after the appended ones")
        before = self.render(boundary.history, boundary.tools, open_turn=False)
        if self._frames(before, boundary.history) != self._frames(native, boundary.history):
            raise _Broken("prefix", "appending changes how earlier messages are printed")
        if not (self.opening and suffix.endswith(self.opening)):
            if role in ("user", "system"):
                raise _Broken("opens", "no generation prompt follows the appended message")
            self.warnings.append("no generation prompt follows: the model goes on in the same turn")
        join = self.join.after(found, self.control)
        self._seam(native, join.glue(join.stop, suffix, self.control)[1])
        return found

    def takes_several(self) -> bool:
        """Whether several system messages at the beginning are printed each in its place, if one is."""
        system = [{"role": "system", "content": f"Sys{number} rule."} for number in range(3)]
        asked = {"role": "user", "content": "Ask0 this."}
        texts = unless_refused(
            lambda: [self.render([*system, asked], tools, open_turn=True) for tools in (None, TOOLS)]
        )
        places = [[text.find(message["content"]) for message in (*system, asked)] for text in texts or ()]
        return bool(places) and all(each[0] < 0 or each == sorted(set(each)) for each in places)

    def cut(self, boundary: Boundary) -> Cut:
        return self._cut(self._shaped(boundary.history), self._shaped(boundary.appended), boundary.tools)

    def short(self, boundary: Boundary) -> tuple[Join, str] | None:
        """Join and suffix in the short context."""
        history = short_history(boundary.history[-1], self.form)
        try:
            return self.joined(self._cut(history, self._shaped(boundary.appended), None))
        except (SuffixError, RenderError):
            return None

    def joined(self, found: Cut) -> tuple[Join, str]:
        return self.join.after(found, self.control), found.suffix

    def render(self, messages: Sequence[JsonMapping], tools: Json, *, open_turn: bool) -> str:
        return self.renderer.render(self._shaped(messages), tools=tools, open_turn=open_turn, options=self.options)

    def _shaped(self, messages: Sequence[JsonMapping]) -> list[JsonObject]:
        return [normalise(message, self.form) for message in messages]

    def _cut(self, history: list[JsonObject], appended: list[JsonObject], tools: Json) -> Cut:
        options, control = self.options, self.control
        return cut(self.renderer, history, appended, tools=tools, options=options, control=control)

    def _conserved(self, boundary: Boundary, suffix: str) -> None:
        said = [message["content"] for message in boundary.appended]
        places = [suffix.find(text) for text in said]
        if any(suffix.count(text) != 1 for text in said) or places != sorted(places):
            raise _Broken("conserve", "the content of an appended message is dropped, moved or doubled")
        thought = [text for message in boundary.appended if (text := message.get("reasoning_content"))]
        if not self.reasons or all(suffix.count(text) == 1 for text in thought):
            return
        if boundary.appended[-1]["role"] == "assistant":
            raise _Broken("conserve", "the reasoning of an appended message is dropped or doubled")
        self.warnings.append("its reasoning is dropped when a user message follows it")

    def _opening(self, asked: JsonObject, said: JsonObject) -> str:
        """What opens a reply; "" when the template leaves it to whoever asks.

        It is the generation prompt; or, without one, what ends a user message if a reply follows that at once.
        """
        closed, opened = (self.render([asked], None, open_turn=open_turn) for open_turn in (False, True))
        if opened != closed and opened.startswith(closed):
            return opened[len(closed) :]
        last = list(self.control.finditer(closed))[-1:]  # a token that ends the document (Phi-3)
        if opened != closed and last and last[0].end() == len(closed) and opened.startswith(closed[: last[0].start()]):
            return opened[last[0].start() :]
        for reply in ({**said, "reasoning_content": "Why0 think."}, said):
            whole = self.render([asked, reply], None, open_turn=False)
            if whole.startswith(opened) and whole[len(opened) :].lstrip().startswith(("Why0", "Said0")):
                return opened.rpartition(asked["content"])[2]
        return ""

    def _prints_reasoning(self) -> bool:
        """Whether any render shows the reasoning of an assistant turn."""

        def shows(boundary: Boundary) -> bool:
            text = unless_refused(lambda: self.render(boundary.history, boundary.tools, open_turn=False))
            return "Why" in (text or "")

        return any(shows(boundary) for role in ("tool", "user") for boundary in boundaries(role))

    def _frames(self, text: str, history: Sequence[JsonMapping]) -> list[tuple[str, str]]:
        """The text before all control tokens, and each message that no assistant wrote with the token before it."""
        wanted = [message["content"] for message in history if message["role"] != "assistant"]
        frames, start, opener = [], 0, ""
        for match in [*self.control.finditer(text), None]:
            end = match.start() if match else len(text)
            if start == 0 or any(content in text[start:end] for content in wanted):
                frames.append((opener, text[start:end]))
            if match:
                opener, start = match[0], match.end()
        return frames

    def _seam(self, native: str, appended: str) -> None:
        """`appended` is what follows a sampled stop token."""
        before = native[: len(native) - len(appended)]
        if [*self.encoder.encode(before), *self.encoder.encode(appended)] != list(self.encoder.encode(native)):
            raise _Broken("seam", "the tokenizer joins text across the end of a turn")
