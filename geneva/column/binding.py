"""The binding of columns to a UDF, stored in the fields' metadata with the table."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

import pyarrow as pa

from geneva.errors import ColumnError, SettingError, TableChangedError, UdfError, did_you_mean
from geneva.model.types import Target
from geneva.storage.lance import Snapshot, TableStorage

BINDING = b"geneva.binding"
POSITION = b"geneva.position"
PICKLES = "udfs"  # folder of pickled UDFs, by sha256
_FORMAT, _OLDEST = 3, 2  # 1: without `nested`, 2: without `ids`


# By path: the highest id within its column, and name, place and id of each field.
Nested = Mapping[str, tuple[int, Sequence[Sequence[Any]]]]


@dataclass(frozen=True, slots=True)
class Binding:
    """The binding of a group of columns to a UDF; readable without loading the UDF.

    Attributes
    ----------
    incarnation
        Identity of the group. Field ids are reused after drop and re-add, this is not.
    digest
        Of the UDF, computed once, when it was bound.
    pickle
        sha256 of the pickled UDF below ``_backfill/udfs/``.
    reference
        ``module:qualname`` where the UDF can be imported, else empty.
    params
        The UDF's parameters as JSON, with which ``reference`` is the same UDF; empty if they are
        no JSON values.
    grouped
        Whether each column is a field of the struct that the UDF returns.
    reserves
        Resources of one applier, as Ray names them.
    nested
        What `nested_of` said of each input when a UDF was first bound that reads it.
    ids
        Of the fields that each input leads through, when the UDF was bound.
    own_ids
        Of the columns of the group then, by position. As long as one of them is there, no field
        with an older id can be another one than it was: new ids are higher than all.
    names
        What the UDF calls its inputs, where the table calls some otherwise by now (`as_called`);
        never stored.
    """

    incarnation: str
    udf: str
    digest: str
    inputs: tuple[str, ...]
    pickle: str
    reference: str
    python: str
    params: str = ""
    grouped: bool = False
    reads_own_output: bool = False
    reserves: Mapping[str, float] = field(default_factory=dict)
    nested: Nested = field(default_factory=dict)
    ids: Mapping[str, Sequence[int]] = field(default_factory=dict)
    own_ids: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    format: int = _FORMAT

    def check_params(self, given: Mapping[str, Any]) -> None:
        """Refuse parameters that the UDF does not have, as far as the binding tells.

        Raises
        ------
        UdfError
            There is one.
        """
        if not self.params:
            return  # values that are no JSON: only the UDF itself knows their names
        known = json.loads(self.params)
        unknown = [name for name in given if name not in known]
        if unknown:
            raise UdfError(
                f"UDF {self.udf!r} has no params {', '.join(map(repr, unknown))}; "
                f"it has {', '.join(map(repr, known)) or 'none'}"
            )

    def metadata(self, position: int) -> dict[str, str]:
        """Return the field metadata of the column that is the struct's n-th field."""
        return {
            BINDING.decode(): json.dumps(asdict(self), separators=(",", ":")),
            POSITION.decode(): str(position),
        }


def new_incarnation() -> str:
    """Return a fresh identity for a column group."""
    return uuid4().hex[:8]


def python_version() -> str:
    """Return the part of Python's version that pickled code depends on."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def binding_of(field: pa.Field) -> Binding | None:
    """Return a field's binding, or ``None`` if it is an ordinary column."""
    raw = (field.metadata or {}).get(BINDING)
    return None if raw is None else _parsed(raw, field.name)


@lru_cache(maxsize=1024)  # a plan asks for each fragment
def _parsed(raw: bytes, column: str) -> Binding:
    values = json.loads(raw)
    if values.get("format", 0) > _FORMAT:
        raise ColumnError(
            f"column {column!r} was bound by a newer version of geneva; upgrade to use it"
        )
    if values.get("format", 0) < _OLDEST:
        raise ColumnError(
            f"column {column!r} was bound by a development version of geneva, from before its "
            "first release; drop the column and add it again"
        )
    for name in ("inputs", "own_ids", "names"):
        values[name] = tuple(values.get(name, ()))
    return Binding(**values)


def computed(schema: pa.Schema, column: str) -> Binding:
    """Return a column's binding.

    Raises
    ------
    ColumnError
        There is no such column, or no UDF is bound to it.
    """
    if column not in schema.names:
        raise ColumnError(unknown_column(column, schema.names))
    binding = binding_of(schema.field(column))
    if binding is None:
        others = ", ".join(bindings_of(schema)) or "none"
        raise ColumnError(
            f"column {column!r} is not computed: no UDF is bound to it. Bind one with "
            f"add_columns({{{column!r}: udf}}). Computed columns: {others}"
        )
    return binding


def bindings_of(schema: pa.Schema) -> dict[str, Binding]:
    """Return the computed columns of a table."""
    found = {f.name: binding_of(f) for f in schema}
    return {name: b for name, b in found.items() if b is not None}


def group_of(schema: pa.Schema, binding: Binding) -> list[tuple[str, int]]:
    """Return the columns of a group that still exist, with their positions in the struct."""
    found = []
    for f in schema:
        other = binding_of(f)
        if other is not None and other.incarnation == binding.incarnation:
            found.append((f.name, int((f.metadata or {}).get(POSITION, b"0"))))
    return sorted(found, key=lambda c: c[1])


def as_called(snapshot: Snapshot) -> pa.Schema:
    """Return a version's schema in which bindings call their inputs as the table does by now."""
    if snapshot not in _AS_CALLED:
        schema = snapshot.schema
        for k, field in enumerate(schema):
            binding = binding_of(field)
            if binding is not None and (present := _present(snapshot, field, binding)) != binding:
                position = int((field.metadata or {}).get(POSITION, b"0"))
                bound = {k.encode(): v for k, v in present.metadata(position).items()}
                metadata = {**(field.metadata or {}), **bound}
                schema = schema.set(k, field.with_metadata(metadata))
        _AS_CALLED[snapshot] = schema
    return _AS_CALLED[snapshot]


_AS_CALLED: WeakKeyDictionary[Snapshot, pa.Schema] = WeakKeyDictionary()


def _present(snapshot: Snapshot, field: pa.Field, binding: Binding) -> Binding:
    """Return a binding with its inputs as they are called now.

    A name that the table has means the column of that name, whatever it was before; one that it
    has no more, the column that had it.
    """
    there = inputs_there(snapshot.schema, binding)
    present = [
        path if path in there else _renamed(snapshot, field, binding, path) or path
        for path in binding.inputs
    ]
    if tuple(present) == binding.inputs:
        return binding
    return replace(binding, inputs=tuple(present), names=binding.names or binding.inputs)


def _renamed(snapshot: Snapshot, field: pa.Field, binding: Binding, path: str) -> str | None:
    """Return the present name of an input, if its ids prove that it is the same."""
    position = int((field.metadata or {}).get(POSITION, b"0"))
    ids, own = binding.ids.get(path, ()), snapshot.fields[field.name].id
    if not ids or binding.own_ids[position : position + 1] != (own,) or max(ids) >= own:
        return None
    return snapshot.path_of(ids)


def target_of(snapshot: Snapshot, binding: Binding, digest: str) -> Target:
    """Return the target of a job, given the digest of the UDF with the job's parameters."""
    schema = as_called(snapshot)
    found = (b for b in bindings_of(schema).values() if b.incarnation == binding.incarnation)
    binding = next(found, binding)
    group = group_of(schema, binding)
    columns = tuple(name for name, _ in group)
    return Target(
        columns=columns,
        data_types=tuple(schema.field(c).type for c in columns),
        incarnation=binding.incarnation,
        digest=digest_in(snapshot, binding, digest),
        bound_digest=binding.digest,
        inputs=binding.inputs,
        names=binding.names,
        fields=tuple(position for _, position in group) if binding.grouped else (),
    )


def with_ids(
    snapshot: Snapshot, binding: Binding, columns: Mapping[int, tuple[str, pa.DataType]]
) -> Binding:
    """Return a binding that knows its inputs and its columns, given by position, by their ids."""
    fresh = [t for name, t in columns.values() if name not in snapshot.fields]
    new = iter(snapshot.next_ids(fresh))
    own = {
        k: snapshot.fields[name].id if name in snapshot.fields else next(new)
        for k, (name, _) in columns.items()
    }
    found = {path: snapshot.ids(path) for path in binding.inputs}
    ids = {path: i for path, i in found.items() if i}
    return replace(binding, ids=ids, own_ids=tuple(own.get(k, -1) for k in range(max(own) + 1)))


def nested_of(snapshot: Snapshot, inputs: Sequence[str]) -> Nested:
    """Return the fields within columns that some inputs are or hold, of those that are there."""
    found = {path: snapshot.nested(path) for path in inputs}
    return {path: fields for path, fields in found.items() if fields and fields[1]}


def digest_in(snapshot: Snapshot, binding: Binding, digest: str) -> str:
    """Return the digest that values of a UDF have while the fields within its inputs are as now.

    They are dropped and renamed without a trace in any fragment. It is the UDF's own as long as
    they are what they were when the column was bound; else that and a dot stand before the rest.
    """
    bound = zip(binding.names or binding.inputs, binding.inputs, strict=True)
    paths = {name: path for name, path in bound if name in binding.nested}
    known = {name: binding.nested[name] for name in paths}
    now = {name: snapshot.nested(path) for name, path in paths.items()}
    seen = {
        name: _seen(known[name], _under(found[1], paths[name], name))
        for name, found in now.items()
        if found
    }
    if len(seen) < len(known) or all(seen[p] == {n: i for n, _, i in known[p][1]} for p in known):
        return digest
    text = repr(sorted((path, sorted(fields.items())) for path, fields in seen.items()))
    return f"{digest}.{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _under(fields: Sequence[Sequence[Any]], path: str, name: str) -> Iterator[tuple[str, int, int]]:
    """Yield fields under the former name of their way: the UDF sees only those below."""
    was, now = name.split(".")[1:], path.split(".")[1:]
    for way, place, i in fields:
        parts = way.split(".")[1:]
        kept = [*was[: len(parts)], *parts[len(now) :]] if len(was) == len(now) else parts
        yield "".join(f".{p}" for p in kept), place, i


def _seen(
    known: tuple[int, Sequence[Sequence[Any]]], now: Iterable[Sequence[Any]]
) -> dict[str, int]:
    """Return ids of fields by name, or their stand-ins.

    Lance gives out new ids when it replaces a column in place. A field whose id is newer than the
    binding is therefore the one that had its name, if it has its place too, or known by its place.
    """
    newest, fields = known
    places = {name: (place, i) for name, place, i in fields}
    found = {}
    for name, place, i in now:
        before = places.get(name, (-1, 0))
        found[name] = i if i <= newest else before[1] if before[0] == place else -1 - place
    return found


def top_level(schema: pa.Schema, path: str) -> str:
    """Return the column that a nested path such as ``meta.lang`` begins with.

    Raises
    ------
    ColumnError
        There is no such column or nested field.
    """
    if path in schema.names:
        return path
    head, *rest = path.split(".")
    if head in schema.names:
        data_type = schema.field(head).type
        for part in rest:
            if not pa.types.is_struct(data_type) or data_type.get_field_index(part) < 0:
                raise ColumnError(f"column {head!r} has no field {path!r}; it is {data_type}")
            data_type = data_type.field(part).type
        return head
    raise ColumnError(unknown_column(path, schema.names))


def inputs_there(schema: pa.Schema, binding: Binding) -> tuple[str, ...]:
    """Return those inputs of a binding that the table still has under their names."""
    found = []
    for path in binding.inputs:
        with suppress(ColumnError):
            top_level(schema, path)
            found.append(path)
    return tuple(found)


def read_by_inputs(schema: pa.Schema, columns: Sequence[str]) -> list[str]:
    """Return the columns that the computed ones of some were computed from, and theirs."""
    bindings, found = bindings_of(schema), set[str]()
    todo = [c for c in columns if c in bindings]
    while todo:
        binding = bindings[todo.pop()]
        read = {top_level(schema, path) for path in inputs_there(schema, binding)} - found
        found |= read
        todo += [name for name in sorted(read) if name in bindings]
    return sorted(found)


def unknown_column(name: str, names: Sequence[str]) -> str:
    """Return the message for a column that does not exist."""
    return (
        f"there is no column {name!r}.{did_you_mean(name, names)} The table has: {', '.join(names)}"
    )


def dependency_order(bindings: Mapping[str, Binding], columns: Sequence[str]) -> list[str]:
    """Return columns so that each comes after the computed columns that it reads.

    Raises
    ------
    ColumnError
        They read each other in a circle.
    """
    order: list[str] = []
    path: list[str] = []

    def visit(column: str) -> None:
        if column in order or column not in bindings:
            return
        if column in path:
            circle = " -> ".join([*path[path.index(column) :], column])
            raise ColumnError(f"computed columns read each other in a circle: {circle}")
        path.append(column)
        own = {c for c, b in bindings.items() if b.incarnation == bindings[column].incarnation}
        for name in bindings[column].inputs:
            head = name if name in bindings else name.split(".")[0]
            if head not in own:
                visit(head)
        path.pop()
        order.append(column)

    for column in columns:
        visit(column)
    return [c for c in order if c in columns]


def one_of_each_group(schema: pa.Schema, columns: str | Sequence[str]) -> list[str]:
    """Check that columns are computed; return one of each group, in dependency order.

    Raises
    ------
    SettingError
        It is no column's name, and no list of names.
    ColumnError
        See `computed`.
    """
    names = [columns] if isinstance(columns, str) else columns
    if not isinstance(names, Sequence) or not all(isinstance(n, str) for n in names):
        raise SettingError(f"a column's name or a list of names is needed, not {columns!r}")
    if not names:
        raise SettingError("no column given")
    bindings = {n: computed(schema, n) for n in names}
    groups: dict[str, str] = {}
    for name in dependency_order(bindings_of(schema), names):
        groups.setdefault(bindings[name].incarnation, name)
    return list(groups.values())


# --- columns that are bound to no UDF any more -------------------------------------------------
#
# LanceDB keeps a binding over a rename, but not when it changes a column's type: that makes another
# field, without the metadata of the first. The values stay, and nobody would know whose they are.

_LOOKED_AT = 100  # versions


def computed_in(storage: TableStorage, snapshot: Snapshot, column: str) -> Binding:
    """Return a column's binding in a version, its inputs as they are called there.

    Raises
    ------
    ColumnError
        There is no such column, or it is not computed; the message says if it was, and what to do.
    """
    _check_bound(storage, snapshot, [column])
    return computed(as_called(snapshot), column)


def groups_in(storage: TableStorage, snapshot: Snapshot, columns: str | Sequence[str]) -> list[str]:
    """Check that columns are computed; return one of each group, in dependency order.

    Raises
    ------
    SettingError, ColumnError
        As `one_of_each_group`; and as `computed_in`.
    """
    _check_bound(storage, snapshot, [columns] if isinstance(columns, str) else columns)
    return one_of_each_group(as_called(snapshot), columns)


def _check_bound(storage: TableStorage, snapshot: Snapshot, columns: Sequence[object]) -> None:
    bound = bindings_of(snapshot.schema)
    for column in columns if isinstance(columns, Sequence) else ():
        if not isinstance(column, str) or column in bound or column not in snapshot.schema.names:
            continue
        if (lost := _lost(storage, snapshot, column)) is not None:
            raise ColumnError(lost)


def _lost(storage: TableStorage, snapshot: Snapshot, column: str) -> str | None:
    """Return a note on a column that was computed in one of the last versions."""
    now = snapshot.schema.field(column).type
    for version in range(snapshot.version - 1, max(snapshot.version - _LOOKED_AT, 0), -1):
        try:
            past = storage.open(version)
        except TableChangedError:
            return None
        if column not in past.schema.names:
            return None  # it is a new one
        field = past.schema.field(column)
        binding = binding_of(field)
        if binding is None:
            continue
        how = (
            f"its type was changed from {field.type} to {now}, and LanceDB keeps no binding then"
            if field.type != now
            else "it was replaced, or its metadata were"
        )
        return (
            f"column {column!r} is not computed any more: UDF {binding.udf!r} was bound to it "
            f"until version {version}, when {how}. Bind it again with a UDF that returns {now}: "
            f"alter_columns({{'path': {column!r}, 'udf': udf}}); the values that are there count "
            'as somebody else\'s then, and backfill(..., foreign="recompute") computes them anew'
        )
    return None
