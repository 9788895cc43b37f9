"""The template, tokenizer and parsers of a run's sessions: the same to servers, and to whoever counts as they do."""

from __future__ import annotations

from pathlib import Path

from miles_lite.config.engines import Engines
from miles_lite.config.session_options import Session
from miles_lite.tito import Tito, tito_of


def model_text(model: str | Path, options: Session, engines: Engines, *, longest: int | None = None) -> Tito:
    """With the declared roles proved; text far beyond `longest` tokens is not encoded to its end. Raises UserError."""
    return tito_of(
        model,
        append_roles=options.tito_allowed_append_roles,
        family=options.tito_model,
        chat_template=options.chat_template_path,
        reasoning_parser=engines.text("reasoning_parser"),
        tool_call_parser=engines.text("tool_call_parser"),
        longest=longest,
    )
