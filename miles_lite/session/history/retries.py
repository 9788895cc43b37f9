"""Which turn a request asks for again: what is provably a retry, and what is one more question like another.

Invariant: a turn gives way to another only where it is known that the two answer one request: by an idempotency key, by
the client's word that it sends it again, or because no client got the first answer. Requests that are merely alike are
independent, and so are their answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from miles_lite.session.history.tree import Tree
from miles_lite.session.history.turn_record import Turn
from miles_lite.session.journal.row import Receipt
from miles_lite.session.shared_request import Ask, Call


@dataclass(slots=True)
class Retries:
    """Of one session.

    `receipts` belong to the tree's turns, one each. `unheard` are the numbers of turns whose answer no client is known
    to have; of the first `restored` turns nobody knows. `owed` are the identities of requests that failed: their retry
    is not an earlier request's that was alike. `calls` are under way, or not delivered.
    """

    receipts: list[Receipt] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    unheard: set[int] = field(default_factory=set)
    owed: set[bytes] = field(default_factory=set)
    restored: int = 0

    def committed(self, turn: Turn, receipt: Receipt) -> None:
        """Whoever sends a conversation on has heard the turn before."""
        self.receipts.append(receipt)
        self.owed.discard(receipt.identity)
        self.unheard.discard(turn.parent.number if turn.parent else -1)
        self.unheard.add(turn.number)

    def over(self, call: Call) -> None:
        """A call is delivered, failed, or given up."""
        if call in self.calls:
            self.calls.remove(call)
        if call.turn is None:
            self.owed.add(call.identity)
        elif call.delivered:
            self.unheard.discard(call.turn)

    def call_of(self, ask: Ask) -> Call | None:
        """The newest undelivered call of a repeated request; sooner one that nobody listens to."""
        if not (ask.keyed or ask.retried):
            return None
        calls = [call for call in reversed(self.calls) if call.identity == ask.identity]
        return next((call for call in calls if not call.listeners), calls[0] if calls else None)

    def turn_of(self, ask: Ask, tree: Tree, *, since: float) -> Turn | None:
        """The newest turn that answered a repeated request.

        With an idempotency key any; else one unheard, or one that was answered `since` then, in seconds since the
        epoch, and that nobody went on from: that an answer was written out does not mean that it arrived.
        """
        if not (ask.keyed or ask.retried):
            return None
        same = [turn for turn in reversed(tree.turns) if self.receipts[turn.number].identity == ask.identity]
        found = next((turn for turn in same if ask.keyed or turn.number in self.unheard), None)
        if found is not None or ask.identity in self.owed:
            return found
        return next((turn for turn in same if turn.output.finished >= since and not tree.children(turn)), None)

    def superseded_by(self, ask: Ask, alike: Sequence[Turn]) -> int | None:
        """The turn that a request, which is answered anew, makes void; `alike` were asked the same at the same place.

        One that its client says to repeat, or one whose answer got lost.
        """
        if ask.retried and ask.identity not in self.owed:
            same = [number for number, receipt in enumerate(self.receipts) if receipt.identity == ask.identity]
            if same:
                return same[-1]
        return next((turn.number for turn in reversed(alike) if self._lost(turn)), None)

    def _lost(self, turn: Turn) -> bool:
        heard = any(call.listeners for call in self.calls if call.turn == turn.number)
        return turn.number >= self.restored and turn.number in self.unheard and not heard
