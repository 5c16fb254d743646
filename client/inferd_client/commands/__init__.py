"""The commands that call a server."""
