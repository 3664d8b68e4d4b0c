"""Blob columns, of both of Lance's kinds, and plain ones with large values, as inputs of UDFs."""

from __future__ import annotations

import random
import zlib
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

import geneva
from geneva.execute import reader
from tests.support.backfills import CPUS, run
from tests.support.calls import CallLog
from tests.support.tables import assert_table_invariants, database, pairs

V1 = pa.field("b", pa.large_binary(), metadata={"lance-encoding:blob": "true"})
V2 = lance.blob_field("b")
PLAIN = pa.field("b", pa.large_binary())
KINDS = {"v1": (V1, "2.1"), "v2": (V2, "2.2"), "plain": (PLAIN, "2.2")}


def content(row: int, size: int = 700) -> bytes | None:
    """Row 3 is null and row 4 is empty; no two others are equal."""
    if row == 3:
        return None
    return b"" if row == 4 else (row.to_bytes(4, "big") * size)[:size]


def blob_table(
    path: Path, kind: str, values: list[bytes | None], *, fragments: int = 2
) -> geneva.Table:
    field, version = KINDS[kind]
    rows = len(values)
    blobs = lance.blob_array(values) if kind == "v2" else pa.array(values, field.type)
    lance.write_dataset(
        pa.table([pa.array(range(rows)), blobs], schema=pa.schema([("id", pa.int64()), field])),
        f"{database(path)}/t.lance",
        max_rows_per_file=-(-rows // fragments),
        data_storage_version=version,
    )
    return geneva.connect(database(path)).open_table("t")


def checksum(blob: bytes | None) -> int | None:
    return None if blob is None else zlib.crc32(blob)


@pytest.mark.parametrize("kind", KINDS)
def test_udf_gets_descriptor_instead_of_bytes(
    tmp_path: Path, calls: CallLog, executor: str, kind: str
) -> None:
    values = [content(k) for k in range(40)]
    table = blob_table(tmp_path, kind, values)
    table.delete("id in (1, 7, 25)")

    @geneva.udf(num_cpus=CPUS)
    def y(id: int, b: bytes | None) -> int | None:
        assert b is None or type(b) is bytes
        calls(id)
        return None if b is None else zlib.crc32(b)

    table.add_columns({"y": y})
    assert run(table, "y", executor, where="id % 2 = 0").rows_computed == 20
    run(table, "y", executor)
    expected = {k: checksum(v) for k, v in enumerate(values) if k not in (1, 7, 25)}
    assert pairs(table, "id", "y") == expected
    assert sorted(calls.counts) == sorted(str(k) for k in expected)
    assert set(calls.counts.values()) == {1}  # nor was a deleted row's blob asked for
    assert not run(table, "y", executor).versions
    assert_table_invariants(table)


@pytest.mark.parametrize("kind", KINDS)
def test_changed_blob_of_the_same_size_looks_unchanged(
    tmp_path: Path, calls: CallLog, kind: str
) -> None:
    values = [content(k) for k in range(10)]
    table = blob_table(tmp_path, kind, values, fragments=1)

    @geneva.udf(version="1")
    def y(b: bytes | None) -> int | None:
        calls(0)
        return checksum_of(b)

    def checksum_of(b: bytes | None) -> int | None:
        return None if b is None else zlib.crc32(b)

    table.add_columns({"y": y})
    run(table, "y", "local")
    calls.clear()
    # All rows move, so that every blob lies where it lay, with another row's content.
    kept = lance.dataset(table.storage.uri).to_table(columns=["id", "y"])
    moved = [content(k + 100) for k in range(10)]
    field, _ = KINDS[kind]
    blobs = lance.blob_array(moved) if kind == "v2" else pa.array(moved, field.type)
    new = pa.table([kept["id"], blobs], schema=pa.schema([("id", pa.int64()), field]))
    new = new.append_column("y", kept["y"])
    builder = lance.dataset(table.storage.uri).merge_insert("id")
    builder.when_matched_update_all().execute(new)
    run(table, "y", "local")
    assert pairs(table, "id", "y") == {k: checksum(v) for k, v in enumerate(moved)}
    assert_table_invariants(table)


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_blobs_are_read_by_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """However large a batch of rows is, no more than its share of blobs is held at once."""
    sizes = [10] * 50 + [9_000] * 3 + [10] * 20 + [60_000] + [10] * 6
    values: list[bytes | None] = [bytes([k % 251]) * n for k, n in enumerate(sizes)]
    table = blob_table(tmp_path, kind, values, fragments=1)
    table.delete("id = 5")
    monkeypatch.setattr(reader, "READ_BYTES", 10_000)
    packs: list[list[int]] = []

    @geneva.udf(data_type=pa.int64(), version="1")
    def y(b: pa.Array) -> pa.Array:
        return pa.array([None if v is None else len(v) for v in b.to_pylist()], pa.int64())

    table.add_columns({"y": y})
    storage_class = type(table.storage)
    original = storage_class.read_blobs

    def counted(self: Any, snapshot: Any, column: str, addresses: Any) -> pa.Array:
        found = original(self, snapshot, column, addresses)
        packs.append([len(v) for v in found.to_pylist()])
        return found

    monkeypatch.setattr(storage_class, "read_blobs", counted)
    run(table, "y", "local")
    assert sum(len(p) for p in packs) == len(sizes) - 1
    assert all(sum(p) <= 10_000 or len(p) == 1 for p in packs)
    assert len(packs) < 10
    assert pairs(table, "id", "y") == {k: n for k, n in enumerate(sizes) if k != 5}
    assert_table_invariants(table)


def test_rows_larger_than_those_sampled_are_read_many_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first fragments' rows are small; a later fragment's are a thousand times as large."""
    uri = f"{database(tmp_path)}/t.lance"
    for k, size in enumerate([10, 10, 10, 10, 10, 10, 20_000]):
        blobs = [random.randbytes(size) for _ in range(200)]
        data = pa.table({"id": range(200 * k, 200 * k + 200), "b": blobs})
        lance.write_dataset(data, uri, mode="append" if k else "create")
    table = geneva.connect(database(tmp_path)).open_table("t")
    monkeypatch.setattr(reader, "READ_BYTES", 100_000)
    monkeypatch.setattr("geneva.execute.batches.READ_BYTES", 100_000)
    table.add_columns({"y": geneva.udf(_size, version="1")})
    held: list[tuple[int, int]] = []
    storage_class = type(table.storage)
    original = storage_class.scan

    def watched(self: Any, snapshot: Any, fragment_id: int, *given: Any, **options: Any) -> Any:
        for batch in original(self, snapshot, fragment_id, *given, **options):
            held.append((fragment_id, batch.nbytes))
            yield batch

    monkeypatch.setattr(storage_class, "scan", watched)
    run(table, "y", "local")
    assert max(n for f, n in held if f == 6) < 200_000
    assert len([f for f, _ in held if f == 5]) <= 1  # small rows are not read in more batches
    assert sorted(pairs(table, "id", "y").values()) == [10] * 1200 + [20_000] * 200


def _size(b: bytes) -> int:
    return len(b)


@pytest.mark.parametrize("version", ["2.0", "2.1", "2.2"])
def test_large_values_come_from_a_column_of_the_same_name(tmp_path: Path, version: str) -> None:
    """Files keep the names that columns had when they were written."""
    rows = 100
    first = [random.randbytes(200_000) for _ in range(rows)]
    second = [random.randbytes(200_000) for _ in range(rows)]
    data = pa.table(
        {
            "id": range(rows),
            "about": [{"lang": "de", "tags": ["a", "b"]}] * rows,
            "a": first,
            "point": pa.array([[0.0, 1.0]] * rows, pa.list_(pa.float32(), 2)),
            "b": second,
        }
    )
    lance.write_dataset(data, f"{database(tmp_path)}/t.lance", data_storage_version=version)
    table = geneva.connect(database(tmp_path)).open_table("t")
    for was, now in (("a", "c"), ("b", "a"), ("c", "b")):
        table.alter_columns({"path": was, "rename": now})
    table.delete("id = 50")

    @geneva.udf(version="1")
    def y(a: bytes, b: bytes) -> int:
        return zlib.crc32(a) - zlib.crc32(b)

    table.add_columns({"y": y})
    run(table, "y", "local")
    expected = {k: zlib.crc32(second[k]) - zlib.crc32(first[k]) for k in range(rows) if k != 50}
    assert pairs(table, "id", "y") == expected
    assert_table_invariants(table)
