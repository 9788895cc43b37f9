"""What a user gets wrong: one screen, what is wrong, how to mend it, exit code 2, nothing left running."""

from __future__ import annotations

import json
import re
import shutil
import socket
from pathlib import Path

import pytest
import ray

from miles_lite.cli import main
from tests.e2e.job import MARK, Prepared, assert_nothing_left, ended, start

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def refused(flags: list[str], *, mark: str, tmp_path: Path, command: str = "train") -> str:
    """The message that a process of its own ends with."""
    log = tmp_path / "log"
    process = start(command, flags, mark=mark, log=log)
    code = ended(process, log, within=200)
    text = log.read_text(errors="replace")
    assert code == 2, text[-6000:]
    assert_nothing_left(mark)
    return one_screen(text)


def one_screen(text: str) -> str:
    message = re.split(r"^(?=error: )", text, maxsplit=1, flags=re.MULTILINE)[-1]
    assert len(message.splitlines()) <= 30, message
    assert "Traceback" not in message
    return message


def test_what_is_wrong_with_files_is_said_before_anything_slow(
    prepared: Prepared,
    run_dir: Path,
    mark: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = prepared.flags(run_dir, "--num-rollout", "1")
    hook = tmp_path / "hook.py"
    hook.write_text("import sys\nsys.exit(0)\n")
    exits = refused([*flags, "--custom-agent-function-path", f"{hook}:run"], mark=mark, tmp_path=tmp_path)
    assert f"SystemExit: 0\n  {hook}, line 2" in exits

    hook.write_text("async def run(*, prompt, **given):\n    return {}\n")
    flags += ["--custom-agent-function-path", f"{hook}:run"]  # imported for each: it is soon done
    monkeypatch.setenv(MARK, mark)  # for whatever would be started here

    def said(*more: str) -> str:
        assert main(["train", *flags, *more]) == 2
        assert_nothing_left(mark)
        return one_screen(capsys.readouterr().err)

    assert "did you mean --num-rollout" in said("--num-rolout", "3")
    assert "no such file" in said("--prompt-data", "none.jsonl")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"input": "x"}\n{oops\n')
    assert f"{bad}, line 2: not JSON" in said("--prompt-data", str(bad))
    bad.write_text(json.dumps({"input": "x " * 3000}) + "\n")
    assert "line 1: the prompt has" in said("--prompt-data", str(bad))
    model = tmp_path / "no-tokenizer"
    shutil.copytree(prepared.folder / "model", model, ignore=shutil.ignore_patterns("tokenizer*", "vocab*"))
    assert "has no tokenizer" in said("--hf-checkpoint", str(model))
    assert "--custom-agent-function-path: no such file" in said("--custom-agent-function-path", "nowhere.py:run")
    assert not ray.is_initialized()


@pytest.mark.slow
def test_a_full_disk_is_called_one(prepared: Prepared, full_disk: Path, mark: str, tmp_path: Path) -> None:
    """The run folder's: a session's journal, or the weights, whichever is first."""
    message = refused(prepared.flags(full_disk / "run", "--num-rollout", "1"), mark=mark, tmp_path=tmp_path)
    assert "the disk is full" in message
    assert str(full_disk / "run") in message


@pytest.mark.slow
def test_a_cluster_that_is_too_small_says_what_was_asked_and_what_there_is(
    prepared: Prepared, run_dir: Path, mark: str, tmp_path: Path
) -> None:
    flags = prepared.flags(run_dir, "--num-rollout", "1", "--actor-num-gpus-per-node", "64")
    message = refused(flags, mark=mark, tmp_path=tmp_path)
    assert "not enough CPUs for the placement group: asked for 64 slots" in message
    assert "--colocate" in message


@pytest.mark.slow
def test_a_server_that_dies_at_start_shows_its_last_words(
    prepared: Prepared, run_dir: Path, mark: str, tmp_path: Path
) -> None:
    flags = prepared.flags(run_dir, "--num-rollout", "1", "--sglang-attention-backend", "no_such_backend")
    message = refused(flags, mark=mark, tmp_path=tmp_path)
    assert "no_such_backend" in message
    assert "engine-0.0.log" in message


def test_a_port_in_use_is_named(mark: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        message = refused(["--port", port], mark=mark, tmp_path=tmp_path, command="router")
    assert port in message
