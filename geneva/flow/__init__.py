"""The pure core of flows, without input or output: matrices, graphs, decisions, queries, joins."""
