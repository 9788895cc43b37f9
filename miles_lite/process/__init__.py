"""Processes and what they share: supervision, stopping, addresses, keys, temp folders."""
