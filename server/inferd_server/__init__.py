"""The server: frontend, core, repository, scheduling, runtime."""
