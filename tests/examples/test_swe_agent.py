"""The SWE example: its tasks are what they claim, its transcripts are the agent's, its agent leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import workspace
from bugs import BUGS, CANDIDATES
from make_tasks import SPLITS, make_tasks
from prompts import SUBMIT, reply
from transcripts import make_transcripts, transcript
from workspace import MAX_OUTPUT, Workspace

from tests.http_server import Request, http_server

BY_NAME = {bug.name: bug for bug in BUGS}
Messages = list[dict[str, str]]
Answer = Callable[[Messages], str]


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    assert list(Path(workspace._home().folder).iterdir()) == []


@pytest.fixture(params=["sandbox", "plain"])
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With bubblewrap where it is installed, and without."""
    if request.param == "plain":
        monkeypatch.setattr(workspace, "sandboxed", lambda: False)
    elif not workspace.sandboxed():
        pytest.skip("bubblewrap is not installed, or may not make namespaces here")


@contextmanager
def chat_server(answer: Answer) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A canned OpenAI endpoint: its base URL, and the request bodies it got."""
    bodies: list[dict[str, Any]] = []

    def complete(request: Request) -> dict[str, Any]:
        bodies.append(request.body)
        message = {"role": "assistant", "content": answer(request.body["messages"])}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        reply = {"id": "0", "object": "chat.completion", "created": 0, "model": "policy", "usage": usage}
        return reply | {"choices": [choice]}

    with http_server(complete) as url:
        yield f"{url}/sessions/s/v1", bodies


def episode(row: dict[str, Any], answer: Answer) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    import agent

    with chat_server(answer) as (url, bodies):
        options = {"temperature": 0.7, "max_tokens": 64}
        return asyncio.run(agent.run(url, row["input"], options, row["metadata"])), bodies


@pytest.mark.parametrize("split", SPLITS)
def test_only_the_right_fix_passes_the_hidden_tests(split: str) -> None:
    for row in make_tasks(split, count=2 * len(BUGS), seed=3):
        task, bug = row["metadata"], BY_NAME[row["metadata"]["bug"]]
        with Workspace(task["files"]) as copy:
            assert not copy.passes(task["hidden_tests"], timeout=20)
        passed = []
        for fix in bug.fixes:
            with Workspace(task["files"]) as copy:
                assert copy.bash(bug.command(fix), timeout=20).returncode == 0
                passed.append(copy.passes(task["hidden_tests"], timeout=20))
        assert passed == [True] + [False] * (CANDIDATES - 1), bug.name


def test_every_class_plants_its_bug_once_and_has_its_candidates() -> None:
    for bug in BUGS:
        assert bug.source.count(bug.wrong) == 1
        assert bug.suspect in bug.source
        assert bug.wrong.strip() in bug.suspect
        assert len(set(bug.fixes)) == CANDIDATES


def test_splits_share_no_words_and_no_constants() -> None:
    train, heldout = SPLITS["train"], SPLITS["heldout"]
    assert set(train.words).isdisjoint(heldout.words)
    assert set(train.constants).isdisjoint(heldout.constants)


def test_tasks_are_seeded_distinct_and_balanced() -> None:
    rows = make_tasks("train", count=96, seed=0)
    assert rows == make_tasks("train", count=96, seed=0)
    assert rows != make_tasks("train", count=96, seed=1)
    assert len({json.dumps(row["metadata"]["files"]) for row in rows}) == 96
    assert set(Counter(row["metadata"]["bug"] for row in rows).values()) == {96 // len(BUGS)}


def test_transcripts_choose_the_fix_without_looking_at_the_answer() -> None:
    lines = make_transcripts(make_tasks("train", count=96, seed=0), count=2400, seed=0)
    commands = Counter(line["messages"][4]["content"] for line in lines)
    assert len(commands) == len(BUGS) * CANDIDATES
    assert set(commands.values()) == {100}
    assert lines == make_transcripts(make_tasks("train", count=96, seed=0), count=2400, seed=0)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_the_agent_sends_the_transcripts_messages_and_is_rewarded_for_the_right_fix(bug: Any) -> None:
    row = next(row for row in make_tasks("heldout", count=len(BUGS), seed=5) if row["metadata"]["bug"] == bug.name)

    def said_in(script: list[dict[str, Any]]) -> Answer:
        return lambda messages: script[len(messages)]["content"]

    for fix in (0, 1):
        script = transcript(row, fix=fix)
        result, bodies = episode(row, said_in(script))
        sent = [{key: message[key] for key in ("role", "content")} for message in bodies[-1]["messages"]]
        assert sent == script[:-1]
        assert (result["reward"], result["exit_status"], result["turns"]) == (float(fix == 0), "Submitted", 3)
        assert result["model_query_time"] > 0
        assert (bodies[0]["temperature"], bodies[0]["max_tokens"]) == (0.7, 64)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (reply("look", "cat *.py"), "LimitsExceeded"),
        ("I do not know.", "RepeatedFormatError"),
        (reply("done", SUBMIT), "Submitted"),
    ],
)
def test_what_the_agent_does_wrong_is_reward_zero_with_a_status(answer: str, status: str) -> None:
    (row,) = make_tasks("train", count=1, seed=0)
    result, _ = episode(row, lambda _: answer)
    assert (result["reward"], result["exit_status"]) == (0.0, status)


def test_what_the_server_does_wrong_is_raised() -> None:
    import litellm

    def broken(_: Messages) -> str:
        raise ConnectionResetError

    (row,) = make_tasks("train", count=1, seed=0)
    with pytest.raises(litellm.exceptions.InternalServerError):
        episode(row, broken)


def test_a_workspace_is_a_clean_git_repository() -> None:
    with Workspace({"a.py": "x = 1\n", "pkg/b.py": "y = 2\n"}) as copy:
        assert copy.bash("git status --porcelain && git log --oneline | wc -l", timeout=20).output.strip() == "1"
        copy.bash("sed -i 's/1/2/' a.py", timeout=20)
        assert "+x = 2" in copy.bash("git diff", timeout=20).output


def test_copies_are_removed_when_the_process_is_killed() -> None:
    """The child prints where its copy is, and dies before it could close it."""
    code = "import os\nfrom workspace import Workspace\nprint(Workspace({}).root, flush=True)\nos.kill(os.getpid(), 9)"
    example = Path(workspace.__file__).parent
    child = subprocess.run([sys.executable, "-c", code], cwd=example, capture_output=True, text=True, check=False)
    assert child.returncode == -9
    home = Path(child.stdout.strip()).parent
    deadline = time.monotonic() + 20
    while home.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert home.name.startswith("swe-agent-")
    assert not home.exists()


@pytest.mark.usefixtures("_both_ways")
def test_background_processes_die_with_their_command() -> None:
    with Workspace({}) as copy:
        seconds = f"100.{secrets.randbelow(10**9)}"
        assert copy.bash(f"sleep {seconds} & echo started", timeout=20).output == "started\n"
        assert not _running(seconds)


@pytest.mark.usefixtures("_both_ways")
def test_a_command_is_stopped_at_its_time_limit() -> None:
    with Workspace({}) as copy:
        seconds = f"100.{secrets.randbelow(10**9)}"
        result = copy.bash(f"echo started; sleep {seconds}", timeout=1)
        assert result == workspace.Result("started\n", -9, timed_out=True)
        assert not _running(seconds)


@pytest.mark.parametrize("command", ["echo a\0b", "echo " + "x" * 200_000], ids=["NUL byte", "too long"])
def test_what_no_system_takes_as_a_command_fails_as_a_command(command: str) -> None:
    with Workspace({}) as copy:
        assert copy.bash(command, timeout=20).returncode == 126


@pytest.mark.usefixtures("_both_ways")
def test_any_other_text_is_a_command() -> None:
    with Workspace({}) as copy:
        assert copy.bash("", timeout=20) == workspace.Result("", 0, timed_out=False)
        assert copy.bash("echo é \udc80\ud800", timeout=20) == workspace.Result("é ??\n", 0, timed_out=False)


@pytest.mark.usefixtures("_both_ways")
def test_output_is_bounded_and_the_environment_is_minimal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    with Workspace({}) as copy:
        assert len(copy.bash("yes | head -c 100000", timeout=20).output) == MAX_OUTPUT
        names = {line.partition("=")[0] for line in copy.bash("env", timeout=20).output.splitlines()}
        assert names <= {"PATH", "HOME", "LANG", "PWD", "SHLVL", "_", "OLDPWD"}


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos._exit(0)\n",
        "raise SystemExit(0)\n",
        "while True: pass\n",
        "import sys\nf = lambda: 1\nsys.stdout = None\n",
        "def f(:\n",
    ],
)
def test_a_module_cannot_pass_by_ending_early(source: str) -> None:
    with Workspace({"m.py": source}) as copy:
        assert not copy.passes("from m import f\nassert f() == 2\n", timeout=0.5)


@pytest.mark.usefixtures("_both_ways")
def test_hidden_tests_leave_no_trace_in_the_copy() -> None:
    with Workspace({"m.py": "def f():\n    return 2\n"}) as copy:
        before = sorted(copy.root.rglob("*"))
        assert copy.passes("from m import f\nassert f() == 2\n", timeout=20)
        assert sorted(copy.root.rglob("*")) == before


@pytest.mark.skipif(not workspace.sandboxed(), reason="bubblewrap is not installed")
def test_the_sandbox_hides_the_machine() -> None:
    with Workspace({"m.py": "x = 1\n"}) as copy:
        assert copy.bash(f"cat {__file__}", timeout=20).returncode != 0
        seconds = f"100.{secrets.randbelow(10**9)}"
        assert copy.bash(f"setsid sleep {seconds} & echo done", timeout=20).output == "done\n"
        assert not _running(seconds)


def _running(argument: str) -> bool:
    """Whether a process has this argument."""
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return argument in found
