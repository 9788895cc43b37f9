"""What a run tells its users: metric sinks, progress, plots, the summary. Knows `miles_lite.sample` only."""
