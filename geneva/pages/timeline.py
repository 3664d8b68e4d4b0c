"""The timeline: when each job waited, ran and stood still, as bars on one axis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import Query, Request, Response

from geneva.errors import SettingError
from geneva.jobs.records import JobRecord
from geneva.jobs.store.store import MAX_JOBS, JobSpan
from geneva.model.types import JobState
from geneva.pages.render import is_piece, render
from geneva.pages.routes import pages
from geneva.pages.texts import duration, look_of
from geneva.service.state import Store

router = pages()

RANGES = {
    "15m": timedelta(minutes=15),
    "1h": timedelta(hours=1),
    "6h": timedelta(hours=6),
    "24h": timedelta(hours=24),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
}
_WAITING = {JobState.QUEUED, JobState.PENDING}
_WORKING = {JobState.STARTING, JobState.RUNNING, JobState.CANCELLING}
_THINNEST = 0.15  # percent: what took no time is still seen
_STEPS_S = (1, 5, 10, 30, 60, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400, 172800, 604800)
_TICKS = 8


@dataclass(frozen=True, slots=True)
class TimelinePiece:
    """A stretch of one bar, in percent of the axis; one that waits is drawn thin."""

    start: float
    width: float
    tone: str
    thin: bool
    text: str


@dataclass(frozen=True, slots=True)
class Row:
    """One job and its bar; ``text`` is the bar in words.

    Where a job worked, its bar has the colour of how it ended.
    """

    job: JobRecord
    pieces: Sequence[TimelinePiece]
    text: str


@dataclass(frozen=True, slots=True)
class TimeAxis:
    """A stretch of time, drawn as 0 to 100 percent."""

    since: datetime
    until: datetime

    def place(self, at: datetime) -> float:
        """Return the place of a moment; one outside is at the edge."""
        share = (at - self.since) / (self.until - self.since)
        return round(100 * min(max(share, 0.0), 1.0), 3)

    def ticks(self) -> list[tuple[float, str]]:
        """Return round moments and their names, a handful of them."""
        whole_s = (self.until - self.since).total_seconds()
        step = next((s for s in _STEPS_S if whole_s / s <= _TICKS), _STEPS_S[-1])
        form = "%m-%d" if step >= 86400 else "%m-%d %H:%M" if whole_s >= 86400 else "%H:%M"
        form = "%H:%M:%S" if step < 60 else form
        first = -(-self.since.timestamp() // step) * step
        moments = [first + i * step for i in range(_TICKS + 1)]
        times = [datetime.fromtimestamp(m, UTC) for m in moments if m <= self.until.timestamp()]
        return [(self.place(at), at.strftime(form)) for at in times]


@router.get("/timeline")
def timeline(
    request: Request, store: Store, reach: Annotated[str, Query(alias="range")] = "24h"
) -> Response:
    """Show when jobs ran."""
    if reach not in RANGES:
        raise SettingError(f"range={reach!r} must be one of {', '.join(RANGES)}")
    now = datetime.now(UTC)
    spans = store.spans(now - RANGES[reach], now)
    axis = _axis(spans, now - RANGES[reach], now)
    return render(
        request,
        "_timeline.html" if is_piece(request) else "timeline.html",
        rows=[_row(span, axis) for span in reversed(spans)],
        axis=axis,
        ranges=RANGES,
        reach=reach,
        cut=len(spans) == MAX_JOBS,
        most=MAX_JOBS,
    )


def _axis(spans: Sequence[JobSpan], since: datetime, until: datetime) -> TimeAxis:
    """Return the stretch of time to show, without the empty part before the first job."""
    if spans:
        first = min(span.job.created_at for span in spans)
        since = max(since, first - (until - first) * 0.02 - timedelta(seconds=2))
    return TimeAxis(since, until)


def _row(span: JobSpan, axis: TimeAxis) -> Row:
    now = span.job.state
    pieces = []
    for state, start, end in _stretches(span, axis.until):
        if end < axis.since or state.ended:
            continue
        text = f"{look_of(state).label} for {duration((end - start).total_seconds())}"
        shown = now if now.ended and state in _WORKING else state
        at = axis.place(start)
        width = max(axis.place(end) - at, _THINNEST)
        pieces.append(TimelinePiece(at, width, look_of(shown).tone, state in _WAITING, text))
    told = ", ".join(p.text for p in pieces)
    return Row(span.job, pieces, f"{look_of(now).label}: {told}")


def _stretches(span: JobSpan, now: datetime) -> Iterator[tuple[JobState, datetime, datetime]]:
    """Yield (state, from, to) of all that a job went through."""
    end = span.job.ended_at or now
    for i, (at, state) in enumerate(span.changes):
        after = span.changes[i + 1][0] if i + 1 < len(span.changes) else max(end, at)
        yield state, at, after
