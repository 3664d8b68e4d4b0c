"""connect(), Connection and Table: the public verbs; all else is lancedb's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal
from uuid import uuid4

from geneva.arguments import (
    checked_options,
    chosen_options,
    refuse_unknown,
    with_defaults,
)
from geneva.backfill import backfill, plan, prepare
from geneva.bind import bind, is_udf, rebind
from geneva.column.binding import (
    Binding,
    binding_of,
    bindings_of,
    dependency_order,
    unknown_column,
)
from geneva.column.pickles import load
from geneva.coverage import Coverage, coverage
from geneva.driver import Observer, Request
from geneva.errors import ColumnError, SettingError, TableChangedError, TableError
from geneva.execute.executor import Executor
from geneva.execute.local import LocalExecutor
from geneva.jobs.control import Control
from geneva.jobs.handle import Job
from geneva.plan.report import Plan
from geneva.progress import observer_for
from geneva.result import BackfillResult, combined
from geneva.storage.lance import TableStorage, check_uri
from geneva.storage.objects import storage_errors
from geneva.types import Options
from geneva.udf import UDF, as_udf


def connect(
    uri: str,
    *,
    storage_options: Mapping[str, str] | None = None,
    ray: Mapping[str, Any] | None = None,
    **options: Any,
) -> Connection:
    """Open a LanceDB database whose tables can have computed columns.

    Parameters
    ----------
    uri
        A directory, or ``s3://``, ``gs://``, ``az://``.
    storage_options
        As lancedb takes them.
    ray
        Options for ``ray.init``, used when the first backfill starts Ray: ``address``,
        ``runtime_env``, ``num_cpus`` ...
    options
        Further options of ``lancedb.connect``.

    Returns
    -------
    Connection
        Everything of lancedb's connection; tables are `Table`.

    Raises
    ------
    SettingError
        For a remote ``db://`` URI.

    Examples
    --------
    >>> import tempfile, geneva
    >>> db = geneva.connect(tempfile.mkdtemp())
    >>> db.create_table("t", [{"x": 1}]).count_rows()
    1
    """
    import lancedb

    check_uri(str(uri))
    known = dict(storage_options) if storage_options else None
    inner = lancedb.connect(uri, storage_options=known, **options)
    return Connection(inner, known, dict(ray or {}))


class Connection:
    """A LanceDB database; every method of lancedb's connection works, tables are `Table`."""

    def __init__(
        self, inner: Any, storage_options: dict[str, str] | None, ray: dict[str, Any]
    ) -> None:
        self._inner = inner
        self._storage_options = storage_options
        self._ray = ray

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._inner, name)

    def create_table(
        self, name: str, data: Any = None, *, stable_row_ids: bool = False, **options: Any
    ) -> Table:
        """Create a table, as lancedb does.

        Parameters
        ----------
        stable_row_ids
            Give rows ids that survive updates and compaction, so that an update of one row
            never makes others look changed.
        """
        if stable_row_ids:
            known = dict(options.get("storage_options") or self._storage_options or {})
            known["new_table_enable_stable_row_ids"] = "true"
            options["storage_options"] = known
        return self._wrap(self._inner.create_table(name, data, **options))

    def open_table(self, name: str, **options: Any) -> Table:
        """Open a table.

        Raises
        ------
        TableError
            There is none of that name; the message lists those that exist.
        """
        try:
            return self._wrap(self._inner.open_table(name, **options))
        except (FileNotFoundError, ValueError) as error:
            if "not found" not in str(error).lower():
                raise
            names = ", ".join(sorted(self._inner.list_tables().tables)) or "none"
            raise TableError(
                f"there is no table {name!r} in {self._inner.uri}; tables: {names}"
            ) from error

    def _wrap(self, inner: Any) -> Table:
        return Table(inner, storage_options=self._storage_options, ray=self._ray)

    def __repr__(self) -> str:
        return f"geneva.Connection({self._inner.uri!r})"


class Table:
    """A LanceDB table with computed columns; every method of lancedb's table works.

    Parameters
    ----------
    inner
        A ``lancedb.table.LanceTable``.
    storage_options, ray
        See `connect`.

    Examples
    --------
    >>> import tempfile, geneva
    >>> @geneva.udf
    ... def double(x: int) -> int:
    ...     return 2 * x
    >>> tbl = geneva.connect(tempfile.mkdtemp()).create_table("t", [{"x": 1}, {"x": 2}])
    >>> tbl.add_columns({"y": double})
    >>> tbl.backfill("y", executor="local").rows_computed
    2
    >>> tbl.to_arrow()["y"].to_pylist()
    [2, 4]
    """

    def __init__(
        self,
        inner: Any,
        *,
        storage_options: Mapping[str, str] | None = None,
        ray: Mapping[str, Any] | None = None,
        storage: TableStorage | None = None,
    ) -> None:
        if isinstance(inner, Table):
            inner = inner.unwrap()
        if not hasattr(inner, "to_lance"):
            raise TableError(
                f"{type(inner).__name__} is not a table of a LanceDB database of files; "
                "connect to its path or bucket"
            )
        self._inner: Any = inner
        self._ray = dict(ray or {})
        self.storage = storage or TableStorage(str(inner.uri), storage_options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._inner, name)

    def unwrap(self) -> Any:
        """Return lancedb's own table."""
        return self._inner

    def __len__(self) -> int:
        return int(self._inner.count_rows())

    def __repr__(self) -> str:
        return f"geneva.Table({self.storage.uri!r})"

    # --- computed columns --------------------------------------------------------------

    def add_columns(self, transforms: Any = None, **options: Any) -> Any:
        """Add columns; those given as UDFs become computed columns, instantly and empty.

        Parameters
        ----------
        transforms
            ``{"name": udf}``, or ``{("w", "h"): udf}`` for a UDF that returns a struct whose
            fields fill several columns. A column with data that is not computed is bound as it
            is; one that is computed is bound anew, as `alter_columns` does, so that the same
            cell of a notebook can run twice. Anything else goes to lancedb's ``add_columns``.

        Raises
        ------
        ColumnError, UdfError
            A type does not fit, an input does not exist, a circle, a UDF that reads what it
            writes.
        """
        if not isinstance(transforms, Mapping) or not any(is_udf(v) for v in transforms.values()):
            return self._inner.add_columns(transforms, **options)
        plain = {k: v for k, v in transforms.items() if not is_udf(v)}
        if plain:
            self._inner.add_columns(plain, **options)
        bind(
            self.storage,
            {
                (name,) if isinstance(name, str) else tuple(name): as_udf(udf)
                for name, udf in transforms.items()
                if is_udf(udf)
            },
        )
        self._inner.checkout_latest()
        return None

    def alter_columns(self, *alterations: Mapping[str, Any]) -> Any:
        """Alter columns as lancedb does; ``{"path": name, "udf": udf}`` binds another UDF.

        Values that another UDF computed are stale from then on, and computed again by the next
        backfill.
        """
        for alteration in alterations:
            if "udf" in alteration:
                rebind(self.storage, str(alteration["path"]), as_udf(alteration["udf"]))
        plain = [dict(a) for a in alterations if "udf" not in a]
        result = self._inner.alter_columns(*plain) if plain else None
        self._inner.checkout_latest()
        return result

    def computed_columns(self) -> dict[str, Binding]:
        """Return the binding of each computed column; no UDF is loaded."""
        return bindings_of(self.storage.open().schema)

    def load_udf(self, column: str) -> UDF:
        """Load a column's UDF. This runs its author's code: trust it as you trust the code."""
        return load(self.storage, self._binding(column))

    def _binding(self, column: str) -> Binding:
        schema = self.storage.open().schema
        if column not in schema.names:
            raise ColumnError(unknown_column(column, schema.names))
        binding = binding_of(schema.field(column))
        if binding is None:
            computed = ", ".join(bindings_of(schema)) or "none"
            raise ColumnError(
                f"column {column!r} is not computed: no UDF is bound to it. Bind one with "
                f"add_columns({{{column!r}: udf}}). Computed columns: {computed}"
            )
        return binding

    # --- backfills ---------------------------------------------------------------------

    def backfill(
        self,
        columns: str | Sequence[str],
        *,
        where: str | None = None,
        concurrency: int = 8,
        intra_applier_concurrency: int = 1,
        num_frags: int | None = None,
        commit_granularity: int = 64,
        batch_size: int | None = None,
        checkpoint_size: int | None = None,
        on_error: Literal["fail", "null"] = "fail",
        max_failures: float | None = None,
        force: bool = False,
        retry_failed: bool = False,
        unverified: Literal["trust", "recompute"] = "trust",
        foreign: Literal["keep", "recompute"] = "keep",
        inputs: Literal["wait", "as_is"] = "wait",
        include_new: bool = False,
        params: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        resource_timeout: float = 600.0,
        executor: Literal["ray", "local"] | Executor | None = None,
        progress: bool | Observer | None = None,
        **unknown: Any,
    ) -> BackfillResult:
        """Compute the missing and stale rows of computed columns.

        Every batch is checkpointed and every ``commit_granularity`` fragments become visible:
        after a crash, an interrupt or an error the same call continues where it stopped.

        Parameters
        ----------
        columns
            One computed column or several; several are computed in dependency order.
        where
            SQL filter. Rows for which it is true are computed, also when they hold a value; the
            others keep what they have. Without it: rows that are missing or stale.
        concurrency
            Applier processes (Ray actors); what the cluster can hold starts, the rest joins.
        intra_applier_concurrency
            UDF calls at once in each applier: threads, or awaits of an async UDF.
        num_frags
            At most so many fragments that need work are computed in this call.
        commit_granularity
            Fragments per intermediate commit.
        batch_size, checkpoint_size
            Rows per UDF call and per checkpoint record; by default they follow the bytes per row
            and the measured time.
        on_error
            ``"fail"`` stops at the first failing row; ``"null"`` stores null and records it.
        max_failures
            With ``on_error="null"``: more failures (a count, or a fraction below 1) stop the job.
        force
            Compute what the filter selects, whatever was recorded.
        retry_failed
            Try rows again that failed earlier.
        unverified, foreign
            Whether to recompute values whose history is gone, or that somebody else wrote.
        inputs
            ``"wait"`` leaves rows whose computed input is missing or stale; ``"as_is"`` does not.
        include_new
            Also compute rows that are appended while the job runs.
        params
            Overrides of the UDF's declared parameters, for this call.
        timeout
            Seconds after which the job stops, as `Job.cancel` would.
        resource_timeout
            Seconds to wait for an autoscaler to bring the first applier.
        executor
            ``"ray"`` (default), ``"local"`` (threads of this process), or one of your own.
        progress
            ``True`` or ``False`` for the bar; by default on a terminal or in a notebook.

        Returns
        -------
        BackfillResult
            Counts, versions, failures; prints as a summary.

        Raises
        ------
        RequestError
            The request is wrong; nothing was started.
        JobError
            It ended before it was complete; what was finished is kept.
        """
        refuse_unknown(Table.backfill, unknown)
        job = self._prepare(columns, chosen_options(locals()), executor, params)
        with observer_for(progress, job.names) as observe:
            return job.run(observe)

    def backfill_async(self, columns: str | Sequence[str], **arguments: Any) -> Job:
        """Begin a backfill in a thread of this process; takes what `backfill` takes."""
        known = with_defaults(Table.backfill, arguments)
        observe = known.pop("progress")
        job = self._prepare(columns, known, known.pop("executor"), known.pop("params"))

        def work() -> BackfillResult:
            with observer_for(observe if callable(observe) else bool(observe), job.names) as see:
                return job.run(see)

        return Job(job.control, work)

    def plan_backfill(self, columns: str | Sequence[str], **arguments: Any) -> Plan:
        """Say per fragment what `backfill` with the same arguments would do; nothing runs.

        Several columns are planned one by one; the plan of the first that has work is returned.
        """
        known = with_defaults(Table.backfill, arguments)
        params = known.pop("params")
        options = checked_options(known)
        with storage_errors(self.storage.uri):
            plans = [
                plan(self.storage, name, options, dict(params or {}))
                for name in self._ordered(columns)
            ]
        return next((p for p in plans if p.to_compute), plans[0])

    def coverage(self, column: str) -> Coverage:
        """Count per fragment the rows that are computed, stale and missing; no UDF is loaded."""
        with storage_errors(self.storage.uri):
            return coverage(self.storage, column, self._binding(column))

    def _prepare(
        self,
        columns: str | Sequence[str],
        arguments: dict[str, Any],
        executor: str | Executor | None,
        params: Mapping[str, Any] | None,
    ) -> _Run:
        options = checked_options(arguments)
        with storage_errors(self.storage.uri):
            names = self._ordered(columns)
            runner = self._executor(executor, options)
            return _Run(self, names, options, dict(params or {}), runner)

    def _ordered(self, columns: str | Sequence[str]) -> list[str]:
        """Check columns and return one of each group, in dependency order."""
        names = [columns] if isinstance(columns, str) else columns
        if not isinstance(names, Sequence) or not all(isinstance(n, str) for n in names):
            raise SettingError(f"a column's name or a list of names is needed, not {columns!r}")
        if not names:
            raise SettingError("no column given")
        bindings = {n: self._binding(n) for n in names}
        everything = self.computed_columns()
        groups: dict[str, str] = {}
        for name in dependency_order(everything, names):
            groups.setdefault(bindings[name].incarnation, name)
        return list(groups.values())

    def _executor(self, executor: str | Executor | None, options: Options) -> Executor:
        if executor == "local":
            return LocalExecutor()
        if executor is None or executor == "ray":
            from geneva.execute.ray import RayExecutor

            return RayExecutor(self._ray, options.resource_timeout)
        if isinstance(executor, str):
            raise SettingError(f"executor={executor!r} is unknown; choose 'ray' or 'local'")
        return executor


class _Run:
    """One call of backfill: its columns one after the other, under one control."""

    def __init__(
        self,
        table: Table,
        names: list[str],
        options: Options,
        params: dict[str, Any],
        executor: Executor,
    ) -> None:
        self.names = tuple(names)
        self._table, self._options, self._params = table, options, params
        self._executor = executor
        # All requests are checked before the first row is computed.
        self._first, *_ = [self._request(n) for n in names]
        self.control = Control(uuid4().hex[:12], self.names, options.timeout)

    def _request(self, name: str) -> Request:
        storage = self._table.storage
        return prepare(storage, storage.open(), name, self._options, self._params or None)

    def _request_again(self, name: str) -> Request:
        """Check a later column again: it may have been dropped or bound anew meanwhile."""
        try:
            return self._request(name)
        except ColumnError as error:
            raise TableChangedError(
                f"column {name!r} was changed while the columns before it were computed: {error}"
            ) from error

    def run(self, observe: Observer) -> BackfillResult:
        """Compute one column after the other."""
        storage = self._table.storage
        results: list[BackfillResult] = []
        try:
            for name in self.names:
                request = self._first if not results else self._request_again(name)
                results.append(backfill(storage, request, self._executor, self.control, observe))
        finally:
            self._table.unwrap().checkout_latest()
        return combined(results)
