"""A request: the backfill of one column group, checked against the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from geneva.column.binding import (
    Binding,
    as_called,
    bindings_of,
    target_of,
    top_level,
    unknown_column,
)
from geneva.column.pickles import load
from geneva.errors import ColumnError, SettingError, WhereError
from geneva.model.types import JobSettings, Options, Target
from geneva.storage.lance import Snapshot, TableStorage
from geneva.udf import UDF
from geneva.where.parse import Where, parse_where


@dataclass(frozen=True, slots=True)
class Request:
    """One column group to fill."""

    target: Target
    binding: Binding
    udf: UDF
    where: Where | None
    options: Options

    def settings(self, job_id: str, read_rows: int, readahead: int | None) -> JobSettings:
        """Return the settings for a job's appliers."""
        options = self.options
        return JobSettings(
            job_id=job_id,
            target=self.target,
            where=self.where.sql if self.where else None,
            on_error=options.on_error,
            batch_size=options.batch_size or self.udf.batch_size,
            checkpoint_size=options.checkpoint_size,
            threads=options.intra_applier_concurrency,
            read_rows=read_rows,
            readahead=readahead,
            retry_failed=options.retry_failed,
        )


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
    target, where = checked(storage, snapshot, column, options, params)
    binding = _binding(snapshot, column)
    udf = load(storage, binding)
    return Request(target, binding, udf.with_params(params) if params else udf, where, options)


def check(
    storage: TableStorage, column: str, options: Options, params: Mapping[str, object]
) -> Target:
    """Check a request without loading its UDF, and return its target.

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
        return checked(storage, latest, column, options, None)[0]

    return storage.on_latest(work)


def checked(
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
    target = target_of(snapshot, binding, digest)
    _check_windows(snapshot, target, options)
    return target, where


def _check_windows(snapshot: Snapshot, target: Target, options: Options) -> None:
    """Refuse windows along a column that the call fills, or that does not exist."""
    if options.windows is None:
        return
    on = options.windows.on
    if top_level(snapshot.schema, on) in target.columns:
        raise SettingError(f"windows are cut along {on!r}, which this call fills; name another")


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
