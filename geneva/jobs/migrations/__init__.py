"""Migrations of the database of jobs, in order; Alembic runs them."""
