"""Appliers as Ray actors: the driver's side.

Only tasks and the names of files travel through Ray. Actors stay warm between the backfills of a
process, so that the second call starts at once. A node that
vanishes takes at most the batches in flight with it; one that is being drained, nothing.

    Maker -- begin --> Actor: starting -- its node's id --> ready <-- run, progress --> tasks
                         |                                    |
                         | it dies, is out of reach,          | close: no task is left
                         | or its node or a call of it        v
                         | cannot be kept                   WarmPool -- take --> the next job
                         v
                      another one is asked for
"""

from __future__ import annotations

import atexit
import hashlib
import itertools
import json
import logging
import os
import tempfile
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from shutil import rmtree
from typing import Any, assert_never
from uuid import uuid4

import ray
from ray.exceptions import (
    GetTimeoutError,
    ObjectLostError,
    RayActorError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
)

from geneva.appliers.executor import Udfs, lacking, reservation, slots
from geneva.appliers.ray.cluster import (
    autoscaling,
    draining_nodes,
    held_by_others,
    node_lost,
    nodes,
)
from geneva.appliers.ray.warm import POOL, Actor, end
from geneva.appliers.ray.worker import TASKS_AT_ONCE, Reply, actor_class, ensure_probe
from geneva.errors import ClusterError, ResourceError, SharedPathError, UdfError
from geneva.interrupts import uninterrupted
from geneva.model.types import (
    ExecutorEvent,
    JobSettings,
    Printed,
    RowsDone,
    Task,
    TaskDone,
    TaskEvent,
    TaskFailed,
    TaskLost,
    TaskReturned,
    TaskStopped,
    Workers,
)
from geneva.storage.lance import TableStorage
from geneva.udf import UDF

_PROGRESS_S = 0.5
_NODES_S = 1.0
_REST_S = 2.0
_SILENCE_S = 30.0
_LAST_REPLY_S = 0.5  # a reply that left before its sender died comes at once, or never
_START_DEATHS = 3
_REASON_CHARS = 500
_OBJECT_STORE_BYTES = 96 << 20  # data never travels through it
_STARTING = threading.Lock()
_JOBS = itertools.count(1)  # of this process, and so of the appliers that it keeps warm
_LOG = logging.getLogger("geneva")


class RayExecutor:
    """Starts appliers as Ray actors.

    Parameters
    ----------
    ray_options
        For ``ray.init``, if this process has not called it.
    resource_timeout_s
        How long to wait while no applier has a place: for an autoscaler to bring the first node
        that fits, for another one after the last was lost, or for what others hold.
    """

    def __init__(self, ray_options: Mapping[str, Any], resource_timeout_s: float) -> None:
        self._options = dict(ray_options)
        self._resource_timeout_s = resource_timeout_s
        self._alive: list[dict[str, float]] = []  # nodes, as `capacity` found them

    def capacity(self, udf: UDF, appliers: int) -> int:
        """Return how many appliers the alive nodes hold now, between 1 and ``appliers``."""
        start_ray(self._options)
        self._alive = nodes()
        return max(1, min(appliers, slots(self._alive, reservation(udf))))

    def start(
        self, storage: TableStorage, udfs: Udfs, settings: JobSettings, appliers: int
    ) -> RayAppliers:
        """Take warm actors, ask for the rest; returns at once."""
        needs = reservation(udfs[settings.target.incarnation])
        places = Places(needs, self._alive, self._resource_timeout_s)
        maker = Maker(storage, udfs, settings)
        # What cannot fit now is asked for once it is clear that the job lasts.
        return RayAppliers(maker, places, appliers, max(1, slots(self._alive, needs)))


class Maker:
    """Makes actors for one job, and has warm ones begin it.

    Attributes
    ----------
    job
        Its number.
    outputs
        The folder of what appliers of this host printed last.
    call_timeout_s
        The time limit of a UDF call, if it has one.
    """

    def __init__(self, storage: TableStorage, udfs: Udfs, settings: JobSettings) -> None:
        udf = udfs[settings.target.incarnation]
        pickled = {column: u.dumps() for column, u in udfs.items()}
        self.storage, self._settings, self.call_timeout_s = storage, settings, udf.timeout
        self._names = _udf_names(pickled)
        self._probe = ensure_probe(storage)
        self._options = _actor_options(udf)
        self._key = f"{_connection()}.{_applier_key(storage, self._names.values(), udf)}"
        self.pickled = ray.put({self._names[column]: data for column, data in pickled.items()})
        self.outputs = tempfile.mkdtemp(prefix="geneva-")
        self.job = 0  # until it is drawn

    def take_warm(self, count: int) -> list[Actor]:
        """Return idle actors that fit, at most so many, which begin the job."""
        actors = POOL.take(self._key, count)
        self.job = next(_JOBS)  # drawn by who holds the actors: theirs only ever grow
        for number, actor in enumerate(actors):
            actor.number, actor.ready, actor.rows_done = number, False, RowsDone()
            self._begin(actor)
        return actors

    def new(self, number: int) -> Actor:
        """Ask for another actor."""
        actor = Actor(self._handle(), self._key, number)
        self._begin(actor)
        return actor

    def _handle(self) -> Any:
        return actor_class().options(**self._options).remote(self.storage, self.pickled)

    def _begin(self, actor: Actor) -> None:
        actor.heard.path = f"{self.outputs}/{uuid4().hex}"
        begin = actor.handle.begin.options(concurrency_group="work")
        actor.beginning = begin.remote(
            self.job, self._settings, self._names, actor.heard.path, self._probe
        )


class Places:
    """The places for appliers: whether there can be one at all, and since when there was none.

    Raises
    ------
    ResourceError
        No node can ever hold one.
    """

    def __init__(
        self, needs: Mapping[str, float], alive: Sequence[Mapping[str, float]], timeout_s: float
    ) -> None:
        self._needs, self._timeout_s = needs, timeout_s
        self.missing = lacking(alive, needs)
        if self.missing and not autoscaling():
            raise ResourceError(self.missing)
        self._since_s, self._worked = time.monotonic(), False

    def look(self, actors: Sequence[Actor]) -> None:
        """Find out which resources the appliers wait for; give up after too long."""
        if any(a.computes for a in actors):
            self.missing, self._worked = "", True
            return
        now, lacks = time.monotonic(), lacking(nodes(), self._needs)
        reason = lacks or held_by_others(self._needs, [a.handle for a in actors if not a.leaving])
        if reason and not self.missing and self._worked:
            self._since_s = now  # else they have waited from the start
        self.missing, waited = reason, now - self._since_s
        if reason and waited > self._timeout_s:
            raise ResourceError(
                f"{reason}; waited {waited:.0f} s {'for one' if lacks else 'for them'} "
                f"(resource_timeout={self._timeout_s:g})"
            )


class RayAppliers:
    """The actors of one round.

    Parameters
    ----------
    wanted
        The number of actors that there should be.
    first
        The number of them that are asked for at once; the others when the job lasts.
    """

    def __init__(self, maker: Maker, places: Places, wanted: int, first: int) -> None:
        self._maker, self._places, self._wanted = maker, places, wanted
        self._events: deque[ExecutorEvent] = deque()
        self._suspects: deque[Task] = deque()  # wait for an applier without tasks
        self._cancelled = False
        self._started_at = self._watched_at = time.monotonic()
        self._polled_at = 0.0
        self._start_deaths = 0  # in a row
        self._actors = maker.take_warm(wanted)
        self._ask_for(min(wanted, first))

    def _ask_for(self, appliers: int) -> None:
        for _ in range(appliers - self._staying):
            taken = {a.number for a in self._actors}
            number = next(k for k in itertools.count() if k not in taken)
            self._actors.append(self._maker.new(number))

    @property
    def _staying(self) -> int:
        """Appliers that work, start or wait for a place."""
        return sum(not a.leaving for a in self._actors)

    # --- running -----------------------------------------------------------------------

    def free_slots(self, waiting: int) -> int:
        """Return how many more tasks the appliers take, each only one when there are few left."""
        if self._suspects:
            return 0
        at_once = TASKS_AT_ONCE if waiting > self._staying else 1
        return sum(a.room(at_once) for a in self._actors)

    def submit(self, tasks: Sequence[Task]) -> None:
        """Hand tasks to the applier that has the fewest.

        One that an applier died with gets an applier to itself, so that the next death is its own.
        """
        if tasks[0].attempt:
            self._suspects.extend(tasks)
            self._hand_out_suspects()
        else:
            self._hand_out(max(self._actors, key=lambda a: a.room(TASKS_AT_ONCE)), *tasks)

    def _hand_out(self, actor: Actor, *tasks: Task) -> None:
        run = actor.handle.run.options(concurrency_group="work")
        actor.tasks[run.remote(self._maker.job, tasks, actor.heard.until)] = tasks

    def _hand_out_suspects(self) -> None:
        for actor in self._actors:
            if self._suspects and actor.works and not actor.tasks:
                self._hand_out(actor, self._suspects.popleft())

    def wait(self, timeout_s: float) -> list[ExecutorEvent]:
        """Return the events; notices appliers that became ready or died, and nodes that go."""
        self._poll_progress()
        self._watch_nodes()
        if time.monotonic() - self._started_at > _REST_S and not self._cancelled:
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
        self._hand_out_suspects()
        events = list(self._events)
        self._events.clear()
        return events

    def _settle(self, actor: Actor, reference: Any) -> None:
        """Take in a reply, or the death that comes in its place."""
        if actor not in self._actors:
            return  # it died, and an earlier reference of the same actor said so
        begins = reference == actor.beginning
        if begins:
            actor.beginning = None  # a failure is raised once: what others do is still waited for
        try:
            value = ray.get(reference)
        except (RayActorError, ObjectLostError) as error:
            self._lost(actor, error)
            return
        except RayTaskError as error:
            self._refused(actor, reference, error)
            return
        except RuntimeEnvSetupError as error:
            raise UdfError(f"the UDF's runtime_env could not be set up: {error}") from error
        if begins:
            actor.ready, actor.node = True, value
            self._start_deaths = 0
            return
        if reference == actor.progress:
            actor.progress = None
        actor.tasks.pop(reference, None)
        self._hear(actor, value)

    def _hear(self, actor: Actor, reply: Reply) -> None:
        actor.rows_done = reply.rows_done
        # Python cannot end a thread that is stuck in a call: nothing but the process's end gives
        # back the core that it may hold. It gets no more tasks, and another one takes its place.
        actor.leaving = actor.leaving or reply.stuck
        self._printed(actor, actor.heard.add(reply.printed))
        self._events += [self._ended(actor, event) for event in reply.events]

    def _printed(self, actor: Actor, text: str) -> None:
        if text:
            self._events.append(Printed(actor.number, text))

    def _ended(self, actor: Actor, event: TaskEvent) -> TaskEvent:
        """Return how a task ended; one that stopped unasked is for another applier."""
        match event:
            case TaskDone() | TaskFailed():
                return replace(event, applier=actor.number)
            case TaskStopped() if not self._cancelled:
                return TaskLost(event.task, "its node is being drained", started=False)
            case TaskStopped() | TaskReturned() | TaskLost():
                return event
        assert_never(event)

    def _refused(self, actor: Actor, reference: Any, error: RayTaskError) -> None:
        """Take in an error of an actor outside the UDF's rows: it could not begin."""
        cause = error.cause if isinstance(error.cause, Exception) else error
        if reference == actor.progress:
            actor.progress = None
            return
        if self._cancelled and reference not in actor.tasks:
            return  # it could not begin, and what the job ends of is known
        if isinstance(cause, (SharedPathError, UdfError)):
            raise cause
        if reference in actor.tasks:
            for task in actor.tasks.pop(reference):
                failed = TaskFailed(task, "storage", str(cause), traceback=str(error))
                self._events.append(self._ended(actor, failed))
            return
        raise UdfError(
            f"the UDF could not start on its applier: {type(cause).__name__}: {cause}"
        ) from error

    def _lost(self, actor: Actor, error: Exception) -> None:
        """Report the tasks of an applier that is dead or out of reach, and ask for another one.

        1. It is killed: out of reach is not dead, and it must not compute what others get now.
           What it had appended to a journal is found there by whoever gets the task.
        2. What it printed last is read from its file, if it was on this host.
        3. Replies that left before it died count: a task that was done is done.
        4. All other tasks are lost. Unless its node is to blame, the UDF may be: then the next
           attempt is careful, and alone on its applier.
        5. Another actor takes its number.
        """
        self._actors.remove(actor)
        end(actor)
        self._last_words(actor)
        innocent = node_lost(error, actor.node)
        if not actor.node and not innocent:
            self._dead_at_start(error)
        for reference in reversed(actor.tasks):  # the first is to be the next again
            self._last_events(actor, reference, error, started=not innocent)
        _LOG.info("an applier died: %s", error)
        if not self._cancelled and not actor.leaving:
            self._ask_for(min(self._wanted, self._staying + 1))

    def _last_words(self, actor: Actor) -> None:
        """Take in the prints that a dead applier left in its file, and in the last poll's reply."""
        if owed := _references(actor):
            ray.wait(owed, num_returns=len(owed), timeout=_LAST_REPLY_S)
        self._printed(actor, actor.heard.rest())
        if actor.progress is not None:
            with suppress(RayError):
                self._hear(actor, ray.get(actor.progress, timeout=0))

    def _last_events(
        self, actor: Actor, reference: Any, death: Exception, *, started: bool
    ) -> None:
        """Report how a dead applier's tasks ended: they may have been done, and the next not."""
        tasks = actor.tasks[reference]
        try:
            self._hear(actor, ray.get(reference, timeout=0))
        except (GetTimeoutError, RayActorError, ObjectLostError):
            if self._cancelled:
                self._events += [TaskStopped(task) for task in tasks]
            else:
                reason = _reason(death)
                self._events += [TaskLost(t, reason, started=started) for t in reversed(tasks)]

    def _dead_at_start(self, error: Exception) -> None:
        self._start_deaths += 1
        if self._start_deaths > _START_DEATHS:
            raise UdfError(f"appliers die while they start: {error}") from error

    def _watch_nodes(self) -> None:
        """Leave nodes that are being drained; give up if none could hold an applier for long."""
        now = time.monotonic()
        if now - self._watched_at < _NODES_S or self._cancelled:
            return
        self._watched_at = now
        self._leave(draining_nodes())
        self._places.look(self._actors)

    def _leave(self, going: frozenset[str]) -> None:
        """Let appliers on some nodes stop at the next batch boundary; others take their place."""
        for actor in self._actors:
            if actor.node in going and not actor.leaving:
                actor.leaving = True
                actor.handle.cancel.options(concurrency_group="control").remote(self._maker.job)
        gone = [a for a in self._actors if a.leaving and not a.tasks]
        for actor in gone:
            end(actor)
            self._printed(actor, actor.heard.rest())
        self._actors = [a for a in self._actors if a not in gone]

    def _poll_progress(self) -> None:
        now = time.monotonic()
        if now - self._polled_at < _PROGRESS_S:
            return
        self._polled_at = now
        for actor in self._actors:
            if actor.progress is not None:
                self._end_if_stuck(actor, now)
            elif actor.ready and actor.tasks:
                call = actor.handle.progress.options(concurrency_group="control")
                actor.progress, actor.polled_at = call.remote(actor.heard.until), now

    def _end_if_stuck(self, actor: Actor, now: float) -> None:
        """End an applier whose UDF holds Python's lock for longer than a call may take.

        Nothing else runs in its process then, so that it cannot notice by itself. Its death is
        reported as any other.
        """
        limit = self._maker.call_timeout_s
        if limit is not None and now - actor.polled_at > limit + _SILENCE_S:
            end(actor)

    def workers(self) -> Workers:
        """Return ready and wanted appliers, and rows done."""
        ready = sum(a.computes for a in self._actors)
        missing = self._places.missing
        starting = f"waiting for resources: {missing}" if missing else "appliers are starting"
        rows = sum(a.rows_done.rows for a in self._actors)
        replayed = sum(a.rows_done.replayed for a in self._actors)
        return Workers(ready, self._wanted, rows, "" if ready else starting, replayed)

    # --- stopping ----------------------------------------------------------------------

    def cancel(self) -> None:
        """Ask every applier to stop at the next batch boundary."""
        self._cancelled = True
        self._events += [TaskStopped(task) for task in self._suspects]
        self._suspects.clear()
        for actor in self._actors:
            if actor.ready:
                actor.handle.cancel.options(concurrency_group="control").remote(self._maker.job)

    def close(self, *, kill: bool) -> list[Printed]:
        """Keep the actors that are idle or about to be, release the others.

        1. An actor with a task, on a node that goes, or with a stuck call is killed. So is one
           that still starts, unless the job was so short that it may well serve the next one.
        2. A call that was made and not answered is forgotten: the reply may come when the actor
           serves another job, whose number is higher, and which begins after this one in any case.
        3. What was printed and not heard is read from the files, while their folder is there.
        4. Whoever backfills next in this process takes the idle actors, or else their time is up.
        """
        young = time.monotonic() - self._started_at <= _REST_S
        usable = [a for a in self._actors if not a.tasks and not a.leaving and (a.ready or young)]
        keep = [] if kill else usable
        for actor in self._actors:
            if actor not in keep:
                end(actor)
        for actor in keep:
            if actor.beginning is not None:
                actor.beginning.future()  # its table may go: Ray prints a failure nobody asks for
            actor.progress = actor.beginning = None
        for actor in self._actors:  # what was killed, or could not begin, has told no reply
            self._printed(actor, actor.heard.rest())
        POOL.give(keep)
        self._actors = []
        rmtree(self._maker.outputs, ignore_errors=True)
        return [event for event in self._events if isinstance(event, Printed)]


def _udf_names(pickled: Mapping[str, bytes]) -> dict[str, str]:
    """Name the UDF of each column by its content; two columns of equal UDFs have one each.

    A column that was dropped and bound anew finds its UDF warm, with the model that it loaded.
    """
    seen: Counter[str] = Counter()
    names = {}
    for column, data in pickled.items():
        digest = hashlib.sha256(data).hexdigest()
        names[column] = f"{digest}.{seen[digest]}"
        seen[digest] += 1
    return names


def _applier_key(storage: TableStorage, names: Collection[str], udf: UDF) -> str:
    """Return the key that appliers must share to take over each other's jobs."""
    what = [
        storage.uri,
        sorted((storage.options or {}).items()),
        udf.runtime_env,
        reservation(udf),
        udf.memory,
        sorted(names),
    ]
    text = json.dumps(what, default=repr, sort_keys=True)
    return hashlib.sha256(text.encode() + repr(type(storage)).encode()).hexdigest()


def _actor_options(udf: UDF) -> dict[str, Any]:
    """Return an applier's options for Ray."""
    options = {
        "num_cpus": udf.num_cpus,
        "num_gpus": udf.num_gpus,
        "memory": udf.memory,
        "resources": dict(udf.resources) if udf.resources else None,
        "runtime_env": udf.runtime_env,
    }
    return {k: v for k, v in options.items() if v is not None}


def _references(actor: Actor) -> list[Any]:
    """Return the calls that an actor has not answered."""
    return [*actor.tasks, *(r for r in (actor.beginning, actor.progress) if r is not None)]


def _reason(error: Exception) -> str:
    lines = [x.strip() for x in str(error).splitlines() if x.strip()]
    return lines[0] if lines else type(error).__name__


def _connection() -> str:
    """Return a name of this connection to Ray: actors of an earlier one are out of reach."""
    context = ray.get_runtime_context()
    return f"{context.get_node_id()}.{context.get_job_id()}"


def start_ray(options: Mapping[str, Any]) -> None:
    """Connect to Ray: the user's own, ``RAY_ADDRESS``, or a small local one."""
    with _STARTING:  # two first backfills at once
        if ray.is_initialized():
            return
        POOL.clear()
        try:
            with uninterrupted():
                _start_ray(options)
        except Exception as error:
            with suppress(Exception):  # what was started of it holds ports and memory
                ray.shutdown()
            raise _not_started(options, error) from None


def _not_started(options: Mapping[str, Any], error: Exception) -> ClusterError:
    address = options.get("address") or os.environ.get("RAY_ADDRESS")
    what = " ".join(str(error).split())[:_REASON_CHARS] or type(error).__name__
    if address in (None, "local"):
        place = options.get("_temp_dir") or f"{tempfile.gettempdir()}/ray"
        begun = (
            f"Ray did not start on this host: {what}; its logs are in {place}/session_latest/logs"
        )
    else:
        begun = (
            f"cannot connect to Ray at {address}: {what}; its logs are on the cluster's head node"
        )
    return ClusterError(f'{begun}; executor="local" computes in this process, without Ray')


def _start_ray(options: Mapping[str, Any]) -> None:
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
