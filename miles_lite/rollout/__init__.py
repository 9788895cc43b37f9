"""Rollouts: prompts in, scored groups of samples out."""
