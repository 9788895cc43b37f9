"""A tool-calling agent: a client of a session server that runs tools in child processes and keeps trajectories."""
