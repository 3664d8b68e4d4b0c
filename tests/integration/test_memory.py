"""What an applier holds at once follows bytes, and the result says how much memory it took."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest

import geneva
from geneva.appliers import reader
from geneva.appliers.host import peak_bytes
from geneva.column.file import ColumnFileBuilder
from geneva.errors import StorageError
from geneva.storage.values import ColumnReader
from tests.support.backfills import CPUS, run, times
from tests.support.calls import CallLog
from tests.support.tables import assert_table_invariants, make_table

MB = 10**6


def large_values(path: Path, rows: int, size: int) -> geneva.Table:
    """Return a table of one fragment whose column ``b`` holds large values."""
    random = np.random.default_rng(7)
    blobs = pa.array([random.bytes(size) for _ in range(rows)], pa.large_binary())
    lance.write_dataset(pa.table({"b": blobs}), str(path / "t.lance"))
    return geneva.connect(str(path)).open_table("t")


@pytest.mark.disk(reason="its table is written to a path")
def test_large_rows_that_are_read_before_the_last_ones_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 20_000
    table = large_values(tmp_path, 40, size)
    monkeypatch.setattr(reader, "READ_BYTES", 2 * size)
    monkeypatch.setattr("geneva.appliers.units.HELD_BYTES", size)
    read, written, waiting = [0], [0], []
    read_rows, add = ColumnReader.read, ColumnFileBuilder.add

    def reading(self: Any, rows: Any) -> pa.Array:
        waiting.append(read[0] - written[0])
        read[0] += len(rows)
        return read_rows(self, rows)

    def adding(self: Any, rows: Any, *rest: Any) -> int:
        written[0] += len(rows)
        return add(self, rows, *rest)

    monkeypatch.setattr(ColumnReader, "read", reading)
    monkeypatch.setattr(ColumnFileBuilder, "add", adding)

    @geneva.udf(data_type=pa.large_binary(), version="1", batch_size=2)
    def same(b: pa.Array) -> pa.Array:
        return b

    table.add_columns({"y": same})
    run(table, "y", "local", intra_applier_concurrency=1)
    assert read[0] == written[0] == 40
    assert len(waiting) >= 20
    assert max(waiting) <= 2, "more than a batch of two rows"
    assert_table_invariants(table)


@pytest.mark.disk(reason="its table is written to a path")
def test_checkpoints_that_are_all_in_memory_when_they_are_assembled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: CallLog
) -> None:
    size, rows = 20_000, 40
    table = large_values(tmp_path, rows, size)
    monkeypatch.setattr("geneva.appliers.task_run.READ_BYTES", 10 * size)
    added: list[int] = []
    finish, add = ColumnFileBuilder.finish, ColumnFileBuilder.add

    def failing(self: Any) -> Any:
        raise OSError("the disk is gone")

    def adding(self: Any, rows: Any, *rest: Any) -> int:
        added.append(len(rows))
        return add(self, rows, *rest)

    @geneva.udf(data_type=pa.large_binary(), version="1", batch_size=rows)
    def same(b: pa.Array) -> pa.Array:
        calls(len(b))
        return b

    table.add_columns({"y": same})
    monkeypatch.setattr(ColumnFileBuilder, "finish", failing)
    with pytest.raises(StorageError):
        run(table, "y", "local")
    computed = len(calls)
    monkeypatch.setattr(ColumnFileBuilder, "finish", finish)
    monkeypatch.setattr(ColumnFileBuilder, "add", adding)
    result = run(table, "y", "local")
    assert (result.rows_replayed, len(calls)) == (rows, computed)
    assert sum(added) == rows
    assert max(added) <= 10
    assert_table_invariants(table)


@pytest.mark.ray
@pytest.mark.disk(reason="its table is written to a path")
def test_applier_that_takes_the_memory_of_all_its_rows(tmp_path: Path) -> None:
    """A quarter of a gigabyte of values in and out, by ten megabytes each."""
    rows, size = 26, 10 * MB
    table = large_values(tmp_path, rows, size)
    log = str(tmp_path / "idle.log")

    @geneva.udf(data_type=pa.large_binary(), version="1", num_cpus=CPUS)
    class Same:
        def __init__(self) -> None:
            import resource

            idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            Path(log).write_text(str(idle))

        def __call__(self, b: pa.Array) -> pa.Array:
            return b

    table.add_columns({"y": Same})
    result = run(table, "y", "ray", concurrency=1)
    took = result.peak_applier_bytes - int(Path(log).read_text())
    assert size < took < 20 * size, f"{took / MB:.0f} MB of {rows * size / MB:.0f} MB"
    assert_table_invariants(table)


def test_peak_memory_that_nobody_is_told(tmp_path: Path, calls: CallLog, executor: str) -> None:
    table = make_table(tmp_path, rows=100, fragments=2)
    table.add_columns({"y": times(calls)})
    result = run(table, "y", executor)
    assert 30 * MB < result.peak_applier_bytes < 64 * 10**9
    assert 30 * MB < result.peak_driver_bytes <= peak_bytes()
    if executor == "local":  # its appliers are this process
        assert result.peak_applier_bytes <= result.peak_driver_bytes
    assert f"an applier {result.peak_applier_bytes / 1e6:,.0f} MB" in str(result)
    idle = run(table, "y", executor)
    assert idle.peak_applier_bytes == 0
    assert "an applier" not in str(idle)


def test_window_of_many_threads() -> None:
    from geneva.appliers.batches import HELD_BYTES, unit_bytes

    assert unit_bytes(1) == unit_bytes(2)
    assert all(n * unit_bytes(n) <= HELD_BYTES for n in (2, 8, 64))
