"""An applier as a Ray actor: the worker's side."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from uuid import uuid4

import ray

from geneva.appliers.applier import Applier, Loaded
from geneva.appliers.host import give_back_large
from geneva.appliers.prints import Part, keep_prints
from geneva.errors import SharedPathError
from geneva.model.types import JobSettings, RowsDone, Task, TaskEvent
from geneva.storage.lance import TableStorage
from geneva.udf import UDF
from geneva.udf.watch import calls_are_stuck

TASKS_AT_ONCE = 2  # of an applier: the UDF threads find work where tasks meet
_PROBES = "seen"


@dataclass(frozen=True, slots=True)
class Reply:
    """How an applier stands.

    Attributes
    ----------
    events
        Events of the tasks that it was called with.
    rows_done
        Rows done in the job, of unfinished tasks too.
    printed
        The prints that the driver had not heard.
    stuck
        True if a UDF call that took too long is under way still: only a new process is without.
    """

    events: tuple[TaskEvent, ...]
    rows_done: RowsDone
    printed: Part
    stuck: bool


@cache
def actor_class() -> Any:
    """Return `RayApplier` as Ray makes it."""
    options: dict[str, Any] = {"concurrency_groups": {"work": TASKS_AT_ONCE, "control": 1}}
    return ray.remote(**options)(RayApplier)


class RayApplier:
    """The actor: behind Ray's calls an `Applier` for each job, and one `Loaded` for all."""

    def __init__(self, storage: TableStorage, pickled: Mapping[str, bytes]) -> None:
        # Whatever can fail waits for `begin`: an actor that cannot be made says little of why.
        give_back_large()
        self._storage = storage
        self._loaded = Loaded(storage, lambda name: UDF.loads(pickled[name]))
        keep_prints(self._loaded.prints)
        self._beginning, self._job = threading.Lock(), 0
        self._applier: Applier | None = None

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
        if self._applier is None:
            check_probe(self._storage, probe)
            gc.freeze()  # modules are for ever: else each full collection walks through all of them
        prints = self._loaded.prints
        prints.keep_in(output)
        host = f"process {os.getpid()} on {ray.util.get_node_ip_address()}"
        prints.write(f"--- {host} begins with {settings.target.name}\n")
        self._applier = Applier(self._loaded, settings, names, threading.Event())
        self._applier.begin()

    def run(self, job: int, tasks: Sequence[Task], heard: int) -> Reply:
        """Carry out tasks that go together."""
        if job != self._job or self._applier is None:
            raise RuntimeError(f"an applier that serves job {self._job} got a task of job {job}")
        return self._reply(self._applier.carry_out(tasks), heard)

    def progress(self, heard: int) -> Reply:
        """Say how the job stands."""
        return self._reply((), heard)

    def _reply(self, events: Sequence[TaskEvent], heard: int) -> Reply:
        rows = RowsDone() if self._applier is None else self._applier.progress()
        return Reply(tuple(events), rows, self._loaded.prints.take(heard), calls_are_stuck())

    def cancel(self, job: int) -> None:
        """Stop a job at the next batch boundary; one that ended is not the next one's concern."""
        with self._beginning:
            if job == self._job and self._applier is not None:
                self._applier.cancelled.set()


def ensure_probe(storage: TableStorage) -> str:
    """Return the path of a file below a local table that only this directory holds.

    By it a worker tells whether it sees the driver's directory, or another one at the same path.
    Drivers that begin at once may make one each; none is ever written again or removed.
    """
    if not storage.local:
        return ""
    for path in storage.objects.list(_PROBES):
        return path
    path = f"{_PROBES}/{uuid4().hex}"
    storage.objects.put(path, b"")
    return path


def check_probe(storage: TableStorage, probe: str) -> None:
    """Raise `SharedPathError` unless this process finds the file that the driver wrote."""
    if not storage.local:
        return
    try:
        storage.objects.get(probe)
    except FileNotFoundError:
        raise SharedPathError(
            f"the worker on node {ray.util.get_node_ip_address()} does not see {storage.path}, "
            "where the driver just wrote a file: put the table on a disk that all nodes mount at "
            "the same path, or on an object store"
        ) from None
