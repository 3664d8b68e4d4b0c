"""An applier as a Ray actor."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import ray

from geneva.appliers.applier import SharedApplier
from geneva.appliers.memory import give_back_large
from geneva.appliers.prints import Part, keep_prints
from geneva.appliers.ray.probe import sees_probe
from geneva.errors import SharedPathError
from geneva.model.types import JobSettings, RowsDone, Task, TaskEvent
from geneva.storage.lance import TableStorage
from geneva.udf import UDF

TASKS_AT_ONCE = 2  # of an applier: the UDF threads find work where tasks meet


@cache
def actor_class() -> Any:
    """Return `RayApplier` as Ray makes it."""
    options: dict[str, Any] = {"concurrency_groups": {"work": TASKS_AT_ONCE, "control": 1}}
    return ray.remote(**options)(RayApplier)


class RayApplier:
    """The actor: a `SharedApplier` behind Ray's calls."""

    def __init__(self, storage: TableStorage, pickled: Mapping[str, bytes]) -> None:
        give_back_large()
        # Whatever can fail waits for `begin`: an actor that cannot be made says little of why.
        self._storage, self._pickled = storage, pickled
        self._made: SharedApplier | None = None
        self._beginning, self._job = threading.Lock(), 0

    @property
    def _applier(self) -> SharedApplier:
        assert self._made is not None, "begin comes first"
        return self._made

    def begin(
        self,
        job: int,
        settings: JobSettings,
        names: Mapping[str, str],
        output: str,
        probe: str,
    ) -> str:
        """Build the UDF's instance; return the id of the node.

        A job may end while this is under way, and the next one begin: its calls overlap, and come
        in any order. So one waits for the other, and the later job stays.
        """
        with self._beginning:
            if job > self._job:
                self._begin(settings, names, output, probe)
                self._job = job
        return str(ray.get_runtime_context().get_node_id())

    def _begin(
        self, settings: JobSettings, names: Mapping[str, str], output: str, probe: str
    ) -> None:
        if self._made is None:
            self._check_path(probe)
            pickled = self._pickled
            self._made = SharedApplier(self._storage, lambda name: UDF.loads(pickled[name]))
            keep_prints(self._made.output)
            gc.freeze()  # modules are for ever: else each full collection walks through all of them
        self._made.output.keep_in(output)
        host = f"process {os.getpid()} on {ray.util.get_node_ip_address()}"
        self._made.output.write(f"--- {host} begins with {settings.target.name}\n")
        self._made.begin(settings, names)

    def _check_path(self, probe: str) -> None:
        if self._storage.local and not sees_probe(self._storage, probe):
            raise SharedPathError(
                f"the worker on node {ray.util.get_node_ip_address()} does not see "
                f"{self._storage.path}, where the driver just wrote a file: put the table on a "
                "disk that all nodes mount at the same path, or on an object store"
            )

    def run(
        self, job: int, tasks: Sequence[Task], heard: int
    ) -> tuple[list[TaskEvent], RowsDone, Part]:
        """Carry out tasks that go together; return what `progress` does as well."""
        if job != self._job:
            raise RuntimeError(f"an applier that serves job {self._job} got a task of job {job}")
        return self._applier.carry_out(tasks), *self.progress(heard)

    def progress(self, heard: int) -> tuple[RowsDone, Part]:
        """Return the rows done since `begin`, and what was printed and not heard yet."""
        return self._applier.progress(), self._applier.output.take(heard)

    def cancel(self, job: int) -> None:
        """Stop a job at the next batch boundary; one that ended is not the next one's concern."""
        with self._beginning:
            if job == self._job:
                self._applier.cancel()
