"""Data sets of images and texts: parsed, verified, cached."""
