"""`miles-lite agent MODEL`: a model folder gets an engine, a router and a session server; a URL is used as it is.

Invariant: what was started for the agent ends with it, however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import sys
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from miles_lite.agent.prompt_cache import PromptCache, prompt_cache
from miles_lite.agent.repl import Agent, AgentOptions
from miles_lite.config.engines import Engines, Routing
from miles_lite.config.flags import parse_known, parser_of
from miles_lite.config.launcher_flags import SglangValue
from miles_lite.config.model import Model
from miles_lite.config.option import again, option
from miles_lite.config.places import RunFolder
from miles_lite.config.serving import Serving
from miles_lite.config.session_options import Session
from miles_lite.errors import UserError
from miles_lite.job.claim import claimed
from miles_lite.model_folder import TEMPLATE_FILES, check_model_folder
from miles_lite.process.admin_key import known_key

if TYPE_CHECKING:
    from miles_lite.stack.stack import Stack

APPENDED = ("tool", "user")
CONVERSATIONS = 8
"""Requests in flight for which a started engine has room: more than one agent makes."""


@dataclass(frozen=True, kw_only=True)
class AgentCommand:
    """engine: where its log is."""

    agent: AgentOptions
    model: str = option(
        positional=True, help="Hugging Face model folder, or the URL of a session server; --sglang-FLAG goes on"
    )
    run_dir: str = again(RunFolder, "run_dir", default="runs/agent", help="folder for the engine's log")


def main(argv: Sequence[str]) -> int:
    """Parse flags and talk; the exit code. Raises UserError."""
    parser = parser_of(AgentCommand, prog="miles-lite agent", usage="miles-lite agent MODEL --tools FILE [flags]")
    command, leftovers = parse_known(parser, argv, AgentCommand)
    leftovers.show_ignored()
    model, options, sglang = command.model, command.agent, leftovers.sglang
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # what a user pastes may be no UTF-8
    if model.startswith(("http://", "https://")):
        if sglang:
            raise UserError("--sglang flags are for a model folder; the servers at a URL run already")
        if options.prompt_cache_dir:
            raise UserError("--prompt-cache-dir is for a model folder; a running server keeps prompts in its memory")
        return Agent(model, options, shows_tools=False, admin_key=known_key()).run()
    if not Path(model).is_dir():
        raise UserError(f"{model} is no folder: MODEL is a Hugging Face model folder, or the URL of a session server")
    check_model_folder(model, given_as="MODEL")
    agent = Agent("", options, shows_tools=_shows_tools(Path(model)))  # mistakes show before servers start
    cache = _prompt_cache(Path(model), agent, options.prompt_cache_dir, sglang) if options.prompt_cache_dir else None
    flags = {**(cache.engine_flags() if cache else {}), **sglang}
    with (
        claimed({"--run-dir": Path(command.run_dir)}),
        serving(servers_of(model, flags, Path(command.run_dir))) as stack,
    ):
        if cache is not None:
            _warm(cache, stack.engine_urls[0])
        agent.url = stack.session_urls[0]
        return agent.run()


def _prompt_cache(model: Path, agent: Agent, root: str, flags: Mapping[str, SglangValue]) -> PromptCache:
    """The cache of the tokens with which every conversation of this agent begins."""
    from miles_lite.tito import tito_of

    tito = tito_of(model.resolve(), append_roles=APPENDED)
    first, second = (
        tito.first(
            [{"role": "system", "content": agent.system}, {"role": "user", "content": text}],
            tools=agent.template_tools or None,
        ).ids
        for text in ("a", "1")
    )
    same = next(at for at, (one, other) in enumerate(zip(first, second, strict=False)) if one != other)
    ids = [int(token) for token in first[:same]]
    tools = agent.template_tools
    return prompt_cache(Path(root), model=model, ids=ids, system=agent.system, tools=tools, flags=flags)


def _warm(cache: PromptCache, engine_url: str) -> None:
    loaded = cache.warm(engine_url)
    if cache.tokens and loaded == cache.tokens:
        print(f"loaded system-prompt cache ({loaded} tokens) — skipping prefill", file=sys.stderr, flush=True)


def _shows_tools(model: Path) -> bool:
    """Whether the model's chat template prints tools."""
    files = [model / name for name in TEMPLATE_FILES]
    return any("tools" in file.read_text(encoding="utf-8") for file in files if file.is_file())


def servers_of(model: str, sglang: Mapping[str, object], run_dir: Path) -> Serving:
    return Serving(
        model=Model(hf_checkpoint=model),
        session=Session(tito_allowed_append_roles=APPENDED),
        routing=Routing(sglang_server_concurrency=CONVERSATIONS),
        engines=Engines(sglang_args=sglang),
        run=RunFolder(run_dir=str(run_dir)),
    )


@contextlib.contextmanager
def serving(options: Serving) -> Iterator[Stack]:
    """The servers of a model folder. They live in a thread's event loop, so that Ctrl-C reaches the conversation."""
    from miles_lite.stack.cluster import connected
    from miles_lite.stack.placement import place
    from miles_lite.stack.stack import Stack

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="servers", daemon=True)

    def wait(work: Coroutine[None, None, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, loop).result()

    with contextlib.ExitStack() as ending:
        with contextlib.redirect_stdout(sys.stderr):
            ending.enter_context(connected(None))
        thread.start()
        ending.callback(loop.close)
        ending.callback(thread.join)
        ending.callback(loop.call_soon_threadsafe, loop.stop)
        stack = Stack(options, place(options.topology, train=False), known_key=known_key())
        ending.callback(lambda: wait(stack.stop()))
        wait(stack.start())
        yield stack
