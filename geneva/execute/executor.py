"""What an executor is: it runs tasks and yields finished ones."""

from __future__ import annotations

from typing import Protocol

from geneva.storage.lance import TableStorage
from geneva.types import JobSettings, Task, TaskEvent, Workers
from geneva.udf import UDF


class Executor(Protocol):
    """Runs the tasks of one job at a time on appliers."""

    def start(self, storage: TableStorage, udf: UDF, settings: JobSettings, appliers: int) -> None:
        """Ask for appliers; returns at once, they join as resources allow.

        Raises
        ------
        ResourceError
            No node can ever hold one.
        """

    def capacity(self, udf: UDF, appliers: int) -> int:
        """Return how many of some appliers can run at once, as far as is known now."""

    def free_slots(self) -> int:
        """Return how many more tasks would be taken without piling up."""

    def submit(self, task: Task) -> None:
        """Hand a task to the least busy applier."""

    def wait(self, timeout_s: float) -> list[TaskEvent]:
        """Return what happened, waiting at most ``timeout_s`` for the first event."""

    def workers(self) -> Workers:
        """Return the state of the appliers; never blocks."""

    def cancel(self) -> None:
        """Let running tasks stop at the next batch boundary, and drop those not begun."""

    def close(self, *, kill: bool) -> None:
        """Release the appliers; with ``kill``, do not wait for a batch that will not end."""
