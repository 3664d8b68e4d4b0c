"""How fast, against what: one question per file, peers in the same run.

A figure counts only as a ratio inside one run, each side the median of alternating rounds,
because the machines that run this are shared and noisy.
"""
