"""What the agent's loop costs per step beyond the engine and the tool.

    python benchmarks/agent_loop.py [--json FILE]

A scripted engine answers at once through a real session server, and the tool is a Python function that returns at
once, so all of a step's time is the loop's: render, match and tokenise in the session, HTTP on loopback, read the
reply, check the arguments. The same loop with a bash tool is measured beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from miles_lite.agent.conversation import Conversation, Limits
from miles_lite.agent.session_client import AgentSession
from miles_lite.agent.tools import parse_tools
from miles_lite.sandboxes.shell import Shell

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the scripted engine, which is the tests'
STEPS = 8
SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
TOOLS = [
    {"name": "python", "parameters": SCHEMA, "_handler": lambda text: text},
    {"name": "bash", "parameters": SCHEMA, "_exec": 'printf %s "$text"'},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write {name: value} here")
    file = parser.parse_args().json
    logging.disable(logging.INFO)
    from tests.models import make_tiny_model

    with tempfile.TemporaryDirectory() as folder:
        model = make_tiny_model(folder)
        times = {name: _milliseconds(model, name) for name in ("python", "bash")}
    if file:
        numbers = {"overhead_ms_per_step": times["python"], "bash_ms_per_step": times["bash"]}
        file.write_text(json.dumps(numbers, indent=2))
    print(f"loop overhead per step     {times['python']:6.2f} ms   (at most 5 ms is the aim)")
    print(f"the same with a bash tool  {times['bash']:6.2f} ms")


def _milliseconds(model: Path, tool: str) -> float:
    """Median over conversations of the time per step, a step being a reply and its tool call."""
    from tests.session.engine import STOP, answer, bench

    reply = json.dumps({"tool": tool, "arguments": {"text": "hello"}})
    ids = [*Tokenizer.from_file(str(model / "tokenizer.json")).encode(reply).ids, STOP]

    def talk(url: str) -> list[float]:
        seconds = []
        with Shell() as shell:
            for _ in range(6):
                with AgentSession(url) as session:
                    limits = Limits(max_steps=STEPS, max_tokens=64)
                    conversation = Conversation(session, parse_tools(TOOLS), shell, _ignore, limits=limits)
                    began = time.perf_counter()
                    conversation.say("Go")
                    assert not conversation.full
                    seconds.append((time.perf_counter() - began) / STEPS)
        return seconds[1:]  # the first one starts the shell's helper and warms caches

    async def run() -> list[float]:
        async with bench(model, lambda body: answer(ids)) as running:
            return await asyncio.to_thread(talk, running.client.url)

    seconds = sorted(asyncio.run(run()))
    return round(seconds[len(seconds) // 2] * 1000, 3)


def _ignore(event: dict[str, Any]) -> None:
    pass


if __name__ == "__main__":
    main()
