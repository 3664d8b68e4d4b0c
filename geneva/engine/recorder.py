"""The recorder: a driver tells it of its work while it works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from geneva.model.result import WindowResult
from geneva.model.types import ExecutorEvent, Task
from geneva.model.windows import Windows


class PlannedFragment(Protocol):
    """The facts of a fragment's plan that a record needs."""

    @property
    def fragment_id(self) -> int:
        """The fragment."""

    @property
    def rows(self) -> int:
        """Its live rows."""

    @property
    def rows_compute(self) -> int:
        """Rows to compute, at most."""

    @property
    def exact(self) -> bool:
        """Whether it is so many, as no filter is still to be evaluated."""

    @property
    def task(self) -> Task | None:
        """The task, if rows are to be computed."""

    @property
    def reason(self) -> str:
        """Why."""


class Recorder:
    """Takes note of a driver's work, in the driver's thread; this one keeps nothing."""

    def planned(
        self,
        columns: tuple[str, ...],
        version: int,
        plans: Sequence[PlannedFragment],
        limit: int | None = None,
    ) -> None:
        """Take note of a round's plan, fragments that need nothing included.

        Parameters
        ----------
        limit
            How many of the fragments with work this round fills at most.
        """

    def cut(
        self, columns: tuple[str, ...], asked: Windows, windows: Sequence[WindowResult]
    ) -> None:
        """Take note of all windows of a call with windows, in the order in which they open.

        Parameters
        ----------
        asked
            The windows with their bounds settled: a later driver of the job cuts the same ones.
        """

    def windows(self, changed: Mapping[int, WindowResult]) -> None:
        """Take note of windows that changed, by their number in that order."""

    def was_cancelled(self, job_id: str) -> bool:
        """Return whether a person cancelled a job, as far as it is recorded here."""
        return False

    def began(self, task: Task) -> None:
        """Take note of a task that was handed out."""

    def took(self, event: ExecutorEvent) -> None:
        """Take note of a task's outcome, or of text that UDFs printed."""

    def may_publish(self) -> None:
        """Return if a commit may be sent now.

        Raises
        ------
        LeaseLostError
            The job is another driver's by now.
        """

    def published(self, version: int | None, fragments: Sequence[int], seconds: float) -> None:
        """Take note of a commit, the fragments that became visible with it, and its time."""
