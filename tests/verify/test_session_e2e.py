"""`miles-lite verify session` against real SGLang, with a tiny model that was taught to call tools and to stop."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from miles_lite.cli import main
from miles_lite.tito.verification_cases import ROLES
from tests.e2e.conftest import mark  # noqa: F401  the fixture
from tests.e2e.job import assert_nothing_left, serving, start, wait_for
from tests.verify.taught import make_taught_model

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

FLAGS = (
    *("--session-verify-cycles", "1", "--rollout-batch-size", "2"),
    *("--rollout-max-response-len", "64", "--rollout-temperature", "0.2"),
)
ROLE_FLAGS = ("--tito-allowed-append-roles", *ROLES)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_taught_model(tmp_path_factory.mktemp("taught"))


@pytest.fixture(scope="module")
def url(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A session server that runs already."""
    with serving(taught, *ROLE_FLAGS, folder=tmp_path_factory.mktemp("served"), mark=uuid.uuid4().hex) as url:
        yield url


def verdict(shown: str) -> str:
    return shown.splitlines()[-1]


def test_sessions_of_a_running_server_pass(
    url: str, taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = tmp_path / "metrics.jsonl"
    monkeypatch.setenv("MILES_SESSION_VERIFY_METRICS_PATH", str(metrics))
    code = main(["verify", "session", "--hf-checkpoint", str(taught), "--session-url", url, *FLAGS, *ROLE_FLAGS])
    shown = capsys.readouterr().out
    assert code == 0, shown
    assert verdict(shown).startswith("Verdict: PASS -- 2 sessions appended tool, user, system, assistant")
    assert "schedule: T U T S R R F A" in shown
    assert "sample 0: T tool_result: get_weather(" in shown
    for line in metrics.read_text().splitlines():
        report = json.loads(line)
        assert report["tito_session_mismatch"] == []
        assert report["roots"] == {"first": 1}
        events = report["events"]
        assert (events["append_user"], events["append_system"], events["append_assistant"]) == (3, 1, 2)
        assert events["append_tool"] >= 2
        assert events["rollback"] >= 2


@pytest.mark.slow
def test_replies_read_by_sglangs_parsers_stream_as_they_are(
    taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conversation that was streamed otherwise than it is kept would begin a new root when it comes back."""
    metrics = tmp_path / "metrics.jsonl"
    monkeypatch.setenv("MILES_SESSION_VERIFY_METRICS_PATH", str(metrics))
    family = ("--tito-model", "qwen3")
    with serving(taught, *ROLE_FLAGS, *family, folder=tmp_path, mark=uuid.uuid4().hex) as url:
        given = ["--hf-checkpoint", str(taught), "--session-url", url, *FLAGS, *ROLE_FLAGS, *family]
        code = main(["verify", "session", *given])
    assert code == 0, capsys.readouterr().out
    for line in metrics.read_text().splitlines():
        assert json.loads(line)["roots"] == {"first": 1}


def test_a_template_that_is_not_the_servers_fails(
    url: str, taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = tmp_path / "metrics.jsonl"
    monkeypatch.setenv("MILES_SESSION_VERIFY_METRICS_PATH", str(metrics))
    tampered = shutil.copytree(taught, tmp_path / "tampered")
    template = tampered / "chat_template.jinja"
    text = template.read_text()
    template.write_text(
        text.replace("'<tool_response>\\n' + message.content", "'<tool_response>\\n> ' + message.content")
    )
    assert template.read_text() != text
    code = main(["verify", "session", "--hf-checkpoint", str(tampered), "--session-url", url, *FLAGS])
    shown = capsys.readouterr().out
    assert code == 1, shown
    assert re.match(r"Verdict: FAIL -- TokenMismatch: non_assistant_text x\d+, first in sample 0", verdict(shown))
    assert not metrics.exists()
    assert "non_assistant_text" in Path(f"{metrics}.failed").read_text()


def test_a_model_that_calls_no_tool_fails(url: str, taught: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--hf-checkpoint", str(taught), "--session-url", url, *FLAGS, "--rollout-max-response-len", "2"]
    assert main(["verify", "session", *flags]) == 1
    shown = capsys.readouterr().out
    assert "sample 0: T no call: rollback 3 of 3" in shown
    assert verdict(shown).startswith("Verdict: FAIL -- NoToolCall: sample 0: no tool call in 4 replies")


@pytest.mark.slow
def test_the_command_starts_and_ends_its_own_servers(taught: Path, tmp_path: Path, mark: str) -> None:  # noqa: F811
    log = tmp_path / "log"
    flags = ["session", "--hf-checkpoint", str(taught), "--run-dir", str(tmp_path / "run"), *FLAGS]
    process = start("verify", flags, mark=mark, log=log)
    assert process.wait(300) == 0, log.read_text()[-6000:]
    assert verdict(log.read_text()).startswith("Verdict: PASS -- 2 sessions appended tool")
    assert_nothing_left(mark)


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_running(taught: Path, tmp_path: Path, mark: str) -> None:  # noqa: F811
    log = tmp_path / "log"
    flags = ["session", "--hf-checkpoint", str(taught), "--run-dir", str(tmp_path / "run"), *FLAGS]
    process = start("verify", flags, mark=mark, log=log)
    engine = tmp_path / "run" / "logs" / "engine-0.0.log"
    wait_for("the engine", engine.exists, timeout=200, process=process, log=log)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(30) == 130
    assert_nothing_left(mark)
