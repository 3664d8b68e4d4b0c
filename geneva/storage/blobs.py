"""How Lance's file writer takes blobs of version 2.

A table's schema has them as an extension type over what a person gives: bytes or a place. The
writer wants another struct, in which each value says where its bytes are. Here they always come
with it, so a column file holds all of its blobs: none is left in a file beside it that a commit, a
cleanup or a recovery would have to know of.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from geneva.model.types import is_blob_v2

_INLINE = 0  # the kind of a value that comes with its bytes
_FIELDS = [
    pa.field("kind", pa.uint8()),
    pa.field("data", pa.large_binary()),
    pa.field("uri", pa.string()),
    pa.field("blob_id", pa.uint32()),
    pa.field("blob_size", pa.uint64()),
    pa.field("position", pa.uint64()),
]
# What a file's own schema lists behind a column of blobs.
PLACES_V1 = ["position", "size"]
PLACES_V2 = ["kind", "position", "size", "blob_id", "blob_uri"]
_MARK = {"ARROW:extension:name": "lance.blob.v2"}


def as_held(schema: pa.Schema) -> pa.Schema:
    """Return the schema of batches to be written: blobs are bytes."""
    return pa.schema([f.with_type(pa.large_binary()) if is_blob_v2(f.type) else f for f in schema])


def as_written(schema: pa.Schema) -> pa.Schema:
    """Return the schema that the file writer is opened with."""
    mark = pa.struct(_FIELDS)
    return pa.schema(
        [pa.field(f.name, mark, metadata=_MARK) if is_blob_v2(f.type) else f for f in schema]
    )


def prepared(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return a batch of `as_held` as the file writer takes it."""
    if not any(is_blob_v2(f.type) for f in schema):
        return batch
    columns = [
        _prepared(column) if is_blob_v2(f.type) else column
        for column, f in zip(batch.columns, schema, strict=True)
    ]
    return pa.record_batch(columns, schema=as_written(schema))


def _prepared(blobs: pa.Array) -> pa.Array:
    rows = len(blobs)
    kinds = pa.array(np.full(rows, _INLINE, np.uint8))
    rest = [pa.nulls(rows, f.type) for f in _FIELDS[2:]]
    mask = blobs.is_null() if blobs.null_count else None
    return pa.StructArray.from_arrays([kinds, blobs, *rest], fields=_FIELDS, mask=mask)
