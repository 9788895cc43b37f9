"""A recorded conversation that goes on: with an answer of its own to a recorded turn, or with what somebody says next.

Invariant: the session was opened with the recorded turns and is sent their messages as they were, so that it goes on
from their very tokens; nothing that was recorded is written.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from miles_lite.agent.conversation import raw
from miles_lite.agent.repl import read_line
from miles_lite.agent.session_client import AgentSession
from miles_lite.process.json_types import JsonMapping, JsonObject
from miles_lite.traces import atraj
from miles_lite.traces.atraj import Trajectory


@dataclass
class Replayed:
    """`messages` so far, of which so many were `sampled` here; `spell` makes them fit for a terminal."""

    session: AgentSession
    messages: list[JsonObject]
    max_tokens: int | None
    spell: Callable[[str], str] = str
    sampled: int = 0

    def answer(self) -> str:
        """What the model says next. Raises ContextFull, UserError."""
        reply = self.session.chat(self.messages, max_tokens=self.max_tokens)
        self.messages.append(reply)
        self.sampled += 1
        return raw(reply)

    def say(self, text: str) -> str:
        """One user turn, and its answer. Raises as `answer` does."""
        self.messages.append({"role": "user", "content": text.encode(errors="replace").decode()})
        return self.answer()

    def interact(self) -> None:
        """What was said so far, an answer where one is due, and then user turns until the end of input. Raises as
        `answer` does."""
        for message in self.messages:
            print(f"{message['role']}> {self.spell(raw(message))}", file=sys.stderr)
        answer = self.answer() if due(self.messages) else None
        while True:
            if answer is not None:
                print(f"assistant> {self.spell(answer)}", flush=True)
            text = read_line("you> ")
            if text is None or text.strip() == ":quit":
                return
            answer = self.say(text) if text.strip() else None

    def trajectory(self, metadata: JsonMapping) -> Trajectory | None:
        """All that was told and sampled, up to what was sampled last; None where nothing was."""
        if not self.sampled:
            return None
        turns = self.session.turns()
        return atraj.build({**turns, "leaves": [len(turns["turns"]) - 1]}, metadata=metadata)


def due(messages: Sequence[JsonMapping]) -> bool:
    """Whether it is the model's turn."""
    return not messages or messages[-1]["role"] != "assistant"
