"""Filters: SQL text, checked and read as LanceDB reads it."""
