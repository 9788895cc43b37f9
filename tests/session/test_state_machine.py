"""Whatever a harness does, against an oracle that remembers everything the engine saw and said.

The oracle knows no hashes, no tree and no arrays: it compares whole conversations, and looks every trained token up in
the log of the engine. Each generation has a weight version of its own, so a token says which one it comes from.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from miles_lite.config.session_options import Session as SessionOptions
from miles_lite.sample import NOT_SAMPLED
from miles_lite.session.dialects.request import ChatRequest
from miles_lite.session.engine.engine_client import EngineCalls, Generation, OnTokens
from miles_lite.session.errors import ApiError
from miles_lite.session.history.match import MATCHERS
from miles_lite.session.off_loop import OffLoop
from miles_lite.session.service import Service
from miles_lite.session.shared_request import Ask
from miles_lite.tito import Tito
from tests.session.engine import STOP
from tests.session.trees import fingerprint, user

T = TypeVar("T")
Message = dict[str, Any]
TOOLS = [{"type": "function", "function": {"name": "run", "parameters": {"type": "object"}}}]
AGENTS = (None, "helper")


@dataclass
class Seen:
    """One generation: what the engine was given and what it said, and who had asked what."""

    prompt: list[int]
    said: list[int]
    agent: str | None = None
    conversation: list[Message] = field(default_factory=list)
    reply: Message = field(default_factory=dict)
    parent: int | None = None
    step: int = 0
    identity: bytes = b""
    supersedes: int | None = None


class Engines(EngineCalls):
    """Says `text`, cut before its stop token when `cut`; or fails, or hangs. Beneath the service under test."""

    def __init__(self, tito: Tito) -> None:
        """No client is made: nothing goes over HTTP."""
        self.tito, self.log, self.mood = tito, list[Seen](), "well"

    async def generate(
        self,
        prompt: bytes,
        params: Mapping[str, Any],
        *,
        tokens: int,
        key: str,
        on_tokens: OnTokens | None = None,
        experts_from: int = 0,
    ) -> Generation:
        mood, version = self.mood, len(self.log)
        if mood == "fails":
            raise ApiError(502, "no engine answered", code="engine_unreachable")
        if mood == "hangs":
            await asyncio.sleep(60)
        ids = list(map(int, self.tito.encoder.encode(_text(version, mood))))
        cut = mood == "cut"
        said = ids if cut else [*ids, STOP]
        given = json.loads(b"[%b]" % prompt)
        assert len(given) == tokens
        self.log.append(Seen(given, said))
        await asyncio.sleep(0)
        finish = {"type": "length"} if cut else {"type": "stop", "matched": STOP}
        spans = [(version, 0, len(said))]
        ids_of, logprobs = np.asarray(said, np.int32), np.full(len(said), -0.5, np.float32)
        return Generation(ids=ids_of, logprobs=logprobs, spans=spans, finish=finish)


def _text(version: int, mood: str) -> str:
    if mood == "calls":
        call = json.dumps({"name": "run", "arguments": {"a": version, "b": [1]}})
        return f"<think>\nwhy {version}\n</think>\n\n<tool_call>\n{call}\n</tool_call>"
    return f"<think>\nwhy {version}\n</think>\n\nanswer {version}" if mood == "thinks" else f"answer {version}"


def canonical(message: Message, *, given: bool) -> tuple[Any, ...]:
    calls = [
        (call["id"], call["function"]["name"], given or json.loads(call["function"]["arguments"]))
        for call in message.get("tool_calls") or []
    ]
    return message["role"], (message.get("content") or "").strip(), calls, message.get("tool_call_id")


def same(stored: Message, replayed: Message, *, given: bool) -> bool:
    """Reasoning may be left out; all else must be equal, but for the arguments of calls that were `given` out."""
    if canonical(stored, given=given) != canonical(replayed, given=given):
        return False
    return replayed.get("reasoning_content") in (None, stored.get("reasoning_content"))


class OnLoop(OffLoop):
    """Requests are placed in the order in which they were sent, however long it takes."""

    async def run(self, work: Callable[[], T], *, heavy: bool) -> T:
        return work()


class Harness(RuleBasedStateMachine):
    """Each rule is something that harnesses do. `open` are the conversations that a harness may go on with."""

    tito: Tito

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.engines = Engines(self.tito)
        own = SessionOptions(tito_allowed_append_roles=("tool", "user"), session_disconnect_grace=0.0)
        self.service = Service(self.tito, self.engines, options=own, matcher=MATCHERS["replay"], context_length=100_000)
        self.service.turns.off_loop = OnLoop()
        self.session = self.loop.run_until_complete(self.service.create({"temperature": 1.0, "max_new_tokens": 500}))
        self.open: list[tuple[str | None, list[Message]]] = []
        self.step = 0

    def teardown(self) -> None:
        self.loop.run_until_complete(self.service.close())
        self.loop.close()

    @rule(agent=st.sampled_from(AGENTS), system=st.integers(0, 1), question=st.integers(0, 1))
    def begins(self, agent: str | None, system: int, question: int) -> None:
        self.ask((agent, [{"role": "system", "content": f"s{system}"}, user(f"u{question}")]))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), mood=st.sampled_from(["well", "calls", "thinks", "cut"]), form=st.integers(0, 3))
    def goes_on(self, data: st.DataObject, mood: str, form: int) -> None:
        agent, messages = data.draw(st.sampled_from(self.open))
        self.engines.mood = mood
        self.ask((agent, [*messages[:-1], _respelled(messages[-1], form), *_next(messages[-1], self.step)]))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), retried=st.booleans())
    def asks_again(self, data: st.DataObject, retried: bool) -> None:
        agent, messages = data.draw(st.sampled_from(self.open))
        self.ask((agent, messages[:-1]), retried=retried)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), what=st.sampled_from(["content", "reasoning_content", "tool_calls"]))
    def edits(self, data: st.DataObject, what: str) -> None:
        agent, messages = data.draw(st.sampled_from(self.open))
        place = data.draw(st.integers(0, len(messages) - 1))
        changed = _changed(messages[place], what, self.step)
        self.ask((agent, [*messages[:place], changed, *messages[place + 1 :], *_next(messages[-1], self.step)]))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def goes_back(self, data: st.DataObject) -> None:
        agent, messages = data.draw(st.sampled_from(self.open))
        ends = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        end = data.draw(st.sampled_from(ends))
        self.ask((agent, [*messages[: end + 1], *_next(messages[end], self.step)]))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def compacts(self, data: st.DataObject) -> None:
        agent, messages = data.draw(st.sampled_from(self.open))
        tail = [messages[-1], *_next(messages[-1], self.step)]
        self.ask((agent, [messages[0], user(f"summary of {len(messages)}"), *tail]))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def calls_a_helper_with_what_was_said(self, data: st.DataObject) -> None:
        _, messages = data.draw(st.sampled_from(self.open))
        self.ask(("helper", [*messages, *_next(messages[-1], self.step)]))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def appends_a_role_that_is_not_declared(self, data: st.DataObject) -> None:
        agent, messages = data.draw(st.sampled_from(self.open))
        answers = [message for message in _next(messages[-1], self.step) if message["role"] == "tool"]
        self.ask((agent, [*messages, *answers, {"role": "system", "content": f"rule {self.step}"}, user("so?")]))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), same=st.booleans())
    def works_in_parallel(self, data: st.DataObject, same: bool) -> None:
        agent, messages = data.draw(st.sampled_from(self.open))
        more = [[*messages, *_next(messages[-1], 0 if same else 10 * self.step + n)] for n in range(3)]
        self.ask(*[(agent, each) for each in more])

    @precondition(lambda self: self.open)
    @rule(data=st.data(), mood=st.sampled_from(["fails", "hangs"]))
    def meets_an_engine_that_does_not_answer(self, data: st.DataObject, mood: str) -> None:
        agent, messages = data.draw(st.sampled_from(self.open))
        self.engines.mood = mood
        tree = self.loop.run_until_complete(self.service.tree(self.session))
        before = fingerprint(tree)
        request = [*messages, *_next(messages[-1], self.step)]
        outcome = self.loop.run_until_complete(self.one((agent, request), give_up=mood == "hangs"))
        assert isinstance(outcome, ApiError)
        assert fingerprint(tree) == before
        self.engines.mood = "well"

    def ask(self, *requests: tuple[str | None, list[Message]], retried: bool = False) -> None:
        """Send requests at once, and check where the turns went and what the engine was given."""
        self.step += 1
        first, known = len(self.engines.log), len(self.engines.log)
        expected = [self.parent(agent, messages, known) for agent, messages in requests]

        async def together() -> list[Any]:
            return await asyncio.gather(*[self.one(request, retried=retried) for request in requests])

        outcomes = self.loop.run_until_complete(together())
        self.engines.mood = "well"
        for number, ((agent, messages), outcome, parent) in enumerate(zip(requests, outcomes, expected, strict=True)):
            assert not isinstance(outcome, ApiError), outcome
            seen = self.engines.log[first + number]
            seen.agent, seen.conversation, seen.reply, seen.step = agent, messages, outcome, self.step
            seen.parent, seen.identity = parent, _identity(agent, messages)
            if retried:
                seen.supersedes = self.newest(seen.identity, first)
            tree = self.loop.run_until_complete(self.service.tree(self.session))
            turn = next(turn for turn in tree.turns if turn.output.spans[0][0] == first + number)
            found = None if turn.parent is None else turn.parent.output.spans[0][0]
            assert found == parent, f"generation {first + number} went behind {found}, not {parent}"
            if parent is not None:
                before = self.engines.log[parent]
                assert seen.prompt[: len(before.prompt) + len(before.said)] == before.prompt + before.said
            self.open = [*self.open[-7:], (agent, [*messages, outcome])]

    async def one(
        self, request: tuple[str | None, list[Message]], *, give_up: bool = False, retried: bool = False
    ) -> Any:
        agent, messages = request
        chat = ChatRequest(
            messages=json.loads(json.dumps(messages)),
            tools=TOOLS,
            callable_tools=TOOLS,
            options={},
            stream=False,
            logprobs=False,
            body={},
            agent=agent,
        )
        ask = Ask(_identity(agent, messages), retried=retried)
        call = await self.service.turns.call(self.session, chat, ask, prefix="x-")
        try:
            if give_up:
                await asyncio.sleep(0)
                call.abort()
            return (await call.answer()).message
        except ApiError as error:
            return error
        finally:
            call.deliver()

    def parent(self, agent: str | None, messages: list[Message], known: int) -> int | None:
        """The generation that the request goes on from: the longest whole conversation that begins it, else none."""
        best, length = None, 0
        for number, seen in enumerate(self.engines.log[:known]):
            whole = self.whole(number)
            size = len(whole)
            if seen.agent == agent and size >= length and size <= len(messages):
                pairs = zip(whole, messages[:size], strict=True)
                if all(same(mine, theirs, given=given) for (mine, given), theirs in pairs):
                    best, length = number, size
        declared = all(message["role"] in ("tool", "user") for message in messages[length:])
        return best if declared else None

    def whole(self, number: int) -> list[tuple[Message, bool]]:
        """A generation's conversation as the session holds it, its reply included, and what of it the session gave."""
        seen = self.engines.log[number]
        before = [] if seen.parent is None else self.whole(seen.parent)
        return [*before, *((message, False) for message in seen.conversation[len(before) :]), (seen.reply, True)]

    def superseded(self, number: int) -> bool:
        """Its request was sent again, by the client's own word, and nobody went on from it."""
        log = self.engines.log
        return not any(other.parent == number for other in log) and any(other.supersedes == number for other in log)

    def repeats(self, number: int) -> bool:
        """It says what an earlier answer to the same prompt said, and nobody went on from it but from that answer."""
        log, seen = self.engines.log, self.engines.log[number]
        if any(other.parent == number for other in log):
            return False
        return any(
            (other.prompt, other.said, other.agent) == (seen.prompt, seen.said, seen.agent)
            and any(later.parent == earlier for later in log)
            for earlier, other in enumerate(log[:number])
        )

    def newest(self, identity: bytes, known: int) -> int | None:
        """The latest generation for a request."""
        return next((n for n in reversed(range(known)) if self.engines.log[n].identity == identity), None)

    @invariant()
    def every_token_is_trained_once_behind_what_the_engine_saw(self) -> None:
        samples = self.loop.run_until_complete(self.service.samples(self.session, max_seq_len=None))
        log, trained = self.engines.log, [0] * len(self.engines.log)
        for sample in samples:
            versions = sample.weight_versions
            for version in set(versions.tolist()) - {NOT_SAMPLED}:
                places = np.flatnonzero(versions == version)
                assert sample.tokens[: places[0]].tolist() == log[version].prompt
                assert sample.tokens[places].tolist() == log[version].said[: len(places)]
                trained[version] += int(sample.loss_mask[places].sum())
            assert not sample.loss_mask[versions == NOT_SAMPLED].any()
            assert not self.superseded(int(versions[versions != NOT_SAMPLED][-1]))
        for number, seen in enumerate(log):
            spare = self.superseded(number) or self.repeats(number)
            assert trained[number] in ((0, len(seen.said)) if spare else (len(seen.said),))
        again = self.loop.run_until_complete(self.service.samples(self.session, max_seq_len=None))
        assert [sample.tokens.tolist() for sample in again] == [sample.tokens.tolist() for sample in samples]


def _identity(agent: str | None, messages: list[Message]) -> bytes:
    return json.dumps([agent, messages]).encode()


def _respelled(reply: Message, form: int) -> Message:
    """The reply as clients send it back."""
    if form == 0:
        return reply
    if form == 1:
        return {key: value for key, value in reply.items() if key != "reasoning_content"}
    if form == 2:
        return {**reply, "refusal": None, "content": f" {reply['content']}\n" if reply["content"] else None}
    calls = []
    for call in reply.get("tool_calls") or []:
        arguments = json.dumps(json.loads(call["function"]["arguments"]), indent=1)
        calls.append({**call, "index": 0, "function": {"name": "run", "arguments": arguments}})
    return {**reply, "tool_calls": calls}


def _changed(message: Message, what: str, step: int) -> Message:
    """The message with another content, or another reasoning or other calls where it has some."""
    if what == "reasoning_content" and message.get(what):
        return {**message, what: f"edited {step}"}
    if what == "tool_calls" and message.get(what):
        call = message[what][0]
        return {**message, what: [{**call, "function": {"name": "run", "arguments": f'{{"a": "edited {step}"}}'}}]}
    return {**message, "content": f"edited {step}"}


def _next(reply: Message, step: int) -> list[Message]:
    """What comes after a reply: the results of its calls, or a question."""
    calls = reply.get("tool_calls") or []
    results = [{"role": "tool", "tool_call_id": call["id"], "content": f"result {step}"} for call in calls]
    return results or [user(f"more {step}")]


def test_whatever_a_harness_does_nothing_is_lost_or_trained_twice(tito: Tito) -> None:
    Harness.tito = tito
    run_state_machine_as_test(
        Harness,
        settings=settings(
            max_examples=30, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
