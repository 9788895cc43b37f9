"""`miles-lite agent` once a session server answers: REPL or a single turn, events, transcript, trajectories.

Invariant: stdout holds only what was asked for (the answer, or events); everything else goes to stderr.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from miles_lite.agent.conversation import Conversation, Event, Limits
from miles_lite.agent.formats import FORMATS, PREAMBLE, Format
from miles_lite.agent.scan import Call
from miles_lite.agent.session_client import AgentSession
from miles_lite.agent.tools import Tool, load_tools
from miles_lite.config.option import option
from miles_lite.errors import UserError, user_error
from miles_lite.process.json_types import JsonObject
from miles_lite.sandboxes.shell import Confinement, Shell
from miles_lite.traces import atraj

KV_CACHE = (
    "--no-kv-preallocate changes nothing here: the engine allots the memory of its KV cache when it starts "
    "(--sglang-mem-fraction-static says how much), for all conversations together"
)
NO_ANSWER = 1
"""Exit code of --single without an answer."""


@dataclass(frozen=True, kw_only=True)
class AgentOptions:
    """agent: a conversation with tools."""

    tools: str = option(help="JSON file of tools: OpenAI's schema with _exec (bash template) or _handler (Python)")
    single: str | None = option(None, help="one user turn: print the answer and exit")
    json_out: bool = option(False, help="events on stdout, one JSON object per line")
    transcript: str | None = option(None, help="file for the same events, and tool results")
    max_steps: int = option(8, help="tool rounds per user turn", least=0)
    max_tokens: int = option(256, help="new tokens per reply", least=1)
    temperature: float = option(1.0, help="sampling temperature", least=0)
    system: str = option(PREAMBLE, help="beginning of the system prompt; the tools follow it", empty=True)
    tool_format: str = option(
        "auto",
        choices=("auto", *FORMATS),
        help="how calls are written: native to the chat template; portable JSON; fenced bash blocks, which call the "
        "tool bash, and --system as it is; auto: native where the template shows tools, else portable",
    )
    confirm_tools: bool = option(False, help="ask before each call")
    tool_timeout: float = option(30.0, help="seconds one call may take", above=0)
    tool_dir: str | None = option(None, help="folder that tools work in, writable in the sandbox (default: this one)")
    sandbox: Confinement = option(Confinement.NONE, help="bwrap: read-only root, private /tmp, no network, limits")
    prompt_cache_dir: str | None = option(
        None, help="keep the system prompt's state here, so that the next launch loads it instead of computing it"
    )
    kv_preallocate: bool = option(True, help="changes nothing: engines allot the memory of their KV cache themselves")
    trajectory_dir: str | None = option(None, help="write one .atraj file per session here")
    trajectory_task: str | None = option(None, help="name of the task in those files")


class Agent:
    """One run of the command against the session server at `url`. Raises UserError for bad tools or folders."""

    def __init__(self, url: str, options: AgentOptions, *, shows_tools: bool, admin_key: str | None = None) -> None:
        """`shows_tools`: the model's chat template does, so that calls are native where the user did not choose.
        `admin_key`: what the server wants for opening a session."""
        if options.single is not None and not options.single.strip():
            raise UserError("--single: there is no text; give what the user says, or leave the flag out to talk")
        if not options.kv_preallocate:
            print(KV_CACHE, file=sys.stderr)
        self.url, self._options, self._admin_key = url, options, admin_key
        self._tools: list[Tool] = load_tools(options.tools)
        chosen = options.tool_format
        self._format: Format = FORMATS[("native" if shows_tools else "portable") if chosen == "auto" else chosen]
        self.system = self._format.system(self._tools, options.system)
        self._shell = Shell(
            timeout=options.tool_timeout,
            folder=Path(options.tool_dir) if options.tool_dir else None,
            sandbox=options.sandbox,
        )
        if options.trajectory_dir:
            with user_error(f"--trajectory-dir: cannot make {options.trajectory_dir}", OSError):
                Path(options.trajectory_dir).mkdir(parents=True, exist_ok=True)
        self._transcript: IO[str] | None = None

    @property
    def template_tools(self) -> list[JsonObject]:
        """The tools that the chat template gets."""
        return [tool.openai() for tool in self._tools] if self._format.shows_tools else []

    def run(self) -> int:
        """Talk until the end of input; the exit code."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._shell)
            if self._options.transcript:
                with user_error(f"--transcript: cannot write {self._options.transcript}", OSError):
                    self._transcript = stack.enter_context(open(self._options.transcript, "w", encoding="utf-8"))
            return self._single(self._options.single) if self._options.single is not None else self._repl()

    def _single(self, text: str) -> int:
        with self._conversation() as conversation:
            answer = conversation.say(text)
        if answer is not None and not self._options.json_out:
            print(answer)
        return NO_ANSWER if answer is None else 0

    def _repl(self) -> int:
        again = True
        while again:
            with self._conversation() as conversation:
                again = self._talk(conversation)
        return 0

    def _talk(self, conversation: Conversation) -> bool:
        """User turns until the end; True when a fresh session was asked for."""
        while True:
            text = read_line("you> ")
            if text is None or text.strip() == ":quit":
                return False
            if not text.strip():
                continue
            answer = conversation.say(text)
            if answer is not None and not self._options.json_out:
                print(f"agent> {answer}", flush=True)
            if conversation.full:
                return _agreed("start a fresh session? [y/N] ")

    @contextlib.contextmanager
    def _conversation(self) -> Iterator[Conversation]:
        """A conversation in a session of its own, whose trajectory is kept however it ends."""
        options = self._options
        with AgentSession(
            self.url, sampling={"temperature": options.temperature}, admin_key=self._admin_key
        ) as session:
            conversation = Conversation(
                session,
                self._tools,
                self._shell,
                self._emit,
                limits=Limits(max_steps=options.max_steps, max_tokens=options.max_tokens),
                preamble=options.system,
                format=self._format,
                confirm=_confirm if options.confirm_tools else None,
            )
            try:
                yield conversation
            finally:
                if options.trajectory_dir and conversation.started:
                    task = (options.trajectory_task or "agent").replace("/", "-")
                    name = f"{task}-{time.strftime('%Y%m%d-%H%M%S')}"
                    path = Path(options.trajectory_dir) / f"{name}-{session.session_id[:8]}{atraj.SUFFIX}"
                    atraj.write(conversation.trajectory(task=options.trajectory_task), path)

    def _emit(self, event: Event) -> None:
        line = json.dumps(event, ensure_ascii=False)
        if self._transcript is not None:
            print(line, file=self._transcript, flush=True)
        if self._options.json_out and event["type"] != "tool_result":
            print(line, flush=True)
        if event["type"] in ("context_full", "no_answer"):
            print(event["text"], file=sys.stderr, flush=True)


def _confirm(call: Call) -> bool:
    return _agreed(f"run {call.tool} {json.dumps(call.arguments, ensure_ascii=False)}? [y/N] ")


def _agreed(question: str) -> bool:
    return (read_line(question) or "").strip().lower() in ("y", "yes")


def read_line(prompt: str) -> str | None:
    """A line of stdin; None at its end."""
    print(prompt, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        print("(end of input)", file=sys.stderr)
    return line.removesuffix("\n") if line else None
