"""One version of a table as the engine sees it: its fragments, their files, its fields.

`Snapshot` asks a dataset that `geneva.storage.lance` opened; lance itself is not imported here.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import pyarrow as pa

from geneva.model.types import BLOB, is_blob_v2

# Named tuples: made for each of 100,000 fragments, at a third of what a frozen dataclass costs.


class DataFileInfo(NamedTuple):
    """A data file of a fragment and the ids of the fields that it supplies."""

    path: str
    fields: frozenset[int]
    size_bytes: int = 0  # 0: not recorded
    elsewhere: bool = False  # it lies in another table, of which this one is a clone


class FragmentInfo(NamedTuple):
    """The manifest's facts of one fragment; ``rows`` counts deleted ones too.

    ``lost`` are files that it names, too, and that nobody can read: see `Snapshot.without`.
    """

    id: int
    rows: int
    deleted: int
    deletion: str
    files: tuple[DataFileInfo, ...]
    overlaid: bool
    lost: tuple[DataFileInfo, ...] = ()

    @property
    def live_rows(self) -> int:
        """Rows that are not deleted."""
        return self.rows - self.deleted


@dataclass(frozen=True, slots=True)
class Field:
    """A top-level field: its id, and those of all its descendants, itself first."""

    name: str
    id: int
    subtree: tuple[int, ...]
    arrow: pa.Field


class Snapshot:
    """One version of the table, immutable.

    Parameters
    ----------
    lost
        Says of a data file whether it counts as not there, if any does.
    """

    def __init__(self, dataset: Any, lost: Callable[[DataFileInfo], bool] | None = None) -> None:
        self.dataset = dataset
        self._lost = lost
        self.version: int = dataset.version
        self.schema: pa.Schema = dataset.schema
        self.stable_row_ids: bool = bool(getattr(dataset, "has_stable_row_ids", False))
        self._fields: dict[str, Field] | None = None

    @property
    def manifest(self) -> bytes:
        """The manifest from which `TableStorage.open_planned` opens this version elsewhere."""
        # Lance hands it out to its own pickling only, which would take the storage options along.
        return bytes(self.dataset._ds.serialized_manifest())  # noqa: SLF001

    @property
    def fragments(self) -> Mapping[int, FragmentInfo]:
        """Fragments by id, in table order."""
        return _Fragments(self.dataset, self._lost)

    def without(self, lost: Callable[[DataFileInfo], bool]) -> Snapshot:
        """Return the same version without some of its files: their columns have no values."""
        return Snapshot(self.dataset, lost)

    @property
    def fields(self) -> Mapping[str, Field]:
        """Top-level fields by name."""
        if self._fields is None:
            self._fields = {
                f.name(): Field(f.name(), f.id(), tuple(_subtree(f)), self.schema.field(f.name()))
                for f in self.dataset.lance_schema.fields()
            }
        return self._fields

    def name_of(self, field_id: int) -> str | None:
        """Return the name of a top-level field here: ids outlive renames."""
        return next((n for n, f in self.fields.items() if f.id == field_id), None)

    def nested(self, path: str) -> tuple[int, list[tuple[str, int, int]]] | None:
        """Return the fields of a column at and below a path: names, places and ids.

        Before them the highest id within the column. None of a column without fields; ``None`` if
        there is no such path.
        """
        nodes = {f.name(): f for f in self.dataset.lance_schema.fields()}
        head, *rest = [path] if path in nodes else path.split(".")
        if head not in nodes:
            return None
        node, found, way = nodes[head], list[tuple[str, int, int]](), ""
        newest = max(_subtree(node))
        for part in rest:
            children = {f.name(): (k, f) for k, f in enumerate(node.children())}
            if part not in children:
                return None
            place, node = children[part]
            way = f"{way}.{part}"
            found.append((way, place, node.id()))
        return newest, [*found, *_below(node, way)]

    def ids(self, path: str) -> list[int] | None:
        """Return the ids of the fields that a path leads through; ``None`` if one is gone."""
        nodes = self.dataset.lance_schema.fields()
        found = []
        names = [f.name() for f in nodes]
        for part in [path] if path in names else path.split("."):
            node = next((f for f in nodes if f.name() == part), None)
            if node is None:
                return None
            found.append(node.id())
            nodes = node.children()
        return found

    def path_of(self, ids: Sequence[int]) -> str | None:
        """Return the present path of fields with some ids; ``None``: it is gone."""
        nodes, names = self.dataset.lance_schema.fields(), list[str]()
        for i in ids:
            node = next((f for f in nodes if f.id() == i), None)
            if node is None:
                return None
            names.append(node.name())
            nodes = node.children()
        return ".".join(names)

    def next_ids(self, types: Sequence[pa.DataType]) -> list[int]:
        """Return the ids of columns that are added next, if nobody else adds any."""
        sizes = (_nodes(t) for t in types)
        return list(itertools.accumulate(sizes, initial=self.dataset.max_field_id + 1))[:-1]

    @property
    def has_wal(self) -> bool:
        """Whether rows may lie in a write-ahead log, where no scan of the table sees them."""
        return self.dataset.mem_wal_index_details() is not None

    @property
    def storage_version(self) -> str:
        """Lance file format version, such as ``2.2``."""
        return str(self.dataset.data_storage_version)


class _Fragments(Mapping[int, FragmentInfo]):
    """The fragments of a manifest, looked up (3 us) when asked and not kept.

    A commit looks at the few fragments that it changes, and a plan at each once.
    """

    def __init__(self, dataset: Any, lost: Callable[[DataFileInfo], bool] | None) -> None:
        self._dataset, self._lost = dataset, lost

    def __getitem__(self, fragment_id: int) -> FragmentInfo:
        # What Lance would put around it costs a third of a plan with nothing to do.
        found = self._dataset._ds.get_fragment(fragment_id)  # noqa: SLF001
        if found is None:
            raise KeyError(fragment_id)
        info = fragment_info(found.metadata())
        if self._lost is None or not (lost := tuple(filter(self._lost, info.files))):
            return info
        return info._replace(files=tuple(f for f in info.files if f not in lost), lost=lost)

    def __iter__(self) -> Iterator[int]:
        return iter(self._dataset.fragment_ids())

    def __len__(self) -> int:
        return len(self._dataset.fragment_ids())


def _subtree(node: Any) -> Iterator[int]:
    yield node.id()
    for child in node.children():
        yield from _subtree(child)


def _below(node: Any, path: str) -> Iterator[tuple[str, int, int]]:
    for place, child in enumerate(node.children()):
        yield f"{path}.{child.name()}", place, child.id()
        yield from _below(child, f"{path}.{child.name()}")


@lru_cache(maxsize=256)
def _shared(fields: tuple[int, ...]) -> frozenset[int]:
    return frozenset(fields)  # once for the thousands of files that supply the same fields


def fragment_info(meta: Any) -> FragmentInfo:
    """Read Lance's metadata of a fragment."""
    deletion = meta.deletion_file
    files = [
        # DataFile.path builds a class at each access, 25 us: half of planning 10,000 fragments.
        DataFileInfo(
            f._path,  # noqa: SLF001
            _shared(tuple(f.fields)),
            f.file_size_bytes or 0,
            f.base_id is not None,
        )
        for f in meta.files
    ]
    return FragmentInfo(
        meta.id,
        meta.physical_rows,
        meta.num_deletions or 0,
        "" if deletion is None else str(sorted(deletion.asdict().items())),
        tuple(files),
        bool(meta.overlays),
    )


def blob_columns(schema: pa.Schema, names: Sequence[str]) -> list[str]:
    """Return those of some columns that Lance keeps as blobs, of either version."""
    return [n for n in names if n in schema.names and is_blob(schema.field(n))]


def without_blob_types(schema: pa.Schema) -> pa.Schema:
    """Return a schema that others know all types of: blobs are the structs that they lie in.

    So are extension types within other types, of which Arrow cannot make an empty array.
    """
    fields = [f.with_type(_plain(f.type, top=not is_blob_v2(f.type))) for f in schema]
    return pa.schema(fields, schema.metadata)


def _plain(kind: pa.DataType, *, top: bool = False) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        return kind if top else _plain(kind.storage_type)
    inner = [kind.field(i).with_type(_plain(kind.field(i).type)) for i in range(kind.num_fields)]
    if pa.types.is_struct(kind):
        return pa.struct(inner)
    if pa.types.is_map(kind):
        return pa.map_(inner[0].type.field(0), inner[0].type.field(1))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(inner[0], kind.list_size)
    if pa.types.is_large_list(kind):
        return pa.large_list(inner[0])
    return pa.list_(inner[0]) if pa.types.is_list(kind) else kind


def is_blob(field: pa.Field) -> bool:
    """Whether Lance keeps a column's values as blobs, of either version."""
    return is_blob_v2(field.type) or (field.metadata or {}).get(BLOB.encode()) == b"true"


def name_in_file(schema: pa.Schema, fields: Sequence[int], field_id: int) -> str | None:
    """Return a file's name for a column without children; it may have been renamed since.

    A file knows names, a manifest the ids of its fields in the same order: of the leaves, or in
    older versions of all nodes. ``None`` where they do not agree in number.
    """
    for count in (_leaves, _nodes):
        ends = list(itertools.accumulate(count(f.type) for f in schema))
        if ends and ends[-1] == len(fields):
            at = bisect.bisect_right(ends, list(fields).index(field_id))
            return str(schema.names[at])
    return None


def _children(data_type: pa.DataType) -> list[pa.DataType]:
    if pa.types.is_fixed_size_list(data_type) and not pa.types.is_struct(data_type.value_type):
        return []
    return [data_type.field(i).type for i in range(data_type.num_fields)]


def _leaves(data_type: pa.DataType) -> int:
    return sum(_leaves(t) for t in _children(data_type)) or 1


def _nodes(data_type: pa.DataType) -> int:
    return 1 + sum(_nodes(t) for t in _children(data_type))
