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
        What it is; see `geneva.appliers.ray.actors.Maker`.
    number
        Among the appliers of its job; one that takes a dead one's place has its number.
    node
        Where it runs; empty until it has begun its first job.
    ready
        Whether it has begun the present job.
    leaving
        Whether its node is being drained, or a call of its UDF is stuck: it gets no more tasks.
    beginning, progress
        Calls that were not answered yet, and in ``polled_at`` since when the latter.
    heard
        What its driver has of what it printed.
    tasks
        By call, in the order in which they were handed out; one that an applier died with is alone.
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
        """Whether it may be given tasks."""
        return self.ready and not self.leaving

    def room(self, at_once: int) -> int:
        """How many more calls it may be given, if it may have so many at once."""
        alone = any(tasks[0].attempt for tasks in self.tasks.values())
        return max(0, at_once - len(self.tasks)) if self.works and not alone else 0


class WarmPool:
    """Idle actors of this process, by what they are.

    They are killed when they idle too long, when a backfill wants actors of another kind, and
    within seconds when anything else in the cluster waits for resources or their node is drained.
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
