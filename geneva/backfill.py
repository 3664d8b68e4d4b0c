"""The story of a backfill: plan -> execute -> commit -> record.

A job fills one group of columns. It plans the fragments of the latest version, claims them, runs
the tasks of that plan (`geneva.engine.round` hands them out, and commits every
``commit_granularity`` fragments), records what was proven, and plans again what other writers
took from under it, or what other drivers of the same column had claimed. Whatever ends a job,
what was finished is committed first.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from geneva.appliers.executor import Executor
from geneva.column.history.ledger import Ledger, entry_key
from geneva.column.history.marks import as_readable, files_gone, group_subtree, supplier
from geneva.column.history.provenance import History
from geneva.engine.claims import Claims
from geneva.engine.commit.publish import check_target, drop_lost
from geneva.engine.control import Control, Wanted
from geneva.engine.leftovers import Leftovers
from geneva.engine.plan.decision import FragmentPlan
from geneva.engine.plan.force import ForceToken, continued
from geneva.engine.plan.fragments import Force, Planner, in_order
from geneva.engine.plan.slices import Slices
from geneva.engine.reporter import Observer, Reporter
from geneva.engine.round import ColumnJob, Outcome, run_round
from geneva.engine.sharing import ColumnTurn
from geneva.engine.tally import Tally
from geneva.engine.windowing import Windowing
from geneva.errors import (
    ConflictError,
    JobCancelledError,
    StorageError,
    VersionGoneError,
)
from geneva.model.result import BackfillResult, joined_windows
from geneva.model.types import JobState, Target
from geneva.storage.lance import Snapshot, TableStorage
from geneva.storage.objects import advice

# Plans in a row after which nothing was done, and for how long, until a job gives up.
_ROUNDS, _PATIENCE_S = 20, 60.0
_WAITED = "waited for other backfills of the column, which had claimed fragments of it"
_FIRST_LOOK_S, _LOOK_S = 0.05, 0.5  # at the claims of other drivers, while nothing else is to do


def backfill(
    storage: TableStorage,
    turn: ColumnTurn,
    executor: Executor,
    control: Control,
    observe: Observer,
) -> BackfillResult:
    """Fill the column group whose turn it is until nothing that was planned is left.

    Raises
    ------
    JobError
        It was stopped, or the UDF failed; finished fragments are committed, checkpoints kept.
    TableChangedError, RetryableError, OperatorError
        See `geneva.errors` for what to do.
    """
    job = _job(storage, turn, executor, control, observe)
    report = job.reporter.report
    try:
        return _Rounds(job).run()
    except KeyboardInterrupt:
        control.want(Wanted.CANCEL)
        report(JobState.CANCELLED)
        raise JobCancelledError(job.reporter.how_to_continue("interrupted")) from None
    except JobCancelledError:
        report(JobState.CANCELLED)
        raise
    except OSError as error:
        report(JobState.FAILED)
        raise StorageError(
            f"reading or writing {storage.uri} failed: {error}; {advice(str(error))}"
        ) from error
    except BaseException:
        report(JobState.FAILED)
        raise
    finally:
        job.claims.release()


def _job(
    storage: TableStorage,
    turn: ColumnTurn,
    executor: Executor,
    control: Control,
    observe: Observer,
) -> ColumnJob:
    target, options = turn.request.target, turn.request.options
    tally = Tally()
    reporter = Reporter(target.columns, options, tally, control, observe)
    claims = Claims(storage.objects, target.incarnation, control.job_id)
    leftovers = Leftovers(storage, target, tally.notes, limited=options.limited)
    return ColumnJob(storage, turn, executor, control, tally, reporter, claims, leftovers)


@dataclass(frozen=True, slots=True)
class _Work:
    """The next work to plan: some fragments of a version."""

    snapshot: Snapshot
    chosen: list[int]
    plans: list[FragmentPlan] = field(default_factory=list)  # if it was planned already


class _Patience:
    """Ends a job that plans again and again, and gets nothing done.

    Other writers may be quicker for a while, and each cleanup may take the version that was just
    planned on. While something is done from time to time, that does not end the job.
    """

    def __init__(self) -> None:
        self._done: object = None
        self._lost: int | None = None
        self.renew()

    def renew(self) -> None:
        """Begin to count anew."""
        self._rounds, self._since = 0, time.monotonic()

    def over(self, done: object) -> bool:
        """Count one more round; ``done`` is the job's achievement so far."""
        if done != self._done:
            self._done = done
            self.renew()
        self._rounds += 1
        return self._rounds > _ROUNDS and time.monotonic() - self._since > _PATIENCE_S

    def lost(self, version: int, error: VersionGoneError) -> None:
        """Take in that files of a version were gone, which may be those of versions before it.

        Raises
        ------
        VersionGoneError
            Nobody has made another version since the last time: the table is damaged.
        """
        if version == self._lost:
            raise error
        self._lost = version


def _filled_meanwhile(latest: Snapshot, plans: Sequence[FragmentPlan], target: Target) -> bool:
    """Return True if another driver filled a planned fragment before our claim."""
    subtree = group_subtree(latest, target.columns[0])
    for task in (p.task for p in plans if p.task):
        fragment = latest.fragments.get(task.fragment_id)
        if fragment is not None and supplier(fragment, subtree) != (task.target_file or ""):
            return True
    return False


class _Rounds:
    """The rounds of one job: the fragments that each plans, and the record of its outcome."""

    def __init__(self, job: ColumnJob) -> None:
        request = job.turn.request
        self._job, self._storage, self._request = job, job.storage, request
        self._target, self._options = request.target, request.options
        self._token = ForceToken(job.storage, request.target, request.where, request.options)
        self._force: Force | None = None
        # Columns of which files may be gone, and whose values are then missing.
        self._read = [*request.target.columns, *(request.where.columns if request.where else ())]
        self._ledger, self._patience = Ledger(), _Patience()
        self._first: list[FragmentPlan] | None = None
        self._version = 0  # that was opened last
        self._known: set[int] = set()  # fragments that are this job's concern
        self._waiting = False  # rows of the last round wait for a computed input

    def run(self) -> BackfillResult:
        """Plan and run rounds until nothing is left to do, or nothing gets done any more."""
        job = self._job
        job.reporter.report(JobState.STARTING)
        snapshot = self._open()
        self._force = job.turn.begin(self._request, snapshot)
        self._known = set(snapshot.fragments)
        work: _Work | None = self._begun(snapshot)
        while work is None or work.chosen or self._left_to_others or (work := self._next_stage()):
            if self._patience.over(job.reporter.achieved):
                raise ConflictError(
                    f"other writers took fragments of column {self._target.name!r} from under the "
                    f"backfill {_ROUNDS} times, and nothing was done in {_PATIENCE_S:.0f} s; run "
                    "the same command again when they are done"
                )
            try:
                work = self._round(work or self._latest())
            except VersionGoneError as error:
                self._patience.lost(self._version, error)
                work = None
        if self._force is not None:
            self._end_force(self._force)
        return self._result(self._first or [])

    def _begun(self, snapshot: Snapshot) -> _Work:
        """Return the work of the first round; for a call with windows, its plans too."""
        chosen, asked = in_order(snapshot.fragments, self._options), self._options.windows
        if asked is None:
            return _Work(snapshot, chosen)
        readable = as_readable(self._storage, snapshot, self._read)
        windowing = Windowing(self._storage, readable, asked)
        self._job = replace(self._job, windowing=windowing)
        plans = self._plans(readable, chosen)
        self._first = plans
        self._record_plans(readable, plans)
        first = windowing.begin(plans, self._options.num_frags)
        recorder = self._job.control.recorder
        recorder.cut(self._target.columns, windowing.asked, windowing.every())
        self._job.tally.notes.extend(windowing.notes(readable, plans))
        if windowing.staged:
            return _Work(snapshot, first)
        by_id = {p.fragment_id: p for p in plans}
        return _Work(snapshot, first, [by_id[i] for i in first])

    def _next_stage(self) -> _Work | None:
        """Return the work of the next stage of a call with windows; None if there is none."""
        windowing = self._job.windowing
        if windowing is None or not windowing.next_stage():
            return None
        return self._latest()

    def _plans(self, snapshot: Snapshot, chosen: Sequence[int]) -> list[FragmentPlan]:
        """Plan some fragments of a version, from the records of this moment."""
        fragments = snapshot.fragments
        self._ledger = Ledger.load(self._storage, self._target.incarnation)
        slices = None
        if self._job.windowing is not None:
            slices = self._job.windowing.slices(snapshot)
            slices.learn([fragments[i] for i in chosen])
        planner = self._planner_on(snapshot, slices)
        plans = [planner.plan(fragments[i]) for i in chosen]
        if slices is not None and self._request.where is not None:
            return [planner.counted(p) for p in plans]
        return plans

    def _round(self, work: _Work) -> _Work:
        """Plan some fragments and run the plan; return the work of the next round."""
        job = self._job
        snapshot = as_readable(self._storage, work.snapshot, self._read)
        plans = work.plans or self._plans(snapshot, work.chosen)
        if any(p.lost for p in plans):
            return self._drop_lost(plans)
        self._first = self._first or plans
        if self._claim(plans) and not self._storage.is_latest(snapshot):
            latest = self._open()
            if _filled_meanwhile(latest, plans, self._target):
                return self._to_plan_again(latest, Outcome(again=job.claims.holds))
        busy = any(p.task for p in plans)
        if busy:
            self._storage.check_commits()
        self._record_plans(snapshot, plans)
        outcome = run_round(job, snapshot, plans)
        self._waiting = bool(outcome.waiting)
        latest = self._open() if busy else work.snapshot
        self._record(latest, outcome)
        if not outcome.again:
            self._patience.renew()
            if self._left_to_others:
                mine = self._wait_for_others()
                paused = outcome.paused or job.control.wanted is Wanted.PAUSE
                outcome = replace(outcome, again=mine, paused=paused)
                latest = self._open()  # after the claim: what others filled is in it
        if outcome.paused:
            self._wait_paused()
            return self._latest()
        return self._to_plan_again(latest, outcome)

    def _record_plans(self, snapshot: Snapshot, plans: Sequence[FragmentPlan]) -> None:
        """Record the plan of a round; that of all windows was recorded as a whole."""
        windowing = self._job.windowing
        if windowing is None or any(not windowing.knows(p.fragment_id) for p in plans):
            recorder, room = self._job.control.recorder, self._job.room
            recorder.planned(self._target.columns, snapshot.version, plans, room)

    def _drop_lost(self, plans: Sequence[FragmentPlan]) -> _Work:
        """Make a version that names no files of the column that nobody can read; plan on that."""
        lost = {p.fragment_id: p.lost for p in plans if p.lost}
        version = drop_lost(self._storage, self._target, lost.keys(), self._job.control)
        if version is not None:
            tally = self._job.tally
            tally.versions.append(version)
            tally.notes.append(files_gone([name for names in lost.values() for name in names]))
        self._job.raise_if_stopped()
        return self._latest()

    def _open(self) -> Snapshot:
        snapshot = self._storage.open()
        self._version = snapshot.version
        check_target(snapshot, self._target)
        return snapshot

    @property
    def _left_to_others(self) -> bool:
        """Whether other drivers of the column have something that this job is to see done."""
        return bool(self._job.claims.left) and self._job.room != 0

    @property
    def _to_claim(self) -> int | None:
        """How many fragments to claim; those in which the filter finds nothing do not count."""
        return None if self._request.where and self._job.room != 0 else self._job.room

    def _claim(self, plans: list[FragmentPlan]) -> bool:
        """Claim the fragments to compute; return True if one was not held when it was planned."""
        before = self._job.claims.holds
        planned = [p.fragment_id for p in plans if p.task is not None]
        return not self._job.claims.begin(planned, self._to_claim) <= before

    def _wait_for_others(self) -> frozenset[int]:
        """Wait until something is free that other drivers had; claim it, to be planned again.

        Planned only now, because they may have filled it.

        Raises
        ------
        JobError
            The job was cancelled meanwhile, or its time ran out.
        """
        job, pause_s = self._job, _FIRST_LOOK_S
        while not (mine := job.claims.take(self._to_claim)) and not job.control.stopping:
            if _WAITED not in job.tally.notes:
                job.tally.notes.append(_WAITED)
            job.reporter.report(JobState.RUNNING, reason=job.claims.describe())
            job.control.sleep(pause_s * random.uniform(0.5, 1.0))  # no two in step for ever
            pause_s = min(2 * pause_s, _LOOK_S)
        job.raise_if_stopped()
        return frozenset(mine)

    def _wait_paused(self) -> None:
        """Say that the job is paused, and wait until something else is wanted.

        Raises
        ------
        JobError
            It was cancelled meanwhile, or its time ran out.
        """
        self._job.claims.release()
        self._job.reporter.report(JobState.PAUSED)
        self._job.control.wait_while_paused()
        self._job.raise_if_stopped()

    def _latest(self) -> _Work:
        """Return the work that is left, planned anew on the latest version."""
        snapshot = self._open()
        chosen = [i for i in in_order(snapshot.fragments, self._options) if i in self._known]
        if self._job.windowing is not None:
            chosen = [i for i in self._job.windowing.stage_fragments if i in snapshot.fragments]
        chosen += self._compacted_meanwhile(snapshot)
        self._known |= set(chosen)
        return _Work(snapshot, chosen)

    def _planner_on(self, snapshot: Snapshot, slices: Slices | None = None) -> Planner:
        request, history = self._request, History(self._storage, snapshot, self._ledger)
        options, force = request.options, self._force
        return Planner(
            self._storage, history, request.target, request.where, options, force, slices
        )

    def _end_force(self, force: Force) -> None:
        """Note the rows of earlier calls, and forget the forced run if it is complete."""
        tally = self._job.tally
        if force.continues and not self._job.turn.began(force):
            tally.notes.append(continued(force, self._first or []))
        if not tally.unfinished:
            self._token.end()

    def _record(self, snapshot: Snapshot, outcome: Outcome) -> None:
        """Save the proofs of this round, so that the next plan reads nothing."""
        ledger, target, committed = self._ledger, self._target, outcome.committed
        ledger.mark_done(outcome.nothing_to_do)
        column = target.columns[0]
        for file in committed:
            key = entry_key(target.incarnation, file.name, file.fragment_id)
            ledger.learn(key, file.row_map_text)
        if self._request.where is not None and committed:
            windowing = self._job.windowing
            slices = None if windowing is None else windowing.slices(snapshot)
            later = self._planner_on(snapshot, slices)
            unsettled = outcome.waiting | outcome.partly
            settled = [f for f in committed if f.fragment_id not in unsettled]
            ledger.mark_done(later.settled(snapshot, {f.fragment_id: f for f in settled}))
        if not ledger.changed or column not in snapshot.fields:
            return
        ledger.save(self._storage, target.incarnation, snapshot)

    def _to_plan_again(self, snapshot: Snapshot, outcome: Outcome) -> _Work:
        """Return fragments that other writers changed, and with ``include_new`` new ones."""
        known = self._known
        chosen = [i for i in snapshot.fragments if i in outcome.again]
        chosen = chosen[::-1] if self._options.order == "backward" else chosen
        new = [i for i in snapshot.fragments if i not in known]
        if self._options.include_new:
            chosen += new
        elif outcome.compacted or outcome.again - set(chosen):
            chosen += self._compacted_meanwhile(snapshot)
        known |= set(chosen)
        return _Work(snapshot, chosen)

    def _compacted_meanwhile(self, snapshot: Snapshot) -> list[int]:
        """Return new fragments that a compaction made.

        Appended and updated rows are for the next run; compacted ones were planned here. Where a
        cleanup took the history too, a new fragment may be a compacted one.
        """
        limit = self._options.fragments
        if limit is not None and all(i in snapshot.fragments for i in limit):
            return []  # what this job is limited to is as it was
        later = History(self._storage, snapshot, self._ledger)
        column = self._target.columns[0]
        return [
            i
            for i, f in snapshot.fragments.items()
            if i not in self._known and later.made_by(f, column) in ("Rewrite", "")
        ]

    def _result(self, first: Sequence[FragmentPlan]) -> BackfillResult:
        """Return the job's result, after the removal of files that nobody can use any more."""
        job = self._job
        done = not (job.tally.unfinished or self._options.limited or self._waiting)
        if done and job.leftovers.left and job.claims.look_alone():
            job.leftovers.settle()
        job.reporter.report(JobState.PARTIAL if job.tally.counts.failed else JobState.SUCCEEDED)
        result = job.tally.result(self._target, job.control.job_id, first, job.reporter.seconds)
        if job.windowing is None:
            return result
        if done:
            job.windowing.finish()
        job.record_windows()
        windows = tuple(w for _, w in joined_windows(job.windowing.every()))
        return replace(result, windows=windows)
