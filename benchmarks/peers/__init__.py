"""The peers' servers: each script runs in an environment of its own, where inferd is not installed."""
