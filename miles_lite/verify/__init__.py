"""Checks that a chat template, and a whole session on live engines, keep every token: what `miles-lite verify` runs."""
