"""Where a request belongs in its session's tree, and the ids that it adds to its context there.

Invariant: reads only. Under `fork` every request has a place; under `linear` one that breaks its rules is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from miles_lite.session.dialects.request import ChatRequest
from miles_lite.session.errors import bad_request, context_exceeded
from miles_lite.session.history import linear
from miles_lite.session.history.agent_identity import caller_of
from miles_lite.session.history.tree import Place, Tree
from miles_lite.tito import History, RenderError, Suffix, SuffixError, Tito
from miles_lite.tito.encode import TooLongError


@dataclass(frozen=True, slots=True)
class Placed:
    """`suffix` is what this turn adds to the context at `place`."""

    place: Place
    suffix: Suffix

    @property
    def tokens(self) -> int:
        """Of the whole context."""
        before = self.place.turn.end - self.suffix.drop if self.place.turn else 0
        return before + len(self.suffix.ids)


class Placer:
    """Attaches requests under one history policy."""

    def __init__(self, tito: Tito, *, roles: Sequence[str], policy: str, context_length: int) -> None:
        """`roles` may be appended; `policy` is v1 (linear) or v2 (fork)."""
        self._tito, self._context_length = tito, context_length
        self._roles = frozenset({"tool", *roles})
        self._linear = policy == "v1"

    def place(self, tree: Tree, request: ChatRequest) -> Place:
        """Raises ApiError 400 for what the policy refuses."""
        caller = caller_of(request.agent, request.tools, request.options)
        if not self._linear:
            return tree.attach(request.messages, caller)
        roles = partial(self._tito.roles, options=request.options)
        return linear.place(tree, request.messages, caller, allowed=self._roles, roles=roles)

    def tokenise(self, tree: Tree, request: ChatRequest, place: Place) -> Placed:
        """The ids that follow at `place`, or those of the whole conversation as a new root.

        Raises ApiError 400 for what the template refuses, and for what is far too long.
        """
        try:
            return self._restored(tree, request, place) or self._suffixed(tree, request, place)
        except RenderError as error:
            raise bad_request(f"the chat template refuses these messages: {error}", param="messages") from error
        except TooLongError as error:
            raise context_exceeded(self._context_length, f"at least {error.tokens}") from error

    def reanchor(self, request: ChatRequest) -> Placed:
        """The whole conversation as a new root, for an engine that refuses to go on from where it was."""
        suffix = self._tito.first(request.messages, tools=request.tools, options=request.options)
        caller = caller_of(request.agent, request.tools, request.options)
        return Placed(Place(None, 0, caller, root="reanchored"), suffix)

    def _restored(self, tree: Tree, request: ChatRequest, place: Place) -> Placed | None:
        """After the very ids that another session's turn was asked with, where this asks the same at its place."""
        asked = (place.caller, tuple(request.messages[place.matched :]))
        siblings = tree.children(place.turn) if tree.restored else ()
        for turn in siblings:
            alike = turn.number < tree.restored and turn.caller.options == place.caller.options
            if alike and (turn.caller, turn.messages) == asked:
                return Placed(replace(place, root=turn.root), self._tito.as_suffix(turn.prompt_ids, turn.drop))
        return None

    def _suffixed(self, tree: Tree, request: ChatRequest, place: Place) -> Placed:
        reason = "diverged" if tree.turns else "first"
        if place.turn is not None:
            appended = request.messages[place.matched :]
            roles = self._tito.roles(appended, request.options)
            if not self._tito.begin_alike(place.turn.caller.options, request.options):
                reason, why = "options", "under other template options the conversation begins otherwise"
            elif roles <= self._roles and self._tito.proved(sorted(roles), request.options):
                try:
                    history = History(place.turn.reply, partial(tree.history, place.turn))
                    stop = place.turn.output.stop
                    suffix = self._tito.append(
                        history, appended, stop=stop, tools=request.tools, options=request.options
                    )
                    return Placed(place, suffix)
                except SuffixError as error:
                    reason, why = "no_suffix", str(error)
            else:
                reason, why = "role", f"the roles {', '.join(sorted(roles))} are not proved for this template"
            if self._linear:
                raise bad_request(f"these messages cannot be appended: {why}", param=f"messages[{place.matched}]")
        suffix = self._tito.first(request.messages, tools=request.tools, options=request.options)
        return Placed(Place(None, 0, place.caller, root=reason), suffix)
