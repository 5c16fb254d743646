"""Bytes in, bytes out: transports, the codec, and the one table from errors to status codes."""
