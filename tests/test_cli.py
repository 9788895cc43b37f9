from __future__ import annotations

import pytest

from miles_lite.cli import COMMANDS, main
from miles_lite.errors import UserError, plain
from miles_lite.net import bracketed, local, reachable


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
        (["router", "--prot", "1"], "unrecognized arguments: --prot"),
        (["init-model", "--out", "m", "--corpus", "/no/such/file"], "--corpus: cannot read /no/such/file"),
        (["serve", "--hf-checkpoint", "m", "--sglng-x"], "unknown flag --sglng-x"),
        (["serve", "--hf-checkpoint", "m", "--save", "x"], "unknown flag --save"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert "Traceback" not in error


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
