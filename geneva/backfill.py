"""The story of a backfill: plan -> execute -> commit -> record.

A job fills one group of columns. It plans the fragments of the latest version, claims them, runs
the tasks of that plan (`geneva.engine.driver` hands them out, and commits every
``commit_granularity`` fragments), records what was proven, and plans again what other writers
took from under it, or what other drivers of the same column had claimed. Whatever ends a job,
what was finished is committed first.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from geneva.appliers.executor import Executor
from geneva.column.binding import (
    Binding,
    as_called,
    bindings_of,
    target_of,
    top_level,
    unknown_column,
)
from geneva.column.history.ledger import Ledger, entry_key
from geneva.column.history.lost import as_readable, files_gone
from geneva.column.history.marks import group_subtree, supplier
from geneva.column.history.provenance import History
from geneva.column.pickles import load
from geneva.engine.commit.publish import check_target, drop_lost
from geneva.engine.control import Control, Wanted
from geneva.engine.driver import Driver, Observer
from geneva.engine.plan.decision import Action, FragmentPlan
from geneva.engine.plan.force import ForceToken, continued
from geneva.engine.plan.fragments import Force, Planner, in_order
from geneva.engine.plan.report import Plan
from geneva.engine.request import Request
from geneva.engine.sharing import Turn
from geneva.errors import (
    ColumnError,
    ConflictError,
    JobCancelledError,
    SettingError,
    StorageError,
    VersionGoneError,
    WhereError,
)
from geneva.model.result import BackfillResult
from geneva.model.types import JobState, Options, Target
from geneva.storage.lance import Snapshot, TableStorage
from geneva.storage.objects import advice
from geneva.where.parse import Where, parse_where

# Plans in a row after which nothing was done, and for how long, until a job gives up.
_ROUNDS, _PATIENCE_S = 20, 60.0
_WAITED = "waited for other backfills of the column, which had claimed fragments of it"
_FIRST_LOOK_S, _LOOK_S = 0.05, 0.5  # at the claims of other drivers, while nothing else is to do


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
    target, where = _checked(storage, snapshot, column, options, params)
    binding = _binding(snapshot, column)
    udf = load(storage, binding)
    return Request(target, binding, udf.with_params(params) if params else udf, where, options)


def check(
    storage: TableStorage, column: str, options: Options, params: Mapping[str, object]
) -> Target:
    """Check a request without loading its UDF, and return what it fills.

    Parameters
    ----------
    params
        Overrides of the UDF's own; of their names only it is known whether there are such.

    Raises
    ------
    RequestError
        Whatever is wrong with it.
    """

    def work(latest: Snapshot) -> Target:
        _binding(latest, column).check_params(params)
        return _checked(storage, latest, column, options, None)[0]

    return storage.on_latest(work)


def _checked(
    storage: TableStorage,
    snapshot: Snapshot,
    column: str,
    options: Options,
    params: dict[str, object] | None,
) -> tuple[Target, Where | None]:
    """Check a request without loading the UDF, unless its parameters are overridden."""
    storage.check_no_wal(snapshot)
    binding = _binding(snapshot, column)
    where = _checked_where(storage, snapshot, options.where)
    _check_fragments(snapshot, options)
    for path in binding.inputs:
        top_level(snapshot.schema, path)
    # The stored digest counts, not one computed now: a newer Python must not change it.
    digest = load(storage, binding).with_params(params).digest if params else binding.digest
    return target_of(snapshot, binding, digest), where


def _check_fragments(snapshot: Snapshot, options: Options) -> None:
    """Refuse ids that no fragment ever had; those that are gone were compacted, and are skipped."""
    newest = max(snapshot.fragments, default=-1)
    unknown = [i for i in options.fragments or () if i > newest]
    if unknown:
        raise SettingError(f"there is no fragment {unknown[0]}; the newest is {newest}")


def _binding(snapshot: Snapshot, column: str) -> Binding:
    found = bindings_of(as_called(snapshot)).get(column)
    if found is None:
        raise ColumnError(
            f"column {column!r} was dropped or unbound; "
            + unknown_column(column, snapshot.schema.names)
        )
    return found


def _checked_where(storage: TableStorage, snapshot: Snapshot, text: str | None) -> Where | None:
    if text is None:
        return None
    where = parse_where(text, snapshot.schema)
    try:
        storage.check_filter(snapshot, where.sql)
    except WhereError as error:
        raise WhereError(f"LanceDB refuses where={text[:500]!r}: {str(error)[:500]}") from None
    return where


def plan(
    storage: TableStorage,
    column: str,
    options: Options,
    params: dict[str, object] | None,
    within_s: float = math.inf,
) -> Plan:
    """Say what a backfill would do, to the row; nothing runs and nothing is written.

    Parameters
    ----------
    within_s
        How long a filter may be evaluated; of fragments that are left then, the plan says at most
        how many rows (`Action.FILTER`). Those that are evaluated are spread over the table.

    Raises
    ------
    RequestError
        Whatever is wrong with the request.
    """
    looked_at = _LookedAt()

    def work(latest: Snapshot) -> Plan:
        return _plan(storage, latest, column, options, params, within_s, looked_at)

    return storage.on_latest(work)


@dataclass(frozen=True, slots=True)
class _LookedAt:
    """What is known of a plan for which one version was too short-lived; the next goes on."""

    ledgers: dict[str, Ledger] = field(default_factory=dict)
    counted: dict[str, FragmentPlan] = field(default_factory=dict)


def _plan(
    storage: TableStorage,
    latest: Snapshot,
    column: str,
    options: Options,
    params: dict[str, object] | None,
    within_s: float,
    looked_at: _LookedAt,
) -> Plan:
    target, where = _checked(storage, latest, column, options, params)
    token = ForceToken(storage, target, where, options)
    force = token.find(latest) if options.force else None
    read = [*target.columns, *(where.columns if where else ())]
    snapshot = as_readable(storage, latest, read)
    if target.incarnation not in looked_at.ledgers:
        looked_at.ledgers[target.incarnation] = Ledger.load(storage, target.incarnation)
    history = History(storage, snapshot, looked_at.ledgers[target.incarnation])
    planner = Planner(storage, history, target, where, options, force)
    chosen = in_order(snapshot.fragments, options)
    plans = [planner.plan(snapshot.fragments[i]) for i in chosen]
    filtered = [k for k, p in enumerate(plans) if p.action is Action.FILTER]
    if within_s < math.inf:
        random.Random(0).shuffle(filtered)
    deadline = time.monotonic() + within_s
    for k in filtered:
        if time.monotonic() > deadline:
            break
        if (work := plans[k].work) not in looked_at.counted:
            looked_at.counted[work] = planner.counted(plans[k])
        plans[k] = looked_at.counted[work]
    notes = (continued(force, plans),) if force is not None and force.continues else ()
    limit = options.num_frags
    return Plan(target.columns, snapshot.version, tuple(plans), options.where, limit, notes)


def backfill(
    storage: TableStorage,
    turn: Turn,
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
    driver = Driver(storage, turn, executor, control, observe)
    try:
        return _Job(storage, turn, control, driver).run()
    except KeyboardInterrupt:
        control.want(Wanted.CANCEL)
        driver.report(JobState.CANCELLED)
        raise JobCancelledError(driver.how_to_continue("interrupted")) from None
    except JobCancelledError:
        driver.report(JobState.CANCELLED)
        raise
    except OSError as error:
        driver.report(JobState.FAILED)
        raise StorageError(
            f"reading or writing {storage.uri} failed: {error}; {advice(str(error))}"
        ) from error
    except BaseException:
        driver.report(JobState.FAILED)
        raise
    finally:
        driver.claims.release()


@dataclass(frozen=True, slots=True)
class _Work:
    """What is to be planned: some fragments of a version."""

    snapshot: Snapshot
    chosen: list[int]


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
        """Count one more round; ``done`` is what was done so far."""
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
    """Whether another driver filled what was planned and let it go, before it was claimed here."""
    subtree = group_subtree(latest, target.columns[0])
    for task in (p.task for p in plans if p.task):
        fragment = latest.fragments.get(task.fragment_id)
        if fragment is not None and supplier(fragment, subtree) != (task.target_file or ""):
            return True
    return False


class _Job:
    """One job while it runs: its plans, and what is recorded of them."""

    def __init__(self, storage: TableStorage, turn: Turn, control: Control, driver: Driver) -> None:
        request = turn.request
        self._storage, self._request = storage, request
        self._control, self._driver = control, driver
        self._target, self._options = request.target, request.options
        self._turn = turn
        self._token = ForceToken(storage, request.target, request.where, request.options)
        self._force: Force | None = None
        # Columns of which files may be gone, and whose values are then missing.
        self._read = [*request.target.columns, *(request.where.columns if request.where else ())]
        self._ledger, self._patience = Ledger(), _Patience()
        self._first: list[FragmentPlan] | None = None
        self._version = 0  # that was opened last
        self._known: set[int] = set()  # fragments that are this job's concern

    def run(self) -> BackfillResult:
        """Plan and run rounds until nothing is left to do, or nothing gets done any more."""
        self._driver.report(JobState.STARTING)
        snapshot = self._open()
        self._force = self._turn.begin(self._request, snapshot)
        self._known = set(snapshot.fragments)
        work: _Work | None = _Work(snapshot, in_order(snapshot.fragments, self._options))
        while work is None or work.chosen or self._left_to_others:
            if self._patience.over(self._driver.progress):
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
        return self._driver.result(self._first or [])

    def _round(self, work: _Work) -> _Work:
        """Plan some fragments and run the plan; return what is to be planned next."""
        snapshot = as_readable(self._storage, work.snapshot, self._read)
        planner, fragments = self._planner(snapshot), snapshot.fragments
        plans = [planner.plan(fragments[i]) for i in work.chosen]
        if any(p.lost for p in plans):
            return self._drop_lost(plans)
        self._first = self._first or plans
        if self._claim(plans) and not self._storage.is_latest(snapshot):
            latest = self._open()
            if _filled_meanwhile(latest, plans, self._target):
                self._driver.again = set(self._driver.claims.holds)
                return self._to_plan_again(latest)
        if any(p.task for p in plans):
            self._storage.check_commits()
        self._control.recorder.planned(self._target.columns, snapshot.version, plans)
        self._driver.run_round(snapshot, plans)
        latest = self._open() if any(p.task for p in plans) else work.snapshot
        self._record(latest)
        if not self._driver.again:
            self._patience.renew()
            if self._left_to_others:
                self._wait_for_others()
                latest = self._open()  # after the claim: what others filled is in it
        if self._driver.paused:
            self._wait_paused()
            return self._latest()
        return self._to_plan_again(latest)

    def _drop_lost(self, plans: Sequence[FragmentPlan]) -> _Work:
        """Make a version that names no files of the column that nobody can read; plan on that."""
        lost = {p.fragment_id: p.lost for p in plans if p.lost}
        version = drop_lost(self._storage, self._target, lost.keys(), self._control)
        if version is not None:
            tally = self._driver.tally
            tally.versions.append(version)
            tally.notes.append(files_gone([name for names in lost.values() for name in names]))
        self._driver.raise_if_stopped()
        return self._latest()

    def _open(self) -> Snapshot:
        snapshot = self._storage.open()
        self._version = snapshot.version
        check_target(snapshot, self._target)
        return snapshot

    @property
    def _left_to_others(self) -> bool:
        """Whether other drivers of the column have something that this job is to see done."""
        return bool(self._driver.claims.left) and self._room != 0

    @property
    def _room(self) -> int | None:
        """How many more fragments ``num_frags`` allows."""
        limit = self._options.num_frags
        return None if limit is None else limit - len(self._driver.tally.committed)

    @property
    def _to_claim(self) -> int | None:
        """How many fragments to claim; those in which the filter finds nothing do not count."""
        return None if self._request.where and self._room != 0 else self._room

    def _claim(self, plans: list[FragmentPlan]) -> bool:
        """Claim what is to be computed; return whether some was not held when it was planned."""
        before = self._driver.claims.holds
        planned = [p.fragment_id for p in plans if p.task is not None]
        return not self._driver.claims.begin(planned, self._to_claim) <= before

    def _wait_for_others(self) -> None:
        """Wait until something is free that other drivers had; it is claimed, and planned again.

        Planned only now, because they may have filled it.

        Raises
        ------
        JobError
            The job was cancelled meanwhile, or its time ran out.
        """
        driver, pause_s = self._driver, _FIRST_LOOK_S
        while not (mine := driver.claims.take(self._to_claim)) and not driver.stop_if_wanted():
            if _WAITED not in driver.tally.notes:
                driver.tally.notes.append(_WAITED)
            driver.waits_for = driver.claims.describe()
            driver.report(JobState.RUNNING)
            self._control.sleep(pause_s * random.uniform(0.5, 1.0))  # no two in step for ever
            pause_s = min(2 * pause_s, _LOOK_S)
        driver.again, driver.waits_for = set(mine), ""
        driver.raise_if_stopped()

    def _wait_paused(self) -> None:
        """Say that the job is paused, and wait until something else is wanted.

        Raises
        ------
        JobError
            It was cancelled meanwhile, or its time ran out.
        """
        self._driver.claims.release()
        self._driver.report(JobState.PAUSED)
        self._control.wait_while_paused()
        self._driver.raise_if_stopped()

    def _latest(self) -> _Work:
        """Return the latest version and what of it is to be planned, all of it anew."""
        snapshot = self._open()
        chosen = [i for i in in_order(snapshot.fragments, self._options) if i in self._known]
        chosen += self._compacted_meanwhile(snapshot)
        self._known |= set(chosen)
        return _Work(snapshot, chosen)

    def _planner(self, snapshot: Snapshot) -> Planner:
        """Return what plans on a version, with what is recorded by now."""
        self._ledger = Ledger.load(self._storage, self._target.incarnation)
        return self._planner_on(snapshot)

    def _planner_on(self, snapshot: Snapshot) -> Planner:
        request, history = self._request, History(self._storage, snapshot, self._ledger)
        return Planner(
            self._storage, history, request.target, request.where, request.options, self._force
        )

    def _end_force(self, force: Force) -> None:
        """Say what was done before, and forget the run if it is complete."""
        tally = self._driver.tally
        if force.continues and not self._turn.began(force):
            tally.notes.append(continued(force, self._first or []))
        if not tally.left:
            self._token.end()

    def _record(self, snapshot: Snapshot) -> None:
        """Write down what was proven, so that the next plan reads nothing."""
        ledger, target, tally = self._ledger, self._target, self._driver.tally
        ledger.mark_done(tally.done_work)
        committed = self._driver.committed
        column = target.columns[0]
        for file in committed:
            key = entry_key(target.incarnation, file.name, file.fragment_id)
            ledger.learn(key, file.row_map_text)
        if self._request.where is not None and committed:
            later = self._planner_on(snapshot)
            settled = [f for f in committed if not self._driver.waits(f.fragment_id)]
            ledger.mark_done(later.settled(snapshot, {f.fragment_id: f for f in settled}))
        if not ledger.changed or column not in snapshot.fields:
            return
        ledger.save(self._storage, target.incarnation, snapshot)

    def _to_plan_again(self, snapshot: Snapshot) -> _Work:
        """Return fragments that other writers changed, and with ``include_new`` new ones."""
        driver, known = self._driver, self._known
        chosen = [i for i in snapshot.fragments if i in driver.again]
        chosen = chosen[::-1] if self._options.order == "backward" else chosen
        new = [i for i in snapshot.fragments if i not in known]
        if self._options.include_new:
            chosen += new
        elif driver.compacted or driver.again - set(chosen):
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
            if i not in self._known and later.made_by(snapshot, f, column) in ("Rewrite", "")
        ]
