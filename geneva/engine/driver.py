"""Drive the tasks of one round: hand out, take in, commit, stop.

Whatever ends a round (the last task, a failure, a cancel, a pause, Ctrl-C), running tasks stop at
a batch boundary, what is finished is committed, and the appliers are released.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from geneva.appliers.batches import read_rows, together_rows
from geneva.appliers.executor import Appliers, Executor
from geneva.appliers.outcome import died
from geneva.column.binding import top_level
from geneva.column.checkpoint.journal import find_logs
from geneva.column.checkpoint.key import is_of_family, is_shared
from geneva.column.checkpoint.uses import LogUses
from geneva.engine.claims import Claims
from geneva.engine.commit.publish import Discarded, Published, Verdict, publish
from geneva.engine.commit.remap import Inherited, inherit
from geneva.engine.control import Control, Wanted
from geneva.engine.pace import Pace
from geneva.engine.plan.decision import Action, FragmentPlan
from geneva.engine.plan.spans import split
from geneva.engine.schedule import Schedule
from geneva.engine.sharing import Turn
from geneva.engine.tally import Tally
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
from geneva.model.result import BackfillResult
from geneva.model.types import (
    ColumnFile,
    ExecutorEvent,
    JobSettings,
    JobState,
    Progress,
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

Observer = Callable[[Progress], None]

_DONE = (JobState.SUCCEEDED, JobState.PARTIAL)
_TASK_FAULTS = 3
_TICK_S = 0.1
_GRACE_S = 10.0


class Driver:
    """Runs the rounds of one job; the driver process's side of it."""

    def __init__(
        self,
        storage: TableStorage,
        turn: Turn,
        executor: Executor,
        control: Control,
        observe: Observer,
    ) -> None:
        self._storage, self._turn = storage, turn
        request = self._request = turn.request
        self._executor, self._control, self._observe = executor, control, observe
        self._target, self._options = request.target, request.options
        self._started = time.monotonic()
        self.tally = Tally()
        self.again: set[int] = set()  # fragments that must be planned again
        self.compacted = False  # some of them are fragments of a compaction now
        self._schedule = Schedule([], None, 1)
        self._plans: list[FragmentPlan] = []
        self._rows_total: int | None = None
        self._fragments_total = 0
        self._faults: dict[str, int] = {}
        self._logs = LogUses(storage.objects)
        # Logs of files that another writer forestalled, by fragment.
        self._spare: dict[int, tuple[str, ...]] = {}
        self._vanished: list[ColumnFile] = []  # of fragments that were compacted away
        # Logs of this work on fragments that are no longer what they were, and the column files
        # of which only these know.
        self._estate: dict[str, set[str]] = {}
        self._error: GenevaError | None = None
        self._stopped_by = ""  # what stopped it, if it was stopped
        self._appliers: Appliers | None = None  # of the present round
        self._live = Workers(0, 0, 0)
        self._physical = self._looked_at = 0  # rows of the round's tasks; of those that are done
        self._most: int | None = None  # fragments that this round may fill
        self._pace = Pace()
        self._rows_seen = 0  # done or checkpointed; what was said is not taken back
        self._rows_done = 0  # the same, without a limit
        self.paused = False
        self.committed: list[ColumnFile] = []  # by the last round
        self._forestalled = 0  # files that it left to the next run
        self._waiting: set[int] = set()
        self._unfinished: set[int] = set()  # fragments that were planned and are not committed
        self.claims = Claims(storage.objects, request.target.incarnation, control.job_id)
        self.waits_for = ""  # said in reports until it is emptied

    @property
    def seconds(self) -> float:
        """Seconds since the job began."""
        return time.monotonic() - self._started

    @property
    def progress(self) -> tuple[int, int]:
        """What was done so far, also what nobody can use any more: rows, and fragments."""
        return self._rows_done, len(self.tally.committed)

    def run_round(self, snapshot: Snapshot, all_plans: list[FragmentPlan]) -> None:
        """Run the tasks of one round to their end, whatever that is."""
        self._plans = all_plans
        plans = [p for p in all_plans if p.task is not None]
        self.again, self.compacted, self.paused = set(), False, False
        self.committed, self._forestalled = [], 0
        self._waiting = {p.fragment_id for p in all_plans if p.rows_waiting}
        self._unfinished &= set(snapshot.fragments)  # what a compaction took was planned anew
        self._unfinished -= {p.fragment_id for p in all_plans}
        self._unfinished |= {p.fragment_id for p in plans}
        self._logs.keep_only(snapshot.fragments)
        self._drop_spare(all_plans)
        limit = self._options.num_frags
        if limit is not None:
            limit -= len(self.tally.committed)
        self._expect(plans, limit)
        plans = [p for p in plans if p.fragment_id in self.claims.holds]
        if not plans or limit == 0 or self._control.wanted is not Wanted.RUN:
            if plans:
                self.raise_if_stopped()
            return
        tasks = self._resumed(snapshot, [p.task for p in plans if p.task])
        tasks = self._turn.prepared(snapshot, tasks)
        bound = tasks if limit is None or self._request.where else tasks[:limit]
        appliers = self._executor.capacity(self._request.udf, self._options.concurrency)
        pieces = split(bound, appliers, self._options.batch_size)
        settings = self._turn.settings(self._settings(snapshot, tasks))
        self._schedule = Schedule(
            [*pieces, *((t,) for t in tasks[len(bound) :])],
            limit,
            self._options.commit_granularity,
            self._turn.followed,
            0 if settings.readahead else together_rows(self._turn.row_bytes),
        )
        wanted = min(self._options.concurrency, sum(len(p) for p in pieces))
        try:
            with uninterrupted():  # an interrupt finds them here, where they are released
                self._appliers = self._executor.start(
                    self._storage, self._turn.udfs, settings, wanted
                )
            self._drive(self._appliers, min(appliers, wanted))
        except KeyboardInterrupt:
            self._interrupted()
        finally:
            self._wind_up()
        if isinstance(self._error, JobCancelledError | JobTimeoutError):
            self._stop(type(self._error), self._stopped_by)  # with what was done since
        if self._error is not None:
            raise self._error

    def _expect(self, plans: Sequence[FragmentPlan], limit: int | None) -> None:
        """Note what a round is to do, for reports; a filter's rows are not counted beforehand."""
        self._most = limit
        self._rows_total = (
            None
            if any(p.action is Action.FILTER for p in plans)
            else sum(p.rows_compute for p in plans[:limit]) + self.tally.counts.computed
        )
        self._physical = sum(p.task.rows for p in plans if p.task is not None)
        self._looked_at = 0
        self._fragments_total = len(plans[:limit]) + len(self.tally.committed)
        self.tally.left = len(self._unfinished)

    def _resumed(self, snapshot: Snapshot, tasks: list[Task]) -> list[Task]:
        """Return tasks that know the checkpoints of their work."""
        self._turn.show()  # before any log is looked for: what is found must not be cleaned up
        logs = find_logs(self._storage.objects, self._target.incarnation)
        planned = {p.task.key: p.task for p in self._plans if p.task is not None}
        found = inherit(self._storage, snapshot, self._target, logs, tasks, tuple(planned.values()))
        # Those of others too, and of fragments that the call is not for: a log may hold both.
        fragments = {key: task.fragment_id for key, task in planned.items()}
        self._logs.note_work(logs, fragments, keep_others=self._options.limited)
        for key, paths in logs.items():
            if not is_of_family(key, tasks[0].family):
                continue
            # Of planned work as well: what it holds may be rows that others took away since, and
            # then no commit removes it. One that ends other work too has its own users.
            mine = [path for path in paths if key not in planned or not is_shared(path)]
            self._estate.update((path, found.files.get(path, set())) for path in mine)
        self._take_over(found, tasks)
        return [
            replace(t, resume=logs.get(t.key, ()) + found.written.get(t.key, ())) for t in tasks
        ]

    def _take_over(self, found: Inherited, tasks: Sequence[Task]) -> None:
        """Remove what compacted fragments left, as far as their successors' tasks have it now."""
        for log, heirs in found.heirs.items():
            for fragment_id in heirs:
                self._logs.note(fragment_id, [log])
        if self._options.limited:
            self._logs.keep(found.heirs)  # there may be heirs that the call is not for
        if found.faults:
            faults = "; ".join(dict.fromkeys(found.faults))
            self.tally.notes.append(f"results of compacted fragments were lost: {faults}")
        else:
            for task in tasks:
                mine = [log for log, heirs in found.heirs.items() if task.fragment_id in heirs]
                self._release((task.fragment_id, mine))
        left = [f for f in self._vanished if not found.heirs.keys() & set(f.logs)]
        self._forget(left)  # nothing proves where their rows are

    def _drive(self, appliers: Appliers, most: int) -> None:
        """Hand out tasks and take in events until nothing is left or the job must stop."""
        schedule = self._schedule
        while not schedule.idle and self._error is None:
            while appliers.free_slots(schedule.waiting) > 0:
                if not (tasks := schedule.next_group(most)):
                    break
                appliers.submit([self._turn.admitted(task) for task in tasks])
                for task in tasks:
                    self._control.recorder.began(task)
            if self.claims.due:
                schedule.give_up(self.claims.refresh(schedule.not_begun))
            for event in appliers.wait(_TICK_S):
                self._take(event)
            if schedule.commit_due(time.monotonic()):
                self._commit()
            self.report(JobState.RUNNING if self._live.ready else JobState.STARTING)
            if self.stop_if_wanted():
                return

    def stop_if_wanted(self) -> bool:
        """Note why the job must stop, if it must."""
        if self._error is None and self._control.expired:
            self._stop(JobTimeoutError, f"stopped by timeout={self._options.timeout} s")
        elif self._error is None and self._control.wanted is Wanted.CANCEL:
            self._stop(JobCancelledError, "cancelled")
        # Noted here, because the job may be resumed while it is still winding up.
        self.paused = self.paused or self._control.wanted is Wanted.PAUSE
        return self._error is not None or self.paused

    def _interrupted(self) -> None:
        self._control.want(Wanted.CANCEL)
        self._stop(JobCancelledError, "interrupted")

    def _stop(self, kind: type[JobCancelledError | JobTimeoutError], what: str) -> None:
        """Have the job end with an error that says what it has come to."""
        self._stopped_by = what
        self._error = kind(self.how_to_continue(what))

    def raise_if_stopped(self) -> None:
        """Raise what must end the job, if anything must."""
        if self.stop_if_wanted() and self._error is not None:
            raise self._error

    def _wind_up(self) -> None:
        """Let running tasks stop, commit what is finished, release the appliers."""
        schedule, appliers = self._schedule, self._appliers
        if appliers is None:  # none could be had
            self._add_up()
            return
        try:
            if schedule.running:
                appliers.cancel()
                stopping = JobState.PAUSING if self.paused else JobState.CANCELLING
                self.report(stopping)
                deadline = time.monotonic() + _GRACE_S
                while schedule.running and time.monotonic() < deadline:
                    for event in appliers.wait(_TICK_S):
                        self._take(event)
                self.report(stopping)  # with all that was checkpointed, while appliers can tell
        finally:  # after a second Ctrl-C too: appliers that nobody releases hold their CPUs
            try:
                self._commit()
            finally:
                self._appliers = None
                for printed in appliers.close(kill=bool(schedule.running)):
                    self._control.recorder.took(printed)
                self._add_up()

    def _add_up(self) -> None:
        schedule, tally = self._schedule, self.tally
        tally.counts += schedule.counts
        tally.failures += [(self._target.name, f) for f in schedule.failures]
        tally.done += schedule.fragments_done
        self._unfinished -= {f.fragment_id for f in self.committed}
        self._unfinished -= set(schedule.nothing_to_do)
        self._unfinished -= {f.fragment_id for f in self._vanished}  # others took their place
        tally.left = len(self._unfinished)
        quiet = {p.fragment_id: (p.work, p.kept) for p in self._plans}
        tally.done_work = dict(quiet[i] for i in schedule.nothing_to_do if not self.waits(i))
        self._schedule = Schedule([], None, 1)

    def waits(self, fragment_id: int) -> bool:
        """Whether rows of a fragment wait for a computed input."""
        return fragment_id in self._waiting

    # --- events ------------------------------------------------------------------------

    def _take(self, event: ExecutorEvent) -> None:
        schedule = self._schedule
        self._control.recorder.took(event)
        match event:
            case TaskDone():
                if event.file is not None:
                    self._logs.note(event.fragment_id, event.logs)
                self._turn.done(event)
                schedule.done(event)
                self._looked_at += event.stop - event.start
                self.tally.saw_peak(event.peak_bytes)
                self._check_failures()
            case TaskStopped():
                schedule.stopped(event)
            case TaskReturned():
                schedule.returned(event)
            case TaskLost():
                self._turn.lost(event)
                found = find_logs(self._storage.objects, self._target.incarnation)
                logs = found.get(event.task.key, ())
                if schedule.lost(event, logs, isolate=self._options.on_error == "null"):
                    self._fail(WorkerDiedError(died(event, self._target.name)))
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
                # The version that the plan was made from is being cleaned up: plan again. Only
                # where it is still the latest, that is of no use.
                schedule.dropped(task)
                self._fault(event, f"{task.key} {task.version}", TableChangedError)
            case "storage":
                schedule.dropped(task)
                self._fault(event, task.key, StorageError)
            case "setup":
                schedule.stopped(TaskStopped(task))
                self._fail(
                    UdfFailedError(
                        f"UDF {self._request.udf.name!r} could not start on its applier: "
                        f"{event.message}"
                    ),
                    event,
                )

    def _fault(self, event: TaskFailed, key: str, error: type[GenevaError]) -> None:
        """Plan a task again that failed, unless the same ``key`` failed too often."""
        if event.task.fragment_id in self.again:
            return  # another span of it said so already
        self.again.add(event.task.fragment_id)
        self._faults[key] = self._faults.get(key, 0) + 1
        faults = self._faults[key]
        # On a full disk every other fragment would compute what it cannot keep.
        if faults >= _TASK_FAULTS or is_lasting(event.message):
            times = "" if faults == 1 else f" {faults} times"
            self._fail(
                error(
                    f"fragment {event.task.fragment_id} of {self._storage.uri} failed{times}: "
                    f"{event.message}; {advice(event.message)}"
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
        failed = self.tally.counts.failed + self._schedule.counts.failed
        if allowed is None or not failed:
            return
        if allowed < 1:
            at_most = sum(p.rows_compute for p in self._plans) + self.tally.counts.computed
            allowed *= self._rows_total or at_most
        if failed > allowed:
            last = [*(f for _, f in self.tally.failures), *self._schedule.failures][-1]
            self._fail(
                TooManyFailuresError(
                    f"column {self._target.name!r}: the UDF failed on {failed} rows, more than "
                    f"max_failures={self._options.max_failures} allows; finished fragments are "
                    f"committed. The last: {last.error}: {last.message}"
                )
            )

    # --- commits ------------------------------------------------------------------

    def _commit(self) -> None:
        if not (files := self._schedule.take_finished()):
            return
        started = time.monotonic()
        try:
            published = publish(self._storage, self._target, files, self._control)
        except KeyboardInterrupt:  # what is finished is committed; a second one ends that too
            self._interrupted()
            published = publish(self._storage, self._target, files, self._control)
        if published.left:
            self._leave(published.left)
            return
        fragments = [f.fragment_id for f in published.committed]
        self._control.recorder.published(published.version, fragments, time.monotonic() - started)
        self.tally.committed += published.committed
        self.committed += published.committed
        self.claims.settle(fragments)
        if published.version is not None:
            self.tally.versions.append(published.version)
        self._tidy(published)
        ended = time.monotonic()
        self.tally.commit_s += (took := ended - started)
        self._schedule.committed(ended, took)

    def _leave(self, files: Sequence[ColumnFile]) -> None:
        """Let a job stop that others keep from committing: its logs name the files."""
        self._forestalled = len(files)
        for file in files:
            self.again.add(file.fragment_id)  # a job that is only paused takes it up itself
            self.tally.takes_back(file)
        self.stop_if_wanted()

    def _tidy(self, published: Published) -> None:
        """Remove checkpoints of committed fragments, and files that must never be committed.

        A crash before this leaves logs that name a committed file; they are never adopted,
        because the fragment's present file is then no longer the one they expect.
        """
        self._release(*((f.fragment_id, f.logs) for f in published.committed))
        for lost in published.discarded:
            self._discard(lost)

    def _drop_spare(self, plans: list[FragmentPlan]) -> None:
        """Remove checkpoints of fragments that need no work any more."""
        for plan in plans if self._spare else ():
            logs = self._spare.pop(plan.fragment_id, ())
            if plan.task is None:
                self._release((plan.fragment_id, logs))

    def _discard(self, lost: Discarded) -> None:
        file = lost.file
        self.again.add(file.fragment_id)
        self.tally.notes.append(f"fragment {file.fragment_id} was planned again: {lost.reason}")
        self.tally.takes_back(file)
        match lost.verdict:
            case Verdict.VANISHED:
                self.compacted = True
                self._vanished += [] if lost.keep_file else [file]
            case Verdict.USELESS:
                if not lost.keep_file:
                    self._remove(file)
            case Verdict.FORESTALLED:
                if not lost.keep_file:
                    self._storage.delete_file(file.name)
                self._spare[file.fragment_id] = file.logs

    def _remove(self, file: ColumnFile) -> None:
        self._storage.delete_file(file.name)
        self._release((file.fragment_id, file.logs))

    def _release(self, *done: tuple[int, Iterable[str]]) -> None:
        """Remove logs that nobody needs any more, and the files of which only these knew."""
        for log in self._logs.release(*done):
            for name in self._estate.pop(log, ()):
                self._storage.delete_file(name)

    def _forget(self, vanished: Sequence[ColumnFile]) -> None:
        for file in vanished:
            self._remove(file)
        self._vanished = []

    def _settle_estate(self) -> None:
        """Remove what is left of vanished fragments, of rewritten inputs and of rows that moved.

        Only once all of the work is done, by a driver that is alone: until then somebody may have
        a use for it. A job that ends before that leaves it to the next one.
        """
        if self.tally.left or self._waiting or self._options.limited:
            return
        if (self._estate or self._vanished) and self.claims.look_alone():
            self._forget(self._vanished)
            for log, names in self._estate.items():
                self._storage.objects.delete(log)
                for name in names:
                    self._storage.delete_file(name)
            self._estate = {}

    # --- reports ------------------------------------------------------------------

    def _settings(self, snapshot: Snapshot, tasks: Sequence[Task]) -> JobSettings:
        inputs = self._target.inputs
        blobs = blob_columns(snapshot.schema, inputs)
        row_bytes = self._turn.row_bytes
        if row_bytes is None or any(t.checkpointed is None for t in tasks):
            columns = list(dict.fromkeys(top_level(snapshot.schema, p) for p in inputs))
            columns = [c for c in columns if c not in blobs]  # it tells its size before it is read
            fragments = [t.fragment_id for t in tasks]
            row_bytes = bytes_per_row(self._storage, snapshot, columns, fragments)
            self._turn.row_bytes = row_bytes
        rows, readahead = read_rows(row_bytes)
        settings = self._request.settings(self._control.job_id, rows, 1 if blobs else readahead)
        return replace(settings, planned=snapshot.manifest)

    def report(self, state: JobState) -> None:
        """Tell whoever watches how the job stands."""
        self._live = self._appliers.workers() if self._appliers else Workers(0, 0, 0)
        counts = self.tally.counts + self._schedule.counts
        here = self._live.rows_done - self._schedule.rows_twice
        seen = max(counts.computed, here + self.tally.counts.computed, self._rows_seen)
        self._rows_done = max(self._rows_done, seen)
        self._rows_seen = seen if self._rows_total is None else min(seen, self._rows_total)
        replayed = max(counts.replayed, self._live.rows_replayed + self.tally.counts.replayed)
        working = state is JobState.RUNNING and self._live.ready > 0
        self._pace.see(self.seconds, self._rows_seen - replayed, working=working)
        pace, total = self._pace, self._rows_total
        rows = counts.computed if state in _DONE else self._rows_seen
        estimated = total is None and state not in _DONE
        progress = Progress(
            job_id=self._control.job_id,
            columns=self._target.columns,
            state=state,
            reason=self.waits_for or self._live.waiting_for,
            rows_total=self._estimated_total() if estimated else rows if total is None else total,
            rows_computed=rows,
            rows_replayed=counts.replayed,
            rows_failed=counts.failed,
            fragments_total=self._fragments_total,
            fragments_done=self.tally.done + self._schedule.fragments_done,
            fragments_committed=len(self.tally.committed),
            appliers_ready=self._live.ready,
            appliers_wanted=self._live.wanted,
            seconds=self.seconds,
            total_estimated=estimated,
            rate=pace.mean_rows_per_s if state.ended else pace.rows_per_s,
        )
        self._control.report(progress)
        self._observe(progress)

    def _estimated_total(self) -> int | None:
        """Return how many rows a filter selects, by those of which it is known."""
        schedule = self._schedule
        if not self._looked_at or not schedule.hits:
            return None
        all_in_all = self._physical / self._looked_at
        if self._most is not None:  # so many fragments that hold any
            all_in_all = min(all_in_all, max(self._most / schedule.hits, 1))
        selected = round(schedule.counts.computed * all_in_all)
        return max(self.tally.counts.computed + selected, self._rows_seen)

    def how_to_continue(self, what: str) -> str:
        """Return the message of a job that was stopped."""
        goes_on = "every finished batch is checkpointed: the same command continues there"
        if self._options.force and self._control.given_up:
            goes_on = "the forced run is over: the same command begins another one"
        but = f" but {n} (other writers were always first)" if (n := self._forestalled) else ""
        return (
            f"backfill of {self._target.name!r} was {what} after {self._rows_seen:,} rows; "
            f"finished fragments are committed{but} and {goes_on}"
        )

    def result(self, first: Sequence[FragmentPlan]) -> BackfillResult:
        """Return what the job did; ``first`` is its first plan."""
        self._settle_estate()
        failed = (self.tally.counts + self._schedule.counts).failed
        self.report(JobState.PARTIAL if failed else JobState.SUCCEEDED)
        return self.tally.result(self._target, self._control.job_id, first, self.seconds)
