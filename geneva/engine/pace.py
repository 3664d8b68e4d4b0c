"""How quick a job is now: rows that were computed lately, while appliers worked on them."""

from __future__ import annotations

from collections import deque

_SPAN_S = 20.0
_LEAST = 4  # reports of new rows that a rate is made of, however long ago the first of them is


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
