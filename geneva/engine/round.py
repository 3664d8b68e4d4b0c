"""One round of a job: the tasks of some plans, from hand-out to commit.

How a round ends, in order, whatever ends it (the last task, a failure, a cancel, a pause, Ctrl-C):

1. nothing more is handed out, and running tasks are asked to stop: each does so at a batch
   boundary, with all its batches checkpointed;
2. what they tell is taken in, for ten seconds at most: a call that does not return is left behind,
   and its applier is killed where that can be done;
3. what is finished is committed, also after a second Ctrl-C;
4. the appliers are released, and what they printed last is recorded;
5. the figures are added to the job's, and the error is raised if there was one.

A worker that dies loses what it had in hand and nothing that it had checkpointed: its task comes
back as `TaskLost`, finds the logs of its work anew, and goes to the next applier.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import assert_never

from geneva.appliers.batches import read_rows, together_rows
from geneva.appliers.executor import Appliers, Executor
from geneva.appliers.outcome import died
from geneva.column.binding import top_level
from geneva.column.history.ledger import Kept
from geneva.engine.claims import Claims
from geneva.engine.commit.publish import publish
from geneva.engine.control import Control, Wanted
from geneva.engine.leftovers import Leftovers
from geneva.engine.plan.decision import FragmentPlan
from geneva.engine.plan.spans import split
from geneva.engine.plan.windowed import Portion
from geneva.engine.reporter import Reporter
from geneva.engine.schedule import Schedule, Windowed
from geneva.engine.sharing import ColumnTurn
from geneva.engine.tally import Tally
from geneva.engine.windowing import Windowing
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
from geneva.interrupts import uninterrupted
from geneva.model.types import (
    ColumnFile,
    ExecutorEvent,
    JobSettings,
    JobState,
    Options,
    Printed,
    Target,
    Task,
    TaskDone,
    TaskFailed,
    TaskLost,
    TaskReturned,
    TaskStopped,
    Workers,
)
from geneva.storage.lance import Snapshot, TableStorage
from geneva.storage.objects import advice, is_lasting
from geneva.storage.sizes import bytes_per_row
from geneva.storage.snapshot import blob_columns

_TASK_FAULTS = 3
_TICK_S = 0.1
_GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class ColumnJob:
    """One column's job: the parts that all of its rounds share.

    Attributes
    ----------
    faults
        How often each task met a fault that planning it again may mend.
    windowing
        The windows of a call with windows.
    """

    storage: TableStorage
    turn: ColumnTurn
    executor: Executor
    control: Control
    tally: Tally
    reporter: Reporter
    claims: Claims
    leftovers: Leftovers
    faults: dict[str, int] = field(default_factory=dict)
    windowing: Windowing | None = None

    @property
    def target(self) -> Target:
        """The columns that it fills."""
        return self.turn.request.target

    @property
    def options(self) -> Options:
        """The arguments of the call."""
        return self.turn.request.options

    @property
    def room(self) -> int | None:
        """How many more fragments ``num_frags`` allows."""
        limit = self.options.num_frags
        if limit is None or self.windowing is not None:  # which chose the fragments beforehand
            return None
        return limit - len(self.tally.committed)

    @property
    def keeps_failed(self) -> bool:
        """Whether a row on which an earlier attempt failed counts as checkpointed."""
        records = self.options.on_error == "null" or self.turn.request.udf.skips
        return records and not self.options.retry_failed

    def stop_error(self, forestalled: int = 0) -> JobCancelledError | JobTimeoutError | None:
        """Return the error that ends a job which was cancelled or whose time is up, else None."""
        if self.control.expired:
            what = f"stopped by timeout={self.options.timeout} s"
            return JobTimeoutError(self.reporter.how_to_continue(what, forestalled))
        if self.control.wanted is Wanted.CANCEL:
            return JobCancelledError(self.reporter.how_to_continue("cancelled", forestalled))
        return None

    def record_windows(self) -> None:
        """Tell the record of the windows that changed."""
        if self.windowing is not None and (changed := self.windowing.news()):
            self.control.recorder.windows(changed)

    def raise_if_stopped(self) -> None:
        """Raise the error that ends the job, if it was cancelled or its time is up."""
        if (error := self.stop_error()) is not None:
            raise error


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a round.

    Attributes
    ----------
    committed
        The files that it made visible.
    again
        Fragments that must be planned again.
    compacted
        True if some of these are part of a compaction's fragments now.
    paused
        True if the job is to wait until somebody resumes it.
    waiting
        Fragments with rows that wait for a computed input.
    nothing_to_do
        By the key of their work, fragments in which the filter found nothing.
    partly
        Fragments of which some rows are left, as their window failed.
    """

    committed: tuple[ColumnFile, ...] = ()
    again: frozenset[int] = frozenset()
    compacted: bool = False
    paused: bool = False
    waiting: frozenset[int] = frozenset()
    nothing_to_do: Mapping[str, Kept] = field(default_factory=dict)
    partly: frozenset[int] = frozenset()


def run_round(job: ColumnJob, snapshot: Snapshot, plans: Sequence[FragmentPlan]) -> Outcome:
    """Carry out the tasks of some plans, as far as this job has claimed them.

    Raises
    ------
    JobError
        The job was stopped, or the UDF failed; finished fragments are committed.
    TableChangedError, RetryableError, OperatorError
        See `geneva.errors` for what to do.
    """
    busy = [p for p in plans if p.task is not None]
    job.tally.planned(snapshot.fragments, plans)
    job.leftovers.planned(snapshot, plans)
    windowing = job.windowing
    job.reporter.planned(busy, job.room, 0 if windowing is None else windowing.rows_later)
    mine = [p.task for p in busy if p.task is not None and p.fragment_id in job.claims.holds]
    waiting = frozenset(p.fragment_id for p in plans if p.rows_waiting)
    if not mine or job.room == 0:
        return Outcome(waiting=waiting)
    if job.control.wanted is not Wanted.RUN:
        job.raise_if_stopped()
        return Outcome(paused=True, waiting=waiting)
    planned = [p.task for p in busy if p.task is not None]
    tasks = _prepared(job, snapshot, planned, mine)
    settings = _settings(job, snapshot, tasks)
    most = job.executor.capacity(job.turn.request.udf, job.options.concurrency)
    pieces, windowed = _pieces(job, plans, tasks, most)
    schedule = Schedule(
        pieces,
        job.room if windowed is None else None,
        job.options.commit_granularity,
        job.turn.followed,
        0 if settings.readahead else together_rows(job.turn.row_bytes),
        windowed,
    )
    wanted = min(job.options.concurrency, sum(map(len, pieces)) or most)
    running: _RunningRound | None = None
    try:
        with uninterrupted():  # an interrupt finds the appliers where they are released
            appliers = job.executor.start(job.storage, job.turn.udfs, settings, wanted)
            running = _RunningRound(job, schedule, appliers, plans)
        running.drive(min(most, wanted))
    except KeyboardInterrupt:
        if running is None:
            raise
        running.interrupted()
    finally:
        if running is not None:
            running.wind_up()
    return running.outcome(waiting)


def _prepared(
    job: ColumnJob, snapshot: Snapshot, planned: Sequence[Task], mine: Sequence[Task]
) -> list[Task]:
    """Return tasks that know their checkpoints, and who follows them."""
    job.turn.show()  # before any log is looked for: those that are found must not be cleaned up
    tasks = job.leftovers.resumed(snapshot, planned, mine)
    return tasks if job.windowing is not None else job.turn.prepared(snapshot, tasks)


def _pieces(
    job: ColumnJob, plans: Sequence[FragmentPlan], tasks: Sequence[Task], most: int
) -> tuple[list[tuple[Task, ...]], Windowed | None]:
    """Return the tasks or their spans; for a call with windows, the windows instead."""
    if job.windowing is not None:
        shares = {p.fragment_id: p.share for p in plans}
        portions = [
            Portion(t, share.places, job.leftovers.checkpointed(t, with_failed=job.keeps_failed))
            for t in tasks
            if (share := shares[t.fragment_id]) is not None
        ]
        return [], job.windowing.tasks(portions, most, job.options.batch_size)
    bound = tasks if job.turn.request.where else tasks[: job.room]
    pieces = split(bound, most, job.options.batch_size)
    return [*pieces, *((t,) for t in tasks[len(bound) :])], None


def _settings(job: ColumnJob, snapshot: Snapshot, tasks: Sequence[Task]) -> JobSettings:
    """Return the settings for the appliers; rows per read follow their size."""
    turn, inputs = job.turn, job.target.inputs
    blobs = blob_columns(snapshot.schema, inputs)
    row_bytes = turn.row_bytes
    if row_bytes is None or any(t.checkpointed is None for t in tasks):
        columns = list(dict.fromkeys(top_level(snapshot.schema, p) for p in inputs))
        columns = [c for c in columns if c not in blobs]  # it tells its size before it is read
        fragments = [t.fragment_id for t in tasks]
        row_bytes = bytes_per_row(job.storage, snapshot, columns, fragments)
        turn.row_bytes = row_bytes
    rows, readahead = read_rows(row_bytes)
    settings = turn.request.settings(job.control.job_id, rows, 1 if blobs else readahead)
    settings = replace(settings, planned=snapshot.manifest)
    if job.windowing is not None:  # its tasks know which rows the filter selects
        return replace(settings, where=None)
    return turn.settings(settings)


def _explained(error: GenevaError, event: TaskFailed) -> GenevaError:
    """Return an error with the worker's traceback and cause."""
    if event.traceback:
        error.add_note(f"on the worker:\n{event.traceback}")
    if event.failure is not None and event.failure.traceback:
        error.add_note(f"in the UDF:\n{event.failure.traceback}")
    error.__cause__ = event.cause
    return error


class _RunningRound:
    """A round under way."""

    def __init__(
        self, job: ColumnJob, schedule: Schedule, appliers: Appliers, plans: Sequence[FragmentPlan]
    ) -> None:
        self._job, self._schedule, self._appliers = job, schedule, appliers
        self._plans = plans
        self._workers = Workers(0, 0, 0)
        self._error: GenevaError | None = None
        self._stopped_by = ""  # of an error that says how the job continues
        self._paused = False
        self._committed: list[ColumnFile] = []
        self._again: set[int] = set()
        self._compacted = False
        self._forestalled = 0  # files that it left to the next run
        self._window_error: GenevaError | None = None  # of a window that others went on without
        self._windows_opened = self._windows_ended = 0  # that were told

    def drive(self, most: int) -> None:
        """Hand out tasks and take in events until nothing is left or the job must stop.

        Parameters
        ----------
        most
            Appliers that may run at once.
        """
        job, schedule = self._job, self._schedule
        while not schedule.idle and self._error is None:
            self._hand_out(most)
            if job.claims.due:
                schedule.give_up(job.claims.refresh(schedule.not_begun))
            for event in self._appliers.wait(_TICK_S):
                self._take(event)
            if self._follow_windows() or schedule.commit_due(time.monotonic()):
                self._commit()
            self._report(JobState.RUNNING if self._workers.ready else JobState.STARTING)
            if self._must_stop():
                return

    def _hand_out(self, most: int) -> None:
        job, schedule = self._job, self._schedule
        while self._appliers.free_slots(schedule.waiting) > 0:
            if not (tasks := schedule.next_group(most)):
                return
            self._appliers.submit([job.turn.admitted(task) for task in tasks])
            for task in tasks:
                job.control.recorder.began(task)

    def _follow_windows(self) -> bool:
        """Take in windows that opened and ended; return True if a commit is due to them."""
        windowing, schedule = self._job.windowing, self._schedule
        if windowing is None:
            return False
        for number in schedule.opened[self._windows_opened :]:
            windowing.opened(number)
        ended = schedule.windows_ended[self._windows_ended :]
        for event in ended:
            windowing.ended(event)
        self._job.record_windows()
        self._windows_opened += len(schedule.opened) - self._windows_opened
        self._windows_ended += len(ended)
        return bool(ended) and windowing.plan.commit == "window"

    # --- the end ------------------------------------------------------------------------

    def _must_stop(self) -> bool:
        if self._error is None:
            self._error = self._job.stop_error(self._forestalled)
        # Noted here, because the job may be resumed while it is still winding up.
        self._paused = self._paused or self._job.control.wanted is Wanted.PAUSE
        return self._error is not None or self._paused

    def interrupted(self) -> None:
        """Take in a Ctrl-C: the job is cancelled."""
        self._job.control.want(Wanted.CANCEL)
        self._stopped_by = "interrupted"
        self._error = JobCancelledError(self._job.reporter.how_to_continue(self._stopped_by))

    def wind_up(self) -> None:
        """Let running tasks stop, commit finished fragments, release the appliers."""
        schedule, appliers = self._schedule, self._appliers
        try:
            if schedule.running:
                appliers.cancel()
                stopping = JobState.PAUSING if self._paused else JobState.CANCELLING
                self._report(stopping)
                deadline = time.monotonic() + _GRACE_S
                while schedule.running and time.monotonic() < deadline:
                    for event in appliers.wait(_TICK_S):
                        self._take(event)
                self._report(stopping)  # with all that was checkpointed, while appliers can tell
        finally:  # after a second Ctrl-C too: appliers that nobody releases hold their CPUs
            try:
                self._follow_windows()
                self._commit()
            finally:
                for printed in appliers.close(kill=bool(schedule.running)):
                    self._job.control.recorder.took(printed)
                self._add_up()

    def _add_up(self) -> None:
        schedule, tally = self._schedule, self._job.tally
        tally.counts += schedule.counts
        tally.failures += [(self._job.target.name, f) for f in schedule.failures]
        tally.done += schedule.fragments_done
        tally.unfinished -= {f.fragment_id for f in self._committed}
        tally.unfinished -= set(schedule.nothing_to_do)
        tally.unfinished -= self._job.leftovers.vanished  # others took their place

    def outcome(self, waiting: frozenset[int]) -> Outcome:
        """Return the outcome, or raise the error that ended the round."""
        if self._stopped_by:  # with what was done since
            text = self._job.reporter.how_to_continue(self._stopped_by, self._forestalled)
            raise JobCancelledError(text)
        if isinstance(self._error, JobCancelledError | JobTimeoutError):
            raise self._job.stop_error(self._forestalled) or self._error
        if self._error is not None:
            raise self._error
        if self._window_error is not None and not self._paused:
            raise self._window_error
        plans = {p.fragment_id: p for p in self._plans}
        quiet = [plans[i] for i in self._schedule.nothing_to_do if i not in waiting]
        return Outcome(
            tuple(self._committed),
            frozenset(self._again),
            self._compacted,
            self._paused,
            waiting,
            {p.work: p.kept for p in quiet},
            frozenset(self._schedule.partly),
        )

    # --- events -------------------------------------------------------------------------

    def _take(self, event: ExecutorEvent) -> None:
        job, schedule = self._job, self._schedule
        job.control.recorder.took(event)
        match event:
            case TaskDone():
                job.leftovers.written(event)
                job.turn.done(event)
                schedule.done(event)
                if job.windowing is not None:
                    job.windowing.took(event)
                job.reporter.ended(event)
                job.tally.saw_peak(event.peak_bytes)
                self._check_failures()
            case TaskStopped():
                schedule.stopped(event)
            case TaskReturned():
                schedule.returned(event)
            case TaskLost():
                job.turn.lost(event)
                logs = job.leftovers.logs_of(event.task)
                if schedule.lost(event, logs, isolate=job.options.on_error == "null"):
                    self._fail(WorkerDiedError(died(event, job.target.name)))
            case TaskFailed():
                self._failed(event)
            case Printed():
                pass  # the recorder has it
            case _:
                assert_never(event)

    def _failed(self, event: TaskFailed) -> None:
        schedule, task, udf = self._schedule, event.task, self._job.turn.request.udf
        match event.kind:
            case "udf":
                where = f"fragment {task.fragment_id}"
                if event.failure is not None:
                    f = event.failure
                    where += f", row {f.row} (row id {f.row_id}), input {f.input}"
                text = f"column {self._job.target.name!r}: UDF {udf.name!r} failed on {where}"
                error = UdfFailedError(f"{text}: {event.message}")
                self._udf_failed(_explained(error, event), event)
            case "table":
                # The version that the plan was made from is being cleaned up: plan again. Only
                # where it is still the latest, that is of no use.
                schedule.dropped(task)
                self._fault(event, f"{task.key} {task.version}", TableChangedError)
            case "storage":
                schedule.dropped(task)
                self._fault(event, task.key, StorageError)
            case "setup":
                schedule.stopped(TaskStopped(task))
                text = f"UDF {udf.name!r} could not start on its applier: {event.message}"
                self._fail(UdfFailedError(text), event)
            case _:
                assert_never(event.kind)

    def _udf_failed(self, error: GenevaError, event: TaskFailed) -> None:
        """End the job, or the window of the task where others are to go on."""
        windowing = self._job.windowing
        if windowing is None or event.task.window < 0:
            self._schedule.stopped(TaskStopped(event.task))
            self._error = self._error or error
            return
        self._schedule.window_failed(event.task)
        match windowing.asked.on_failure:
            case "stop":
                self._error = self._error or error
            case "continue":
                self._window_error = self._window_error or error
            case "pause":
                self._window_error = self._window_error or error
                self._job.control.want(Wanted.PAUSE)
            case _:
                assert_never(windowing.asked.on_failure)

    def _fault(self, event: TaskFailed, key: str, error: type[GenevaError]) -> None:
        """Plan a task again that failed, unless the same ``key`` failed too often."""
        fragment_id, faults = event.task.fragment_id, self._job.faults
        if fragment_id in self._again:
            return  # another span of it said so already
        self._again.add(fragment_id)
        faults[key] = count = faults.get(key, 0) + 1
        # On a full disk every other fragment would compute what it cannot keep.
        if count >= _TASK_FAULTS or is_lasting(event.message):
            times = "" if count == 1 else f" {count} times"
            text = f"fragment {fragment_id} of {self._job.storage.uri} failed{times}"
            self._fail(error(f"{text}: {event.message}; {advice(event.message)}"), event)

    def _fail(self, error: GenevaError, event: TaskFailed | None = None) -> None:
        if self._error is None:
            self._error = error if event is None else _explained(error, event)

    def _check_failures(self) -> None:
        tally, allowed = self._job.tally, self._job.options.max_failures
        failed = tally.counts.failed + self._schedule.counts.failed
        if allowed is None or not failed:
            return
        if allowed < 1:
            at_most = sum(p.rows_compute for p in self._plans) + tally.counts.computed
            allowed *= self._job.reporter.rows_total or at_most
        if failed > allowed:
            last = [*(f for _, f in tally.failures), *self._schedule.failures][-1]
            self._fail(
                TooManyFailuresError(
                    f"column {self._job.target.name!r}: the UDF failed on {failed} rows, more than "
                    f"max_failures={self._job.options.max_failures} allows; finished fragments "
                    f"are committed. The last: {last.error}: {last.message}"
                )
            )

    # --- commits ------------------------------------------------------------------------

    def _commit(self) -> None:
        if not (files := self._schedule.take_finished()):
            return
        job, started = self._job, time.monotonic()
        try:
            published = publish(job.storage, job.target, files, job.control)
        except KeyboardInterrupt:  # what is finished is committed; a second one ends that too
            self.interrupted()
            published = publish(job.storage, job.target, files, job.control)
        if published.left:
            self._leave(published.left)
            return
        fragments = [f.fragment_id for f in published.committed]
        job.control.recorder.published(published.version, fragments, time.monotonic() - started)
        job.tally.committed += published.committed
        self._committed += published.committed
        job.claims.settle(fragments)
        if job.windowing is not None:
            job.windowing.committed(fragments)
            job.record_windows()
        if published.version is not None:
            job.tally.versions.append(published.version)
        for discarded in published.discarded:
            file = discarded.file
            self._again.add(file.fragment_id)
            note = f"fragment {file.fragment_id} was planned again: {discarded.reason}"
            job.tally.notes.append(note)
            job.tally.takes_back(file)
            self._compacted = self._compacted or discarded.vanished
        job.leftovers.published(published)
        ended = time.monotonic()
        job.tally.commit_s += (took := ended - started)
        self._schedule.committed(ended, took)

    def _leave(self, files: Sequence[ColumnFile]) -> None:
        """Let a job stop that others keep from committing: its logs name the files."""
        self._forestalled = len(files)
        for file in files:
            self._again.add(file.fragment_id)  # a job that is only paused takes it up itself
            self._job.tally.takes_back(file)
        self._must_stop()

    def _report(self, state: JobState) -> None:
        self._workers = self._appliers.workers()
        windowing = self._job.windowing
        windows = "" if windowing is None else windowing.open_windows
        self._job.reporter.report(state, self._schedule, self._workers, windows=windows)
