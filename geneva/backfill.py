"""The story of a backfill: plan -> execute -> commit -> record.

A job fills one group of columns. It plans the fragments of the latest version, runs the tasks of
that plan (`geneva.driver` hands them out and commits every ``commit_granularity`` fragments),
records what was proven, and plans again what other writers took from under it. Whatever ends a
job, what was finished is committed first.
"""

from __future__ import annotations

from geneva.column.binding import Binding, bindings_of, target_of, top_level, unknown_column
from geneva.column.ledger import Ledger, entry_key
from geneva.column.marks import group_subtree, supplier
from geneva.column.pickles import load
from geneva.column.provenance import History
from geneva.commit.publish import check_target
from geneva.driver import Driver, Observer, Request
from geneva.errors import ColumnError, ConflictError, JobCancelledError, StorageError, WhereError
from geneva.execute.executor import Executor
from geneva.jobs.control import Control
from geneva.plan.force import ForceToken
from geneva.plan.fragments import Force, FragmentPlan, Planner
from geneva.plan.report import Plan
from geneva.plan.where import Where, parse_where
from geneva.result import BackfillResult
from geneva.storage.lance import Snapshot, TableStorage
from geneva.types import JobState, Options, Target

_ROUNDS = 20  # plans of one job; each later one is for what other writers took from the last


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


def _checked(
    storage: TableStorage,
    snapshot: Snapshot,
    column: str,
    options: Options,
    params: dict[str, object] | None,
) -> tuple[Target, Where | None]:
    """Check a request without loading the UDF, unless its parameters are overridden."""
    binding = _binding(snapshot, column)
    where = _checked_where(storage, snapshot, options.where)
    for path in binding.inputs:
        top_level(snapshot.schema, path)
    # The stored digest counts, not one computed now: a newer Python must not change it.
    digest = load(storage, binding).with_params(params).digest if params else binding.digest
    return target_of(snapshot.schema, binding, digest), where


def _binding(snapshot: Snapshot, column: str) -> Binding:
    found = bindings_of(snapshot.schema).get(column)
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
    except (OSError, ValueError) as error:
        raise WhereError(f"Lance cannot evaluate where={text!r}: {error}") from error
    return where


def plan(
    storage: TableStorage, column: str, options: Options, params: dict[str, object] | None
) -> Plan:
    """Say what a backfill would do, to the row; nothing runs and nothing is written.

    Raises
    ------
    RequestError
        Whatever is wrong with the request.
    """
    snapshot = storage.open()
    target, where = _checked(storage, snapshot, column, options, params)
    token = ForceToken(storage, target, where)
    force = token.find(snapshot) if options.force else None
    history = History(storage, snapshot, Ledger.load(storage, target.incarnation))
    planner = Planner(storage, history, target, where, options, force)
    plans = [planner.counted(planner.plan(f)) for f in snapshot.fragments.values()]
    return Plan(target.columns, snapshot.version, tuple(plans), options.where, options.num_frags)


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
    driver = Driver(storage, request, executor, control, observe)
    try:
        return _Job(storage, request, control, driver).run()
    except KeyboardInterrupt as error:
        driver.report(JobState.CANCELLED)
        raise JobCancelledError(driver.how_to_continue("interrupted")) from error
    except JobCancelledError:
        driver.report(JobState.CANCELLED)
        raise
    except OSError as error:
        driver.report(JobState.FAILED)
        raise StorageError(
            f"reading or writing {storage.uri} failed: {error}; "
            "run the same command again when the cause is gone: nothing is computed twice"
        ) from error
    except BaseException:
        driver.report(JobState.FAILED)
        raise


class _Job:
    """One job while it runs: its plans, and what is recorded of them."""

    def __init__(
        self, storage: TableStorage, request: Request, control: Control, driver: Driver
    ) -> None:
        self._storage, self._request = storage, request
        self._control, self._driver = control, driver
        self._target, self._options = request.target, request.options
        self._token = ForceToken(storage, request.target, request.where)

    def run(self) -> BackfillResult:
        self._driver.report(JobState.STARTING)
        snapshot = self._storage.open()
        check_target(snapshot, self._target)
        known = set(snapshot.fragments)
        force = self._begin_force(snapshot)
        first: list[FragmentPlan] | None = None
        chosen = list(known)
        contested = 0
        while chosen and contested < _ROUNDS:
            planner, history = self._planner(snapshot, force)
            plans = [planner.plan(snapshot.fragments[i]) for i in chosen]
            first = first or plans
            self._driver.run_round(snapshot, plans)
            if any(p.task for p in plans):
                snapshot = self._storage.open()
                check_target(snapshot, self._target)
            self._record(snapshot, history, force)
            if self._driver.paused:
                self._driver.wait_paused()
                snapshot = self._storage.open()
                check_target(snapshot, self._target)
                chosen = [i for i in snapshot.fragments if i in known]
                chosen += self._compacted_meanwhile(snapshot, history, known)
                known |= set(chosen)
                continue
            chosen = self._to_plan_again(snapshot, history, known)
            contested += bool(self._driver.again)
            known |= set(chosen)
        if chosen and self._driver.again:
            raise ConflictError(
                f"other writers took fragments of column {self._target.name!r} from under the "
                f"backfill {_ROUNDS} times; run the same command again when they are done"
            )
        if force is not None and not self._driver.tally.left:
            self._token.end()
        return self._driver.result(first or [])

    def _planner(self, snapshot: Snapshot, force: Force | None) -> tuple[Planner, History]:
        ledger = Ledger.load(self._storage, self._target.incarnation)
        history = History(self._storage, snapshot, ledger)
        return self._planner_on(history, force), history

    def _planner_on(self, history: History, force: Force | None) -> Planner:
        request = self._request
        return Planner(
            self._storage, history, request.target, request.where, request.options, force
        )

    def _begin_force(self, snapshot: Snapshot) -> Force | None:
        if not self._options.force:
            return None
        force = self._token.find(snapshot)
        self._token.begin(force)
        return force

    def _record(self, snapshot: Snapshot, history: History, force: Force | None) -> None:
        """Write down what was proven, so that the next plan reads nothing."""
        ledger, target, tally = history.ledger, self._target, self._driver.tally
        ledger.mark_done(tally.done_work)
        committed = self._driver.committed
        column = target.columns[0]
        for file in committed:
            ledger.learn(entry_key(target.incarnation, file.name, file.fragment_id), file.row_map)
        if self._request.where is not None and committed:
            later = self._planner_on(History(self._storage, snapshot, ledger), force)
            settled = [f for f in committed if not self._driver.waits(f.fragment_id)]
            ledger.mark_done(later.settled(snapshot, {f.fragment_id: f for f in settled}))
        if not ledger.changed or column not in snapshot.fields:
            return
        ledger.save(self._storage, target.incarnation, _present(snapshot))

    def _to_plan_again(self, snapshot: Snapshot, history: History, known: set[int]) -> list[int]:
        """Return fragments that other writers changed, and with ``include_new`` new ones."""
        driver = self._driver
        chosen = [i for i in snapshot.fragments if i in driver.again]
        new = [i for i in snapshot.fragments if i not in known]
        if self._options.include_new:
            return chosen + new
        if driver.compacted or driver.again - set(chosen):
            chosen += self._compacted_meanwhile(snapshot, history, known)
        return chosen

    def _compacted_meanwhile(
        self, snapshot: Snapshot, history: History, known: set[int]
    ) -> list[int]:
        """Return new fragments that a compaction made.

        Appended and updated rows are for the next run; compacted ones were planned here. Where a
        cleanup took the history too, a new fragment may be a compacted one.
        """
        later = History(self._storage, snapshot, history.ledger)
        column = self._target.columns[0]
        return [
            i
            for i, f in snapshot.fragments.items()
            if i not in known and later.made_by(snapshot, f, column) in ("Rewrite", "")
        ]


def _present(snapshot: Snapshot) -> set[str]:
    """Return the ledger keys of all column files that are in use."""
    return {
        entry_key(binding.incarnation, supplier(f, group_subtree(snapshot, name)), f.id)
        for name, binding in bindings_of(snapshot.schema).items()
        for f in snapshot.fragments.values()
    }
