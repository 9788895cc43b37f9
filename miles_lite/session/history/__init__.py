"""The trajectory tree, and where a request belongs in it."""
