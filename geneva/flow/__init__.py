"""Flows: operations, matrices and DAGs, in YAML and Python.

The room is pure but for `log`, which a job of a flow calls: descriptions, graphs, decisions,
queries and joins, without a table, a database or a clock.
"""

from geneva.flow.reports import log
from geneva.flow.short_forms import Choice, Dag, DateRange, DateTimeRange, Linspace, Range
from geneva.flow.spec import Component, Grid, Io, Join, Mapped, Operation, Param, Random

__all__ = [
    "Choice", "Component", "Dag", "DateRange", "DateTimeRange", "Grid", "Io", "Join", "Linspace",
    "Mapped", "Operation", "Param", "Random", "Range", "log",
]  # fmt: skip
