"""Model families, one declarative file each."""
