"""The reports of a running job: how many rows of how many, and how quick it is."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from geneva.engine.control import Control
from geneva.engine.plan.decision import Action, FragmentPlan
from geneva.engine.schedule import Schedule
from geneva.engine.tally import Tally
from geneva.model.types import JobState, Options, Progress, TaskDone, Workers

Observer = Callable[[Progress], None]

_NOBODY = Workers(0, 0, 0)
_DONE = (JobState.SUCCEEDED, JobState.PARTIAL)
_SPAN_S = 20.0
_LEAST = 4  # reports of new rows that a rate is made of, however long ago the first of them is


class Reporter:
    """Reports the progress of one job; a count never goes back."""

    def __init__(
        self,
        columns: tuple[str, ...],
        options: Options,
        tally: Tally,
        control: Control,
        observe: Observer,
    ) -> None:
        self._columns, self._options, self._tally = columns, options, tally
        self._control, self._observe = control, observe
        self._started = time.monotonic()
        self._pace = Pace()
        self._rows_total: int | None = None
        self._fragments_total = 0
        self._physical = self._looked_at = 0  # rows of the round's tasks; of those that are done
        self._most: int | None = None  # fragments that the round may fill
        self._rows_seen = 0  # done or checkpointed
        self._rows_done = 0  # the same, also what nobody can use any more

    @property
    def seconds(self) -> float:
        """Seconds since the job began."""
        return time.monotonic() - self._started

    @property
    def achieved(self) -> tuple[int, int]:
        """Rows and fragments done so far, also those that nobody can use any more."""
        return self._rows_done, len(self._tally.committed)

    @property
    def rows_total(self) -> int | None:
        """Rows that the job is to compute, where no filter is still to be evaluated."""
        return self._rows_total

    def planned(
        self, plans: Sequence[FragmentPlan], limit: int | None, rows_later: int = 0
    ) -> None:
        """Take in the plans with work of a round, at most ``limit`` of which are carried out.

        Parameters
        ----------
        rows_later
            Rows that are left to later rounds.
        """
        tally = self._tally
        self._most = limit
        self._rows_total = (
            None
            if any(p.action is Action.FILTER for p in plans)
            else sum(p.rows_compute for p in plans[:limit]) + tally.counts.computed + rows_later
        )
        self._physical = sum(p.task.rows for p in plans if p.task is not None)
        self._looked_at = 0
        self._fragments_total = len(plans[:limit]) + len(tally.committed)

    def ended(self, event: TaskDone) -> None:
        """Take in a task that ended."""
        self._looked_at += event.stop - event.start

    def report(
        self,
        state: JobState,
        schedule: Schedule | None = None,
        workers: Workers = _NOBODY,
        reason: str = "",
        windows: str = "",
    ) -> None:
        """Tell how the job stands.

        Parameters
        ----------
        schedule, workers
            Of the present round, if one is under way.
        reason
            Why nothing happens, where that is known.
        windows
            The windows that are open, in words.
        """
        tally, total = self._tally, self._rows_total
        counts, rows_twice, fragments_done = tally.counts, 0, tally.done
        if schedule is not None:
            counts, rows_twice = counts + schedule.counts, schedule.rows_twice
            fragments_done += schedule.fragments_done
        here = workers.rows_done - rows_twice
        seen = max(counts.computed, here + tally.counts.computed, self._rows_seen)
        self._rows_done = max(self._rows_done, seen)
        self._rows_seen = seen if total is None else min(seen, total)
        replayed = max(counts.replayed, workers.rows_replayed + tally.counts.replayed)
        working = state is JobState.RUNNING and workers.ready > 0
        self._pace.see(self.seconds, self._rows_seen - replayed, working=working)
        rows = counts.computed if state in _DONE else self._rows_seen
        estimated = total is None and state not in _DONE
        if total is None:
            total = self._estimated_total(schedule) if estimated else rows
        progress = Progress(
            job_id=self._control.job_id,
            columns=self._columns,
            state=state,
            reason=reason or workers.waiting_for,
            rows_total=total,
            rows_computed=rows,
            rows_replayed=counts.replayed,
            rows_failed=counts.failed,
            fragments_total=self._fragments_total,
            fragments_done=fragments_done,
            fragments_committed=len(tally.committed),
            appliers_ready=workers.ready,
            appliers_wanted=workers.wanted,
            seconds=self.seconds,
            total_estimated=estimated,
            rate=self._pace.mean_rows_per_s if state.ended else self._pace.rows_per_s,
            windows=windows,
        )
        self._control.report(progress)
        self._observe(progress)

    def _estimated_total(self, schedule: Schedule | None) -> int | None:
        """Return how many rows a filter selects, by those of which it is known."""
        if schedule is None or not self._looked_at or not schedule.hits:
            return None
        all_in_all = self._physical / self._looked_at
        if self._most is not None:  # so many fragments that hold any
            all_in_all = min(all_in_all, max(self._most / schedule.hits, 1))
        selected = round(schedule.counts.computed * all_in_all)
        return max(self._tally.counts.computed + selected, self._rows_seen)

    def how_to_continue(self, what: str, forestalled: int = 0) -> str:
        """Return the message of a job that was stopped.

        Parameters
        ----------
        forestalled
            Finished files that other writers kept the job from committing.
        """
        goes_on = "every finished batch is checkpointed: the same command continues there"
        if self._options.force and self._control.given_up:
            goes_on = "the forced run is over: the same command begins another one"
        but = f" but {forestalled} (other writers were always first)" if forestalled else ""
        name = ", ".join(self._columns)
        return (
            f"backfill of {name!r} was {what} after {self._rows_seen:,} rows; "
            f"finished fragments are committed{but} and {goes_on}"
        )


class Pace:
    """The rate of a job, from its reports.

    The time in which nobody works does not count: a start, a pause, waiting for others. Rows that
    come from checkpoints take no time, and are not told to it.
    """

    def __init__(self) -> None:
        self._now_s = 0.0
        self._worked_s = 0.0
        self._working = False
        self._news: deque[tuple[float, int]] = deque([(0.0, 0)])  # (seconds worked, rows then)

    def see(self, now_s: float, rows: int, *, working: bool) -> None:
        """Take in how many rows were computed by a moment, and whether anybody works on more."""
        if self._working:
            self._worked_s += max(now_s - self._now_s, 0.0)
        self._now_s, self._working = now_s, working
        if rows > self._news[-1][1]:
            self._news.append((self._worked_s, rows))
        while len(self._news) > _LEAST and self._news[1][0] < self._worked_s - _SPAN_S:
            self._news.popleft()

    @property
    def rows_per_s(self) -> float:
        """Rows per second lately; none if nothing came."""
        (begun_s, before), (last_s, rows) = self._news[0], self._news[-1]
        if rows == before:
            return 0.0
        mean_s = (last_s - begun_s) / (len(self._news) - 1)
        silent_s = self._worked_s - last_s
        until_s = self._worked_s if silent_s > 2 * mean_s else last_s  # it became slower
        return (rows - before) / max(until_s - begun_s, 1e-9)

    @property
    def mean_rows_per_s(self) -> float:
        """Rows per second in all the time in which somebody worked."""
        return self._news[-1][1] / self._worked_s if self._worked_s > 0 else 0.0
