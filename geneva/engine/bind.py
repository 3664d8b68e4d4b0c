"""Bind UDFs to columns: check types, inputs and circles, store the pickle, write the metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from geneva.appliers.executor import reservation
from geneva.column.auto import Auto, declared
from geneva.column.binding import (
    Binding,
    binding_of,
    bindings_of,
    computed,
    dependency_order,
    group_of,
    nested_of,
    new_incarnation,
    python_version,
    top_level,
    unknown_column,
    with_ids,
)
from geneva.column.history.elsewhere import check_not_filled
from geneva.column.pickles import store
from geneva.engine.plan.slices import Path
from geneva.errors import ColumnError, ConflictError, UdfError
from geneva.model.arguments import windows_of
from geneva.model.types import BLOB, DECLARED_BLOB, is_blob_v2
from geneva.model.windows import Known, resolve
from geneva.storage.lance import Snapshot, TableStorage, blob_type
from geneva.storage.snapshot import is_blob
from geneva.storage.values import CommitConflict
from geneva.udf import (
    UDF,
    UdfKind,
    as_udf,
    for_rows,
    holds_bytes,
    holds_lists,
    unstorable,
    with_columns,
)
from geneva.where.parse import parse_where

_BIND_TRIES = 20
_RESERVED = {
    *("_rowid", "_rowaddr", "_rowoffset"),
    *("_row_created_at_version", "_row_last_updated_at_version"),
}


def bind(
    storage: TableStorage,
    transforms: Mapping[str | tuple[str, ...], Any],
    auto: Auto | None = None,
) -> None:
    """Bind UDFs to columns; missing columns are added, empty.

    All are checked before the first is bound. They may read each other, in whatever order.

    Parameters
    ----------
    transforms
        UDFs, or functions that can be made UDFs, by column or by the columns that a struct fills.
    auto
        How a service is to keep them filled; ``None`` leaves what was declared.
    """
    given = {(k,) if isinstance(k, str) else tuple(k): as_udf(v) for k, v in transforms.items()}
    snapshot = storage.open()
    storage.check_no_wal(snapshot)
    fills = [name for names in given for name in names]
    udfs = {names: _settled(udf, snapshot.schema, fills) for names, udf in given.items()}
    for names in _checked_order(snapshot, udfs, auto):
        _bind(storage, names, udfs[names], auto)


def _settled(udf: UDF, schema: pa.Schema, fills: Sequence[str]) -> UDF:
    """Return a UDF that says which columns it reads, where its declaration leaves that open.

    A record-batch UDF that names none reads all that no UDF computes. A parameter with a default
    is a column if there is one of that name, and else a setting.
    """
    if udf.kind is UdfKind.RECORD_BATCH and not udf.input_columns:
        computed_ones = {*bindings_of(schema), *fills}
        return with_columns(udf, [n for n in schema.names if n not in computed_ones])
    known = {*schema.names, *fills}
    udf = udf.without([name for name in udf.defaults if name not in known])
    for column in sorted(udf.files):
        kind = _type_of(schema, column)
        if kind != pa.null() and not holds_bytes(kind):
            raise UdfError(
                f"UDF {udf.name!r} takes {column!r} as a file, but the column is {kind}; files are "
                "made of bytes and blobs"
            )
    lists = [c for c in udf.input_columns if holds_lists(_type_of(schema, c))]
    before = next((b for n, b in bindings_of(schema).items() if n in fills), None)
    if udf.kind is UdfKind.BATCH and before is not None and before.digest == udf.digest:
        lists = []  # bound as a batch UDF once, it stays one
    return for_rows(udf, lists)


def _type_of(schema: pa.Schema, path: str) -> pa.DataType:
    """Return the type of a column or of a field within it; null where there is none."""
    if path in schema.names:
        return schema.field(path).type
    head, *rest = path.split(".")
    kind = schema.field(head).type if head in schema.names else pa.null()
    for part in rest:
        known = pa.types.is_struct(kind) and kind.get_field_index(part) >= 0
        kind = kind.field(part).type if known else pa.null()
    return kind


def _checked_order(
    snapshot: Snapshot, udfs: Mapping[tuple[str, ...], UDF], auto: Auto | None
) -> list[tuple[str, ...]]:
    schema, drafts = snapshot.schema, {}
    for names, udf in udfs.items():
        udf.dumps()
        _check_nullable(schema, names)
        check_not_filled(schema, [n for n in names if n not in bindings_of(schema)])
        types = _output_types(names, udf)
        _check_storable(snapshot, udf, types)
        _check_metadata(udf, types)
        drafts[names] = _draft(udf, new_incarnation(), grouped=len(names) > 1)
        for k, (name, data_type) in enumerate(zip(names, types, strict=True)):
            if name in schema.names:
                _check_type(schema, name, data_type, udf)
                schema = schema.remove(schema.get_field_index(name))
            note = drafts[names].metadata(k)
            schema = schema.append(_new_field(name, data_type, snapshot, udf, note))
    for names, draft in drafts.items():
        _check_binding(schema, names, draft)
    _check_auto(snapshot, schema, auto)
    order = dependency_order(bindings_of(schema), [names[0] for names in udfs])
    return sorted(udfs, key=lambda names: order.index(names[0]))


def _check_auto(snapshot: Snapshot, schema: pa.Schema, auto: Auto | None) -> None:
    """Refuse a filter or windows that the columns do not bear, before each night finds out."""
    arguments = {} if auto is None else auto.arguments
    if arguments.get("where") is not None:
        parse_where(arguments["where"], schema)
    if arguments.get("windows") is not None:
        asked = windows_of(arguments["windows"])
        resolve(asked, Path.of(snapshot, asked.on).axis, Known(datetime.now(UTC), 0, 0))


def _check_type(schema: pa.Schema, name: str, data_type: pa.DataType, udf: UDF) -> None:
    if not _fits(schema.field(name).type, data_type):
        raise ColumnError(
            f"column {name!r} is {schema.field(name).type}, but UDF {udf.name!r} "
            f"returns {data_type}; give the UDF data_type={schema.field(name).type}"
        )


def _fits(column: pa.DataType, returned: pa.DataType | None) -> bool:
    """Whether a column is of the type that a UDF returns; bytes fill a column of blobs."""
    return column == returned or (is_blob_v2(column) and returned == pa.large_binary())


def _new_field(
    name: str, data_type: pa.DataType, snapshot: Snapshot, udf: UDF, metadata: Mapping[str, str]
) -> pa.Field:
    """Return the field of a new column, of the kind of blobs that its table's files hold."""
    own = dict(udf.field_metadata or {})
    if _wants_blobs(udf, data_type) and not unstorable(blob_type(), snapshot.storage_version):
        # The mark is that of older versions; beside blobs of version 2 Lance does not compact it.
        own[DECLARED_BLOB] = own.pop(BLOB)
        data_type = blob_type()
    return pa.field(name, data_type, metadata=own | dict(metadata))


def _wants_blobs(udf: UDF, data_type: pa.DataType) -> bool:
    marked = (udf.field_metadata or {}).get(BLOB) == "true"
    return marked and data_type == pa.large_binary()


def _noted(schema: pa.Schema, name: str, udf: UDF) -> dict[str, str]:
    """Return the metadata that a UDF adds to an existing column, without Lance's encoding."""
    own = dict(udf.field_metadata or {})
    if own.pop(BLOB, "") == "true" and not is_blob(schema.field(name)):
        raise ColumnError(
            f"column {name!r} exists and is no column of blobs; drop it and add it again"
        )
    return own


def _check_metadata(udf: UDF, types: Sequence[pa.DataType]) -> None:
    if BLOB in (udf.field_metadata or {}) and pa.large_binary() not in types:
        raise UdfError(
            f"UDF {udf.name!r} says {BLOB!r} of {udf.data_type}; blobs are pa.large_binary()"
        )


def _check_nullable(schema: pa.Schema, names: Sequence[str]) -> None:
    """Refuse columns that cannot hold nulls: rows may be missing, failed or deleted."""
    for name in names:
        if name in schema.names and not schema.field(name).nullable:
            raise ColumnError(
                f"column {name!r} is declared as never null, and rows that are missing, failed or "
                f"deleted are; allow it: alter_columns({{'path': {name!r}, 'nullable': True}})"
            )


def _bound_already(schema: pa.Schema, names: tuple[str, ...]) -> bool:
    """Whether the columns are one computed group; refuse a part of one, or a mixture."""
    bindings = bindings_of(schema)
    groups = [[n for n, _ in group_of(schema, bindings[n])] for n in names if n in bindings]
    if not groups:
        return False
    if any(group != list(names) for group in groups) or len(groups) < len(names):
        group = ", ".join(groups[0])
        raise ColumnError(
            f"{group} is computed as one; bind {group} together, or drop what is to be replaced"
        )
    return True


def _bind(
    storage: TableStorage, names: tuple[str, ...], udf: UDF, auto: Auto | None = None
) -> None:
    types = _output_types(names, udf)
    if _bound_already(storage.open().schema, names):
        rebind(storage, names[0], udf, auto)  # its values stay computed ones, fresh or stale
        return
    binding = _new_binding(storage, udf, new_incarnation(), grouped=len(names) > 1)
    snapshot = storage.open()
    binding = replace(binding, nested=nested_of(snapshot, binding.inputs))
    columns = dict(enumerate(zip(names, types, strict=True)))
    binding = with_ids(snapshot, binding, columns)
    metadata = [binding.metadata(k) | declared(auto) for k in range(len(names))]

    def publish() -> None:
        snapshot = storage.open()
        schema = snapshot.schema
        _check_binding(schema, names, binding)
        for name, data_type in zip(names, types, strict=True):
            if name in schema.names:
                _check_type(schema, name, data_type, udf)
        columns = list(zip(names, types, metadata, strict=True))
        old = {n: _noted(schema, n, udf) | m for n, _, m in columns if n in schema.names}
        fresh = [_new_field(n, t, snapshot, udf, m) for n, t, m in columns if n not in old]
        if fresh:
            storage.sync_version(storage.add_columns(fresh))
        if old:
            storage.sync_version(storage.set_field_metadata(old))

    _against_others(publish)


def _against_others(publish: Callable[[], None]) -> None:
    """Try again while other writers are first.

    Raises
    ------
    ConflictError
        They were every time.
    """
    for attempt in range(_BIND_TRIES):
        try:
            publish()
            return
        except CommitConflict as error:
            if attempt == _BIND_TRIES - 1:
                raise ConflictError(
                    f"other writers won every try to bind the column: {error}"
                ) from error


def rebind(storage: TableStorage, column: str, udf: UDF, auto: Auto | None = None) -> None:
    """Bind another UDF to a column, or to the group that it belongs to."""
    _against_others(lambda: _rebind(storage, column, udf, auto))


def declare(storage: TableStorage, column: str, auto: Auto) -> None:
    """Say how a service is to keep a column filled, or the group that it belongs to."""

    def publish() -> None:
        snapshot = storage.open()
        schema = snapshot.schema
        names = [n for n, _ in group_of(schema, computed(schema, column))]
        _check_auto(snapshot, schema, auto)
        storage.sync_version(storage.set_field_metadata({n: auto.metadata() for n in names}))

    _against_others(publish)


def _rebind(storage: TableStorage, column: str, udf: UDF, auto: Auto | None) -> None:
    snapshot = storage.open()
    schema = snapshot.schema
    udf = _settled(udf, schema, [column])
    old = binding_of(schema.field(column)) if column in schema.names else None
    if column not in schema.names:
        raise ColumnError(unknown_column(column, schema.names))
    group = group_of(schema, old) if old else [(column, 0)]
    names = tuple(n for n, _ in group)
    fields = _struct_types(udf) if old and old.grouped else _output_types((column,), udf)
    _check_storable(snapshot, udf, [snapshot.schema.field(name).type for name in names])
    for name, position in group:
        data_type = fields[position] if position < len(fields) else None
        if not _fits(schema.field(name).type, data_type):
            raise ColumnError(
                f"column {name!r} is {schema.field(name).type}, but UDF {udf.name!r} returns "
                f"{data_type}; drop the column and add it again to change its type"
            )
    incarnation = old.incarnation if old else new_incarnation()
    binding = _new_binding(storage, udf, incarnation, grouped=bool(old and old.grouped))
    # The first ones are kept, or values from before they changed would count as of now.
    nested = {**nested_of(snapshot, binding.inputs), **(old.nested if old else {})}
    columns = {k: (n, schema.field(n).type) for n, k in group}
    binding = with_ids(snapshot, replace(binding, nested=nested), columns)
    _check_binding(schema, names, binding)
    _check_auto(snapshot, schema, auto)
    metadata = {n: binding.metadata(p) | declared(auto) for n, p in group}
    storage.sync_version(storage.set_field_metadata(metadata))


def _new_binding(storage: TableStorage, udf: UDF, incarnation: str, *, grouped: bool) -> Binding:
    return replace(_draft(udf, incarnation, grouped=grouped), pickle=store(storage, udf))


def _draft(udf: UDF, incarnation: str, *, grouped: bool) -> Binding:
    return Binding(
        incarnation=incarnation,
        udf=udf.name,
        digest=udf.digest,
        inputs=udf.input_columns,
        pickle="",
        reference=udf.reference or "",
        python=python_version(),
        params=_json(udf.params),
        grouped=grouped,
        reads_own_output=udf.reads_own_output,
        reserves=reservation(udf),
    )


def is_udf(value: Any) -> bool:
    """Whether a value given to ``add_columns`` is a UDF or can be made one."""
    if isinstance(value, tuple) and len(value) == 2:  # with the columns that it reads
        value = value[0]
    return not isinstance(value, str) and callable(value)


def check_transforms(plain: Mapping[Any, Any]) -> None:
    """Refuse a value that is neither a UDF nor SQL text, before lancedb fails on it.

    Raises
    ------
    UdfError
        There is one.
    """
    for name, value in plain.items():
        if isinstance(value, str):
            continue
        embeds = hasattr(value, "compute_source_embeddings")
        hint = (
            "; call its compute_source_embeddings in a UDF, a class that makes it in __init__"
            if embeds
            else ""
        )
        raise UdfError(
            f"column {name!r} is to be computed by a {type(value).__name__}, which is neither a "
            f"UDF nor SQL text{hint}"
        )


def _struct_types(udf: UDF) -> list[pa.DataType]:
    if not pa.types.is_struct(udf.data_type):
        raise UdfError(
            f"UDF {udf.name!r} fills several columns, so it must return a struct, "
            f"not {udf.data_type}"
        )
    return [udf.data_type.field(i).type for i in range(udf.data_type.num_fields)]


def _output_types(names: tuple[str, ...], udf: UDF) -> list[pa.DataType]:
    types = [udf.data_type] if len(names) == 1 else _struct_types(udf)
    if len(types) != len(names):
        raise UdfError(
            f"UDF {udf.name!r} returns {len(types)} fields ({udf.data_type}) for "
            f"{len(names)} columns ({', '.join(names)})"
        )
    return types


def _check_storable(snapshot: Snapshot, udf: UDF, types: Sequence[pa.DataType]) -> None:
    """Refuse types that this table's files cannot hold, before anything is computed."""
    for data_type in types:
        if why := unstorable(data_type, snapshot.storage_version):
            raise UdfError(f"UDF {udf.name!r} returns {data_type}, which cannot be stored: {why}")


def _check_name(name: str) -> None:
    """Refuse a new column's name that Lance takes and cannot read, or reads as something else."""
    if not name or name in _RESERVED or any(c in name for c in ".`\0"):
        raise ColumnError(
            f"{name!r} cannot be a computed column's name: Lance reserves it, or cannot read a "
            "name that is empty or holds a dot, a backtick or a zero byte"
        )


def _check_binding(schema: pa.Schema, names: tuple[str, ...], binding: Binding) -> None:
    _check_nullable(schema, names)
    check_not_filled(schema, [n for n in names if n not in bindings_of(schema)])
    for name in names:
        if name not in schema.names:
            _check_name(name)
    after = dict(bindings_of(schema))
    after |= dict.fromkeys(names, binding)
    for path in binding.inputs:
        known = {*schema.names, *names}
        head = path if path in known else path.split(".")[0]
        if head in names:
            if not binding.reads_own_output:
                raise UdfError(
                    f"UDF {binding.udf!r} reads {head!r}, the column that it writes; declare "
                    "reads_own_output=True if that is meant"
                )
            continue
        if "`" in path:
            raise ColumnError(f"{path!r} cannot be read: Lance has no way to quote a backtick")
        top_level(schema, path)
    dependency_order(after, list(after))


def _json(params: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(dict(params), sort_keys=True)
    except (TypeError, ValueError):
        return ""
    return text if json.loads(text) == dict(params) else ""
