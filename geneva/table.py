"""Table: the public verbs; all else is lancedb's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import cached_property, wraps
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar
from uuid import uuid4

import pyarrow as pa

from geneva.appliers.executor import Executor
from geneva.appliers.threads import LocalExecutor
from geneva.column.auto import Auto, read_auto
from geneva.column.binding import Binding, as_called, bindings_of, computed_in, groups_in
from geneva.column.pickles import load
from geneva.engine.bind import bind, check_transforms, declare, is_udf, rebind
from geneva.engine.control import Control
from geneva.engine.coverage import Coverage, CoverageOver, coverage, coverage_over
from geneva.engine.plan.report import Plan
from geneva.engine.reporter import Observer
from geneva.errors import SettingError, TableError
from geneva.interrupts import interrupt_cancels, uninterrupted
from geneva.jobs.backfills import (
    Backfill,
    JobsPlace,
    RecordedBackfill,
    SubmittedBackfill,
    check_call,
    plan_call,
)
from geneva.jobs.handle import Job
from geneva.jobs.progress import observer_for
from geneva.model.arguments import (
    check_value,
    checked_options,
    chosen,
    refuse_elsewhere,
    refuse_unknown,
    with_defaults,
)
from geneva.model.result import BackfillResult
from geneva.model.types import BLOB, DECLARED_BLOB, Options
from geneva.model.windows import Windows
from geneva.storage.lance import Snapshot, TableStorage
from geneva.storage.objects import storage_errors
from geneva.udf import UDF, as_udf

P = ParamSpec("P")
R = TypeVar("R")


def _refusing_unknown(method: Callable[P, R]) -> Callable[P, R]:
    """Say which argument was meant, where Python would only say that there is no such one."""
    known = inspect.signature(method).parameters

    @wraps(method)
    def checked(*args: P.args, **named: P.kwargs) -> R:
        refuse_unknown({k: v for k, v in named.items() if k not in known})
        return method(*args, **named)

    return checked


def _taking_arguments_of(
    model: Callable[Concatenate[Table, P], Any],
) -> Callable[
    [Callable[[Table, str | Sequence[str], dict[str, Any]], R]],
    Callable[Concatenate[Table, P], R],
]:
    """Give a method the signature of another one; it takes the columns, and the rest by name."""
    signature = inspect.signature(model)

    def decorate(
        method: Callable[[Table, str | Sequence[str], dict[str, Any]], R],
    ) -> Callable[Concatenate[Table, P], R]:
        @wraps(method)
        def call(self: Table, /, *args: P.args, **named: P.kwargs) -> R:
            refuse_unknown({k: v for k, v in named.items() if k not in signature.parameters})
            arguments = signature.bind(self, *args, **named).arguments
            del arguments["self"]
            columns = arguments.pop("columns")
            return method(self, columns, with_defaults(arguments))

        returned = inspect.signature(method).return_annotation
        call.__signature__ = signature.replace(return_annotation=returned)  # type: ignore[attr-defined]
        return call

    return decorate


class Table:
    """A LanceDB table with computed columns; every method of lancedb's table works.

    Parameters
    ----------
    inner
        A ``lancedb.table.LanceTable``; or, with ``storage``, a function that opens it.
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
        jobs: JobsPlace | None = None,
    ) -> None:
        if isinstance(inner, Table):
            inner = inner.unwrap()
        if inspect.iscoroutinefunction(getattr(type(inner), "count_rows", None)):
            raise TableError(
                f"{type(inner).__name__} is a table of an asynchronous connection; open it with "
                "geneva.connect(path).open_table(name), or pass a table of lancedb.connect"
            )
        if hasattr(inner, "to_lance"):
            self._inner = inner
        elif storage is not None:
            self._open_inner = inner
        else:
            raise TableError(
                f"{type(inner).__name__} is not a table of a LanceDB database of files; "
                "connect to its path or bucket"
            )
        self._ray = dict(ray or {})
        self._jobs = jobs
        self._storage = storage or TableStorage(str(inner.uri), storage_options or None)

    @property
    def storage(self) -> TableStorage:
        """The table's files; columns are computed on its main branch.

        Raises
        ------
        TableError
            The table was opened on another branch.
        """
        branch = self._inner.current_branch() if "_inner" in vars(self) else None
        if branch is not None:
            raise TableError(
                f"table {self._inner.name!r} is open on its branch {branch!r}, but columns are "
                "computed on the main branch only; open it without branch="
            )
        return self._storage

    @cached_property
    def _inner(self) -> Any:
        return self._open_inner()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_inner", "_open_inner"):
            raise AttributeError(name)
        return getattr(self._inner, name)

    def unwrap(self) -> Any:
        """Return lancedb's own table."""
        return self._inner

    def refresh(self) -> None:
        """Look at the latest version from now on."""
        if "_inner" in vars(self):
            with storage_errors(self._storage.uri):
                self._storage.opened(self._inner.checkout_latest)

    def __len__(self) -> int:
        return int(self._inner.count_rows())

    def __repr__(self) -> str:
        return f"geneva.Table({self._storage.uri!r})"

    # --- computed columns --------------------------------------------------------------

    def add_columns(
        self,
        transforms: Any = None,
        *,
        auto_backfill: bool | str | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Add columns; a UDF becomes a computed column, instantly and empty.

        Parameters
        ----------
        transforms
            ``{"name": udf}``, or ``{"name": (udf, ["a", "b"])}`` to name the columns that it
            reads here, or ``{("w", "h"): udf}`` for a UDF that returns a struct whose
            fields fill several columns. A column with data that is not computed is bound as it
            is; one that is computed is bound anew, as `alter_columns` does, so that the same
            cell of a notebook can run twice. Anything else goes to lancedb's ``add_columns``.
        auto_backfill
            ``True``: a service that serves the database computes them when rows arrive, inputs
            change or the UDF changes, with that UDF and without asking again. Or when: ``"15m"``,
            ``"0 3 * * *"``; or a mapping with ``schedule``, ``tz``, ``debounce``, ``pool``,
            ``priority`` and ``arguments`` (of `backfill`).

        Raises
        ------
        ColumnError, UdfError
            A type that does not fit, a missing input, a circle, a UDF that reads what it writes.
        """
        auto = _checked_auto(auto_backfill)
        if not isinstance(transforms, Mapping) or not any(is_udf(v) for v in transforms.values()):
            if auto is not None:
                raise SettingError("auto_backfill is for columns that a UDF computes")
            if isinstance(transforms, Mapping):
                check_transforms(transforms)
            return self._inner.add_columns(transforms, **options)
        plain = {k: v for k, v in transforms.items() if not is_udf(v)}
        check_transforms(plain)
        if plain:
            self._inner.add_columns(plain, **options)
        bound = {k: v for k, v in transforms.items() if is_udf(v)}
        with storage_errors(self.storage.uri):
            bind(self.storage, bound, auto)
        self.refresh()
        return None

    def alter_columns(self, *alterations: Mapping[str, Any]) -> Any:
        """Alter columns as lancedb does; ``{"path": name, "udf": udf}`` binds another UDF.

        As in `add_columns`, ``(udf, ["a", "b"])`` names the columns that it reads.

        Values that another UDF computed are stale from then on: the next backfill computes them.
        """
        plain = []
        for alteration in alterations:
            if not {"udf", "auto_backfill"} & set(alteration):
                plain.append(dict(alteration))
                continue
            auto = _checked_auto(alteration.get("auto_backfill"))
            path = str(alteration["path"])
            with storage_errors(self.storage.uri):
                if "udf" in alteration:
                    rebind(self.storage, path, as_udf(alteration["udf"]), auto)
                elif auto is not None:
                    declare(self.storage, path, auto)
        result = self._inner.alter_columns(*plain) if plain else None
        self.refresh()
        return result

    @property
    def schema(self) -> pa.Schema:
        """The table's schema, with the `field_metadata` that UDFs declare."""
        return pa.schema(map(_as_declared, self._inner.schema), self._inner.schema.metadata)

    def computed_columns(self) -> dict[str, Binding]:
        """Return the binding of each computed column; no UDF is loaded."""
        return bindings_of(as_called(self.storage.open()))

    def load_udf(self, column: str) -> UDF:
        """Load a column's UDF. This runs its author's code: trust it as you trust the code."""
        return load(self.storage, computed_in(self.storage, self.storage.open(), column))

    # --- backfills ---------------------------------------------------------------------

    @_refusing_unknown
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
        only: Sequence[tuple[int, int, int]] | None = None,
        params: Mapping[str, Any] | None = None,
        timeout: float | timedelta | None = None,
        resource_timeout: float | timedelta = 600.0,
        order: Literal["forward", "backward"] = "forward",
        fragments: Sequence[int] | None = None,
        windows: Windows | Mapping[str, Any] | None = None,
        executor: Literal["ray", "local"] | Executor | None = "ray",
        progress: bool | Observer | None = None,
    ) -> BackfillResult:
        """Compute the missing and stale rows of computed columns.

        Every batch is checkpointed and every ``commit_granularity`` fragments become visible.
        After a crash, an interrupt or an error the same call continues there.

        Parameters
        ----------
        columns
            One computed column or several; several are computed in dependency order, and those
            that read the same inputs share one read.
        where
            SQL filter. Rows for which it is true are computed, also when they hold a value; the
            others keep what they have. Without it: rows that are missing or stale.
        concurrency
            Applier processes (Ray actors); as many as fit start, the rest joins.
        intra_applier_concurrency
            UDF calls at once in each applier: threads, or awaits of an async UDF.
        num_frags
            At most so many fragments that need work are computed in this call.
        commit_granularity
            Fragments per intermediate commit.
        batch_size, checkpoint_size
            Rows per UDF call and per checkpoint record; by default by their bytes and time.
        on_error
            ``"fail"`` stops at the first failing row; ``"null"`` stores null and records it.
        max_failures
            With ``on_error="null"``: more failures (a count, or a fraction below 1) stop the job.
        force
            Compute what the filter selects, whatever was recorded. The same call continues a
            forced run that is not complete, unless it was cancelled or interrupted by Ctrl-C.
        retry_failed
            Try rows again that failed earlier.
        unverified, foreign
            Whether to recompute values whose history is gone, or that somebody else wrote.
        inputs
            ``"wait"`` leaves rows whose computed input is missing or stale; ``"as_is"`` does not.
        include_new
            Also compute rows that are appended while the job runs.
        only
            Of these rows, at most these: (fragment, start, stop), physical rows, half-open.
        params
            Overrides of the UDF's declared parameters, for this call.
        timeout
            Seconds, or a timedelta, after which the job stops, as `Job.cancel` would.
        resource_timeout
            Seconds, or a timedelta, to wait while no applier has a place: for a node that an
            autoscaler brings, or for resources that others hold.
        order, fragments
            ``"backward"`` begins with the newest fragments; ids limit the call to these.
        windows
            A range of a column's values, computed window by window: `geneva.Windows`, or a mapping
            of its arguments.
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
            It ended before it was complete; finished work is kept.
        """
        given = {
            "where": where,
            "concurrency": concurrency,
            "intra_applier_concurrency": intra_applier_concurrency,
            "num_frags": num_frags,
            "commit_granularity": commit_granularity,
            "batch_size": batch_size,
            "checkpoint_size": checkpoint_size,
            "on_error": on_error,
            "max_failures": max_failures,
            "force": force,
            "retry_failed": retry_failed,
            "unverified": unverified,
            "foreign": foreign,
            "inputs": inputs,
            "include_new": include_new,
            "only": only,
            "params": params,
            "timeout": timeout,
            "resource_timeout": resource_timeout,
            "order": order,
            "fragments": fragments,
            "windows": windows,
            "executor": executor,
        }
        with interrupt_cancels():
            call = self._prepare(columns, with_defaults(given))
            with observer_for(progress, call.names) as observe:
                return call.run(observe)

    @_taking_arguments_of(backfill)
    def backfill_async(self, columns: str | Sequence[str], arguments: dict[str, Any]) -> Job:
        """Begin a backfill in a thread of this process; the arguments are those of `backfill`."""
        display = arguments["progress"]
        call = self._prepare(columns, arguments)

        def work() -> BackfillResult:
            with observer_for(
                display if callable(display) else bool(display), call.names
            ) as observe:
                return call.run(observe)

        return Job(call.control, work)

    def prepare_backfill(
        self, columns: str | Sequence[str], arguments: Mapping[str, Any], job_id: str
    ) -> Backfill:
        """Check a call of `backfill` for a job that exists, and return it, not yet begun."""
        return self._call(columns, with_defaults(arguments), job_id)

    @_taking_arguments_of(backfill)
    def plan_backfill(self, columns: str | Sequence[str], arguments: dict[str, Any]) -> Plan:
        """Plan a `backfill` with the same arguments, per fragment; nothing runs.

        Several columns are planned one by one; the plan of the first that has work is returned.
        """
        options = checked_options(arguments)
        with storage_errors(self.storage.uri):
            return plan_call(self.storage, columns, options, _params(arguments))

    @_taking_arguments_of(backfill)
    def check_backfill(
        self, columns: str | Sequence[str], arguments: dict[str, Any]
    ) -> tuple[str, ...]:
        """Check a call of `backfill`, and return all columns that it fills; no UDF is loaded.

        Raises
        ------
        RequestError
            Whatever is wrong with it.
        """
        options = checked_options(arguments)
        _check_executor_name(arguments["executor"])
        with storage_errors(self.storage.uri):
            return check_call(self.storage, columns, options, _params(arguments))

    def coverage(self, column: str) -> Coverage:
        """Count per fragment the rows that are computed, stale and missing; no UDF is loaded."""
        with storage_errors(self.storage.uri):
            bound = computed_in(self.storage, self.storage.open(), column)
            return coverage(self.storage, column, bound)

    def coverage_over(
        self, column: str, on: str, step: str = "1d", tz: str | None = None
    ) -> CoverageOver:
        """Count the rows of a computed column by state along a date or timestamp column.

        Parameters
        ----------
        on
            A date, timestamp or integer column; a dot leads into a struct.
        step
            The length of a period: ``"1d"``, ``"1w"``, ``"1mo"``, ``"1y"``, ``"6h"``.
        tz
            Where days begin.

        Returns
        -------
        CoverageOver
            A table with a row per period; its sums are those of `coverage`.
        """
        with storage_errors(self.storage.uri):
            bound = computed_in(self.storage, self.storage.open(), column)
            return coverage_over(self.storage, column, bound, on, step, tz)

    def _prepare(
        self, columns: str | Sequence[str], arguments: dict[str, Any]
    ) -> Backfill | RecordedBackfill | SubmittedBackfill:
        def call() -> Backfill:
            return self._call(columns, arguments, uuid4().hex[:12])

        if self._jobs is None:
            return call()
        return self._jobs.host(self.storage.uri, columns, chosen(arguments), self._ray, call)

    def _call(
        self, columns: str | Sequence[str], arguments: dict[str, Any], job_id: str
    ) -> Backfill:
        options, storage = checked_options(arguments), self.storage
        params = _params(arguments)

        def call(latest: Snapshot) -> Backfill:
            names = tuple(groups_in(storage, latest, columns))
            runner = _executor(arguments["executor"], options, self._ray)
            control = Control(job_id, names, options.timeout)
            return Backfill(storage, latest, names, options, params, runner, control, self.refresh)

        with storage_errors(storage.uri):
            return storage.on_latest(call)


def _params(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the overrides of a UDF's parameters."""
    check_value("params", arguments["params"])
    return dict(arguments["params"] or {})


def _executor(
    executor: str | Executor | None, options: Options, ray: Mapping[str, Any]
) -> Executor:
    """Return the executor of a call; ``ray`` is for ``ray.init``."""
    if executor is not None and not isinstance(executor, str):
        return executor
    _check_executor_name(executor)
    if executor == "local":
        return LocalExecutor()
    with uninterrupted():  # of the import, which takes seconds
        from geneva.appliers.ray.actors import RayExecutor

    return RayExecutor(ray, options.resource_timeout)


def _check_executor_name(executor: Any) -> None:
    """Refuse an executor that a job which runs elsewhere cannot have."""
    if executor is not None:
        check_value("executor", executor)


def _checked_auto(given: bool | str | Mapping[str, Any] | None) -> Auto | None:
    """Read the ``auto_backfill`` of a column, and check the arguments of its jobs."""
    if given is None:
        return None
    auto = read_auto(given)
    refuse_elsewhere(auto.arguments)
    arguments = with_defaults(auto.arguments)
    _check_executor_name(arguments["executor"])
    checked_options(arguments)
    return auto


def _as_declared(field: pa.Field) -> pa.Field:
    metadata = dict(field.metadata or {})
    declared = metadata.pop(DECLARED_BLOB.encode(), None)
    if declared is None:
        return field
    return field.with_metadata({**metadata, BLOB.encode(): declared})
