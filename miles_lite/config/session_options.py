"""Sessions: chat in, tokens kept."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from miles_lite.config.option import option
from miles_lite.errors import UserError, user_error
from miles_lite.process.json_types import JsonObject


def _an_object(text: str | None) -> JsonObject:
    with user_error(f"--apply-chat-template-kwargs {text}: no JSON", ValueError):
        value = {} if text is None else json.loads(text)
    if not isinstance(value, dict):
        raise UserError(f"--apply-chat-template-kwargs {text}: expected a JSON object")
    return value


@dataclass(frozen=True, kw_only=True)
class Session:
    """sessions: chat in, tokens kept."""

    use_session_server: Literal["v1", "v2"] = option(
        "v2", help="history policy: v2 forks, v1 is linear", nargs="?", const="v1"
    )
    session_server_port: int | None = option(None, help="first port (default: a free one each)", least=1, most=65535)
    tito_model: str = option("auto", help="model family; auto derives everything from the chat template")
    chat_template_path: str | None = option(
        None, help="chat template file that takes the place of the model folder's, everywhere", path=True
    )
    apply_chat_template_kwargs: str | None = option(
        None, help="options of the chat template, a JSON object; a request's own count over them", check=_an_object
    )
    tito_allowed_append_roles: tuple[str, ...] = option(
        ("tool",), help="roles the harness appends: tool user system assistant"
    )
    session_message_matcher: str = option(
        "replay",
        help="replay, replay_arguments, strict, loose_tool_call, role_content_only or package.module.fn(stored, "
        "replayed)",
    )
    session_sample_picker_path: str | None = option(
        None, help="fn(samples of all leaves, session metadata) -> those to keep, in place of dropping retries"
    )
    session_sample_postprocessor_path: str | None = option(
        None, help="fn(samples, session metadata) -> samples: the last word on what a session gives"
    )
    timeline_compare_level: Literal["token", "text"] = option(
        "token", help="what must agree for a timeline to be merged into another: its ids, or its messages alone"
    )
    timeline_ignore_tools: bool = option(False, help="merge timelines that differ in tools", spelled=True)
    fix_retokenization_drift: bool = option(
        True,
        help="merging by text, sampled ids replace a re-encoding that differs",
        spelled=True,
        with_="timeline_compare_level=text",
    )
    detect_timeline_snap: bool = option(
        False, help="log and report where and why a session's timeline forked", spelled=True
    )
    session_compare_template: bool = option(
        False, help="compare every sample with what the template prints (0.3 s per 100,000 tokens)"
    )
    session_unknown_fields: Literal["ignore", "refuse"] = option(
        "ignore", help="what becomes of a request's fields that no table of docs/dialects.md has"
    )
    session_tool_images: Literal["placeholder", "refuse"] = option(
        "placeholder", help="what becomes of images and files in tool results: a text that says so, or a 400"
    )
    session_client_sampling: bool = option(False, help="let clients choose sampling parameters (not for training)")
    session_journal: bool = option(True, help="keep sessions on disk, so that a killed server comes back with them")
    session_journal_dir: str | None = option(
        None,
        help="node-local folder of the journals (default: sessions/ in the run folder, or the node's temp folder)",
        path=True,
        with_="session_journal",
    )
    session_disconnect_grace: float = option(
        60.0, help="seconds a turn goes on after its client has disconnected", least=0
    )
    session_idle_seconds: float = option(
        7200.0, help="forget a session that nobody has asked for in this time", above=0
    )
    session_memory_gb: float = option(
        8.0, help="memory for sessions, per server; more than that waits in the journal", above=0
    )
    session_logprob_inexact: Literal["keep", "mask"] = option(
        "keep", help="what becomes of turns sampled under top_p, top_k, min_p, penalties or a grammar"
    )
    session_retry_seconds: float = option(
        120.0, help="how long a turn is retried on other engines before it fails", least=0
    )

    @property
    def template_options(self) -> JsonObject:
        """Of --apply-chat-template-kwargs."""
        return _an_object(self.apply_chat_template_kwargs)


@dataclass(frozen=True, kw_only=True)
class SessionServers:
    """session servers: how many."""

    num_session_servers: int = option(1, help="session actors", least=1)
