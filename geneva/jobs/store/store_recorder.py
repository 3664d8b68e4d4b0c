"""Records what a driver does, renews its lease, and passes on what is wanted of it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol, TypeVar, assert_never

from geneva.engine.control import Control, Wanted
from geneva.engine.recorder import PlannedFragment, Recorder
from geneva.engine.reporter import Observer
from geneva.errors import LeaseLostError, ServiceError
from geneva.jobs.records import STAGES, TaskState
from geneva.jobs.run_outcome import (
    error_columns,
    error_state,
    passes,
    result_columns,
    result_state,
)
from geneva.jobs.store.leases import Leases
from geneva.jobs.store.news import News, NewWindows, report
from geneva.jobs.store.queue import QueueClaim
from geneva.jobs.store.store import Store
from geneva.model.result import BackfillResult, WindowResult
from geneva.model.types import (
    Counts,
    ExecutorEvent,
    Failure,
    JobState,
    Printed,
    Progress,
    Task,
    TaskDone,
    TaskFailed,
    TaskLost,
    TaskReturned,
    TaskStopped,
)
from geneva.model.windows import Windows

LEASE_S = 30.0
BEAT_S = 0.5
_LOOK_S = 0.15  # between two looks at what is wanted: a person waits for it
_STAGES = STAGES[:-1]  # that an applier counts
_LOG = logging.getLogger("geneva.jobs")


T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")
Ended = tuple[JobState, str, dict[str, Any]]
"""The state in which a job ended, the reason, and what its record keeps of the result."""


class PreparedCall(Protocol[T_co]):
    """A call that was checked and not yet begun."""

    @property
    def control(self) -> Control:
        """The door through which it is steered."""

    def run(self, observe: Observer) -> T_co:
        """Do its work."""


class StoreRecorder(Recorder):
    """The record of one driver, kept by a thread that writes twice a second and looks more often.

    Parameters
    ----------
    scheduled
        A scheduler starts another driver after this one: a pause ends it, instead of letting it
        wait, and after a fault that passes the job is queued again.
    keep
        Is given what UDFs print.
    leave
        Is called when the job is to stop and no task was handed out: the driver may be where it
        does not look, such as in the start of Ray.
    """

    def __init__(
        self,
        store: Store,
        claim: QueueClaim,
        *,
        scheduled: bool = False,
        lease_s: float = LEASE_S,
        keep: Callable[[Printed], None] = lambda _: None,
        leave: Callable[[], None] = lambda: None,
    ) -> None:
        self._database = store.database
        self._leases = Leases(store.database)
        self._claim, self._scheduled, self._lease_s = claim, scheduled, lease_s
        self._keep, self._leave = keep, leave
        self._lock = threading.Lock()
        self._news = News()
        self._tasks: dict[tuple[str, int], dict[str, Any]] = {}
        self._changed: set[tuple[str, int]] = set()
        self._open: set[tuple[str, int]] = set()  # of which rows a filter selects nobody knows
        self._followed: dict[str, Counts] = {}  # by the key of work whose turn is to come
        self._windows: dict[tuple[str, int], WindowResult] = {}  # that changed, by number
        self._column = ""
        self._wanted = Wanted.RUN
        self._ended = threading.Event()
        self._news_due = threading.Event()  # wakes the thread before its time
        self._state: JobState | None = None
        self._begun = False  # a task was handed out
        self._thread: threading.Thread | None = None
        self._control: Control
        self.lost = False  # another driver has the job
        self.appliers = 0  # that worked at once, at most

    # --- the way of a job --------------------------------------------------------------------

    def carry_out(
        self,
        control: Control,
        begin: Callable[[], PreparedCall[BackfillResult]],
        observe: Observer = lambda _: None,
    ) -> BackfillResult:
        """Carry a backfill out; see `carry_out_as`."""

        def ended(result: BackfillResult) -> Ended:
            return *result_state(result), result_columns(result, self.appliers)

        return self.carry_out_as(ended, control, begin, observe)

    def carry_out_as(
        self,
        ended: Callable[[T], Ended],
        control: Control,
        begin: Callable[[], PreparedCall[T]],
        observe: Observer = lambda _: None,
    ) -> T:
        """Carry a job out under its lease, and record how it ended.

        1. The lease is renewed from here on: a UDF that imports much may take longer than one.
        2. ``begin`` loads the table and the UDF, and the call runs.
        3. The thread that renews it has written the last news and ended, before
        4. the end is recorded, which gives the job up: later news would be another driver's.

        A driver that dies in between leaves a lease that runs out, and its checkpoints.

        Parameters
        ----------
        ended
            Returns what is recorded of a result.
        begin
            Returns the call, which may have a control of its own.

        Raises
        ------
        LeaseLostError
            Another driver has the job; nothing was recorded.
        """

        def see(progress: Progress) -> None:
            self.observe(progress)
            observe(progress)

        self.start(control)
        try:
            try:
                call = begin()
                if call.control is not control:
                    control = call.control
                    self.start(control)
                control.recorder = self
                result = call.run(see)
            finally:
                self.close()
        except LeaseLostError:
            raise
        except BaseException as error:
            if not self.lost:
                self._give_up(error, control.progress)
            raise
        self._leases.finish(self._claim, control.progress, *ended(result))
        return result

    def _give_up(self, error: BaseException, progress: Progress) -> None:
        """Record the error that ended the job, or leave the job to the next driver."""
        state, facts = error_state(error), error_columns(error)
        if self._scheduled and state is JobState.CANCELLED:
            # Whoever sees this process gone says what it came to: the job may only be paused.
            self._leases.stop(self._claim, progress)
        elif self._scheduled and passes(error):
            text = f"{type(error).__name__}: {error}"
            self._leases.give_back(self._claim, progress, text)
        else:
            reason = facts["error"].partition("\n")[0]
            self._leases.finish(self._claim, progress, state, reason, facts)

    # --- what the driver tells -----------------------------------------------------------

    def planned(
        self,
        columns: tuple[str, ...],
        version: int,
        plans: Sequence[PlannedFragment],
        limit: int | None = None,
    ) -> None:
        """Note each fragment and why it is, or is not, computed."""
        before, self._column = self._column, ", ".join(columns)
        to_do = [p for p in plans if p.task is not None]
        exact = all(p.exact for p in to_do)
        if not exact:  # the filter decides which are the first with rows: the largest, at most
            to_do.sort(key=lambda p: -p.rows_compute)
        to_do = to_do[:limit]
        rows = sum(p.rows_compute for p in to_do)
        most = "" if exact else "at most "
        message = f"{most}{rows:,} rows in {most}{len(to_do):,} of {len(plans):,} fragments"
        facts = {"version": version, "rows": rows, "fragments": len(to_do), "column": self._column}
        facts["exact"] = exact
        with self._lock:
            self._news.events.append(("planned", message, facts))
            self._news.first_plan = self._news.first_plan or self._column != before
            for plan in plans:
                state = TaskState.SKIPPED if plan.task is None else TaskState.PLANNED
                fresh = self._fresh(plan, state)
                if plan.task is None:
                    self._news.skipped.append(fresh)
                else:
                    self._tasks[self._column, plan.fragment_id] = fresh
                    if not plan.exact:
                        self._open.add((self._column, plan.fragment_id))
                    self._changed.add((self._column, plan.fragment_id))

    def cut(
        self, columns: tuple[str, ...], asked: Windows, windows: Sequence[WindowResult]
    ) -> None:
        """Note the windows of a column, before a row of them is computed."""
        self._column = ", ".join(columns)
        with self._lock:
            self._news.cuts.append(NewWindows(self._column, asked.config(), windows))
        self._news_due.set()

    def windows(self, changed: Mapping[int, WindowResult]) -> None:
        """Note windows that changed; the next beat writes them."""
        with self._lock:
            self._windows |= {(self._column, number): w for number, w in changed.items()}

    def was_cancelled(self, job_id: str) -> bool:
        """Return whether somebody cancelled a job of this database."""
        return bool(job_id) and self._leases.wanted(job_id) is Wanted.CANCEL

    def _fresh(self, plan: PlannedFragment, state: TaskState) -> dict[str, Any]:
        """Return the facts of a fragment; what earlier rounds took for it counts on."""
        before = self._tasks.get((self._column, plan.fragment_id), {})
        followed = Counts() if plan.task is None else self._followed.pop(plan.task.key, Counts())
        seconds = {f"seconds_{s}": before.get(f"seconds_{s}", 0.0) for s in STAGES}
        for stage in _STAGES:
            seconds[f"seconds_{stage}"] += getattr(followed, f"seconds_{stage}")
        return seconds | {
            "job_id": self._claim.job_id,
            "column": self._column,
            "fragment_id": plan.fragment_id,
            "state": state.value,
            "reason": plan.reason,
            "rows": plan.rows,
            "rows_planned": plan.rows_compute,
            "rows_computed": 0,
            "rows_failed": 0,
            "attempts": 0,
            "version": None,
            "applier": None,
        }

    def began(self, task: Task) -> None:
        """Note a fragment that is worked on."""
        self._begun = True
        self._change(task.fragment_id, state=TaskState.RUNNING.value, reason="")

    def took(self, event: ExecutorEvent) -> None:
        """Note what became of a fragment, or of a span of one, or what was printed."""
        match event:
            case Printed():
                self._keep(event)
            case TaskDone():
                self._done(event)
            case TaskFailed():
                failed = {"state": TaskState.FAILED.value, "applier": event.applier}
                self._change(event.task.fragment_id, reason=event.message, **failed)
                if event.failure is not None:
                    self._failures([event.failure])
            case TaskStopped() | TaskReturned():
                self._change(event.task.fragment_id, state=TaskState.STOPPED.value)
            case TaskLost():
                task = event.task
                self._change(task.fragment_id, reason=event.reason, attempts=task.attempt + 1)
                facts = {"fragment": task.fragment_id, "attempt": task.attempt}
                with self._lock:
                    self._news.events.append(("worker_died", event.reason, facts))
            case _:
                assert_never(event)

    def _done(self, event: TaskDone) -> None:
        self._failures(event.failures)
        with self._lock:
            facts = self._tasks.get((self._column, event.fragment_id))
            if facts is None:
                return
            for followed in event.followed:
                counts = self._followed.get(followed.key, Counts()) + followed.counts
                self._followed[followed.key] = counts
            facts["applier"] = event.applier
            for stage in _STAGES:
                facts[f"seconds_{stage}"] += getattr(event.counts, f"seconds_{stage}")
            # Of spans until the whole is assembled, which may not come to pass: failed rows are
            # to be seen while the rest is still to come.
            facts["rows_computed"] += event.counts.computed
            facts["rows_failed"] += event.counts.failed
            self._changed.add((self._column, event.fragment_id))
        whole = event.file is not None or (event.start == 0 and event.stop >= facts["rows"])
        if whole:
            counts = event.counts
            done = TaskState.DONE if event.file is not None else TaskState.SKIPPED
            known = {"rows_computed": counts.computed, "rows_failed": counts.failed}
            if (self._column, event.fragment_id) in self._open:
                known["rows_planned"] = counts.computed
            self._change(event.fragment_id, state=done.value, **known)

    def _failures(self, failures: Sequence[Failure]) -> None:
        with self._lock:
            place = {"job_id": self._claim.job_id, "column": self._column}
            self._news.failures += [asdict(f) | place | {"row_id": str(f.row_id)} for f in failures]

    def may_publish(self) -> None:
        """Look into the database whether the job is still this driver's.

        Raises
        ------
        LeaseLostError
            It is not.
        ServiceError
            The database did not answer for as long as a lease lasts.
        """
        deadline = time.monotonic() + self._lease_s
        while True:
            try:
                self._leases.check(self._claim)
                return
            except ServiceError:
                if time.monotonic() > deadline:
                    raise
                self._ended.wait(BEAT_S)

    def published(self, version: int | None, fragments: Sequence[int], seconds: float) -> None:
        """Note fragments that became visible; each is charged its share of the commit's time."""
        if version is None:
            return
        committed = {"state": TaskState.COMMITTED.value, "version": version}
        for fragment_id in fragments:
            with self._lock:
                facts = self._tasks.get((self._column, fragment_id), {})
                spent = facts.get("seconds_commit", 0.0) + seconds / len(fragments)
            self._change(fragment_id, seconds_commit=spent, **committed)
        message = f"{len(fragments):,} fragments became visible in version {version}"
        with self._lock:
            facts = {"version": version, "fragments": len(fragments)}
            self._news.events.append(("committed", message, facts))

    def _change(self, fragment_id: int, **facts: Any) -> None:
        with self._lock:
            key = (self._column, fragment_id)
            if key in self._tasks:
                self._tasks[key] |= facts
                self._changed.add(key)

    def observe(self, progress: Progress) -> None:
        """Have a change of state reported at once; all else can wait for the next beat."""
        self.appliers = max(self.appliers, progress.appliers_ready)
        if progress.state is not self._state:
            self._state = progress.state
            self._news_due.set()

    # --- the thread ----------------------------------------------------------------------

    def start(self, control: Control) -> None:
        """Begin to beat for a job, or go on with another control of it."""
        with self._lock:
            self._control = control
            if self._wanted is not Wanted.RUN:
                self._pass_on(control)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="geneva-lease", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        due_s = 0.0
        while not self._ended.is_set():
            woken = self._news_due.wait(_LOOK_S)
            self._news_due.clear()
            if woken or time.monotonic() >= due_s:
                due_s = time.monotonic() + BEAT_S
                self._follow(self._beat)
            else:
                self._follow(lambda: self._leases.check(self._claim))

    def _beat(self) -> Wanted:
        progress = self._control.progress  # before the plan that it counts on is written
        self._flush()
        return self._leases.beat(self._claim, progress, self._lease_s)

    def _follow(self, ask: Callable[[], Wanted]) -> None:
        """Do what is wanted, as it is told."""
        try:
            wanted = ask()
        except LeaseLostError:
            self.lost = True
            wanted = Wanted.CANCEL
            self._ended.set()
        except Exception as error:  # whatever it is, the work goes on: its values are not here
            _LOG.warning("the record of job %s is late: %s", self._claim.job_id, error)
            return
        with self._lock:
            if wanted is self._wanted:
                return  # what its own process wants stands
            self._wanted = wanted
            self._pass_on(self._control)
        if wanted is not Wanted.RUN and not self._begun and not self.lost:
            self._leave()

    def _pass_on(self, control: Control) -> None:
        if self.lost or (self._wanted is Wanted.PAUSE and self._scheduled):
            control.let_go()
        else:
            control.want(self._wanted)

    def _flush(self) -> None:
        with self._lock:
            news, self._news = self._news, News()
            changed, self._changed = self._changed, set()
            windows, self._windows = self._windows, {}
            news.tasks = [dict(self._tasks[key]) for key in sorted(changed)]
            news.windows = [_window_facts(*at, w) for at, w in sorted(windows.items())]
            if news.first_plan:
                news.mine = frozenset(k for k in self._tasks if k[0] == self._column)
        if not news:
            return
        try:
            report(self._database, self._claim, news)
        except BaseException:
            with self._lock:
                self._changed |= changed
                self._windows = windows | self._windows
                later = self._news
                self._news = News(
                    skipped=news.skipped + later.skipped,
                    cuts=news.cuts + later.cuts,
                    failures=news.failures + later.failures,
                    events=news.events + later.events,
                    first_plan=news.first_plan or later.first_plan,
                )
            raise

    def close(self) -> None:
        """Stop beating and write the last news; call it before the end is recorded.

        Raises
        ------
        ServiceError
            The database did not take them for as long as a lease lasts.
        """
        self._ended.set()
        self._news_due.set()
        if self._thread is not None:
            self._thread.join()
        deadline = time.monotonic() + self._lease_s
        while not self.lost:
            try:
                self._flush()
                return
            except ServiceError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(BEAT_S)


def _window_facts(column: str, number: int, window: WindowResult) -> dict[str, Any]:
    return {
        "of": column,
        "at": number,
        "new_state": window.state.value,
        "new_reason": window.reason,
        "computed": window.rows_computed,
        "failed": window.rows_failed,
        "spent": window.seconds,
    }
