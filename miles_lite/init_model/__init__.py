"""A small model made on the spot, and its supervised warm start."""
