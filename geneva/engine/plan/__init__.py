"""Decide which rows a backfill computes, before any UDF runs."""
