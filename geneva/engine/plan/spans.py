"""Split tasks when there are fewer or larger fragments than the appliers can share evenly."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

from geneva.model.types import Task

_LATE = 1.1  # of an even share: tasks that end later than this are split
_PIECES_PER_SHARE = 2  # so that the last pieces even out
_MIN_ROWS = 8


def split(tasks: Sequence[Task], appliers: int, batch_size: int | None) -> list[tuple[Task, ...]]:
    """Return for each task its spans, or itself alone if it is not worth splitting.

    Tasks are handed out in order, each to the applier that is free first (list scheduling:
    Graham, Bounds on Multiprocessing Timing Anomalies, 1969). Those that would end late, were
    all rows alike, are split until none does or they cannot be split any further.

    Parameters
    ----------
    appliers
        Worker processes that can run at once.
    batch_size
        Rows per UDF call, if fixed; spans are no smaller.
    """
    share = sum(t.rows for t in tasks) / max(appliers, 1)
    smallest = max(batch_size or 0, _MIN_ROWS)
    counts = [1] * len(tasks)
    if appliers > 1 and max((t.rows for t in tasks), default=0) > (_LATE - 1) * share:
        while late := _late(tasks, counts, appliers, _LATE * share):
            before = list(counts)
            for k in late:
                counts[k] = _more(tasks[k], counts[k], share, smallest)
            if counts == before:
                break
    return [_spans(t, n) for t, n in zip(tasks, counts, strict=True)]


def _late(tasks: Sequence[Task], counts: Sequence[int], appliers: int, end: float) -> list[int]:
    """Return which tasks end late, in rows that an applier has computed by then."""
    free = [0.0] * appliers
    late: list[int] = []
    for k, (task, count) in enumerate(zip(tasks, counts, strict=True)):
        for _ in range(count):
            done = free[0] + task.rows / count
            heapq.heapreplace(free, done)
            if done > end and (not late or late[-1] != k):
                late.append(k)
    return late


def _more(task: Task, count: int, share: float, smallest: int) -> int:
    """Return into how many spans to split a task that ends late with so many."""
    if task.checkpointed is not None:
        return 1
    even = math.ceil(task.rows * _PIECES_PER_SHARE / share)
    return min(max(2, even) if count == 1 else 2 * count, max(1, task.rows // smallest))


def _spans(task: Task, count: int) -> tuple[Task, ...]:
    if count == 1:
        return (task,)
    edges = [task.rows * k // count for k in range(count + 1)]
    return tuple(
        replace(task, start=a, stop=b, assemble=False) for a, b in itertools.pairwise(edges)
    )
