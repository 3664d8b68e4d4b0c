"""Show a job's progress: a bar on a terminal, HTML in a notebook, else nothing.

Everything goes to stderr, so that stdout stays the command's own. A display never breaks a job:
whatever goes wrong while drawing turns it off.
"""

from __future__ import annotations

import contextlib
import html
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from geneva.model.types import JobState, Progress

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.progress_bar import ProgressBar

_LINE_EVERY_S = 5.0
_NOTEBOOK_EVERY_S = 0.5
_QUIET_S = 0.25  # a job that ends sooner, such as one with nothing to do, draws nothing
_FRAMES_PER_S = 8
_BAR_COLUMNS = 40
_NARROW, _WIDE = 70, 100  # columns: below, no bar; from here on, a bar of fixed width


class _Display(Protocol):
    def update(self, progress: Progress) -> None:
        """Show the latest report."""

    def close(self) -> None:
        """Leave the last report behind."""


@contextmanager
def observer_for(
    choice: bool | Callable[[Progress], None] | None, columns: Sequence[str]
) -> Iterator[Callable[[Progress], None]]:
    """Yield the observer that a driver reports to.

    Parameters
    ----------
    choice
        A function of one's own; ``False`` for silence; ``True`` for a bar, or plain lines where
        no bar can be drawn; ``None`` for a bar where one can be drawn, else silence.
    columns
        Columns that the job fills, in its order.
    """
    if callable(choice):
        yield choice
        return
    watched = _Guarded(lambda: _display(bool(choice), columns) if choice is not False else None)
    try:
        yield watched.update
    finally:
        watched.close()


def _display(choice: bool, columns: Sequence[str]) -> _Display | None:
    if _in_notebook():
        return _Notebook()
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return _Terminal(columns)
    return _Lines() if choice else None


def _in_notebook() -> bool:
    # Only a process that has loaded IPython can be a notebook; loading it to ask costs a second.
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and type(shell).__name__ != "TerminalInteractiveShell"


class _Guarded:
    """A display that comes late, goes away by itself when it fails, and never raises."""

    def __init__(self, make: Callable[[], _Display | None]) -> None:
        self._make: Callable[[], _Display | None] | None = make
        self._display: _Display | None = None
        self._last: Progress | None = None

    def update(self, progress: Progress) -> None:
        self._last = progress
        if self._display is None and progress.seconds < _QUIET_S:
            return
        self._show(progress)

    def _show(self, progress: Progress) -> None:
        try:
            if self._make is not None:
                make, self._make = self._make, None
                self._display = make()
            if self._display is not None:
                self._display.update(progress)
        except Exception:
            self._give_up()

    def close(self) -> None:
        if self._display is None and self._last is not None and self._last.rows_computed:
            self._show(self._last)
        try:
            if self._display is not None:
                self._display.close()
        except Exception:
            self._give_up()

    def _give_up(self) -> None:
        display, self._display, self._make = self._display, None, None
        # A live display holds the terminal's cursor and the standard streams: let go of them.
        with contextlib.suppress(Exception):
            if display is not None:
                display.close()


# --- words ---------------------------------------------------------------------------------


def _seconds(seconds: float) -> str:
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
    return f"{whole // 60}:{whole % 60:02d}"


def _rows(progress: Progress) -> str:
    done = f"{progress.rows_computed:,}"
    total = progress.rows_total
    if total is None:
        return f"{done} rows"
    # Only the end is called 100 %, not 99.96 % of a billion rows, or all of an estimate.
    whole = progress.rows_computed >= total and not progress.total_estimated
    share = 100 if whole else min(int(100 * progress.rows_computed / max(total, 1)), 99)
    about = "about " if progress.total_estimated else ""
    return f"{done}/{about}{total:,} rows {share}%"


def _speed(progress: Progress) -> list[str]:
    rate = progress.rows_per_s
    words = [f"{rate:,.0f} rows/s" if rate >= 10 else f"{rate:.2g} rows/s"] if rate else []
    if progress.state.ended:
        return [*words, f"took {_seconds(progress.seconds)}"]
    eta = progress.eta_s
    return [*words, f"ETA {_seconds(eta)}"] if eta is not None else words


def _facts(progress: Progress) -> list[str]:
    """Return the facts beside the rows, most important first."""
    facts = [progress.windows] if progress.windows and not progress.state.ended else []
    committed = f"{progress.fragments_committed:,}"
    if progress.fragments_total and not progress.state.ended:
        facts.append(f"{committed}/{progress.fragments_total:,} fragments committed")
    elif progress.fragments_committed:
        # Those in which a filter found nothing were never to be committed.
        facts.append(f"{committed} fragments committed")
    if progress.rows_failed:
        facts.append(f"{progress.rows_failed:,} failed")
    if progress.rows_replayed:
        facts.append(f"{progress.rows_replayed:,} from checkpoints")
    if progress.appliers_wanted and not progress.state.ended:
        facts.append(f"{progress.appliers_ready}/{progress.appliers_wanted} appliers")
    waits = progress.reason if not progress.state.ended else ""
    if progress.state not in (JobState.RUNNING, JobState.SUCCEEDED) and not waits:
        facts.append(progress.state.value.lower())
    if waits:
        facts.append(waits)
    return facts


def _line(progress: Progress) -> str:
    parts = [_rows(progress), *_speed(progress), *_facts(progress)]
    return f"{', '.join(progress.columns)}: {', '.join(parts)}"


# --- displays ------------------------------------------------------------------------------


class _Lines:
    """A plain line every few seconds, and one at the end."""

    def __init__(self) -> None:
        self._shown_at = 0.0
        self._pending: Progress | None = None

    def update(self, progress: Progress) -> None:
        if self._pending is not None and self._pending.columns != progress.columns:
            self.close()
        self._pending = progress
        now = time.monotonic()
        if now - self._shown_at >= _LINE_EVERY_S:
            self._shown_at = now
            self.close()

    def close(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            print(f"geneva: {_line(pending)}", file=sys.stderr, flush=True)


class _Terminal:
    """A bar for each column group, redrawn in place by rich."""

    def __init__(self, columns: Sequence[str]) -> None:
        from rich.console import Console
        from rich.live import Live

        self._lock = threading.Lock()
        self._width = max((len(c) for c in columns), default=0)
        self._latest: dict[tuple[str, ...], Progress] = {}
        self._live = Live(
            console=Console(stderr=True, highlight=False),
            get_renderable=self._frame,
            refresh_per_second=_FRAMES_PER_S,
            # Output of the UDF goes above the bar, but a redirected stdout is left alone.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._live.start()

    def update(self, progress: Progress) -> None:
        with self._lock:
            self._latest[progress.columns] = progress

    def close(self) -> None:
        self._live.stop()

    def _frame(self) -> Group:
        from rich.console import Group

        with self._lock:
            latest = list(self._latest.values())
        return Group(*(part for p in latest for part in self._parts(p, last=p is latest[-1])))

    def _parts(self, progress: Progress, *, last: bool) -> Iterator[RenderableType]:
        from rich.table import Table
        from rich.text import Text

        width = self._live.console.width
        grid = Table.grid(padding=(0, 1), expand=_NARROW <= width < _WIDE)
        name = Text(", ".join(progress.columns).ljust(self._width), "bold")
        numbers = Text("  ".join([_rows(progress), *_speed(progress)]))
        grid.add_column(no_wrap=True, overflow="ellipsis", max_width=width // 3)
        if width >= _NARROW:
            grid.add_column(ratio=1, min_width=4)
            grid.add_column(no_wrap=True, justify="right")
            grid.add_row(name, _bar(progress, _BAR_COLUMNS if width >= _WIDE else None), numbers)
        else:
            grid.add_row(name, numbers)
        yield grid
        facts = _facts(progress)
        if facts and (last or progress.rows_failed):
            style = "red" if progress.state is JobState.FAILED else "dim"
            yield Text("  " + " · ".join(facts), style)


def _bar(progress: Progress, width: int | None) -> ProgressBar:
    from rich.progress_bar import ProgressBar

    ended, total = progress.state.ended, progress.rows_total
    return ProgressBar(
        total=total or 1,
        completed=min(progress.rows_computed, total) if total else float(ended or total == 0),
        width=width,
        pulse=total is None and not ended,
    )


class _Notebook:
    """A bar that is replaced in the output of the notebook's cell."""

    def __init__(self) -> None:
        from IPython.display import display  # type: ignore[import-not-found,unused-ignore]

        self._handle = display({"text/plain": ""}, raw=True, display_id=True)
        self._latest: dict[tuple[str, ...], Progress] = {}
        self._shown_at = 0.0

    def update(self, progress: Progress) -> None:
        self._latest[progress.columns] = progress
        now = time.monotonic()
        if now - self._shown_at >= _NOTEBOOK_EVERY_S:
            self._shown_at = now
            self.close()

    def close(self) -> None:
        latest = list(self._latest.values())
        body = {
            "text/html": "".join(map(_html, latest)),
            "text/plain": "\n".join(map(_line, latest)),
        }
        self._handle.update(body, raw=True)


def _html(progress: Progress) -> str:
    total = progress.rows_total
    value = f'value="{progress.rows_computed}" max="{max(total, 1)}"' if total is not None else ""
    if progress.state in (JobState.SUCCEEDED, JobState.PARTIAL):
        value = 'value="1" max="1"'
    name = html.escape(", ".join(progress.columns))
    rows = html.escape(" · ".join([_rows(progress), *_speed(progress)]))
    facts = html.escape(" · ".join(_facts(progress)))
    return (
        f'<div><b>{name}</b> <progress {value} style="width:20em"></progress> {rows}'
        f"<br><small>{facts}</small></div>"
    )
