"""What windows and flows decide, without any input or output: ranges, matrices, graphs, queries."""
