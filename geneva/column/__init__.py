"""Computed columns in a table: bindings, column files, checkpoints and the history of rows."""
