"""Tasks of fragments that no table has, for what decides about tasks without reading."""

from __future__ import annotations

from geneva.model.rows import RowClass, RowStatus
from geneva.model.types import Task

CLASS = RowClass(RowStatus.COMPUTED)


def whole_task(fragment: int, rows: int = 10) -> Task:
    """Return the task of a whole fragment, nothing of which is computed."""
    return Task(
        key=f"k{fragment}",
        version=1,
        fragment_id=fragment,
        rows=rows,
        deleted=0,
        start=0,
        stop=rows,
        sources=(),
        need=None,
        carry=None,
        target_file=None,
        row_class=CLASS,
    )
