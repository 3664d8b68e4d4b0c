"""What an executor is: it runs tasks and yields finished ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from geneva.model.types import ExecutorEvent, JobSettings, Printed, Task, Workers
from geneva.storage.lance import TableStorage
from geneva.udf import UDF

Udfs = Mapping[str, UDF]  # by the incarnation of their columns


class Executor(Protocol):
    """Runs the tasks of one job at a time on appliers."""

    def capacity(self, udf: UDF, appliers: int) -> int:
        """Return how many of some appliers can run at once, as far as is known now.

        Asked before each `start`, which goes by the same nodes.
        """

    def start(
        self, storage: TableStorage, udfs: Udfs, settings: JobSettings, appliers: int
    ) -> None:
        """Ask for appliers; returns at once, they join as resources allow.

        Parameters
        ----------
        udfs
            Those that an applier must be able to run: the one of
            ``settings.target``, and of columns that may share its read. They reserve the same.

        Raises
        ------
        ResourceError
            No node can ever hold one.
        """

    def free_slots(self, waiting: int) -> int:
        """Return how many of some waiting tasks should be handed out now, alone or in groups.

        A task may wait behind the one that an applier runs, but not the last ones: they are for
        appliers that get free, or that join.
        """

    def submit(self, tasks: Sequence[Task]) -> None:
        """Hand tasks that go together to the least busy applier.

        One with an ``attempt`` comes alone, and goes to an applier without tasks.
        """

    def wait(self, timeout_s: float) -> list[ExecutorEvent]:
        """Return what happened, waiting at most ``timeout_s`` for the first event.

        What was printed while a task was carried out comes with the task's event at the latest.
        """

    def workers(self) -> Workers:
        """Return the state of the appliers; never blocks."""

    def cancel(self) -> None:
        """Let running tasks stop at the next batch boundary, and drop those not begun."""

    def close(self, *, kill: bool) -> list[Printed]:
        """Release the appliers; with ``kill``, do not wait for a batch that will not end.

        Returns what they printed and `wait` did not return.
        """
