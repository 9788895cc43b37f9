"""Template options that keep what a model reasoned in its history, found by trying.

Invariant: an option is taken only when more appends leave the earlier text as it was, none that did before stops doing
so, the generation prompt is the same, and no role leaves the append surface.
"""

from __future__ import annotations

from functools import partial

from jinja2 import nodes

from miles_lite.process.json_types import JsonMapping
from miles_lite.tito.chat_messages import Form, normalise
from miles_lite.tito.encode import Encoder
from miles_lite.tito.laws import find_form, verify
from miles_lite.tito.render import JinjaRenderer, Renderer, environment, syntax, unless_refused
from miles_lite.tito.surface import AppendSurface
from miles_lite.tito.verification_cases import boundaries

_GIVEN = frozenset(
    "messages tools documents add_generation_prompt bos_token eos_token pad_token unk_token strftime_now "
    "raise_exception enable_thinking thinking reasoning_effort".split()
)
"""Names that carry the conversation, or choose how a model thinks: never tried."""


def verify_best(
    renderer: Renderer, encoder: Encoder, *, options: JsonMapping | None = None
) -> tuple[AppendSurface, Form]:
    """The surface under `options` and whatever further option keeps history. Raises RenderError."""
    given, form = dict(options or {}), find_form(renderer)
    best = verify(renderer, encoder, form=form, options=given)
    if best.join is None:
        return best, form
    stable = _stable(renderer, form, given)
    for name in _switches(renderer):
        for value in (False, True):
            if name in given:
                break
            tried = {**best.kwargs, name: value}
            now = _stable(renderer, form, tried)
            if not now > stable:
                continue
            surface = verify(renderer, encoder, form=form, options=tried)
            kept = [role for role, verdict in best.roles.items() if verdict.law is None]
            if surface.opening == best.opening and surface.proved(kept):
                best, stable = surface, now
                break
    return best, form


def _switches(renderer: Renderer) -> list[str]:
    """Names the template reads that nobody sets; those it sets itself only where it asks whether they are given."""
    if not isinstance(renderer, JinjaRenderer):
        return []
    tree = syntax(renderer.template)
    own = {name.name for name in tree.find_all(nodes.Name) if name.ctx in ("store", "param")}
    asked = [test.node for test in tree.find_all(nodes.Test) if test.name in ("defined", "undefined")]
    asked += [given.node for given in tree.find_all(nodes.Filter) if given.name in ("default", "d") and given.node]
    own -= {node.name for node in asked if isinstance(node, nodes.Name)}
    return sorted(renderer.reads - own - _GIVEN - set(renderer.variables) - set(environment().globals))


def _stable(renderer: Renderer, form: Form, options: JsonMapping) -> frozenset[tuple[str, int]]:
    """The boundaries at which the history's text, reasoning included, begins the text of the whole."""
    found = set()
    for role in ("user", "tool"):
        for number, boundary in enumerate(boundaries(role)):
            if "Why0" not in str(boundary.history):
                continue
            history = [normalise(message, form) for message in boundary.history]
            whole = history + [normalise(message, form) for message in boundary.appended]
            render = partial(renderer.render, tools=boundary.tools, options=options)
            before = unless_refused(partial(render, history, open_turn=False))
            after = unless_refused(partial(render, whole, open_turn=True))
            if before is not None and after and "Why0" in after and after.startswith(before):
                found.add((role, number))
    return frozenset(found)
