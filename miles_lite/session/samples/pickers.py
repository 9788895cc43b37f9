"""Pickers for `--session-sample-picker-path`: which of a session's samples are trained, by what they say of themselves.

Invariant: what is picked was given, in its order; answers that a retry took the place of are never picked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from miles_lite.process.json_types import JsonMapping
from miles_lite.sample import Sample

SIDE_PROMPT = re.compile(r"\b(titles?|topics?|summar(y|ies|ize|ise|izing|ising)|compact(ion)?)\b", re.IGNORECASE)
"""In a system prompt's first line, or an agent's name: it asks for something else than the task's answer."""


def task_only(samples: Sequence[Sample], metadata: JsonMapping) -> list[Sample]:
    """Without the titles and summaries that a harness asks for beside the task."""
    return [sample for sample in _current(samples) if not SIDE_PROMPT.search(_says(sample))]


def without_subagents(samples: Sequence[Sample], metadata: JsonMapping) -> list[Sample]:
    """The task's main agent alone: what its harness marks as the work of another agent is left out as well."""
    return [sample for sample in task_only(samples, metadata) if not sample.metadata.get("hints")]


def _current(samples: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in samples if not sample.metadata.get("superseded")]


def _says(sample: Sample) -> str:
    """Who the sample's agent is, in words."""
    hints = sample.metadata.get("hints", {})
    return "\n".join([sample.metadata.get("system", ""), sample.metadata.get("agent", ""), *hints.values()])
