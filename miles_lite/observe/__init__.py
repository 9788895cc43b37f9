"""What a run tells its users while it runs: metric sinks, gauges, progress, the summary."""
