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
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miles_lite.agent.prompt_cache import PromptCache, prompt_cache
from miles_lite.agent.repl import Agent, AgentOptions
from miles_lite.config.flags import Parser, add_group, sort_leftovers, take_group
from miles_lite.config.options import Checkpoint, Engines, Session, Topology
from miles_lite.errors import UserError
from miles_lite.job.claim import claimed
from miles_lite.model_folder import TEMPLATE_FILES, check_model_folder
from miles_lite.process.admin_key import known_key

if TYPE_CHECKING:
    from miles_lite.stack.stack import Stack

APPENDED = ("tool", "user")
CONVERSATIONS = 8
"""Requests in flight for which a started engine has room: more than one agent makes."""


def main(argv: Sequence[str]) -> int:
    """Parse flags and talk; the exit code. Raises UserError."""
    parser = Parser(prog="miles-lite agent", allow_abbrev=False, usage="miles-lite agent MODEL --tools FILE [flags]")
    parser.add_argument(
        "model", help="Hugging Face model folder, or the URL of a session server; --sglang-FLAG goes on"
    )
    parser.add_argument("--run-dir", default="runs/agent", help="folder for the engine's log (default: %(default)s)")
    add_group(parser, AgentOptions)
    namespace, unknown = parser.parse_known_args(list(argv))
    leftovers = sort_leftovers(parser, unknown)
    leftovers.show_ignored()
    sglang = leftovers.sglang
    options: AgentOptions = take_group(namespace, AgentOptions)
    model: str = namespace.model
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
    run_dir = Path(namespace.run_dir).resolve()
    with claimed(run_dir), serving(model, flags, run_dir) as stack:
        if cache is not None:
            _warm(cache, stack.engine_urls[0])
        agent.url = stack.session_urls[0]
        return agent.run()


def _prompt_cache(model: Path, agent: Agent, root: str, flags: dict[str, Any]) -> PromptCache:
    """The cache of the tokens with which every conversation of this agent begins."""
    from miles_lite.tito.tito import Tito

    tito = Tito.load(model.resolve(), append_roles=APPENDED)
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


@contextlib.contextmanager
def serving(model: str, sglang: dict[str, Any], run_dir: Path) -> Iterator[Stack]:
    """The servers of a model folder. They live in a thread's event loop, so that Ctrl-C reaches the conversation."""
    from miles_lite.stack.cluster import connect, disconnect
    from miles_lite.stack.placement import place
    from miles_lite.stack.serving_options import StackOptions
    from miles_lite.stack.stack import Stack

    options = StackOptions(
        topology=Topology(),
        checkpoint=Checkpoint(hf_checkpoint=model),
        engines=Engines(sglang_args=sglang, sglang_server_concurrency=CONVERSATIONS),
        session=Session(tito_allowed_append_roles=APPENDED),
        max_context_len=None,
        seed=1234,
        run_dir=run_dir,
    )
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="servers", daemon=True)

    def wait(work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, loop).result()

    with contextlib.redirect_stdout(sys.stderr):
        connect(None)
    thread.start()
    try:
        stack = Stack(options, place(options.topology, train=False))
        try:
            wait(stack.start())
            yield stack
        finally:
            wait(stack.stop())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        disconnect()
