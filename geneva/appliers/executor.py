"""An executor starts appliers, which run tasks and yield events; each reserves resources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from geneva.model.types import ExecutorEvent, JobSettings, Printed, Task, Workers
from geneva.storage.lance import TableStorage
from geneva.udf import UDF

Udfs = Mapping[str, UDF]  # by the incarnation of their columns


class Executor(Protocol):
    """A place where appliers run."""

    def capacity(self, udf: UDF, appliers: int) -> int:
        """Return how many of some appliers can run at once, as far as is known now.

        Asked before each `start`, which goes by the same nodes.
        """

    def start(
        self, storage: TableStorage, udfs: Udfs, settings: JobSettings, appliers: int
    ) -> Appliers:
        """Ask for appliers; returns at once, they join as resources allow.

        Parameters
        ----------
        udfs
            The UDFs that an applier must be able to run: that of ``settings.target``, and those
            of columns that may share its read. They reserve the same.

        Raises
        ------
        ResourceError
            No node can ever hold one.
        """


class Appliers(Protocol):
    """The appliers of one round: they run its tasks until they are closed."""

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
        """Return the events since the last call, waiting at most ``timeout_s`` for the first.

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


def lacking(nodes: Sequence[Mapping[str, float]], needs: Mapping[str, float]) -> str:
    """Return why none of some nodes can ever hold an applier, or an empty text.

    Parameters
    ----------
    nodes, needs
        What each node has and what an applier reserves, as Ray names it.
    """
    if any(all(n.get(r, 0.0) >= v for r, v in needs.items()) for n in nodes):
        return ""
    most = {r: max((n.get(r, 0.0) for n in nodes), default=0.0) for r in needs}
    short = [
        f"{v:g} {r} (the largest node has {most[r]:g})" for r, v in needs.items() if most[r] < v
    ]
    request = ", ".join(short) or "the combination of " + ", ".join(
        f"{v:g} {r}" for r, v in needs.items()
    )
    return f"no node of the Ray cluster can hold an applier: the UDF asks for {request}"


def slots(nodes: Sequence[Mapping[str, float]], needs: Mapping[str, float]) -> int:
    """Return how many appliers with these needs some nodes hold in all."""
    return sum(int(min(has.get(r, 0.0) // n for r, n in needs.items())) for has in nodes)


def reservation(udf: UDF) -> dict[str, float]:
    """Return the resources of one applier, as Ray names them."""
    needs = {"CPU": float(udf.num_cpus), "GPU": float(udf.num_gpus)}
    needs |= {"memory": float(udf.memory or 0)}
    needs |= {k: float(v) for k, v in (udf.resources or {}).items()}
    return {k: v for k, v in needs.items() if v} or {"CPU": 0.001}
