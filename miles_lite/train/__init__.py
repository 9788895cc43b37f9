"""The trainer: data-parallel ranks that turn batches of samples into new weights."""
