"""Hypothesis strategies: text that tries hard to look like control tokens."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.models import CONTROL_TOKENS

unicode = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
look_alikes = st.sampled_from([*CONTROL_TOKENS, "<|im_", "end|>", "<thi", "nk>", "\n", "\n\n", "é", "e\u0301", "🎈"])
hostile = st.lists(st.one_of(unicode, look_alikes), max_size=6).map("".join)
