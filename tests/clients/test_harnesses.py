"""Coding agents through whole conversations, with tools and streams: what is trained is the engine's own log.

They are npm packages that `make setup-clients` installs; without them these tests skip.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clients import mcp_server
from tests.clients.stage import QWEN3, QWEN3_5, Folders, Play, Template, called, program, stage

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

TASK = "Tell me what WATERMELON is."
DONE = "All done, é 🎈."
SIDE = "side"


def plays(template: Template, replies: list[str]) -> Play:
    """The task's conversation, line by line; to anything else, such as a title, a few words."""

    def play(prompt: str) -> tuple[str, str]:
        if TASK in prompt and "<tools>" in prompt:
            return "main", called(prompt, replies)
        return SIDE, template.reply("A few words")

    return play


CODEX = """
model = "m"
model_provider = "here"
approval_policy = "never"
sandbox_mode = "danger-full-access"
[analytics]
enabled = false
[model_providers.here]
name = "here"
base_url = "{url}/v1"
env_key = "SESSION_KEY"
wire_api = "responses"
[mcp_servers.demo]
command = "{python}"
args = ["{server}"]
"""


@pytest.mark.parametrize("template", [QWEN3, QWEN3_5], ids=lambda template: template.name)
async def test_codex(folders: Folders, tmp_path: Path, template: Template) -> None:
    """With a tool of an MCP server, which it puts into a namespace."""
    codex = program("codex")
    replies = [
        template.reply("I look around.", ("exec_command", {"cmd": "echo one; pwd"})),
        template.reply("", ("mcp__demo__lookup", {"word": "watermelon"}), thought="A word."),
        template.reply("Two at once.", ("exec_command", {"cmd": "echo two"}), ("mcp__demo__lookup", {"word": "b"})),
        template.reply(DONE),
    ]
    lines = [replies[number] for number in (0, 1, 2, 2, 3)]

    async with stage(folders, template, plays(template, lines)) as s:
        home = tmp_path / "home"
        (home / ".codex").mkdir(parents=True)
        config = CODEX.format(url=s.url, python=sys.executable, server=mcp_server.__file__)
        (home / ".codex" / "config.toml").write_text(config)
        told = await s.run([codex, "exec", "--skip-git-repo-check", TASK], home=home, SESSION_KEY=s.key)
        assert DONE in told
        sample = await s.check(turns=4)
        text = s.tito.encoder.decode(sample.tokens)
        assert "the meaning of watermelon" in text
        assert "the meaning of b" in text
        assert "two" in text


async def test_gemini_cli(folders: Folders, tmp_path: Path) -> None:
    gemini = program("gemini")
    template = QWEN3
    home = tmp_path / "home"
    home.mkdir()
    (home / "notes.txt").write_text("a watermelon is a fruit\n")
    replies = [
        template.reply("I look around.", ("list_directory", {"dir_path": str(home)})),
        template.reply("", ("read_file", {"file_path": str(home / "notes.txt")}), thought="A file."),
        template.reply("A command.", ("run_shell_command", {"command": "echo two"})),
        template.reply(DONE),
    ]

    async with stage(folders, template, plays(template, replies)) as s:
        settings = {
            "security": {"auth": {"selectedType": "gemini-api-key"}},
            "privacy": {"usageStatisticsEnabled": False},
            "telemetry": {"enabled": False},
            "general": {"disableAutoUpdate": True, "enableAutoUpdate": False},
        }
        (home / ".gemini").mkdir()
        (home / ".gemini" / "settings.json").write_text(json.dumps(settings))
        told = await s.run(
            [gemini, "--yolo", "--skip-trust", "-m", "gemini-2.5-pro", "-p", TASK],
            home=home,
            GEMINI_API_KEY=s.key,
            GOOGLE_GEMINI_BASE_URL=s.url,
            GEMINI_TELEMETRY_ENABLED="false",
            GEMINI_CLI_NO_RELAUNCH="true",
        )
        assert DONE in told
        sample = await s.check(turns=4)
        assert "a watermelon is a fruit" in s.tito.encoder.decode(sample.tokens)


@pytest.mark.parametrize("template", [QWEN3, QWEN3_5], ids=lambda template: template.name)
async def test_qwen_code(folders: Folders, tmp_path: Path, template: Template) -> None:
    qwen = program("qwen")
    home = tmp_path / "home"
    home.mkdir()
    (home / "notes.txt").write_text("a watermelon is a fruit\n")
    replies = [
        template.reply("I look around.", ("list_directory", {"path": str(home)})),
        template.reply("", ("read_file", {"file_path": str(home / "notes.txt")}), thought="A file."),
        template.reply("A command.", ("run_shell_command", {"command": "echo two", "is_background": False})),
        template.reply(DONE),
    ]

    async with stage(folders, template, plays(template, replies)) as s:
        told = await s.run(
            [qwen, "--yolo", "--auth-type", "openai", "-p", TASK],
            home=home,
            OPENAI_API_KEY=s.key,
            OPENAI_BASE_URL=f"{s.url}/v1",
            OPENAI_MODEL="m",
            QWEN_TELEMETRY_ENABLED="false",
        )
        assert DONE in told
        sample = await s.check(turns=4)
        assert "a watermelon is a fruit" in s.tito.encoder.decode(sample.tokens)


async def test_claude_code(folders: Folders, tmp_path: Path) -> None:
    """Eleven calls, several of which it sends back rewritten: with `replace_all`, without `cd HERE &&`, trimmed."""
    claude = program("claude")
    template = QWEN3
    home = tmp_path / "home"
    home.mkdir()
    notes = str(home / "notes.txt")
    steps: list[tuple[str, dict[str, Any]]] = [
        ("Bash", {"command": f"cd {home} && ls", "description": "List"}),
        ("Write", {"file_path": notes, "content": "one\ntwo  \nthree\n"}),
        ("Read", {"file_path": notes}),
        ("Edit", {"file_path": notes, "old_string": "one", "new_string": "1"}),
        ("Bash", {"command": "  cat notes.txt", "description": "Show"}),
        ("Edit", {"file_path": notes, "old_string": "1", "new_string": "uno  ", "replace_all": True}),
        ("Read", {"file_path": notes, "limit": 2}),
        ("Bash", {"command": f"cd {home} && wc -l notes.txt"}),
        ("Edit", {"file_path": notes, "old_string": "three", "new_string": "3"}),
        ("Bash", {"command": "cat notes.txt"}),
    ]
    replies = [template.reply(f"Step {number}.", step) for number, step in enumerate(steps)] + [template.reply(DONE)]

    async with stage(folders, template, plays(template, replies)) as s:
        told = await s.run(
            [claude, "-p", TASK, "--allowedTools", "Bash", "Read", "Edit", "Write", "--model", "m"],
            home=home,
            ANTHROPIC_BASE_URL=s.url,
            ANTHROPIC_API_KEY=s.key,
            CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
            DISABLE_TELEMETRY="1",
            DISABLE_AUTOUPDATER="1",
            IS_SANDBOX="1",
        )
        assert DONE in told
        sample = await s.check(turns=11)
        assert "uno" in s.tito.encoder.decode(sample.tokens)
