"""Environments: an agent function, its prompts and its reward."""
