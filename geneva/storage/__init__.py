"""Where bytes go: the Lance table, and the engine's own files beside it."""
