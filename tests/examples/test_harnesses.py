"""Each harness on a task, through a real session server whose engine says what a test wants: what the session holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import plain
import planner
import pytest
import retrying
import subagents
import tools_agent
from bugs import BUGS
from harness import Run
from make_tasks import make_tasks
from prompts import SUBMIT, reply
from transcripts import tools_transcript, transcript

from tests.examples.episodes import play, reasons

(ROW,) = make_tasks("train", count=1, seed=0)
BUG = next(bug for bug in BUGS if bug.name == ROW["metadata"]["bug"])
LOOK, RIGHT, DONE = [line["content"] for line in transcript(ROW, fix=0) if line["role"] == "assistant"]


def test_the_loop_alone_repairs_and_each_reply_is_trained_once(tiny_model: Path) -> None:
    session = play(tiny_model, plain.run, ROW, [LOOK, RIGHT, DONE])
    assert (session.result["reward"], session.result["exit_status"]) == (1.0, "Submitted")
    assert session.trained() == [[LOOK, RIGHT, DONE]]


def test_the_planners_messages_are_context_of_one_unforked_conversation(tiny_model: Path) -> None:
    session = play(tiny_model, planner.run, ROW, [LOOK, RIGHT, DONE])
    assert (session.result["reward"], session.result["exit_status"]) == (1.0, "Submitted")
    assert reasons(session) == {"roots_first": 1}
    assert session.trained() == [[LOOK, RIGHT, DONE]]
    assert session.context(0).count("PLAN: ") == 2
    assert "assistant\nPLAN: next, edit the code." in session.context(0)


def test_off_loopback_a_harness_shows_its_sessions_key(tiny_model: Path) -> None:
    session = play(tiny_model, planner.run, ROW, [LOOK, RIGHT, DONE], bind_host="0.0.0.0")
    assert session.result["reward"] == 1.0


def test_without_its_role_a_planners_message_begins_a_root_that_collecting_joins(tiny_model: Path) -> None:
    session = play(tiny_model, planner.run, ROW, [LOOK, RIGHT, DONE], roles=("tool", "user"))
    assert session.result["reward"] == 1.0
    assert reasons(session) == {"roots_first": 1, "roots_role": 2, "forks": 2, "forks_role": 2}
    assert session.trained() == [[LOOK, RIGHT, DONE]]


def test_a_retry_is_taken_out_of_the_conversation_and_each_reply_is_trained_once(tiny_model: Path) -> None:
    typo = reply("look", "cta *.py")
    session = play(tiny_model, retrying.run, ROW, [typo, "hm", LOOK, RIGHT, DONE])
    assert session.result["reward"] == 1.0
    assert reasons(session) == {"roots_first": 1, "roots_diverged": 1, "forks": 1, "forks_reply": 1}
    assert sorted(session.trained()) == sorted([[typo, "hm", LOOK], [RIGHT, DONE]])
    retried, rest = sorted(range(2), key=lambda number: "exit 127" not in session.context(number))
    assert retrying.NO_COMMAND in session.context(retried)
    assert "exit 127" not in session.context(rest)
    assert LOOK in session.context(rest)


def test_a_step_that_never_succeeds_ends_the_episode(tiny_model: Path) -> None:
    session = play(tiny_model, retrying.run, ROW, ["hm", "ha", "ho"])
    assert (session.result["reward"], session.result["exit_status"]) == (0.0, "TooManyErrors")
    assert session.trained() == [["hm", "ha", "ho"]]


def test_subagents_share_no_turn_and_both_are_trained(tiny_model: Path) -> None:
    report = f"`{BUG.suspect}` is wrong"
    session = play(tiny_model, subagents.run, ROW, [LOOK, report, RIGHT, DONE])
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
    session = play(tiny_model, tools_agent.run, ROW, said, roles=("tool", "user"))
    assert (session.result["reward"], session.result["exit_status"]) == (1.0, "Submitted")
    assert session.trained() == [said]
    for message in script:  # the warm start's texts are the episode's
        assert message["role"] == "assistant" or message["content"].strip() in session.context(0)


@pytest.mark.parametrize(
    ("run", "replies", "status"),
    [
        (plain.run, ["hm"], "FormatError"),
        (plain.run, [LOOK] * plain.STEP_LIMIT, "LimitsExceeded"),
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
    session = play(tiny_model, run, ROW, replies)
    assert (session.result["reward"], session.result["exit_status"]) == (0.0, status)


def test_a_full_context_is_an_exit_status(tiny_model: Path) -> None:
    flood = reply("look", "yes | head -c 8000")
    for run in (plain.run, planner.run, retrying.run, subagents.run):
        assert play(tiny_model, run, ROW, [flood]).result["exit_status"] == "ContextWindowExceeded"
