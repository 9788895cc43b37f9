"""What survives the server: turns on disk, written before they are acknowledged."""
