"""The history of a column's rows: where they came from, and which values still hold."""
