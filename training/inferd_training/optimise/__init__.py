"""From a verified export to a faster one that still answers the same."""
