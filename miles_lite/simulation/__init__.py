"""A model of a fleet on a virtual clock, driven by the scheduler that drives a run."""
