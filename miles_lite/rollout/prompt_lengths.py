"""How long prompts are, in tokens, as a session would render them, and how long they may be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from miles_lite.config.options import Config
from miles_lite.model_folder import check_model_folder, context_length
from miles_lite.rollout.prompts import Prompt, as_messages
from miles_lite.session.model_text import model_text
from miles_lite.tito import Tito


def prompt_limit(model: Path, config: Config) -> int:
    """Tokens that a prompt may have."""
    limit = context_length(model, config.context.rollout_max_context_len) - 1
    return min(limit, config.rollouts.rollout_max_prompt_len or limit)


def token_counter(tito: Tito, config: Config) -> Callable[[Prompt], int]:
    """Tokens of a prompt with its tools, under the run's template options."""
    options = tito.options_read(config.session.template_options)
    return lambda prompt: len(tito.first(as_messages(prompt), tools=prompt.tools, options=options).ids)


def fitting(config: Config) -> Callable[[Prompt], bool] | None:
    """Whether a prompt is to be dealt; None: whichever comes (--overlong-prompts error)."""
    if config.data.overlong_prompts == "error":
        return None
    model = check_model_folder(config.model.hf_checkpoint)
    tito = model_text(model, config.session, config.engines)
    limit, count = prompt_limit(model, config), token_counter(tito, config)
    return lambda prompt: count(prompt) <= limit
