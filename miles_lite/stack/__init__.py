"""What serves a model: engines, router and session servers as Ray actors, placed, watched and replaced."""
