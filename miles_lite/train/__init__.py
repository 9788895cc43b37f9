"""The trainer: ranks that turn batches of samples into new weights."""
