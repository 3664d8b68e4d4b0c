"""Blob columns, of both of Lance's kinds, and plain ones with large values, as inputs of UDFs."""

from __future__ import annotations

import asyncio
import io
import os
import random
import threading
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, BinaryIO

import lance
import pyarrow as pa
import pytest

import geneva
from geneva.appliers import reader
from geneva.errors import SettingError, UdfError, UdfFailedError
from tests.support.backfills import CPUS, run
from tests.support.calls import CallLog
from tests.support.tables import assert_table_invariants, database, pairs

MARK = {"lance-encoding:blob": "true"}
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
    monkeypatch.setattr("geneva.appliers.batches.READ_BYTES", 100_000)
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


# --- as results -----------------------------------------------------------------------------

DECLARED: dict[str, tuple[str, dict[str, Any]]] = {
    "v1 on 2.0": ("2.0", {"data_type": pa.large_binary(), "field_metadata": MARK}),
    "v1 on 2.1": ("2.1", {"data_type": pa.large_binary(), "field_metadata": MARK}),
    "v2 by its mark": ("2.2", {"data_type": pa.large_binary(), "field_metadata": MARK}),
    "v2 by its type": ("2.2", {"data_type": V2.type}),
}


def numbers(path: Path, version: str) -> geneva.Table:
    lance.write_dataset(
        pa.table({"id": pa.array(range(24), pa.int64())}),
        f"{database(path)}/t.lance",
        max_rows_per_file=8,
        data_storage_version=version,
    )
    return geneva.connect(database(path)).open_table("t")


def blobs_of(table: geneva.Table, column: str = "b") -> dict[int, bytes | None]:
    """Read each blob as people do: a file object, of a row given by its place."""
    dataset = lance.dataset(table.storage.uri)
    ids = dataset.to_table(columns=["id"])["id"].to_pylist()
    files = dataset.take_blobs(column, indices=list(range(len(ids))))
    return dict(zip(ids, (None if f is None else f.read() for f in files), strict=True))


@pytest.mark.parametrize("kind", DECLARED)
def test_computed_blobs_are_the_bytes_that_the_udf_returned(
    tmp_path: Path, executor: str, kind: str
) -> None:
    version, declared = DECLARED[kind]
    table = numbers(tmp_path, version)

    @geneva.udf(num_cpus=CPUS, version="1", **declared)
    def b(id: int) -> Any:
        if id % 5 == 3:
            return None
        return b"" if id % 5 == 4 else bytes([id]) * (100_000 if id == 7 else 50)

    def shown(k: int) -> bytes | None:
        if k % 5 == 3:
            return None
        return b"" if k % 5 == 4 else bytes([k]) * (100_000 if k == 7 else 50)

    table.add_columns({"b": b})
    table.delete("id in (2, 9)")
    left = [k for k in range(24) if k not in (2, 9)]
    run(table, "b", executor, where="id % 3 = 0")
    assert blobs_of(table) == {k: shown(k) if k % 3 == 0 else None for k in left}
    run(table, "b", executor)  # carries what is there
    assert blobs_of(table) == {k: shown(k) for k in left}
    assert run(table, "b", executor, where="id in (4, 7)").rows_overwritten
    assert blobs_of(table) == {k: shown(k) for k in left}
    assert not run(table, "b", executor).versions
    lance.dataset(table.storage.uri).optimize.compact_files()
    assert blobs_of(table) == {k: shown(k) for k in left}
    assert run(table, "b", executor).rows_computed == 0


def test_blobs_fill_a_column_of_blobs_that_exists_and_one_of_a_group(tmp_path: Path) -> None:
    values: list[bytes | None] = [None] * 6
    table = blob_table(tmp_path, "v2", values, fragments=2)

    @geneva.udf(data_type=pa.large_binary())
    def b(id: int) -> bytes:
        return b"x" * id

    table.add_columns({"b": b})
    run(table, "b", "local")
    assert blobs_of(table) == {k: b"x" * k for k in range(6)}
    kind = pa.struct([("size", pa.int64()), ("page", V2.type), ("text", pa.string())])

    @geneva.udf(data_type=kind)
    def pages(id: int, b: bytes) -> Any:
        return {"size": len(b), "page": None if id == 4 else b * 2, "text": str(id)}

    table.add_columns({("size", "page", "text"): pages})
    run(table, "size", "local", where="id > 1")
    run(table, "size", "local")
    assert blobs_of(table, "page") == {k: None if k == 4 else b"x" * 2 * k for k in range(6)}
    assert pairs(table, "id", "size") == {k: k for k in range(6)}
    assert pairs(table, "id", "text") == {k: str(k) for k in range(6)}
    assert not run(table, "size", "local").versions


def test_blobs_that_the_files_cannot_hold_are_refused(tmp_path: Path) -> None:
    table = numbers(tmp_path, "2.1")
    with pytest.raises(UdfError, match="field_metadata"):
        table.add_columns({"b": geneva.udf(data_type=V2.type)(lambda id: b"x")})
    marked = geneva.udf(data_type=pa.string(), field_metadata=MARK)
    with pytest.raises(UdfError, match="large_binary"):
        table.add_columns({"b": marked(lambda id: "x")})
    nested = geneva.udf(data_type=pa.list_(V2.type))
    with pytest.raises(UdfError, match="within another type"):
        table.add_columns({"b": nested(lambda id: [b"x"])})
    assert table.schema.names == ["id"]


def test_metadata_that_a_udf_declares_is_its_columns(tmp_path: Path) -> None:
    table = numbers(tmp_path, "2.2")
    noted = geneva.udf(data_type=pa.int64(), field_metadata={"unit": "mm"})
    table.add_columns({"y": noted(lambda id: id)})
    assert table.schema.field("y").metadata[b"unit"] == b"mm"
    table.add_columns({"b": geneva.udf(**DECLARED["v2 by its mark"][1])(lambda id: b"x")})
    assert table.schema.field("b").metadata[b"lance-encoding:blob"] == b"true"
    run(table, ["y", "b"], "local")
    table.add([{"id": 100, "y": 5}])
    table.optimize()
    run(table, ["y", "b"], "local")
    assert blobs_of(table)[100] == b"x"
    with pytest.raises(SettingError, match="field_metadata"):
        geneva.udf(field_metadata={"geneva.binding": "x"})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", [None, "id % 2 = 0"])
def test_udf_that_asks_for_a_file_gets_one_per_row_until_its_call_ends(
    tmp_path: Path, calls: CallLog, executor: str, kind: str, where: str | None
) -> None:
    """Null is ``None``, an empty value an empty file; a file that is kept is closed."""
    values = [content(k) for k in range(40)]
    table = blob_table(tmp_path, kind, values)
    table.delete("id in (1, 7, 25)")

    kept: dict[int, BinaryIO] = {}

    @geneva.udf(num_cpus=CPUS, version="1")
    def y(id: int, b: BinaryIO | None) -> str | None:
        calls(id)
        before = kept.pop(threading.get_ident(), None)
        if before is not None:
            with pytest.raises(ValueError, match="closed"):
                before.read(1)
        if b is None:
            return None
        kept[threading.get_ident()] = b
        assert b.seekable()
        assert b.tell() == 0
        size = b.size()  # type: ignore[attr-defined]
        head = b.read(4)
        b.seek(-2, 2) if size else None
        tail = b.read()
        if id == 8:
            b.close()  # of no harm
        return f"{size} {head.hex()} {tail.hex()}"

    table.add_columns({"y": y})
    run(table, "y", executor, where=where)
    run(table, "y", executor)

    def shown(v: bytes | None) -> str | None:
        return None if v is None else f"{len(v)} {v[:4].hex()} {v[-2:].hex()}"

    expected = {k: shown(v) for k, v in enumerate(values) if k not in (1, 7, 25)}
    assert pairs(table, "id", "y") == expected
    assert set(calls.counts.values()) == {1}
    assert_table_invariants(table)


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_opened_anew_for_each_call_of_a_row_that_fails(tmp_path: Path, kind: str) -> None:
    values = [content(k) for k in range(12)]
    table = blob_table(tmp_path, kind, values)
    tried: set[int] = set()

    @geneva.udf(retry=geneva.Retry(attempts=2, wait=0), version="1")
    async def y(id: int, b: io.BufferedIOBase | None) -> int | None:
        if b is None:
            return None
        await asyncio.sleep(0)
        found = zlib.crc32(b.read())
        if id not in tried or id == 5:
            tried.add(id)
            raise OSError("once")
        return found

    table.add_columns({"y": y})
    result = run(table, "y", "local", on_error="null")
    assert result.rows_failed == 1
    shown = "b=b'" if kind == "plain" else "b=<blob>"
    assert shown in result.failures["input"].to_pylist()[0]
    expected = {k: None if k == 5 else checksum(v) for k, v in enumerate(values)}
    assert pairs(table, "id", "y") == expected
    with pytest.raises(UdfFailedError, match="once"):
        run(table, "y", "local", retry_failed=True)
    assert_table_invariants(table)


@pytest.mark.parametrize("kind", KINDS)
def test_libraries_read_what_they_need_of_a_file(tmp_path: Path, kind: str) -> None:
    """A library that looks before the start of a short file finds the start."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("a.txt", "alpha")
        made.writestr("b.txt", b"b" * 100_000)
    table = blob_table(tmp_path, kind, [archive.getvalue(), b"", b"short", None])

    @geneva.udf
    def y(b: BinaryIO | None) -> str | None:
        if b is None:
            return None
        b.seek(-5, os.SEEK_END)
        assert b.seek(-100_000_000, os.SEEK_CUR) == 0
        with zipfile.ZipFile(b) as held:
            return held.read("a.txt").decode()

    @geneva.udf
    def lines(b: BinaryIO | None) -> int | None:
        return None if b is None else len(io.TextIOWrapper(b, encoding="latin-1").read())

    table.add_columns({"y": y, "lines": lines})
    result = run(table, "y", "local", on_error="null")
    assert result.failures["error"].to_pylist() == ["BadZipFile"] * 2
    assert pairs(table, "id", "y") == {0: "alpha", 1: None, 2: None, 3: None}
    run(table, "lines", "local")
    assert pairs(table, "id", "lines")[2] == 5
    assert_table_invariants(table)


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_file_and_bytes_of_one_column_are_read_in_one_call(tmp_path: Path, kind: str) -> None:
    values = [content(k) for k in range(20)]
    table = blob_table(tmp_path, kind, values)

    @geneva.udf
    def head(video: IO[bytes] | None) -> bytes | None:
        return None if video is None else video.read(3)

    @geneva.udf
    def length(b: bytes | None) -> int | None:
        return None if b is None else len(b)

    assert head(io.BytesIO(b"abcdef")) == b"abc"  # by hand
    table.add_columns({"head": (head, ["b"]), "length": length})
    names = ["head", "length"]
    table.backfill(names, executor="local")
    table.backfill(names[::-1], executor="local")
    assert pairs(table, "id", "head") == {k: v and v[:3] for k, v in enumerate(values)}
    assert pairs(table, "id", "length") == {
        k: None if v is None else len(v) for k, v in enumerate(values)
    }


def test_a_column_that_holds_no_bytes_is_not_taken_as_a_file(tmp_path: Path) -> None:
    table = blob_table(tmp_path, "v2", [b"x"])

    @geneva.udf
    def y(id: BinaryIO) -> int:
        return id.tell()

    @geneva.udf
    def z(b: BinaryIO, raw: bytes) -> int:
        return 0

    with pytest.raises(UdfError, match="'id' as a file, but the column is int64"):
        table.add_columns({"y": y})
    with pytest.raises(UdfError, match="twice, in two forms"):
        table.add_columns({"z": (z, ["b", "b"])})


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_of_a_file_only_what_is_asked_for_is_read(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blobs' own columns are neither read whole nor scanned."""
    values: list[bytes | None] = [bytes([k % 251]) * 5_000 for k in range(30)]
    table = blob_table(tmp_path, kind, values, fragments=3)
    monkeypatch.setattr(type(table.storage), "read_blobs", None)

    @geneva.udf(version="1")
    def y(b: BinaryIO) -> bytes:
        return b.read(10)

    table.add_columns({"y": y})
    run(table, "y", "local", batch_size=7)
    assert pairs(table, "id", "y") == {k: (v or b"")[:10] for k, v in enumerate(values)}
