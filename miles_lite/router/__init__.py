"""The router: one port in front of all engines."""
