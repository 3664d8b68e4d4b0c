"""Publishing column files: every N fragments become visible in one table version."""
