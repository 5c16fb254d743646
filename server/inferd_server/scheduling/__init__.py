"""Decides which rows run together and when. Owns a request from `enqueue` until its completion."""
