"""What a session server keeps on disk, and what it makes of it again."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miles_lite.errors import UserError
from miles_lite.process.addresses import network_file_system
from miles_lite.session import server
from miles_lite.session.client import SessionError
from miles_lite.session.history.agent_identity import Caller
from miles_lite.session.history.turn_record import Output, pack_spans, pack_tokens
from miles_lite.session.journal.row import Entry, Receipt, from_row, to_row
from miles_lite.tito import Tito
from tests.session.engine import STOP, Bench, answer, bench, spec
from tests.session.replies import CHAT_TOOLS, saying
from tests.session.trees import new_tree
from tests.waiting import until

ASK: list[Any] = [{"role": "user", "content": "go"}]

_floats = st.floats(-50, 0, width=32)
_messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "tool"]), "content": st.text(max_size=9)}), max_size=3
)


@st.composite
def _entries(draw: st.DrawFn) -> Entry:
    logprobs = draw(st.lists(_floats, max_size=6))
    ids = draw(st.lists(st.integers(0, 2**31 - 1), min_size=len(logprobs), max_size=len(logprobs)))
    output = Output(
        token_bytes=pack_tokens(ids, logprobs),
        span_bytes=pack_spans([(draw(st.integers(0, 9)), 0, len(logprobs))]),
        finish_reason=draw(st.sampled_from(["stop", "length"])),
        stop=draw(st.none() | st.integers(0, 9)),
        started=draw(st.floats(0, 1e10)),
        finished=draw(st.floats(0, 1e10)),
        params=draw(st.dictionaries(st.sampled_from(["temperature", "top_p"]), st.floats(0, 2))),
        limit=draw(st.none() | st.integers(1, 2**31)),
    )
    receipt = Receipt(
        identity=draw(st.binary(min_size=16, max_size=16)),
        answer_id=draw(st.text(max_size=5)),
        created=draw(st.integers(0, 2**40)),
        cached_tokens=draw(st.integers(0, 99)),
        stop_sequence=draw(st.none() | st.text(max_size=3)),
    )
    return Entry(
        parent=None,
        caller=Caller(draw(st.none() | st.text(max_size=3)), draw(st.binary(min_size=16, max_size=16))),
        root=draw(st.sampled_from(["first", "role"])),
        messages=tuple(draw(_messages)),
        reply={"role": "assistant", "content": draw(st.text(max_size=9)), "tool_calls": [{"id": "c"}]},
        prompt_ids=np.asarray(draw(st.lists(st.integers(0, 2**31 - 1), max_size=6)), np.int32),
        drop=0,
        output=output,
        receipt=receipt,
        counts=draw(st.dictionaries(st.text(max_size=3), st.integers(0, 9), max_size=2)),
    )


@settings(max_examples=100, deadline=None)
@given(_entries())
def test_a_row_holds_a_turn_bit_for_bit(entry: Entry) -> None:
    again = from_row(to_row(entry))
    assert (again.receipt, again.counts) == (entry.receipt, entry.counts)
    one, other = entry.commit(new_tree()), again.commit(new_tree())
    for name in ("added", "start", "drop", "number", "caller", "root"):
        assert getattr(one, name) == getattr(other, name)
    for ours, theirs in ((one.prompt_ids, other.prompt_ids), (one.output.ids, other.output.ids)):
        assert ours.dtype == theirs.dtype == np.int32
        assert ours.tobytes() == theirs.tobytes()
    assert one.output.logprobs.tobytes() == other.output.logprobs.tobytes()
    for name in ("spans", "params", "limit", "finish_reason", "stop", "started", "finished"):
        assert getattr(one.output, name) == getattr(other.output, name)


async def _talk(b: Bench, session: str, turns: int = 2) -> list[Any]:
    messages = list(ASK)
    for _ in range(turns):
        status, got = await b.chat(session, messages, tools=CHAT_TOOLS)
        assert status == 200
        reply = got["choices"][0]["message"]
        results = [{"role": "tool", "tool_call_id": c["id"], "content": "ok"} for c in reply.get("tool_calls", ())]
        messages += [reply, *results, {"role": "user", "content": "more"}]
    return messages


async def _everything(b: Bench, session: str) -> tuple[Any, ...]:
    samples = await b.client.collect(session)
    arrays = [
        (s.tokens.tobytes(), s.logprobs.tobytes(), s.loss_mask.tobytes(), s.weight_versions.tobytes(), s.metadata)
        for s in samples
    ]
    return await b.client.describe(session), await b.client.turns(session), arrays


async def test_a_server_that_starts_again_has_everything_it_had(tiny_model: Path, tito: Tito, tmp_path: Path) -> None:
    async with bench(tiny_model, saying(tito), run_dir=tmp_path) as b:
        session = await b.client.create({"temperature": 0.7, "max_new_tokens": 400})
        messages = await _talk(b, session)
        await b.chat(session, ASK, tools=CHAT_TOOLS)
        before = await _everything(b, session)
        gone = await b.client.create()
        await b.client.delete(gone)
    async with bench(tiny_model, saying(tito), run_dir=tmp_path) as b:
        assert b.server.service is not None
        assert b.server.service.live() == 1
        assert await _everything(b, session) == before
        status, _ = await b.chat(session, messages, tools=CHAT_TOOLS, temperature=0.1)
        assert status == 200
        assert (await b.client.describe(session))["turns"][-1]["parent"] == 1
        assert b.engine.requests[0]["sampling_params"]["temperature"] == 0.7
        status, body = await b.chat(gone, ASK)
        assert (status, body["error"]["code"]) == (404, "session_not_found")


async def test_sessions_beyond_the_memory_wait_in_the_journal(tiny_model: Path, tito: Tito, tmp_path: Path) -> None:
    async with bench(tiny_model, saying(tito), run_dir=tmp_path, session_memory_gb=2e-5) as b:
        sessions = [await b.client.create() for _ in range(6)]
        talks = [await _talk(b, session) for session in sessions]
        assert b.server.service is not None
        held = b.server.service.sessions
        assert len(held.resident()) <= 2
        assert held.live() == 6
        for session, messages in zip(sessions, talks, strict=True):
            await b.chat(session, messages, tools=CHAT_TOOLS)
            assert [turn["parent"] for turn in (await b.client.describe(session))["turns"]] == [None, 0, 1]
        await asyncio.gather(*(b.client.delete(session) for session in sessions))
        assert held.live() == 0


async def test_many_requests_for_one_spilled_session_load_it_once(tiny_model: Path, tmp_path: Path) -> None:
    async with bench(tiny_model, lambda body: answer([5, STOP]), run_dir=tmp_path) as b:
        session = await b.client.create()
        await _talk(b, session)
    async with bench(tiny_model, lambda body: answer([5, STOP]), run_dir=tmp_path) as b:
        await asyncio.gather(*(b.chat(session, ASK) for _ in range(8)))
        assert len((await b.client.describe(session))["turns"]) == 10
        assert b.server.service is not None
        assert b.server.service.live() == 1


@pytest.mark.parametrize("journaled", [True, False])
async def test_idle_sessions_expire_and_deleted_ones_stay_deleted(
    tiny_model: Path, tmp_path: Path, journaled: bool
) -> None:
    run_dir = tmp_path if journaled else None
    script = lambda body: answer([5, STOP])  # noqa: E731
    async with bench(tiny_model, script, run_dir=run_dir, session_idle_seconds=0.8) as b:
        session = await b.client.create()
        await b.chat(session, ASK)
        assert b.server.service is not None
        service = b.server.service
        await until(lambda: service.live() == 0, "the session to expire")
        assert (await b.client.describe(session))["turns"] == []
        assert b.server.service.live() == 0
        assert b.server.service.stats()["sessions_expired"] == 1


async def test_unknown_sessions_are_made_by_a_post_and_empty_to_a_get(tiny_model: Path) -> None:
    async with bench(tiny_model, lambda body: answer([5, STOP])) as b:
        assert (await b.client.describe("lost"))["turns"] == []
        assert (await b.client.turns("lost"))["turns"] == []
        assert await b.client.collect("lost") == []
        assert b.server.service is not None
        assert b.server.service.live() == 0
        with pytest.raises(SessionError, match="there is no session"):
            await b.client.delete("lost")
        assert (await b.chat("lost", ASK))[0] == 200
        assert (await b.client.describe("lost"))["recreated"] is True
        (sample,) = await b.client.collect("lost")
        assert sample.metadata["recreated"] is True
        await b.client.delete("lost")
        assert (await b.chat("lost", ASK))[0] == 404


async def test_a_journal_that_another_server_has_open_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    async with bench(tiny_model, lambda body: answer([5, STOP]), run_dir=tmp_path):
        with pytest.raises(UserError, match="--session-journal-dir"):
            async with bench(tiny_model, lambda body: answer([5, STOP]), run_dir=tmp_path):
                pass


async def test_a_turn_that_cannot_be_journaled_is_not_answered(tiny_model: Path, tmp_path: Path) -> None:
    async with bench(tiny_model, lambda body: answer([5, STOP]), run_dir=tmp_path) as b:
        session = await b.client.create()
        await b.chat(session, ASK)
        before = await _everything(b, session)
        assert b.server.service is not None
        journal = b.server.service.sessions._journal
        assert journal is not None
        await journal._do(lambda db: db.execute("PRAGMA query_only = 1") and None)
        status, body = await b.chat(session, ASK)
        assert (status, body["error"]["code"]) == (503, "journal_failed")
        described, *kept = await _everything(b, session)
        assert described.pop("failure")["where"] == "session"
        assert (described, *kept) == before
        await journal._do(lambda db: db.execute("PRAGMA query_only = 0") and None)
        assert (await b.chat(session, ASK))[0] == 200


def test_a_network_file_system_is_recognised(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"/dev/a / ext4 rw 0 0\nserver:/x {tmp_path}/far nfs4 rw 0 0\n/dev/b {tmp_path}/far/near ext4 rw 0 0\n"
    )
    assert network_file_system(tmp_path / "far" / "sessions", mounts=mounts) == "nfs4"
    assert network_file_system(tmp_path / "far" / "near" / "s", mounts=mounts) is None
    assert network_file_system(tmp_path, mounts=mounts) is None


def test_the_journal_lies_on_the_nodes_own_disk(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    in_run = replace(spec(tiny_model), run_dir=str(tmp_path), index=2)
    chosen = replace(spec(tiny_model, session_journal_dir=str(tmp_path / "j")), run_dir=str(tmp_path))
    assert server.journal_path(in_run) == tmp_path / "sessions" / "sessions-2.sqlite"
    assert server.journal_path(chosen) == tmp_path / "j" / "sessions-0.sqlite"
    assert server.journal_path(spec(tiny_model)) is None
    assert server.journal_path(replace(spec(tiny_model, session_journal=False), run_dir=str(tmp_path))) is None
    monkeypatch.setattr(server, "network_file_system", lambda folder: "nfs4")
    elsewhere = server.journal_path(in_run)
    assert elsewhere is not None
    assert elsewhere.is_relative_to(tempfile.gettempdir())
    assert not elsewhere.is_relative_to(tmp_path)
    assert server.journal_path(chosen) == tmp_path / "j" / "sessions-0.sqlite"
    assert "is on nfs4: commits are slow" in caplog.text


async def test_a_journal_of_another_version_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "sessions").mkdir()
    with closing(sqlite3.connect(tmp_path / "sessions" / "sessions-0.sqlite")) as db:
        db.execute("PRAGMA user_version = 99")

    with pytest.raises(UserError, match="of version 99"):
        async with bench(tiny_model, lambda body: answer([5, STOP]), run_dir=tmp_path):
            pass
