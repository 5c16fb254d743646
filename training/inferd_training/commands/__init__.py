"""What the package adds to `inferd`."""
