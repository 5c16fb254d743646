"""The graph itself: fewer nodes, the same answers."""
