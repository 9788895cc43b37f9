"""Rollouts: prompts in, validated and batched samples out, engines kept alive in between."""
