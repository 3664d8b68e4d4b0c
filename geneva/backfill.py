"""The story of a backfill: plan -> execute -> commit -> record.

A job fills one group of columns. It plans the fragments of the latest version, hands tasks to an
executor, commits column files every ``commit_granularity`` fragments, and plans again what other
writers took from under it. Whatever ends a job, what was finished is committed first.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from uuid import uuid4

from geneva.checkpoint.key import log_folder, logs_by_key
from geneva.column.binding import Binding, bindings_of, target_of, top_level
from geneva.column.ledger import Ledger, entry_key
from geneva.column.pickles import load
from geneva.column.provenance import History, job_generation, supplier
from geneva.commit.publish import Discarded, Published, publish
from geneva.errors import (
    GenevaError,
    JobCancelledError,
    JobTimeoutError,
    StorageError,
    TableChangedError,
    TooManyFailuresError,
    UdfFailedError,
    WorkerDiedError,
)
from geneva.execute.executor import Executor
from geneva.execute.state import Schedule
from geneva.jobs.control import Control, Wanted
from geneva.plan.batches import bytes_per_row, read_rows
from geneva.plan.fragments import Action, Force, FragmentPlan, Planner
from geneva.plan.report import Plan
from geneva.plan.spans import split
from geneva.plan.where import Where, parse_where
from geneva.result import BackfillResult
from geneva.storage.lance import Snapshot, TableStorage
from geneva.types import (
    ColumnFile,
    Counts,
    JobSettings,
    JobState,
    Options,
    Progress,
    Target,
    TaskDone,
    TaskEvent,
    TaskFailed,
    TaskLost,
    TaskStopped,
    Workers,
)
from geneva.udf import UDF

Observer = Callable[[Progress], None]

_ROUNDS = 20  # plans of one job; each later one is for what other writers took from the last
_TASK_FAULTS = 3
_TICK_S = 0.1
_GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class Request:
    """One column group to fill, checked against the table."""

    target: Target
    binding: Binding
    udf: UDF
    where: Where | None
    options: Options


def prepare(
    storage: TableStorage,
    snapshot: Snapshot,
    column: str,
    options: Options,
    params: dict[str, object] | None,
) -> Request:
    """Check a request against the table and load its UDF.

    Raises
    ------
    RequestError
        Whatever is wrong with it; nothing was started.
    """
    binding = bindings_of(snapshot.schema)[column]
    where = _checked_where(storage, snapshot, options.where)
    for path in binding.inputs:
        top_level(snapshot.schema, path)
    udf = load(storage, binding)
    # The stored digest counts, not one computed now: a newer Python must not change it.
    digest = binding.digest
    if params:
        udf = udf.with_params(params)
        digest = udf.digest
    target = target_of(snapshot.schema, binding, digest)
    return Request(target, binding, udf, where, options)


def _checked_where(storage: TableStorage, snapshot: Snapshot, text: str | None) -> Where | None:
    if text is None:
        return None
    where = parse_where(text, snapshot.schema)
    storage.check_filter(snapshot, where.sql)
    return where


def plan(storage: TableStorage, request: Request) -> Plan:
    """Say what a backfill would do, to the row; nothing runs and nothing is written."""
    snapshot = storage.open()
    force = _read_force(storage, request) or _new_force(snapshot)
    planner = _planner(storage, snapshot, request, force if request.options.force else None)
    plans = [planner.counted(planner.plan(f)) for f in snapshot.fragments.values()]
    return Plan(
        request.target.columns,
        snapshot.version,
        tuple(plans),
        request.options.where,
        request.options.num_frags,
    )


def backfill(
    storage: TableStorage,
    request: Request,
    executor: Executor,
    control: Control,
    observe: Observer,
) -> BackfillResult:
    """Fill a column group until nothing that was planned is left.

    Raises
    ------
    JobError
        It was stopped, or the UDF failed; finished fragments are committed, checkpoints kept.
    TableChangedError, RetryableError, OperatorError
        See `geneva.errors` for what to do.
    """
    job = _Job(storage, request, executor, control, observe)
    try:
        return job.run()
    except KeyboardInterrupt as error:
        job.report(JobState.CANCELLED)
        raise JobCancelledError(job.how_to_continue("interrupted")) from error
    except JobCancelledError:
        job.report(JobState.CANCELLED)
        raise
    except OSError as error:
        job.report(JobState.FAILED)
        raise StorageError(
            f"reading or writing {storage.uri} failed: {error}; "
            "run the same command again when the cause is gone: nothing is computed twice"
        ) from error
    except BaseException:
        job.report(JobState.FAILED)
        raise


@dataclass(slots=True)
class _Tally:
    """What the rounds of a job add up to."""

    counts: Counts = field(default_factory=Counts)
    failures: list[tuple[str, object]] = field(default_factory=list)
    committed: list[ColumnFile] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    commit_s: float = 0.0
    skipped: int = 0
    left: int = 0
    notes: list[str] = field(default_factory=list)


class _Job:
    """One job while it runs; lives in the driver."""

    def __init__(
        self,
        storage: TableStorage,
        request: Request,
        executor: Executor,
        control: Control,
        observe: Observer,
    ) -> None:
        self._storage, self._request = storage, request
        self._executor, self._control, self._observe = executor, control, observe
        self._target, self._options = request.target, request.options
        self._started = time.monotonic()
        self._tally = _Tally()
        self._schedule = Schedule([], None, 1)
        self._plans: list[FragmentPlan] = []
        self._rows_total: int | None = None
        self._fragments_total = 0
        self._faults: dict[str, int] = {}
        self._error: GenevaError | None = None
        self._again: set[int] = set()
        self._compacted = False
        self._live = Workers(0, 0, 0)
        self._done_work: set[str] = set()

    # --- the story ---------------------------------------------------------------------

    def run(self) -> BackfillResult:
        self.report(JobState.STARTING)
        snapshot = self._storage.open()
        known = set(snapshot.fragments)
        force = self._begin_force(snapshot)
        chosen: Iterable[int] = known
        for _ in range(_ROUNDS):
            history = self._history(snapshot)
            planner = Planner(
                self._storage, history, self._target, self._request.where, self._options, force
            )
            self._plans = [planner.plan(snapshot.fragments[i]) for i in chosen]
            self._execute(snapshot, [p for p in self._plans if p.task is not None])
            history.ledger.mark_done(self._done_work)
            snapshot = self._storage.open()
            self._record(snapshot, history, force)
            if self._control.wanted is Wanted.PAUSE:
                self._wait_paused()
                snapshot = self._storage.open()
                chosen = [i for i in snapshot.fragments if i in known]
                continue
            chosen = self._next_round(snapshot, history, known)
            known |= set(chosen)
            if not chosen:
                break
        self._end_force(force)
        return self._result()

    def _execute(self, snapshot: Snapshot, plans: list[FragmentPlan]) -> None:
        """Run the tasks of one round to their end, whatever that is."""
        self._again, self._compacted = set(), False
        self._tally.skipped = len(self._plans) - len(plans)
        self._rows_total = (
            None
            if any(p.action is Action.FILTER for p in plans)
            else sum(p.rows_compute for p in plans) + self._tally.counts.computed
        )
        self._fragments_total = len(plans) + len(self._tally.committed)
        limit = self._options.num_frags
        if limit is not None:
            limit -= len(self._tally.committed)
        if not plans or limit == 0 or self._control.wanted is not Wanted.RUN:
            self._stop_if_wanted()
            self._tally.left = len(plans)
            return
        logs = logs_by_key(self._storage.objects.list(log_folder(self._target.incarnation)))
        tasks = [replace(p.task, resume=logs.get(p.task.key, ())) for p in plans if p.task]
        bound = tasks if limit is None or self._request.where else tasks[:limit]
        appliers = self._executor.capacity(self._request.udf, self._options.concurrency)
        pieces = split(bound, appliers, self._options.batch_size)
        self._schedule = Schedule(
            [*pieces, *((t,) for t in tasks[len(bound) :])],
            limit,
            self._options.commit_granularity,
        )
        wanted = min(self._options.concurrency, sum(len(p) for p in pieces))
        settings = self._settings(snapshot, [t.fragment_id for t in tasks])
        try:
            self._executor.start(self._storage, self._request.udf, settings, wanted)
            self._drive()
        except KeyboardInterrupt:
            self._control.want(Wanted.CANCEL)
            self._error = JobCancelledError(self.how_to_continue("interrupted"))
        finally:
            self._wind_up()
        if self._error is not None:
            raise self._error

    def _drive(self) -> None:
        """Hand out tasks and take in events until nothing is left or the job must stop."""
        schedule = self._schedule
        while not schedule.idle and self._error is None:
            while self._executor.free_slots() > 0 and (task := schedule.next_task()) is not None:
                self._executor.submit(task)
            for event in self._executor.wait(_TICK_S):
                self._take(event)
            if schedule.commit_due(time.monotonic()):
                self._commit()
            self.report(JobState.RUNNING if self._live.ready else JobState.STARTING)
            if self._stop_if_wanted():
                return

    def _stop_if_wanted(self) -> bool:
        """Note why the job must stop, if it must."""
        if self._control.expired:
            self._error = JobTimeoutError(
                self.how_to_continue(f"stopped by timeout={self._options.timeout} s")
            )
        elif self._control.wanted is Wanted.CANCEL:
            self._error = JobCancelledError(self.how_to_continue("cancelled"))
        return self._error is not None or self._control.wanted is Wanted.PAUSE

    def _wind_up(self) -> None:
        """Let running tasks stop, commit what is finished, release the appliers."""
        schedule = self._schedule
        stuck = False
        if schedule.running:
            self.report(
                JobState.PAUSING if self._control.wanted is Wanted.PAUSE else JobState.CANCELLING
            )
            self._executor.cancel()
            deadline = time.monotonic() + _GRACE_S
            while schedule.running and time.monotonic() < deadline:
                for event in self._executor.wait(_TICK_S):
                    self._take(event)
            stuck = bool(schedule.running)
        try:
            self._commit()
        finally:
            self._executor.close(kill=stuck)
            self._add_up()

    def _add_up(self) -> None:
        schedule, tally = self._schedule, self._tally
        tally.counts += schedule.counts
        tally.failures += [(self._target.name, f) for f in schedule.failures]
        tally.left = schedule.left_over
        quiet = {p.fragment_id: p.work for p in self._plans}
        self._done_work |= {quiet[i] for i in schedule.nothing_to_do if not self._waits(i)}
        self._schedule = Schedule([], None, 1)

    def _waits(self, fragment_id: int) -> bool:
        return any(p.fragment_id == fragment_id and p.rows_waiting for p in self._plans)

    # --- events ------------------------------------------------------------------------

    def _take(self, event: TaskEvent) -> None:
        schedule = self._schedule
        match event:
            case TaskDone():
                schedule.done(event)
                self._check_failures()
            case TaskStopped():
                schedule.stopped(event)
            case TaskLost():
                isolate = self._options.on_error == "null"
                logs = self._logs_of(event.task.key)
                if schedule.lost(event, logs, isolate=isolate):
                    self._fail(
                        WorkerDiedError(
                            f"{_died(event)} while computing {self._target.name!r}, rows "
                            f"{event.task.start} to {event.task.stop} of fragment "
                            f"{event.task.fragment_id}; the UDF may crash or run out of memory "
                            "there: on_error='null' skips the rows that do it"
                        )
                    )
            case TaskFailed():
                self._failed(event)

    def _failed(self, event: TaskFailed) -> None:
        schedule, task = self._schedule, event.task
        where = f"fragment {task.fragment_id}"
        match event.kind:
            case "udf":
                schedule.stopped(TaskStopped(task))
                if event.failure is not None:
                    f = event.failure
                    where += f", row {f.row} (row id {f.row_id}), input {f.input}"
                self._fail(
                    UdfFailedError(
                        f"column {self._target.name!r}: UDF {self._request.udf.name!r} failed on "
                        f"{where}: {event.message}"
                    ),
                    event,
                )
            case "table":
                # The version that the plan was made from is being cleaned up: plan again.
                schedule.dropped(task)
                self._again.add(task.fragment_id)
                self._fault(event, TableChangedError)
            case "storage":
                schedule.dropped(task)
                self._again.add(task.fragment_id)
                self._fault(event, StorageError)
            case "setup":
                schedule.stopped(TaskStopped(task))
                self._fail(
                    UdfFailedError(
                        f"UDF {self._request.udf.name!r} could not start on its applier: "
                        f"{event.message}"
                    ),
                    event,
                )

    def _fault(self, event: TaskFailed, error: type[GenevaError]) -> None:
        key = event.task.key
        self._faults[key] = self._faults.get(key, 0) + 1
        if self._faults[key] >= _TASK_FAULTS:
            self._fail(
                error(
                    f"fragment {event.task.fragment_id} of {self._storage.uri} failed "
                    f"{_TASK_FAULTS} times: {event.message}"
                ),
                event,
            )

    def _fail(self, error: GenevaError, event: TaskFailed | None = None) -> None:
        if self._error is None:
            if event is not None and event.traceback:
                error.add_note(f"on the worker:\n{event.traceback}")
            if event is not None and event.failure is not None and event.failure.traceback:
                error.add_note(f"in the UDF:\n{event.failure.traceback}")
            error.__cause__ = None if event is None else event.cause
            self._error = error

    def _check_failures(self) -> None:
        allowed = self._options.max_failures
        failed = self._tally.counts.failed + self._schedule.counts.failed
        if allowed is None or not failed:
            return
        if allowed < 1:
            planned = self._rows_total or sum(p.rows_compute for p in self._plans)
            allowed = allowed * planned
        if failed > allowed:
            self._fail(
                TooManyFailuresError(
                    f"column {self._target.name!r}: the UDF failed on {failed} rows, more than "
                    f"max_failures={self._options.max_failures} allows; finished fragments are "
                    f"committed. The last: {self._schedule.failures[-1].error}: "
                    f"{self._schedule.failures[-1].message}"
                )
            )

    def _logs_of(self, key: str) -> tuple[str, ...]:
        paths = self._storage.objects.list(log_folder(self._target.incarnation))
        return logs_by_key(paths).get(key, ())

    # --- commit and record -------------------------------------------------------------

    def _commit(self) -> None:
        files = self._schedule.take_finished()
        if not files:
            return
        started = time.monotonic()
        published = publish(self._storage, self._target, files, self._control.job_id)
        self._tally.committed += published.committed
        if published.version is not None:
            self._tally.versions.append(published.version)
        self._tidy(published)
        ended = time.monotonic()
        self._tally.commit_s += ended - started
        self._schedule.committed(ended, ended - started)

    def _tidy(self, published: Published) -> None:
        """Remove checkpoints of committed fragments, and files that must never be committed.

        A crash before this leaves logs that name a committed file; they are never adopted,
        because the fragment's present file is then no longer the one they expect.
        """
        objects = self._storage.objects
        for file in published.committed:
            for log in file.logs:
                objects.delete(log)
        for lost in published.discarded:
            self._discard(lost)

    def _discard(self, lost: Discarded) -> None:
        self._again.add(lost.file.fragment_id)
        self._compacted |= "compacted" in lost.reason
        self._tally.notes.append(
            f"fragment {lost.file.fragment_id} was planned again: {lost.reason}"
        )
        self._storage.delete_file(lost.file.name)
        for log in lost.file.logs:
            self._storage.objects.delete(log)

    def _record(self, snapshot: Snapshot, history: History, force: Force | None) -> None:
        """Write down what was proven, so that the next plan reads nothing."""
        ledger, target = history.ledger, self._target
        for file in self._tally.committed:
            ledger.learn(entry_key(target.incarnation, file.name, file.fragment_id), file.row_map)
        if self._request.where is not None and self._tally.committed:
            later = Planner(
                self._storage,
                self._history(snapshot, ledger),
                target,
                self._request.where,
                self._options,
                force,
            )
            done = {
                f.fragment_id: f for f in self._tally.committed if not self._waits(f.fragment_id)
            }
            ledger.mark_done(later.settled(snapshot, done))
        if not ledger.changed:
            return
        subtree = snapshot.fields[target.columns[0]].subtree
        present = {
            entry_key(target.incarnation, supplier(f, subtree), f.id)
            for f in snapshot.fragments.values()
        }
        ledger.save(self._storage, target.incarnation, present)

    def _next_round(self, snapshot: Snapshot, history: History, known: set[int]) -> list[int]:
        """Return the fragments to plan again."""
        chosen = [i for i in snapshot.fragments if i in self._again]
        new = [i for i in snapshot.fragments if i not in known]
        if self._options.include_new:
            return chosen + new
        if self._compacted or self._again - set(chosen):
            later = self._history(snapshot, history.ledger)
            column = self._target.columns[0]
            chosen += [
                i
                for i in new
                if later.made_by(snapshot, snapshot.fragments[i], column) == "Rewrite"
            ]
        return chosen

    def _history(self, snapshot: Snapshot, ledger: Ledger | None = None) -> History:
        if ledger is None:
            ledger = Ledger.load(self._storage, self._target.incarnation)
        return History(self._storage, snapshot, ledger)

    # --- forced runs -------------------------------------------------------------------

    def _begin_force(self, snapshot: Snapshot) -> Force | None:
        if not self._options.force:
            return None
        force = _read_force(self._storage, self._request)
        if force is None:
            force = _new_force(snapshot)
            body = json.dumps({"token": force.token, "generation": force.generation})
            self._storage.objects.put(_force_path(self._request), body.encode())
        return force

    def _end_force(self, force: Force | None) -> None:
        if force is not None and not self._tally.left:
            self._storage.objects.delete(_force_path(self._request))

    # --- reports -----------------------------------------------------------------------

    def _settings(self, snapshot: Snapshot, fragments: Sequence[int]) -> JobSettings:
        options, inputs = self._options, self._target.inputs
        columns = list(dict.fromkeys(top_level(snapshot.schema, p) for p in inputs))
        rows, readahead = read_rows(bytes_per_row(self._storage, snapshot, columns, fragments))
        batch_size = options.batch_size or self._request.udf.batch_size
        return JobSettings(
            job_id=self._control.job_id,
            target=self._target,
            where=self._request.where.sql if self._request.where else None,
            on_error=options.on_error,
            batch_size=batch_size,
            checkpoint_size=options.checkpoint_size,
            threads=options.intra_applier_concurrency,
            read_rows=rows,
            readahead=readahead,
            retry_failed=options.retry_failed,
        )

    def report(self, state: JobState) -> None:
        """Tell whoever watches how the job stands."""
        self._live = self._executor.workers()
        counts = self._tally.counts + self._schedule.counts
        in_memory = self._live.rows_done if self._schedule.running else 0
        progress = Progress(
            job_id=self._control.job_id,
            columns=self._target.columns,
            state=state,
            reason=self._live.waiting_for,
            rows_total=self._rows_total,
            rows_computed=max(counts.computed, in_memory + self._tally.counts.computed),
            rows_replayed=counts.replayed,
            rows_failed=counts.failed,
            fragments_total=self._fragments_total,
            fragments_done=len(self._tally.committed) + self._schedule.fragments_done,
            fragments_committed=len(self._tally.committed),
            appliers_ready=self._live.ready,
            appliers_wanted=self._live.wanted,
            seconds=time.monotonic() - self._started,
        )
        self._control.report(progress)
        self._observe(progress)

    def _wait_paused(self) -> None:
        self.report(JobState.PAUSED)
        self._control.wait_while_paused()
        if self._stop_if_wanted() and self._error is not None:
            raise self._error

    def how_to_continue(self, what: str) -> str:
        """Return the message of a job that was stopped."""
        counts = self._tally.counts + self._schedule.counts
        done = max(counts.computed, self._live.rows_done)
        return (
            f"backfill of {self._target.name!r} was {what} after {done:,} rows; finished "
            "fragments are committed and every finished batch is checkpointed: the same "
            "command continues there"
        )

    def _result(self) -> BackfillResult:
        tally, plans = self._tally, self._plans
        stages = {
            "read": tally.counts.seconds_read,
            "udf": tally.counts.seconds_udf,
            "checkpoint": tally.counts.seconds_checkpoint,
            "write": tally.counts.seconds_write,
            "commit": tally.commit_s,
        }
        result = BackfillResult(
            columns=self._target.columns,
            job_id=self._control.job_id,
            state=JobState.SUCCEEDED,
            rows_computed=tally.counts.computed,
            rows_replayed=tally.counts.replayed,
            rows_failed=tally.counts.failed,
            rows_overwritten=tally.counts.overwritten,
            rows_waiting=sum(p.rows_waiting for p in plans),
            rows_foreign=sum(p.rows_foreign for p in plans),
            rows_unverified=sum(p.rows_unverified for p in plans),
            rows_failed_before=sum(p.rows_failed for p in plans),
            fragments_committed=len(tally.committed),
            fragments_skipped=tally.skipped,
            fragments_left=tally.left,
            versions=tuple(tally.versions),
            seconds=time.monotonic() - self._started,
            stage_seconds=stages,
            recorded_failures=tuple(tally.failures),  # type: ignore[arg-type]
            notes=tuple(tally.notes),
        )
        self.report(JobState.SUCCEEDED)
        return result


def _died(event: TaskLost) -> str:
    return f"{event.task.attempt + 1} workers died one after the other ({event.reason})"


def _planner(
    storage: TableStorage, snapshot: Snapshot, request: Request, force: Force | None
) -> Planner:
    ledger = Ledger.load(storage, request.target.incarnation)
    history = History(storage, snapshot, ledger)
    return Planner(storage, history, request.target, request.where, request.options, force)


def _force_path(request: Request) -> str:
    where = request.where.digest[:16] if request.where else "all"
    return f"force/{request.target.incarnation}.{request.target.digest[:16]}.{where}.json"


def _read_force(storage: TableStorage, request: Request) -> Force | None:
    try:
        raw = json.loads(storage.objects.get(_force_path(request)))
        return Force(raw["token"], raw["generation"])
    except (FileNotFoundError, ValueError, KeyError):
        return None


def _new_force(snapshot: Snapshot) -> Force:
    return Force(uuid4().hex, job_generation(snapshot.version))
