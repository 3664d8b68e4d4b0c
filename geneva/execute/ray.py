"""Appliers as Ray actors: the only module that imports ray.

No row data travels through Ray: an actor gets tasks and returns the names of files. Actors stay
warm between the backfills of one process, so that the second call starts at once.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import threading
import time
import warnings
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    RayActorError,
    RayTaskError,
    RuntimeEnvSetupError,
)

from geneva.errors import ResourceError, SharedPathError, UdfError
from geneva.execute.applier import Applier
from geneva.execute.outcome import outcome
from geneva.execute.probe import ensure_probe, read_probe
from geneva.execute.reservation import applier_key, reservation
from geneva.storage.lance import TableStorage
from geneva.types import JobSettings, Task, TaskEvent, TaskFailed, TaskLost, TaskStopped, Workers
from geneva.udf import UDF

IDLE_S = 60.0
_IN_FLIGHT = 2  # one running, one waiting: an applier never idles for a round trip
_PROGRESS_S = 0.5
_REAP_S = 3.0
_REST_S = 2.0
_OBJECT_STORE_BYTES = 96 << 20  # data never travels through it
_FIXED_NODE = re.compile(r"node_[0-9a-f]{40,}")
_LOG = logging.getLogger("geneva")


class _Applier:
    """The actor: an `Applier` behind Ray's calls."""

    def __init__(self, storage: TableStorage, pickled: bytes, probe: bytes) -> None:
        if storage.local and read_probe(storage) != probe:
            raise SharedPathError(
                f"the worker on node {ray.util.get_node_ip_address()} does not see "
                f"{storage.path}, where the driver just wrote a file: put the table on a disk "
                "that all nodes mount at the same path, or on an object store"
            )
        self._applier = Applier(storage, UDF.loads(pickled))

    def begin(self, settings: JobSettings) -> str:
        """Build the UDF's instance."""
        self._applier.begin(settings)
        return ray.get_runtime_context().get_node_id()

    def run(self, task: Task) -> TaskEvent:
        """Carry out one task."""
        return outcome(self._applier, task)

    def progress(self) -> int:
        """Return the rows done since `begin`."""
        return self._applier.progress()

    def cancel(self) -> None:
        """Stop at the next batch boundary."""
        self._applier.cancel()


@dataclass(slots=True, eq=False)
class _Actor:
    """One applier as its driver sees it."""

    handle: Any
    key: str
    ready: bool = False
    beginning: Any = None
    tasks: dict[Any, Task] = field(default_factory=dict)  # in the order they were handed out
    progress: Any = None
    rows_done: int = 0
    idle_since: float = 0.0


class _WarmPool:
    """Idle actors of this process, by what they are.

    They are killed when they idle too long, when a backfill wants actors of another kind, and
    within seconds when anything else in the cluster waits for resources.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Actor] = []
        self._reaper: threading.Thread | None = None

    def take(self, key: str, count: int) -> list[_Actor]:
        """Take idle actors of a kind; those of other kinds are released at once."""
        with self._lock:
            fitting = [a for a in self._idle if a.key == key]
            others = [a for a in self._idle if a.key != key]
            self._idle = fitting[count:]
        for actor in others:
            _kill(actor)
        return fitting[:count]

    def give(self, actors: list[_Actor]) -> None:
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
            limit = time.monotonic() - (0.0 if _others_wait() else IDLE_S)
            with self._lock:
                old = [a for a in self._idle if a.idle_since < limit]
                self._idle = [a for a in self._idle if a.idle_since >= limit]
                done = not self._idle
            for actor in old:
                _kill(actor)
            if done:
                return

    def clear(self) -> None:
        """Forget all actors: their cluster is gone."""
        with self._lock:
            self._idle = []


_POOL = _WarmPool()


def release_idle() -> None:
    """Kill the warm appliers of this process."""
    _POOL.take("", 0)


def _kill(actor: _Actor) -> None:
    if ray.is_initialized():
        try:
            ray.kill(actor.handle)
        except (ValueError, RayActorError):
            _LOG.debug("applier was dead already")


class RayExecutor:
    """Runs tasks on Ray actors.

    Parameters
    ----------
    ray_options
        For ``ray.init``, if this process has not called it.
    resource_timeout_s
        How long to wait for an autoscaler to bring the first node that fits.
    """

    def __init__(self, ray_options: Mapping[str, Any], resource_timeout_s: float) -> None:
        self._options = dict(ray_options)
        self._resource_timeout_s = resource_timeout_s
        self._actors: list[_Actor] = []
        self._events: deque[TaskEvent] = deque()
        self._wanted = 0
        self._cancelled = False
        self._polled_at = 0.0

    # --- starting ----------------------------------------------------------------------

    def capacity(self, udf: UDF, appliers: int) -> int:
        """Return how many appliers the alive nodes hold now, between 1 and ``appliers``."""
        start_ray(self._options)
        needs = reservation(udf)
        slots = 0
        for node in ray.nodes():
            if node["Alive"]:
                has = node["Resources"]
                slots += int(min(has.get(r, 0.0) // n for r, n in needs.items()))
        return max(1, min(appliers, slots))

    def start(self, storage: TableStorage, udf: UDF, settings: JobSettings, appliers: int) -> None:
        """Take warm actors, ask for the rest; returns at once."""
        start_ray(self._options)
        needs = reservation(udf)
        missing = _missing_resource(needs)
        if missing and not _autoscaling():
            raise ResourceError(missing)
        self._missing = missing
        self._started_at = time.monotonic()
        self._cancelled = False
        self._wanted = appliers
        self._storage, self._settings = storage, settings
        self._pickled = udf.dumps()
        self._probe = ensure_probe(storage)
        self._actor_options = {
            "num_cpus": udf.num_cpus,
            "num_gpus": udf.num_gpus,
            "memory": udf.memory,
            "runtime_env": udf.runtime_env,
        }
        self._key = applier_key(storage, self._pickled, udf)
        self._actors = _POOL.take(self._key, appliers)
        for actor in self._actors:
            actor.ready, actor.rows_done = False, 0
            actor.beginning = self._begin(actor)
        self._reference = ray.put(self._pickled)
        # What cannot fit now is asked for once it is clear that the job lasts.
        self._ask_for(min(appliers, self.capacity(udf, appliers)))

    def _ask_for(self, appliers: int) -> None:
        while len(self._actors) < appliers:
            self._actors.append(self._new_actor())

    def _new_actor(self) -> _Actor:
        options = {k: v for k, v in self._actor_options.items() if v is not None}
        handle = (
            _actor_class().options(**options).remote(self._storage, self._reference, self._probe)
        )
        actor = _Actor(handle, self._key)
        actor.beginning = self._begin(actor)
        return actor

    def _begin(self, actor: _Actor) -> Any:
        return actor.handle.begin.options(concurrency_group="work").remote(self._settings)

    # --- running -----------------------------------------------------------------------

    def free_slots(self) -> int:
        """Two tasks for each applier that is ready."""
        return sum(_IN_FLIGHT - len(a.tasks) for a in self._actors if a.ready)

    def submit(self, task: Task) -> None:
        """Hand a task to the ready applier that has the fewest."""
        actor = min((a for a in self._actors if a.ready), key=lambda a: len(a.tasks))
        reference = actor.handle.run.options(concurrency_group="work").remote(task)
        actor.tasks[reference] = task

    def wait(self, timeout_s: float) -> list[TaskEvent]:
        """Return what ended; notices appliers that became ready or died."""
        self._poll_progress()
        if time.monotonic() - self._started_at > _REST_S:
            self._ask_for(self._wanted)
        owners = {r: a for a in self._actors for r in _references(a)}
        if owners:
            # One at a time keeps the latency low; the rest is collected without waiting.
            done, rest = ray.wait(list(owners), num_returns=1, timeout=timeout_s)
            if done and rest:
                more, _ = ray.wait(rest, num_returns=len(rest), timeout=0)
                done += more
            for reference in done:
                self._settle(owners[reference], reference)
        elif not self._events:
            time.sleep(timeout_s)
        if self._wanted and not any(a.ready for a in self._actors):
            self._check_waiting()
        events = list(self._events)
        self._events.clear()
        return events

    def _settle(self, actor: _Actor, reference: Any) -> None:
        if actor not in self._actors:
            return  # it died, and an earlier reference of the same actor said so
        try:
            value = ray.get(reference)
        except (ActorDiedError, ActorUnavailableError, RayActorError) as error:
            self._lost(actor, error)
            return
        except RayTaskError as error:
            self._refused(actor, reference, error)
            return
        except RuntimeEnvSetupError as error:
            raise UdfError(f"the UDF's runtime_env could not be set up: {error}") from error
        if reference == actor.beginning:
            actor.beginning, actor.ready = None, True
        elif reference == actor.progress:
            actor.progress, actor.rows_done = None, value
        else:
            del actor.tasks[reference]
            self._events.append(value)

    def _refused(self, actor: _Actor, reference: Any, error: RayTaskError) -> None:
        """Take in what an actor raised outside the UDF's rows: it could not begin."""
        cause = error.cause if isinstance(error.cause, Exception) else error
        if reference == actor.progress:
            actor.progress = None
            return
        if isinstance(cause, SharedPathError):
            raise cause
        if reference in actor.tasks:
            task = actor.tasks.pop(reference)
            self._events.append(TaskFailed(task, "storage", str(cause), traceback=str(error)))
            return
        raise UdfError(
            f"the UDF could not start on its applier: {type(cause).__name__}: {cause}"
        ) from error

    def _lost(self, actor: _Actor, error: Exception) -> None:
        """Report the dead applier's tasks, and ask for another one."""
        self._actors.remove(actor)
        cause = getattr(error, "cause", None)
        if actor.beginning is not None and not actor.ready:
            self._dead_at_start(error)
        for k, task in enumerate(actor.tasks.values()):
            event: TaskEvent = TaskLost(task, _reason(error), started=k == 0)
            self._events.append(TaskStopped(task) if self._cancelled else event)
        _LOG.info("an applier died: %s", cause or error)
        if not self._cancelled:
            self._ask_for(min(self._wanted, len(self._actors) + 1))

    def _dead_at_start(self, error: Exception) -> None:
        self._start_deaths = getattr(self, "_start_deaths", 0) + 1
        text = str(error)
        for known in (SharedPathError, UdfError):
            if known.__name__ in text:
                line = next((x for x in text.splitlines() if known.__name__ in x), text)
                raise known(line.split(":", 1)[-1].strip()) from error
        if self._start_deaths > 3:
            raise UdfError(f"appliers die while they start: {text}") from error

    def _poll_progress(self) -> None:
        now = time.monotonic()
        if now - self._polled_at < _PROGRESS_S:
            return
        self._polled_at = now
        for actor in self._actors:
            if actor.ready and actor.tasks and actor.progress is None:
                call = actor.handle.progress.options(concurrency_group="control")
                actor.progress = call.remote()

    def _check_waiting(self) -> None:
        waited = time.monotonic() - self._started_at
        if self._missing and waited > self._resource_timeout_s:
            raise ResourceError(f"{self._missing}; waited {waited:.0f} s for the autoscaler")

    def workers(self) -> Workers:
        """Return ready and wanted appliers, and rows done."""
        ready = sum(a.ready for a in self._actors)
        waiting = "" if ready else (self._missing_text() or "appliers are starting")
        return Workers(ready, self._wanted, sum(a.rows_done for a in self._actors), waiting)

    def _missing_text(self) -> str:
        missing = getattr(self, "_missing", "")
        return f"waiting for the autoscaler: {missing}" if missing else ""

    # --- stopping ----------------------------------------------------------------------

    def cancel(self) -> None:
        """Ask every applier to stop at the next batch boundary."""
        self._cancelled = True
        for actor in self._actors:
            if actor.ready:
                actor.handle.cancel.options(concurrency_group="control").remote()
                # Tasks that wait behind the running one end at once, in the actor.

    def close(self, *, kill: bool) -> None:
        """Keep the actors that are idle or about to be, release the others."""
        young = time.monotonic() - self._started_at <= _REST_S if self._actors else False
        keep = [a for a in self._actors if not a.tasks and (a.ready or young) and not kill]
        for actor in self._actors:
            if actor not in keep:
                _kill(actor)
        for actor in keep:
            actor.progress = actor.beginning = None
        _POOL.give(keep)
        self._actors, self._wanted = [], 0
        self._events.clear()


_CLASS: list[Any] = []


def _actor_class() -> Any:
    if not _CLASS:
        options: dict[str, Any] = {"concurrency_groups": {"work": 1, "control": 1}}
        _CLASS.append(ray.remote(**options)(_Applier))
    return _CLASS[0]


def _references(actor: _Actor) -> list[Any]:
    """Return what an actor owes; of its tasks the first, since it runs them in order."""
    owed = [*list(actor.tasks)[:1]]
    owed += [r for r in (actor.beginning, actor.progress) if r is not None]
    return owed


def _reason(error: Exception) -> str:
    lines = [x.strip() for x in str(error).splitlines() if x.strip()]
    return lines[0] if lines else type(error).__name__


def _missing_resource(needs: Mapping[str, float]) -> str:
    """Return why no alive node can ever hold an applier, or an empty text."""
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    if any(all(n.get(r, 0.0) >= v for r, v in needs.items()) for n in nodes):
        return ""
    most = {r: max((n.get(r, 0.0) for n in nodes), default=0.0) for r in needs}
    short = [
        f"{v:g} {r} (the largest node has {most[r]:g})" for r, v in needs.items() if most[r] < v
    ]
    wanted = ", ".join(short) or "the combination of " + ", ".join(
        f"{v:g} {r}" for r, v in needs.items()
    )
    return f"no node of the Ray cluster can hold an applier: the UDF asks for {wanted}"


def _cluster_status() -> dict[str, Any]:
    """Return what Ray's monitor last wrote (every few seconds), or nothing."""
    try:
        raw = ray.experimental.internal_kv._internal_kv_get("__autoscaling_status")  # noqa: SLF001
        return dict(json.loads(raw)) if raw else {}
    except Exception as error:  # a private interface: without it, assume a fixed, quiet cluster
        _LOG.debug("cannot read the cluster's status: %s", error)
        return {}


def _autoscaling() -> bool:
    """Whether the cluster can grow: a fixed one reports every node as a type of its own."""
    report = _cluster_status().get("autoscaler_report") or {}
    types = [*(report.get("active_nodes") or ()), *(report.get("idle_nodes") or ())]
    return any(not _FIXED_NODE.fullmatch(t) for t in types)


def _others_wait() -> bool:
    """Whether some task or actor of the cluster waits for resources."""
    load = _cluster_status().get("load_metrics_report") or {}
    return bool(load.get("resource_demand") or load.get("pg_demand"))


def start_ray(options: Mapping[str, Any]) -> None:
    """Connect to Ray: the user's own, ``RAY_ADDRESS``, or a small local one."""
    if ray.is_initialized():
        return
    _POOL.clear()
    chosen = dict(options)
    address = chosen.pop("address", None) or os.environ.get("RAY_ADDRESS")
    chosen.setdefault("log_to_driver", True)
    chosen.setdefault("logging_level", logging.ERROR)
    if address in (None, "local"):
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        chosen.setdefault("include_dashboard", False)
        chosen.setdefault("object_store_memory", _OBJECT_STORE_BYTES)
        with warnings.catch_warnings():
            # Ray forks its daemons with a preexec function and execs; Lance warns of any fork.
            warnings.filterwarnings("ignore", message="lancedb fork support")
            warnings.filterwarnings("ignore", message="lance is not fork-safe")
            ray.init(address="local", **chosen)
        atexit.register(_shutdown)
    else:
        ray.init(address=address, **chosen)


def _shutdown() -> None:
    if ray.is_initialized():
        ray.shutdown()
