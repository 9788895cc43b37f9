"""Each harness on a task, through a real session server whose engine says what a test wants: what the session holds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import planner
import pytest
import retrying
import subagents
import tools_agent
from bugs import BUGS
from harness import Run
from make_tasks import make_tasks
from prompts import SUBMIT, reply
from tokenizers import Tokenizer
from transcripts import tools_transcript, transcript

from miles_lite.sample import Sample
from tests.session.engine import STOP, answer, bench

(ROW,) = make_tasks("train", count=1, seed=0)
BUG = next(bug for bug in BUGS if bug.name == ROW["metadata"]["bug"])
LOOK, RIGHT, DONE = [line["content"] for line in transcript(ROW, fix=0) if line["role"] == "assistant"]
ROLES = ("tool", "user", "assistant")


@dataclass
class Session:
    """What an episode left: its result, the session's counts, and its samples as text."""

    result: dict[str, Any]
    counts: dict[str, Any]
    samples: list[Sample]
    tokenizer: Tokenizer

    def trained(self) -> list[list[str]]:
        """Per sample, the texts that the loss mask covers, one per turn."""
        return [[self._text(part) for part in _runs(sample)] for sample in self.samples]

    def context(self, number: int) -> str:
        sample = self.samples[number]
        return self._text(sample.tokens[sample.loss_mask == 0])

    def _text(self, ids: np.ndarray) -> str:
        return str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=True))


def _runs(sample: Sample) -> list[np.ndarray]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], sample.loss_mask, [0]])))
    return [sample.tokens[start:end] for start, end in edges.reshape(-1, 2)]


def play(model: Path, run: Run, replies: Sequence[str], *, roles: Sequence[str] = ROLES) -> Session:
    """An episode in which the engine says `replies` in turn, every one of which is used."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    waiting = iter(replies)

    def script(body: dict[str, Any]) -> dict[str, Any]:
        return answer([*tokenizer.encode(next(waiting), add_special_tokens=False).ids, STOP])

    async def episode() -> Session:
        async with bench(model, script, tito_allowed_append_roles=tuple(roles)) as running:
            session_id = await running.client.create({"temperature": 1.0})
            url = running.client.base_url(session_id)
            result = await run(url, ROW["input"], {"max_tokens": 200}, ROW["metadata"])
            counts = await running.client.describe(session_id)
            return Session(result, counts, await running.client.collect(session_id), tokenizer)

    session = asyncio.run(episode())
    assert next(waiting, None) is None
    assert len(session.counts["turns"]) == len(replies)
    return session


def reasons(session: Session) -> dict[str, int]:
    return {name: count for name, count in session.counts["counts"].items() if name.startswith(("forks", "roots"))}


def test_the_planners_messages_are_context_of_one_unforked_conversation(tiny_model: Path) -> None:
    session = play(tiny_model, planner.run, [LOOK, RIGHT, DONE])
    assert (session.result["reward"], session.result["exit_status"]) == (1.0, "Submitted")
    assert reasons(session) == {"roots_first": 1}
    assert session.trained() == [[LOOK, RIGHT, DONE]]
    assert session.context(0).count("PLAN: ") == 2
    assert "assistant\nPLAN: next, edit the code." in session.context(0)


def test_without_its_role_a_planners_message_begins_a_root_that_collecting_joins(tiny_model: Path) -> None:
    session = play(tiny_model, planner.run, [LOOK, RIGHT, DONE], roles=("tool", "user"))
    assert session.result["reward"] == 1.0
    assert reasons(session) == {"roots_first": 1, "roots_role": 2, "forks": 2, "forks_role": 2}
    assert session.trained() == [[LOOK, RIGHT, DONE]]


def test_a_retry_is_taken_out_of_the_conversation_and_each_reply_is_trained_once(tiny_model: Path) -> None:
    typo = reply("look", "cta *.py")
    session = play(tiny_model, retrying.run, [typo, "hm", LOOK, RIGHT, DONE])
    assert session.result["reward"] == 1.0
    assert reasons(session) == {"roots_first": 1, "roots_diverged": 1, "forks": 1, "forks_reply": 1}
    assert sorted(session.trained()) == sorted([[typo, "hm", LOOK], [RIGHT, DONE]])
    retried, rest = sorted(range(2), key=lambda number: "exit 127" not in session.context(number))
    assert retrying.NO_COMMAND in session.context(retried)
    assert "exit 127" not in session.context(rest)
    assert LOOK in session.context(rest)


def test_a_step_that_never_succeeds_ends_the_episode(tiny_model: Path) -> None:
    session = play(tiny_model, retrying.run, ["hm", "ha", "ho"])
    assert (session.result["reward"], session.result["exit_status"]) == (0.0, "TooManyErrors")
    assert session.trained() == [["hm", "ha", "ho"]]


def test_subagents_share_no_turn_and_both_are_trained(tiny_model: Path) -> None:
    report = f"`{BUG.suspect}` is wrong"
    session = play(tiny_model, subagents.run, [LOOK, report, RIGHT, DONE])
    assert session.result["reward"] == 1.0
    assert reasons(session) == {"roots_first": 1, "roots_diverged": 1, "forks": 1, "forks_agent": 1}
    assert sorted(session.trained()) == sorted([[LOOK, report], [RIGHT, DONE]])
    reader, fixer = sorted(range(2), key=lambda number: subagents.READER not in session.context(number))
    assert subagents.READER not in session.context(fixer)
    assert f"Report: {report}" in session.context(fixer)
    assert "Report: " not in session.context(reader)


def test_the_runtimes_tools_repair_the_repository(tiny_model: Path) -> None:
    script = tools_transcript(ROW, fix=0)
    said = [message["content"] for message in script if message["role"] == "assistant"]
    session = play(tiny_model, tools_agent.run, said, roles=("tool", "user"))
    assert (session.result["reward"], session.result["exit_status"]) == (1.0, "Submitted")
    assert session.trained() == [said]
    for message in script:  # the warm start's texts are the episode's
        assert message["role"] == "assistant" or message["content"].strip() in session.context(0)


@pytest.mark.parametrize(
    ("run", "replies", "status"),
    [
        (planner.run, ["hm"], "FormatError"),
        (planner.run, [LOOK] * planner.STEP_LIMIT, "LimitsExceeded"),
        (subagents.run, ["nothing", "hm"], "FormatError"),
        (subagents.run, ["nothing", reply("done", SUBMIT)], "Submitted"),
        (tools_agent.run, ['{"answer": "done"}'], "Submitted"),
        (tools_agent.run, ['{"tool": "no"}'] * (tools_agent.STEP_LIMIT + 1), "LimitsExceeded"),
    ],
)
def test_what_an_agent_does_wrong_is_reward_zero_with_a_status(
    tiny_model: Path, run: Run, replies: Sequence[str], status: str
) -> None:
    session = play(tiny_model, run, replies)
    assert (session.result["reward"], session.result["exit_status"]) == (0.0, status)


def test_a_full_context_is_an_exit_status(tiny_model: Path) -> None:
    flood = reply("look", "yes | head -c 8000")
    for run in (planner.run, retrying.run, subagents.run):
        assert play(tiny_model, run, [flood]).result["exit_status"] == "ContextWindowExceeded"
