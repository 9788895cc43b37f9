"""What reads a finished or running run folder, and nothing else."""
