"""Ray actors that wait for the next backfill of this process."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError

from geneva.appliers.prints import Heard
from geneva.appliers.ray.cluster import draining_nodes, others_wait
from geneva.model.types import RowsDone, Task

IDLE_S = 60.0
_REAP_S = 3.0
_LOG = logging.getLogger("geneva")


@dataclass(slots=True, eq=False)
class Actor:
    """One applier as its driver sees it.

    Attributes
    ----------
    key
        Its kind; see `geneva.appliers.ray.actors.Maker`.
    number
        Its number among the appliers of its job; a dead one's goes to the one in its place.
    node
        The id of its node; empty until it has begun its first job.
    ready
        True once it has begun the present job.
    leaving
        True if its node is being drained, or a call of its UDF is stuck: it gets no more tasks.
    beginning, progress
        Calls that were not answered yet; the latter was made at ``polled_at``.
    heard
        The prints that its driver has.
    tasks
        Tasks by call, in the order in which they were handed out; one that an applier died with
        is alone.
    """

    handle: Any
    key: str
    number: int = 0
    node: str = ""
    ready: bool = False
    leaving: bool = False
    beginning: Any = None
    tasks: dict[Any, tuple[Task, ...]] = field(default_factory=dict)
    progress: Any = None
    polled_at: float = 0.0
    rows_done: RowsDone = field(default_factory=RowsDone)
    heard: Heard = field(default_factory=Heard)
    idle_since: float = 0.0

    @property
    def works(self) -> bool:
        """True if it may be given tasks."""
        return self.ready and not self.leaving

    @property
    def computes(self) -> bool:
        """True if it works, or ends the tasks that it has."""
        return self.works or bool(self.tasks)

    def room(self, at_once: int) -> int:
        """How many more calls it may be given, if it may have so many at once."""
        alone = any(tasks[0].attempt for tasks in self.tasks.values())
        return max(0, at_once - len(self.tasks)) if self.works and not alone else 0


class WarmPool:
    """Idle actors of this process, by their kind.

    1. A driver that is done gives its idle actors, and those that are about to be.
    2. The next one takes those of its kind. Those of other kinds are killed, as they may hold
       what it needs.
    3. Only now it draws its job's number: the numbers that an actor sees grow, whoever had it.
    4. It has them begin. One may be at the `begin` of the job before, which still builds the UDF:
       one call waits for the other, and the later number stays (`RayApplier.begin`).
    5. Actors that nobody takes are killed when they idle too long, and within seconds when
       anything else in the cluster waits for resources or their node is drained.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[Actor] = []
        self._reaper: threading.Thread | None = None

    def take(self, key: str, count: int) -> list[Actor]:
        """Take idle actors of a kind; those of other kinds are released at once."""
        with self._lock:
            fitting = [a for a in self._idle if a.key == key]
            others = [a for a in self._idle if a.key != key]
            self._idle = fitting[count:]
        for actor in others:
            end(actor)
        return fitting[:count]

    def give(self, actors: list[Actor]) -> None:
        """Keep actors for the next backfill."""
        now = time.monotonic()
        with self._lock:
            for actor in actors:
                actor.idle_since = now
            self._idle += actors
            if self._idle and (self._reaper is None or not self._reaper.is_alive()):
                self._reaper = threading.Thread(
                    target=self._reap, name="geneva-idle-appliers", daemon=True
                )
                self._reaper.start()

    def _reap(self) -> None:
        while True:
            time.sleep(_REAP_S)
            limit = time.monotonic() - (0.0 if others_wait() else IDLE_S)
            going = draining_nodes()
            with self._lock:
                old = [a for a in self._idle if a.idle_since < limit or a.node in going]
                self._idle = [a for a in self._idle if a not in old]
                done = not self._idle
                if done:  # told here: who keeps actors from now on starts another reaper
                    self._reaper = None
            for actor in old:
                end(actor)
            if done:
                return

    def clear(self) -> None:
        """Forget all actors: their cluster is gone."""
        with self._lock:
            self._idle = []


POOL = WarmPool()


def release_idle() -> None:
    """Kill the warm appliers of this process."""
    POOL.take("", 0)


def end(actor: Actor) -> None:
    """End an applier's process, wherever it is."""
    if ray.is_initialized():
        try:
            ray.kill(actor.handle)
        except (ValueError, RayActorError):
            _LOG.debug("applier was dead already")
