"""The scripts under their published names, as processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tito.material import templates

TOOLS = Path(__file__).resolve().parents[2] / "scripts" / "tools"


def run(script: str, *flags: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    argv = [sys.executable, str(TOOLS / script), *flags]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, env=environment, check=False)


def test_the_template_script_gives_the_commands_verdict() -> None:
    done = run("verify_chat_template.py", "--template", str(templates()["trl/qwen2_5"]), "--thinking", "off")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("Verdict: PASS - ")


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("verify_chat_template.py", ["--model", "/no/such"], "/no/such does not exist"),
        ("verify_session_tito_tokenizer.py", ["--hf-checkpoint", "/no/such"], "/no/such: no such folder"),
        ("verify_session_tito_tokenizer.py", ["--session-verify-cycles", "2"], "--hf-checkpoint"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(script: str, flags: list[str], message: str) -> None:
    done = run(script, *flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
