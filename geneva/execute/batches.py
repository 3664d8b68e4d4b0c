"""How many rows are read at once, and go to one UDF call when the user does not say."""

from __future__ import annotations

import threading

TARGET_S = 0.4  # a batch in flight is what a crash loses: keep it well under a second
TARGET_BYTES = 16 << 20
MAX_ROWS = 65_536
READ_BYTES = 16 << 20
_TOGETHER_ROWS = 1 << 20
_GROWTH = 8.0
_SAME = 1.25  # times as long is hardly longer
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


class BatchSizer:
    """Follows the measured time and size of batches; thread-safe.

    It begins with one row, so that a UDF that takes a second a row checkpoints after a second,
    and multiplies by at most eight while batches are quick.

    Parameters
    ----------
    fixed
        Rows per batch, if the user gave them.
    limit
        Rows that a batch never exceeds.
    least
        Rows that it begins with and never falls below: those that are awaited at once.
    most_bytes
        Of the inputs or the values of a batch.
    latency
        Whether a call may take its time whatever it is given, as one over a network does. If the
        smallest batch takes too long, one of twice the rows is tried once: where that takes
        hardly longer, batches may take twice that long, instead of holding a row each.
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
        self._target_s = TARGET_S
        self._latency, self._answered = latency, False
        self._alone_s = 0.0  # that the smallest batch took, while one of twice the rows is tried
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
        """Whether the user gave the rows, and costs are of no interest."""
        return self._fixed is not None

    def observe(self, rows: int, seconds: float, size_bytes: int) -> None:
        """Take in what a batch cost."""
        if self._fixed is not None or rows < self._rows:
            return
        with self._lock:
            fits = self._most_bytes / max(size_bytes, 1)
            factor = min(_GROWTH, self._in_time(rows, seconds), fits)
            self._rows = max(self._least, min(self._limit, int(rows * factor)))

    def _in_time(self, rows: int, seconds: float) -> float:
        """Return how many times as many rows a batch may hold by the time that this one took."""
        alone_s, self._alone_s = self._alone_s, 0.0
        if (
            self._latency
            and not self._answered
            and rows == self._least
            and seconds > self._target_s
        ):
            self._alone_s = seconds
            return 2.0
        if alone_s and seconds > alone_s / 2:  # else the first call only took its time to begin
            self._answered = True
            if seconds < _SAME * alone_s:
                self._target_s = 2 * alone_s
        return self._target_s / max(seconds, 1e-9)

    def lower(self, rows: int) -> None:
        """Never again give a batch more rows: the UDF's device had no room for twice as many."""
        with self._lock:
            self._room = max(self._least, min(self._room, rows))
            self._limit = min(self._limit, self._room)
            self._rows = min(self._rows, self._limit)

    def resume(self, earlier: BatchSizer) -> None:
        """Begin with what an earlier job of the same UDF arrived at."""
        self._room, self._target_s = earlier._room, earlier._target_s
        self._answered = earlier._answered
        self._limit = max(self._least, min(self._limit, self._room))
        self._rows = max(self._least, min(self._limit, earlier.rows))
