"""What to start, what to train on, when to stop: pure, the same for a run and for its simulation."""
