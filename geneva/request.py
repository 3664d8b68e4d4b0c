"""A backfill of one column group, checked against the table."""

from __future__ import annotations

from dataclasses import dataclass

from geneva.column.binding import Binding
from geneva.plan.where import Where
from geneva.types import Options, Target
from geneva.udf import UDF


@dataclass(frozen=True, slots=True)
class Request:
    """One column group to fill."""

    target: Target
    binding: Binding
    udf: UDF
    where: Where | None
    options: Options
