"""From planned fragments to windows: the rows of each window, and its tasks.

A window is a slice of one job, neither a job nor a filter: a fragment that several windows share
is cut into slices, which only checkpoint, and is written once its last one is done.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from geneva.engine.plan.slices import Places
from geneva.engine.schedule import Cut, Windowed
from geneva.model.rows import BoolArray, IntArray, RowSet
from geneva.model.types import Task
from geneva.model.windows import Window

_MOST_REWRITES = 1.5  # times the column files of one job, up to which "auto" commits by window
_PIECES_PER_SHARE = 2  # so that the last pieces even out
_MIN_ROWS = 8
_LINES = 30  # of a plan's text
_PIECE_S = 0.05  # of UDF calls that a piece is worth its start


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """The rows of one fragment that are to be computed, by window.

    Attributes
    ----------
    places
        The window of every row, or of each; one that is not to be computed has no say.
    windows, rows
        The windows that the fragment has rows of, ascending, and how many.
    """

    places: int | Places
    windows: IntArray
    rows: IntArray

    @classmethod
    def of(cls, task: Task, places: int | Places) -> Share:
        """Count the rows that a task computes, by window."""
        mask = needed_rows(task)
        if isinstance(places, int):
            count = np.array([np.count_nonzero(mask)], np.int64)
            return cls(places, np.array([places], np.int64), count)
        windows, rows = np.unique(places[mask & (places >= 0)], return_counts=True)
        return cls(places, windows.astype(np.int64), rows.astype(np.int64))


def needed_rows(task: Task) -> BoolArray:
    """Return the rows that a task may compute."""
    if task.need is not None:
        return task.need.mask()
    return task.live.mask() if task.live is not None else np.ones(task.rows, np.bool_)


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """The plan for one window.

    Attributes
    ----------
    key
        The window, as plans, records and pages name it.
    rows_compute
        Rows to compute.
    fragments
        Ids of the fragments that hold them.
    reason
        Why there is nothing to do, where that is so.
    """

    key: str
    rows_compute: int = 0
    fragments: tuple[int, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class WindowsPlan:
    """The windows of a call, in the order in which they open.

    Attributes
    ----------
    commit
        ``fragment`` or ``window``: when fragments are committed.
    files, files_by_window
        Column files that are written with each fragment committed once, and with every window
        committed as it ends.
    rows_outside, rows_null
        Rows of the fragments that were looked at which are in no window.
    """

    on: str
    windows: tuple[WindowPlan, ...]
    commit: str
    files: int = 0
    files_by_window: int = 0
    rows_outside: int = 0
    rows_null: int = 0

    def __str__(self) -> str:
        """Return a table of the windows; neighbours with nothing to do are one line."""
        lines = [f"{'window':28} {'fragments':>9} {'compute':>12}"]
        for idle, group in itertools.groupby(self.windows, lambda w: not w.rows_compute):
            run = list(group)
            if idle:
                key = run[0].key if len(run) == 1 else f"{run[0].key} and {len(run) - 1} more"
                lines.append(f"{key:28} {0:>9} {0:>12}  {run[0].reason}")
                continue
            lines += [f"{w.key:28} {len(w.fragments):>9,} {w.rows_compute:>12,}" for w in run]
        if len(lines) > _LINES:
            lines[_LINES:] = [f"... and {len(lines) - _LINES} lines more"]
        return "\n".join([*lines, self.cost])

    @property
    def cost(self) -> str:
        """The number of column files and the moment of their commits, in words."""
        if not self.files:
            return "windows are half-open; nothing is computed"
        times = self.files_by_window / self.files
        how = (
            f"each fragment is written once: {self.files:,} column files (by window it would be "
            f"{self.files_by_window:,}, {times:.1f} x)"
            if self.commit == "fragment"
            else f"what a window touches is written as it ends: {self.files_by_window:,} column "
            f"files ({times:.1f} x those of one commit per fragment)"
        )
        return (
            f"windows are half-open; {how}; the first rows are visible after {self.first_visible}"
        )

    def facts(self) -> dict[str, Any]:
        """Return the plan as JSON holds it."""
        return asdict(self) | {"first_visible": self.first_visible}

    @property
    def first_visible(self) -> str:
        """The window after which the first rows become visible; empty if none is computed."""
        busy = [w for w in self.windows if w.rows_compute]
        if not busy or self.commit == "window":
            return busy[0].key if busy else ""
        last = {f: w.key for w in busy for f in w.fragments}
        order = {w.key: k for k, w in enumerate(self.windows)}
        return min(last.values(), key=order.__getitem__)


def planned_windows(
    windows: Sequence[Window], shares: Mapping[int, Share], on: str, commit: str
) -> WindowsPlan:
    """Return the plan of each window.

    Parameters
    ----------
    shares
        By fragment, in the order in which fragments are taken.
    commit
        ``fragment``, ``window``, or ``auto`` for the latter where it writes at most 1.5 times the
        column files.
    """
    rows = np.zeros(len(windows), np.int64)
    fragments: list[list[int]] = [[] for _ in windows]
    for fragment_id, share in shares.items():
        rows[share.windows] += share.rows
        for window in share.windows.tolist():
            fragments[window].append(fragment_id)
    plans = tuple(
        WindowPlan(w.key, n, tuple(ids), "" if n else "nothing to compute")
        for w, n, ids in zip(windows, rows.tolist(), fragments, strict=True)
    )
    by_window = sum(len(s.windows) for s in shares.values())
    if commit == "auto":
        commit = "window" if by_window <= _MOST_REWRITES * len(shares) else "fragment"
    return WindowsPlan(on, plans, commit, len(shares), by_window)


@dataclass(frozen=True, slots=True, eq=False)
class Portion:
    """A fragment's task and the window of its rows; some may be checkpointed already."""

    task: Task
    places: int | Places
    checkpointed: IntArray

    @property
    def left(self) -> BoolArray:
        """Return the rows that are to be computed still."""
        mask = needed_rows(self.task)
        mask[self.checkpointed] = False
        return mask


def windowed(
    portions: Sequence[Portion],
    numbers: Sequence[int],
    at_once: int,
    appliers: int,
    batch_size: int | None,
) -> Windowed:
    """Return the tasks of each window, which are made when it opens.

    Parameters
    ----------
    numbers
        The windows, in the order in which they open.
    appliers
        Worker processes that can run at once: what a window holds is split so that all have work.
    batch_size
        Rows per UDF call, if fixed; pieces are no smaller.
    """
    whole: dict[int, list[Task]] = {k: [] for k in numbers}
    sliced: dict[int, list[Portion]] = {k: [] for k in numbers}
    cuts: dict[int, Cut] = {}
    for portion in portions:
        task, places = portion.task, portion.places
        if isinstance(places, int):
            whole[places].append(replace(task, window=places))
            continue
        windows = np.unique(places[portion.left])
        if len(windows) > 1:
            rows = int(np.count_nonzero(needed_rows(task)[portion.checkpointed]))
            cuts[task.fragment_id] = Cut(task, len(windows), rows)
            for window in windows.tolist():
                sliced[window].append(portion)
        else:  # the last one that is left assembles
            last = windows if len(windows) else places[needed_rows(task)]
            window = int(last[0])
            whole[window].append(replace(task, window=window))
    smallest = max(batch_size or 0, _MIN_ROWS)

    def tasks(window: int, row_s: float | None) -> list[tuple[Task, ...]]:
        made = [*whole[window], *(_slice(p, window) for p in sliced[window])]
        worth = smallest if row_s is None else max(smallest, math.ceil(_PIECE_S / max(row_s, 1e-9)))
        return _split(made, appliers, worth)

    return Windowed(numbers, tasks, at_once, cuts)


def _slice(portion: Portion, window: int) -> Task:
    """Return the task of the rows that a fragment has in a window; it only checkpoints."""
    mask = portion.left & (portion.places == window)
    rows = np.flatnonzero(mask)
    return replace(
        portion.task,
        window=window,
        need=RowSet.from_mask(mask),
        start=int(rows[0]),
        stop=int(rows[-1]) + 1,
        resume=(),
        assemble=False,
        complete=False,
    )


def _split(tasks: Sequence[Task], appliers: int, smallest: int) -> list[tuple[Task, ...]]:
    """Return the pieces of each task of a window, of which all appliers can have some."""
    masks = [needed_rows(t) for t in tasks]
    counts = [int(np.count_nonzero(m)) for m in masks]
    share = sum(counts) / max(appliers, 1)
    return [
        _pieces(task, mask, min(math.ceil(rows * _PIECES_PER_SHARE / share), rows // smallest))
        if appliers > 1 and rows > share and len(tasks) < _PIECES_PER_SHARE * appliers
        else (task,)
        for task, mask, rows in zip(tasks, masks, counts, strict=True)
    ]


def _pieces(task: Task, mask: BoolArray, count: int) -> tuple[Task, ...]:
    """Cut a task where equal numbers of its rows lie."""
    if count < 2:
        return (task,)
    rows = np.flatnonzero(mask)
    inner = [int(rows[len(rows) * k // count]) for k in range(1, count)]
    edges = [task.start, *inner, task.stop]
    return tuple(
        replace(task, start=a, stop=b, assemble=False) for a, b in itertools.pairwise(edges)
    )
