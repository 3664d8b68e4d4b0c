"""How many rows are read at once, and go to one UDF call when the user does not say."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

TARGET_S = 0.4  # a batch in flight is what a crash loses: keep it well under a second
LONGEST_S = 60.0  # also where longer calls would pay
TARGET_BYTES = 16 << 20
MAX_ROWS = 65_536
READ_BYTES = 16 << 20
_TOGETHER_ROWS = 1 << 20
WIDE_ROW_BYTES = 8 << 10  # below that a scan is quicker, and its memory bounded enough


def read_rows(row_bytes: float) -> tuple[int, int | None]:
    """Return (rows per read batch, batches read ahead or ``None`` for Lance's default)."""
    rows = int(min(MAX_ROWS, max(1, READ_BYTES / max(row_bytes, 1.0))))
    return rows, (1 if row_bytes > WIDE_ROW_BYTES else None)


def together_rows(row_bytes: float | None) -> int:
    """Return how many rows of small fragments are read together; they are held until computed."""
    return int(min(_TOGETHER_ROWS, READ_BYTES / max(row_bytes or 1.0, 1.0)))


HELD_BYTES = 64 << 20  # of units in flight, while enough of them are left for every thread


def unit_bytes(threads: int) -> int:
    """Return how large a unit may be: with many threads, as many are held at once."""
    return TARGET_BYTES * 2 // max(2, threads)


_FIXED_SHARE = 0.07  # of a call's time that its fixed cost may be; less than a tenth by any noise
_EXPLORED_S = 3.0  # calls of about that length are tried, to see whether rows become cheaper
_SPAN = 30  # calls of sizes that differ by more say nothing of each other
_NOISE = 0.2  # two calls alike may take that much less and more than their mean
_USUAL_NOISE = 0.05  # the standard deviation that is taken for granted while few calls are known
_LIKELY = 1.5  # standard errors
_GROWTH = 4.0  # no call takes longer than so many times the one before
_QUICK_S = 0.005  # below that nobody minds the noise
_LONG_S = 1.0
_WAITED_S = 0.05
_REMEMBERED = 24  # calls; what they showed is asked again when they are forgotten


@dataclass(frozen=True, slots=True)
class Call:
    """The cost of a UDF call."""

    rows: int
    seconds: float
    size_bytes: int


def rows_by_time(last: Call) -> float:
    """Return the rows for the next call of a UDF whose time is that of its rows."""
    return last.rows * min(_GROWTH, TARGET_S / max(last.seconds, 1e-9))


def rows_by_cost(calls: Sequence[Call], least: int = 1) -> float:
    """Return the rows for the next call of a UDF whose calls may have a cost of their own.

    A call of ``TARGET_S`` is never too long. A longer one, of up to ``LONGEST_S``, is made where
    the fixed cost would be more than a small share of a shorter one. Where rows become cheaper the
    more there are, the times of similar sizes show a fixed cost too.
    """
    last = calls[-1]
    calls = _alike(calls)
    most = last.rows * _longest_step(calls)
    if len({c.rows for c in calls}) < 2:  # what is fixed in a long call, only another size tells
        small = last.rows <= least or last.seconds < _EXPLORED_S
        return most if small else last.rows / _GROWTH
    cost = _fit(calls)
    dear = cost.likely_fixed_s * (1 / _FIXED_SHARE - 1)  # longer for the rows than that is waste
    wanted = max(cost.rows_in(TARGET_S), dear / cost.row_s, _cheaper(calls))
    largest = max(calls, key=lambda c: c.rows)
    if largest.seconds < _EXPLORED_S / 2:
        wanted = max(wanted, cost.rows_in(_EXPLORED_S))
    longest_s = max(LONGEST_S, 2 * cost.fixed_s)
    if last.seconds > longest_s:  # it may have become slower
        most = last.rows * longest_s / last.seconds
    return min(math.ceil(wanted), cost.rows_in(longest_s), most)


def _cheaper(calls: Sequence[Call]) -> float:
    """Return the least rows of a call whose rows were seen to cost about as little as any did.

    Twice as many as were ever tried, if those were the cheapest.
    """
    seen: dict[int, list[float]] = {}
    for c in calls:
        seen.setdefault(c.rows, []).append(c.seconds / c.rows)
    each = {rows: math.fsum(costs) / len(costs) for rows, costs in seen.items()}
    most = min(each.values()) * (1 + _FIXED_SHARE + _USUAL_NOISE)
    rows = min(rows for rows, cost in each.items() if cost <= most)
    return rows if rows < max(each) else 2.0 * rows


def _alike(calls: Sequence[Call]) -> list[Call]:
    """Return the calls that tell the present cost, as long as there is more than the latest.

    Left out are calls that loaded something, and so took longer than a later one of as many rows;
    all from before a UDF became slower or quicker; and sizes of another order than the latest.
    """
    kept: list[Call] = []
    odd: list[Call] = []
    for k, c in enumerate(calls):
        if any(d.rows >= c.rows and d.seconds < c.seconds / 2 for d in calls[k + 1 :]):
            continue
        if len(kept) > 1 and _strange(kept, c):
            odd.append(c)  # once is chance, twice is a change
            if len(odd) > 1:
                kept, odd = odd, []
        else:
            kept.append(c)
            odd = []
    kept += odd
    near = [c for c in kept if c.rows * _SPAN >= kept[-1].rows]
    if len({c.rows for c in near}) > 1:
        return near
    return kept


def _strange(calls: Sequence[Call], call: Call) -> bool:
    """Return whether a call took a time that the others do not explain."""
    least = min(c.seconds * min(1.0, call.rows / c.rows) for c in calls)
    most = max(c.seconds * max(1.0, call.rows / c.rows) for c in calls)
    return not least / 2 < call.seconds < most * 2


def _longest_step(calls: Sequence[Call]) -> float:
    """Return how many times as many rows take at most ``_GROWTH`` times as long.

    A line through two calls, each as far from its mean as noise may have it, bounds from below
    what is fixed in the time of the last one; the rest may grow with the rows.
    """
    last = calls[-1]
    if last.seconds < _QUICK_S:
        return _GROWTH
    longest_s, room_s = last.seconds / (1 - _NOISE), last.seconds * _GROWTH / (1 + _NOISE)
    fixed_s = 0.0
    for c in calls:
        if c.rows < last.rows:
            through = last.rows * c.seconds / (1 + _NOISE) - c.rows * longest_s
            fixed_s = max(fixed_s, through / (last.rows - c.rows))
    return (room_s - fixed_s) / max(longest_s - fixed_s, 1e-9)


@dataclass(frozen=True, slots=True)
class _Cost:
    """A line through times of calls: the cost of a call, and of each of its rows."""

    fixed_s: float
    likely_fixed_s: float  # as much as it may well be, as the times differ so much
    row_s: float

    def rows_in(self, seconds: float) -> float:
        return (seconds - self.fixed_s) / self.row_s


def _fit(calls: Sequence[Call]) -> _Cost:
    """Fit a line to the times of calls of different sizes, by their relative errors."""
    weighted = [(1 / max(c.seconds, 1e-9) ** 2, c) for c in calls]
    total = math.fsum(w for w, _ in weighted)
    rows = math.fsum(w * c.rows for w, c in weighted) / total
    seconds = math.fsum(w * c.seconds for w, c in weighted) / total
    spread = math.fsum(w * (c.rows - rows) ** 2 for w, c in weighted)
    both = math.fsum(w * (c.rows - rows) * (c.seconds - seconds) for w, c in weighted)
    row_s = min(max(both / spread, 1e-12), seconds / rows)  # no cost is negative
    fixed_s = seconds - row_s * rows
    errors = math.fsum(w * (c.seconds - fixed_s - row_s * c.rows) ** 2 for w, c in weighted)
    noise = (errors + 2 * _USUAL_NOISE**2) / len(calls)
    likely = fixed_s + _LIKELY * math.sqrt(noise * (1 / total + rows**2 / spread))
    return _Cost(fixed_s, likely, row_s)


class BatchSizer:
    """Chooses the rows of the next call by the cost of the latest; thread-safe.

    It begins with one row, so that a UDF that takes a second a row checkpoints after a second.

    Parameters
    ----------
    fixed
        Rows per batch, if the user gave them.
    limit
        Rows that a batch never exceeds.
    least
        Rows that it begins with and never falls below: those that are awaited at once.
    most_bytes
        The largest size of a batch's inputs or values.
    latency
        Whether a call may cost something whatever it is given, as one over a network or a pass
        of a GPU does, or less per row the more rows it has. A scalar UDF is called row by row: its
        batches have no cost but that of their rows.
    """

    def __init__(
        self,
        fixed: int | None,
        limit: int = MAX_ROWS,
        least: int = 1,
        most_bytes: int = TARGET_BYTES,
        *,
        latency: bool = False,
    ) -> None:
        self._fixed, self._most_bytes = fixed, most_bytes
        self._least = max(1, least)
        self._limit = max(self._least, limit)
        self._rows = fixed or self._least
        self._room = MAX_ROWS  # on the UDF's device
        self._latency = latency
        self._calls: deque[Call] = deque(maxlen=_REMEMBERED)
        self._lock = threading.Lock()

    @property
    def rows(self) -> int:
        """Rows for the next batch."""
        return self._rows

    @property
    def most(self) -> int:
        """Rows that a batch never exceeds."""
        return self._limit

    @property
    def fixed(self) -> bool:
        """True if the user gave the rows, so that costs are of no interest."""
        return self._fixed is not None

    @property
    def learns(self) -> bool:
        """True if waiting for the call under way is worth more than having the next one ready."""
        if self._fixed is not None:
            return False
        last = self._calls[-1] if self._calls else Call(0, math.inf, 0)
        return last.seconds > _WAITED_S and not last.rows / 2 < self._rows < last.rows * 2

    def observe(self, rows: int, seconds: float, size_bytes: int) -> None:
        """Take in the cost of a batch."""
        if self._fixed is not None:
            return
        with self._lock:
            known = self._calls[-1].seconds if self._calls else 0.0
            if rows < self._rows and seconds < max(known, _LONG_S):
                return  # the rest of a fragment, or cut when less was known
            self._calls.append(Call(rows, seconds, size_bytes))
            self._choose()

    def _choose(self) -> None:
        last = self._calls[-1]
        if self._rows == self._limit and last.seconds < TARGET_S:
            rows = float(self._limit)
        elif self._latency:
            rows = rows_by_cost(tuple(self._calls), self._least)
        else:
            rows = rows_by_time(last)
        fits = last.rows * self._most_bytes / max(last.size_bytes, 1)
        whole = int(min(rows, fits, self._limit))
        self._rows = max(self._least, whole - whole % self._least)

    def lower(self, rows: int) -> None:
        """Never again give a batch more rows: the UDF's device had no room for twice as many."""
        with self._lock:
            self._room = max(self._least, min(self._room, rows))
            self._limit = min(self._limit, self._room)
            self._rows = min(self._rows, self._limit)

    def resume(self, earlier: BatchSizer) -> None:
        """Begin with the size that an earlier job of the same UDF arrived at."""
        self._room = earlier._room
        self._limit = max(self._least, min(self._limit, self._room))
        self._calls.extend(earlier._calls)
        self._rows = max(self._least, min(self._limit, earlier.rows))
