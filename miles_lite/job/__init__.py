"""One job from its options to its summary: the loop, the run around it, and what is checked before anything starts."""
