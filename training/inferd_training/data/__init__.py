"""Image data sets: parsed, verified, cached."""
