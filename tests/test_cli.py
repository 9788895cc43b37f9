from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from miles_lite.cli import COMMANDS, main
from miles_lite.errors import UserError, plain
from miles_lite.process.addresses import bracketed, local, reachable

JOB = ["--hf-checkpoint", "/no/such/m", "--prompt-data", "p", "--rollout-batch-size", "1", "--num-rollout", "1"]


def test_a_full_disk_is_called_one_wherever_it_is_met(full_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also by a command that does not expect it."""
    assert main(["init-model", "--out", str(full_disk / "model"), "--corpus", __file__]) == 2
    told = capsys.readouterr().err
    assert "error: the disk is full" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "no command 'trian'; there are train, rollout"),
        (["train", "--hf-checkpont", "m"], "--hf-checkpoint"),
        (["rollout", "--num-rollout", "x"], "invalid int value"),
        (
            ["session", "--hf-checkpoint", "m", "--router-url", "u", "--num-session-servers", "2"],
            "unknown flag --num-session-servers",
        ),
        (["router", "--prot", "1"], "miles-lite router: unknown flag --prot: did you mean --port?"),
        (["router", "8000"], "unexpected argument '8000': flags start with --"),
        (["dash", "--bind-hots", "h"], "miles-lite dash: unknown flag --bind-hots: did you mean --bind-host?"),
        (["init-model", "--out", "m", "--corpus", "/no/such/file"], "--corpus: cannot read /no/such/file"),
        (["init-model", "--out", __file__, "--corpus", __file__], f"--out {__file__}: {__file__} is no folder"),
        (
            ["init-model", "--out", "m", "--corpus", __file__, "--warm-start", "/no/such/file"],
            "--warm-start /no/such/file: no such file",
        ),
        (["init-model", "--out", "m", "--corpus", __file__, "--num-layers", "0"], "--num-layers 0: must be at least 1"),
        (["train_async", *JOB, "--max-weight-staleness", "0"], "train-async with --max-weight-staleness 0"),
        (["train", *JOB, "--rollout-concurrency", "0"], "--rollout-concurrency 0: give auto or a number, at least 1"),
        (["train", *JOB, "--lr", "nan"], "--lr nan: must be a finite number"),
        (["train", *JOB, "--num-rollout", "0"], "--num-rollout 0: must be at least 1"),
        (["train", *JOB, "--run-dir", ""], "--run-dir is empty"),
        (["train", *JOB, "--run-dir", f"{__file__}/run"], f"--run-dir {__file__}/run: {__file__} is no folder"),
        (["rollout", *JOB], "m: no such folder"),
        (["train", *JOB, "--loss-type", "sft_loss"], "m: no such folder"),
        (["router", "--router-timeout", "-1"], "--router-timeout -1.0: must be above 0"),
        (["router", "--port", "70000"], "--port 70000: must be at least 1 and at most 65535"),
        (
            ["session", "--hf-checkpoint", "m", "--router-url", "u", "--session-memory-gb", "nan"],
            "--session-memory-gb nan: must be a finite number",
        ),
        (
            ["session", "--hf-checkpoint", "m", "--router-url", "u", "--sglang-tp-size", "2"],
            "--sglang-tp-size: no engine is started here",
        ),
        (["verify", "session", "--hf-checkpoint", "m", "--use-wandb"], "unknown flag --use-wandb"),
        (["verify", "session", "--hf-checkpoint", "m", "--session-verify-cycles", "0"], "must be at least 1"),
        (["serve", "--hf-checkpoint", "m", "--pause-generation-mode", "abort"], "unknown flag --pause-generation-mode"),
        (["serve", "--hf-checkpoint", "m", "--engine-restarts", "-1"], "--engine-restarts -1: must be at least 0"),
        (["serve", "--hf-checkpoint", "m", "--sglng-x"], "unknown flag --sglng-x"),
        (["serve", "--hf-checkpoint", "m", "--save", "x"], "unknown flag --save"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert "Traceback" not in error


def test_flags_that_change_nothing_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train", "serve", "verify session"):
        needed = JOB if command == "train" else JOB[:2]
        assert main([*command.split(), *needed, "--swiglu", "--num-layers", "3"]) == 2, "the model folder is missing"
        assert "ignored" in (shown := capsys.readouterr().err)
        assert "--swiglu, --num-layers" in shown


def test_without_a_command_the_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)


def test_a_remote_error_is_shown_without_its_traceback() -> None:
    class Wrapped(UserError):
        def __init__(self, cause: Exception) -> None:
            super().__init__("ray::Actor.start() Traceback ...")
            self.cause = cause

    assert str(plain(Wrapped(Wrapped(UserError("no tokenizer"))))) == "no tokenizer"


def test_an_address_for_every_interface_becomes_one_that_others_reach() -> None:
    assert reachable("10.0.0.7") == "10.0.0.7"
    assert reachable("0.0.0.0") not in ("", "0.0.0.0")
    assert [local(host) for host in ("", "0.0.0.0", "::", "10.0.0.7")] == ["127.0.0.1", "127.0.0.1", "::1", "10.0.0.7"]
    assert bracketed("::1") == "[::1]"
    assert bracketed("host") == "host"


def test_the_command_line_listens_before_anything_that_takes_long_to_import() -> None:
    code = "import sys, miles_lite.cli; print(sorted(sys.modules.keys() & {'asyncio', 'ray', 'aiohttp', 'numpy'}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
