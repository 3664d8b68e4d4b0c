"""The windows of one job: their order, their states, and the moment of their commits.

With ``commit="fragment"`` one round takes all windows, and a fragment is written when the last of
its windows is done. With ``commit="window"`` there is a stage for each: a round that takes only the
rows of its windows, and commits what it touched before the next begins. Windows that share no
fragment make one stage, as nothing that one writes must be read again for another.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import numpy as np

from geneva.engine.plan.decision import FragmentPlan
from geneva.engine.plan.slices import OnColumn, Slices
from geneva.engine.plan.windowed import (
    Portion,
    Share,
    WindowsPlan,
    needed_rows,
    planned_windows,
    windowed,
)
from geneva.engine.schedule import Windowed, WindowEnded
from geneva.model.result import WindowResult, WindowState
from geneva.model.types import Counts, TaskDone
from geneva.model.windows import Windows
from geneva.storage.lance import Snapshot, TableStorage

_SHOWN = 3  # open windows that a bar names


@dataclass(slots=True)
class _WindowLog:
    """The state and counts of one window."""

    key: str
    planned: int
    left: set[int]  # fragments that hold rows of it and are not committed
    state: WindowState
    reason: str = ""
    counts: Counts = field(default_factory=Counts)
    began_s: float | None = None
    ended_s: float | None = None

    def result(self) -> WindowResult:
        """Return how it stands now."""
        seconds = (self.ended_s or time.monotonic()) - self.began_s if self.began_s else 0.0
        computed, failed = self.counts.computed, self.counts.failed
        return WindowResult(
            self.key, self.state, self.reason, self.planned, computed, failed, seconds
        )


class Windowing:
    """The windows of one job.

    Parameters
    ----------
    snapshot
        The version that the job was begun on: windows are cut on it and stay as they are.
    """

    def __init__(self, storage: TableStorage, snapshot: Snapshot, asked: Windows) -> None:
        column, now = OnColumn(storage, snapshot, asked.on), datetime.now(UTC)
        self._storage, self.asked = storage, column.settled(asked, now)
        self.windows = column.windows(self.asked, now)
        self.plan: WindowsPlan = planned_windows(self.windows, {}, asked.on, asked.commit)
        self._log: list[_WindowLog] = []
        self._changed: set[int] = set()  # windows of which the record does not know yet
        self._open: dict[int, None] = {}  # in the order in which they opened
        self._stages: list[tuple[int, ...]] = [tuple(range(len(self.windows)))]
        self._at = 0
        self._fragments: tuple[int, ...] = ()
        self._shares: Mapping[int, Share] = {}
        self._resumed = False  # checkpoints of an earlier job were counted

    # --- planning -----------------------------------------------------------------------

    def slices(self, snapshot: Snapshot) -> Slices:
        """Return which rows of a version are in the windows of the present stage."""
        column = OnColumn(self._storage, snapshot, self.asked.on)
        return Slices(column, self.windows, self._stages[self._at])

    def begin(self, plans: Sequence[FragmentPlan], limit: int | None) -> list[int]:
        """Take in the plan of all windows, and return the fragments of the first stage.

        Parameters
        ----------
        limit
            ``num_frags``: only the first fragments in the order of the windows are taken.
        """
        busy = [p for p in plans if p.share is not None and p.task is not None]
        busy.sort(key=_first_window)
        self._shares = {p.fragment_id: p.share for p in busy[:limit] if p.share is not None}
        plan = planned_windows(self.windows, self._shares, self.asked.on, self.asked.commit)
        outside, null = sum(p.rows_outside for p in plans), sum(p.rows_null for p in plans)
        self.plan = replace(plan, rows_outside=outside, rows_null=null)
        self._log = [
            _WindowLog(
                w.key,
                w.rows_compute,
                set(w.fragments),
                WindowState.PLANNED if w.rows_compute else WindowState.SKIPPED,
                w.reason,
            )
            for w in self.plan.windows
        ]
        self._changed = {k for k, w in enumerate(self._log) if w.state is not WindowState.SKIPPED}
        if self.plan.commit == "window":
            self._stages = _stages([w.fragments for w in self.plan.windows])
        self._at = 0
        return self.stage_fragments

    def knows(self, fragment_id: int) -> bool:
        """Whether a fragment was there when windows were planned, with rows to compute."""
        return fragment_id in self._shares

    @property
    def stage_fragments(self) -> list[int]:
        """The fragments that the present stage computes rows of, in the order of its windows."""
        ids = [i for k in self._stages[self._at] for i in self.plan.windows[k].fragments]
        return list(dict.fromkeys(ids))

    def next_stage(self) -> bool:
        """Go on to the next stage; return whether there is one."""
        if self._at + 1 >= len(self._stages):
            return False
        self._at += 1
        return True

    @property
    def staged(self) -> bool:
        """Whether windows are committed as they end, stage by stage."""
        return len(self._stages) > 1

    @property
    def rows_later(self) -> int:
        """Rows of the windows of later stages."""
        later = (k for stage in self._stages[self._at + 1 :] for k in stage)
        return sum(self.plan.windows[k].rows_compute for k in later)

    def tasks(self, portions: Sequence[Portion], appliers: int, batch_size: int | None) -> Windowed:
        """Return the tasks of the present stage, window by window."""
        if not self._resumed:  # by the first round; what later ones find was counted as it came
            self._resumed = True
            for portion in portions:
                self._count_checkpointed(portion)
        numbers = self._stages[self._at]
        return windowed(portions, numbers, self.asked.concurrency, appliers, batch_size)

    def notes(self, snapshot: Snapshot, plans: Sequence[FragmentPlan]) -> list[str]:
        """Return a note about a range that holds no row of the table; nothing if it holds some."""
        if not plans or any(p.rows_outside + p.rows_null < p.rows for p in plans):
            return []
        column = OnColumn(self._storage, snapshot, self.asked.on)
        column.learn(snapshot.fragments.values())
        return [f"no row is in the windows along {self.asked.on!r}: it holds {column.held()}"]

    # --- while they are carried out -----------------------------------------------------

    def opened(self, number: int) -> None:
        """Take in that the schedule opened a window."""
        window = self._log[number]
        self._open[number] = None
        window.began_s = window.began_s or time.monotonic()
        if window.state in (WindowState.PLANNED, WindowState.FAILED):
            window.state = WindowState.RUNNING
            self._changed.add(number)

    @property
    def open_windows(self) -> str:
        """The windows that are open now, in words; empty if none is."""
        if not self._open:
            return ""
        shown = ", ".join(self._log[k].key for k in list(self._open)[:_SHOWN])
        more = "" if len(self._open) <= _SHOWN else f" and {len(self._open) - _SHOWN} more"
        return f"window {shown}{more} ({max(self._open) + 1:,} of {len(self._log):,})"

    def took(self, event: TaskDone) -> None:
        """Take in a task that ended; rows that it replayed were counted when they were found."""
        if event.window >= 0:
            counts = event.counts
            new = replace(counts, computed=counts.computed - counts.replayed)
            self._log[event.window].counts += new
            self._changed.add(event.window)

    def _count_checkpointed(self, portion: Portion) -> None:
        """Count the rows that an earlier job checkpointed, by window."""
        needed = needed_rows(portion.task)
        rows = portion.checkpointed[needed[portion.checkpointed]]
        places = np.broadcast_to(np.asarray(portion.places), len(needed))[rows]
        for number, count in zip(*np.unique(places, return_counts=True), strict=True):
            self._log[number].counts += Counts(computed=int(count))
            self._changed.add(int(number))

    def ended(self, event: WindowEnded) -> None:
        """Take in that all tasks of a window ended."""
        window = self._log[event.number]
        self._open.pop(event.number, None)
        if window.state is WindowState.SKIPPED:
            return
        window.ended_s = time.monotonic()
        window.state = WindowState.FAILED if event.failed else WindowState.COMPUTED
        self._changed.add(event.number)
        self._settle(event.number)

    def committed(self, fragments: Collection[int]) -> None:
        """Take in that fragments became visible."""
        for number in {int(k) for i in fragments if (s := self._shares.get(i)) for k in s.windows}:
            if self.plan.commit == "fragment" or number in self._stages[self._at]:
                self._log[number].left -= set(fragments)
            self._settle(number)

    def _settle(self, number: int) -> None:
        window = self._log[number]
        if window.state is WindowState.COMPUTED and not window.left:
            window.state = WindowState.COMMITTED
            self._changed.add(number)

    def finish(self) -> None:
        """Take in that nothing of the job is left: compacted fragments are visible too."""
        for number, window in enumerate(self._log):
            window.left.clear()
            self._settle(number)

    # --- its record ---------------------------------------------------------------------

    @property
    def failed(self) -> list[str]:
        """The windows that failed."""
        return [w.key for w in self._log if w.state is WindowState.FAILED]

    def news(self) -> dict[int, WindowResult]:
        """Return the windows that changed since the last call, by number."""
        changed, self._changed = sorted(self._changed), set()
        return {number: self._log[number].result() for number in changed}

    def every(self) -> tuple[WindowResult, ...]:
        """Return the present result of each window, in the order in which they open."""
        return tuple(w.result() for w in self._log)


def _first_window(plan: FragmentPlan) -> int:
    assert plan.share is not None
    return int(plan.share.windows[0])


def _stages(fragments: Sequence[Collection[int]]) -> list[tuple[int, ...]]:
    """Join neighbours that share no fragment; windows without any belong to whatever is there."""
    stages: list[tuple[int, ...]] = []
    held: set[int] = set()
    for number, ids in enumerate(fragments):
        if stages and held.isdisjoint(ids):
            stages[-1] = (*stages[-1], number)
            held |= set(ids)
        else:
            stages.append((number,))
            held = set(ids)
    return stages
