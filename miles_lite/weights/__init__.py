"""The way of a weight from the trainer to an engine, in one folder."""
