"""Flows without a service: read a description, carry its operations out, keep their record."""
