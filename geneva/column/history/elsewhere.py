"""Columns that LanceDB fills itself: SQL computed columns, those of functions and of embeddings.

Nobody else may fill them, and a row that LanceDB has not filled yet, or not since its inputs
changed, has no value that anything should be computed from.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from geneva.column.history.same import same_rows
from geneva.errors import ColumnError
from geneva.model.rows import BoolArray
from geneva.storage.lance import Snapshot, TableStorage
from geneva.storage.snapshot import FragmentInfo, blob_columns
from geneva.storage.values import flags

_ROWS = 4096
_DECLARED, _KIND = b"computed_column", b"computed_column.kind"
_EXPRESSION, _INPUTS = b"computed_column.expression", b"computed_column.inputs"
_EMBEDDINGS = b"embedding_functions"  # in the schema's metadata


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """How LanceDB fills a column.

    Attributes
    ----------
    how
        For people, behind "is filled by LanceDB".
    inputs
        Columns that it is computed from.
    expression
        SQL whose value the column has once it is filled; empty where only LanceDB can tell.
    """

    column: str
    how: str
    inputs: tuple[str, ...]
    expression: str = ""

    def ready(self, storage: TableStorage, snapshot: Snapshot, fragment: FragmentInfo) -> BoolArray:
        """Return the rows that have the value that LanceDB gives them now.

        Of those without an expression: that have a value, or nothing that one could be made of.
        """
        name = f"`{self.column}`"
        compared = self.expression and not blob_columns(snapshot.schema, [self.column])
        nothing = "".join(f" or `{i}` is null" for i in self.inputs if i in snapshot.schema.names)
        there = f"{name} is not null{'' if self.expression else nothing}"
        columns = {"is": name, "wanted": self.expression} if compared else {"there": there}
        ready = [
            same_rows(b.column("is"), b.column("wanted")) if compared else flags(b.column("there"))
            for b in storage.scan(snapshot, fragment.id, columns, batch_rows=_ROWS)
        ]
        return np.concatenate(ready) if ready else np.ones(0, np.bool_)


def filled_by_lancedb(schema: pa.Schema) -> Mapping[str, Elsewhere]:
    """Return the columns that LanceDB fills, by name."""
    found = {f.name: _declared(f.name, f.metadata) for f in schema if _is_declared(f)}
    embedded = _embedded((schema.metadata or {}).get(_EMBEDDINGS, b""))
    return {e.column: e for e in embedded if e.column in schema.names} | found


def check_not_filled(schema: pa.Schema, names: Collection[str]) -> None:
    """Refuse to bind a UDF to a column that LanceDB fills.

    Raises
    ------
    ColumnError
        It names the expression, or the function.
    """
    filled = filled_by_lancedb(schema)
    for name in names:
        if name in filled:
            raise ColumnError(
                f"column {name!r} is filled by LanceDB {filled[name].how}; bind the UDF to another "
                "column, or drop this one first"
            )


def _is_declared(field: pa.Field) -> bool:
    metadata = field.metadata or {}
    return metadata.get(_DECLARED) == b"true" or _EXPRESSION in metadata


def _declared(name: str, metadata: Mapping[bytes, bytes]) -> Elsewhere:
    expression = metadata.get(_EXPRESSION, b"").decode()
    inputs = tuple(map(str, _json(metadata.get(_INPUTS, b"")) or ()))
    if expression and metadata.get(_KIND, b"sql") == b"sql":
        how = f"with the SQL expression {expression!r} (refresh_column computes it)"
        return Elsewhere(name, how, inputs, expression)
    return Elsewhere(name, f"with a function of {', '.join(inputs) or 'no column'}", inputs)


@lru_cache(maxsize=64)
def _embedded(raw: bytes) -> tuple[Elsewhere, ...]:
    functions = _json(raw)
    return tuple(
        Elsewhere(
            str(f["vector_column"]),
            f"with the embedding function {f.get('name')!r} of column {f['source_column']!r}",
            (str(f["source_column"]),),
        )
        for f in (functions if isinstance(functions, list) else ())
        if f.get("vector_column") and f.get("source_column")
    )


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw) if raw else None
    except ValueError:
        return None
