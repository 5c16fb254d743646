"""From a folder of models to versions that can be called."""
