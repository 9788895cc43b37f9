"""The HTTP face of a session server."""
