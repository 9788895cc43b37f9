"""`miles-lite verify session`: real engines, router and session servers, driven through the HTTP API; exit code 0 or 1.

Invariant: the last line is the verdict; whatever was started ends with the command, Ctrl-C and SIGTERM included.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from miles_lite.config.flags import parse_known, parser_of
from miles_lite.config.folders import check_folder
from miles_lite.config.option import again, option
from miles_lite.config.rollouts import Rollouts
from miles_lite.config.serving import Serving
from miles_lite.errors import user_error
from miles_lite.process.admin_key import known_key
from miles_lite.stack.checks import check_serving
from miles_lite.stack.cluster import connected
from miles_lite.stack.placement import place
from miles_lite.stack.stack import Stack
from miles_lite.tito import RenderError, Tito
from miles_lite.tito.from_folder import check_roles
from miles_lite.verify.driven_sessions import Plan, Report, verify_sessions
from miles_lite.verify.driver import FailureMode
from miles_lite.verify.judge import Failure, judge
from miles_lite.verify.plan import schedule
from miles_lite.verify.subject import load_subject

METRICS_PATH = "MILES_SESSION_VERIFY_METRICS_PATH"
"""An environment variable: the file for one JSON line per session."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """verification: what the sessions go through, and when they pass"""

    session_url: str | None = option(None, help="verify the session server that runs there (default: start one)")
    session_verify_cycles: int = option(3, help="rounds of tool result, follow-up, reminder and rollback", least=1)
    session_verify_failure_mode: FailureMode = option(
        FailureMode.ROLLBACK, help="when a reply calls no tool: take it back (three times at most), or append"
    )
    session_verify_stream: bool = option(True, help="ask for streams")
    assistant_text_threshold: float = option(
        0.2, help="share of sessions in which replies may be spelled unlike the template prints them", least=0, most=1
    )
    rollout_batch_size: int = again(Rollouts, "rollout_batch_size", default=16, help="prompts")
    n_samples_per_prompt: int = again(Rollouts, "n_samples_per_prompt", help="sessions per prompt")
    rollout_max_response_len: int = again(Rollouts, "rollout_max_response_len", default=8192)
    rollout_temperature: float = again(Rollouts, "rollout_temperature", default=0.7, least=0)


@dataclass(frozen=True, kw_only=True)
class Options(Serving):
    """All groups of the command: what serves, and what its sessions go through."""

    verification: Verification

    @property
    def samples(self) -> int:
        return self.verification.rollout_batch_size * self.verification.n_samples_per_prompt

    @property
    def roles(self) -> tuple[str, ...]:
        return self.session.tito_allowed_append_roles


def main(argv: Sequence[str], prog: str = "miles-lite verify session") -> int:
    """Parse flags and verify; the exit code. Raises UserError."""
    options = _parse(argv, prog)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    tito = _load(options)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    reports = _run(options, tito)
    failure = judge(reports, roles=options.roles, threshold=options.verification.assistant_text_threshold)
    _record(reports, failed=failure is not None)
    _print(reports, options, failure)
    return 0 if failure is None else 1


def _parse(argv: Sequence[str], prog: str) -> Options:
    options, leftovers = parse_known(parser_of(Options, prog=prog), argv, Options)
    leftovers.show_ignored()
    check_folder("--run-dir", options.run_dir)
    check_serving(options)
    return options


def _load(options: Options) -> Tito:
    """The template and tokenizer that sessions are compared with. Raises UserError when a declared role is refused."""
    folder = options.model.hf_checkpoint
    session = options.session
    template = session.chat_template_path
    model, tokenizer = (None, folder) if template else (folder, None)
    with user_error(f"the chat template in {folder} cannot be used", RenderError):
        tito = load_subject(template=template, tokenizer=tokenizer, model=model, family=session.tito_model).tito
    check_roles(tito.surface, options.roles, folder)
    print(f"{folder}:\n{tito.table()}\n", flush=True)
    return tito


def _run(options: Options, tito: Tito) -> list[Report]:
    url = options.verification.session_url
    if url is not None:
        return asyncio.run(_drive([url.rstrip("/")], options, tito, known_key()))
    with connected(options.cluster.ray_address):
        return asyncio.run(_drive_own(options, tito))


async def _drive_own(options: Options, tito: Tito) -> list[Report]:
    """With engines, router and session servers of this command, as `miles-lite serve` starts them."""
    stack = Stack(options, place(options.topology, train=False), known_key=known_key())
    async with contextlib.AsyncExitStack() as ending:
        ending.push_async_callback(stack.stop)
        await stack.start()
        return await _drive(stack.session_urls, options, tito, stack.admin_key)


async def _drive(urls: Sequence[str], options: Options, tito: Tito, admin_key: str | None) -> list[Report]:
    chosen = options.verification
    plan = Plan(
        actions=schedule(options.roles, cycles=chosen.session_verify_cycles),
        sampling={"temperature": chosen.rollout_temperature, "max_new_tokens": chosen.rollout_max_response_len},
        max_tokens=chosen.rollout_max_response_len,
        failure_mode=chosen.session_verify_failure_mode,
        call_seconds=options.routing.router_timeout + 60,
        stream=chosen.session_verify_stream,
        admin_key=admin_key,
    )
    print("schedule: " + " ".join(action.value for action in plan.actions), flush=True)
    return await verify_sessions(urls, tito, plan, samples=options.samples, notify=lambda line: print(line, flush=True))


def _record(reports: Sequence[Report], *, failed: bool) -> None:
    """One JSON line per session; those of a failure are kept under `<path>.failed`."""
    target = os.environ.get(METRICS_PATH)
    if not target:
        return
    path = Path(target + ".failed") if failed else Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(report.as_json()) + "\n" for report in reports), encoding="utf-8")


def _print(reports: Sequence[Report], options: Options, failure: Failure | None) -> None:
    print()
    for report in reports:
        events = " ".join(f"{name}={count}" for name, count in sorted(report.events.items()))
        found = report.mismatches
        kinds = [each.type + (" (reasoning dropped)" if each.by_design else "") for each in found or ()]
        counted = ", ".join(f"{kind} x{kinds.count(kind)}" for kind in dict.fromkeys(kinds))
        told = "not compared" if found is None else counted or "none"
        print(f"sample {report.index}: {report.turns} turns, {report.tokens} tokens, {events}; mismatches: {told}")
    if failure is not None:
        print(f"Verdict: FAIL -- {failure.type}: {failure.text}")
        return
    roles = ", ".join(dict.fromkeys(("tool", *options.roles)))
    print(f"Verdict: PASS -- {len(reports)} sessions appended {roles} and hold what the template prints")
