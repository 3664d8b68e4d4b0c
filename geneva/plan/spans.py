"""Split tasks when there are fewer or larger fragments than the appliers can share evenly."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

from geneva.types import Task

_SHARE = 1.2  # a fragment this much larger than one applier's share is split
_PIECES_PER_APPLIER = 2  # so that the last pieces even out
_MIN_ROWS = 8


def split(tasks: Sequence[Task], appliers: int, batch_size: int | None) -> list[tuple[Task, ...]]:
    """Return for each task its spans, or itself alone if it is not worth splitting.

    Parameters
    ----------
    appliers
        Worker processes that can run at once.
    batch_size
        Rows per UDF call, if fixed; spans are no smaller.
    """
    total = sum(t.rows for t in tasks)
    share = total / max(appliers, 1)
    smallest = max(batch_size or 0, _MIN_ROWS)
    return [_spans(t, share, smallest) if appliers > 1 else (t,) for t in tasks]


def _spans(task: Task, share: float, smallest: int) -> tuple[Task, ...]:
    if task.checkpointed is not None:
        return (task,)
    if task.rows <= _SHARE * share or task.rows < 2 * smallest:
        return (task,)
    pieces = min(math.ceil(task.rows * _PIECES_PER_APPLIER / share), task.rows // smallest)
    edges = [task.rows * k // pieces for k in range(pieces + 1)]
    return tuple(
        replace(task, start=a, stop=b, assemble=False) for a, b in itertools.pairwise(edges)
    )
