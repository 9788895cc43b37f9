"""What a session asks of engines, and what they answer."""
