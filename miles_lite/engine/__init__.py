"""Engines: one Ray actor per SGLang server, which it starts, feeds with weights, and ends whatever happens."""
