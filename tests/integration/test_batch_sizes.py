"""Rows per batch follow the bytes and the measured time of a row, unless the user says."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

import geneva
from geneva.column.binding import PICKLES
from geneva.column.checkpoint.journal import replay
from tests.support.backfills import CPUS, Gate, run, until
from tests.support.calls import CallLog
from tests.support.tables import assert_table_invariants, column, make_table, pairs


def logs(table: geneva.Table) -> list[str]:
    return [n for n in table.storage.objects.list("") if not n.startswith(f"{PICKLES}/")]


def checkpointed(table: geneva.Table) -> int:
    """Return the rows in all journals, as a run after a crash would find them."""
    found = 0
    for name in table.storage.objects.list("work"):
        found += len(replay(table.storage.objects, [name], [pa.int64()], with_failed=True).rows)
    return found


@pytest.mark.disk(reason="on an object store checkpoints are written every 10 s")
def test_slow_udf_checkpoints_after_minutes(tmp_path: Path, calls: CallLog, executor: str) -> None:
    table = make_table(tmp_path, rows=200, fragments=1)

    @geneva.udf(num_cpus=CPUS)
    def y(x: int) -> int:
        calls(f"{time.time()}")
        time.sleep(0.3)
        return x

    table.add_columns({"y": y})
    before = logs(table)
    job = table.backfill_async("y", executor=executor, concurrency=1)
    until(lambda: calls.keys)
    begun = time.monotonic()
    until(lambda: set(logs(table)) - set(before) and checkpointed(table), 20)
    assert time.monotonic() - begun < 3
    until(lambda: len(calls) >= 8)
    job.cancel()
    with pytest.raises(geneva.GenevaError, match="cancelled"):
        job.wait(30)
    # no call was in vain: a batch of slow rows is small enough to be finished
    seen = len(calls)
    assert seen < 40
    again = table.backfill_async("y", executor="local", concurrency=1, timeout=5)
    until(lambda: again.progress().rows_replayed or again.progress().rows_computed)
    again.cancel()
    with pytest.raises(geneva.GenevaError):
        again.wait(30)
    assert_table_invariants(table)


def test_quick_udf_is_called_row_by_row(tmp_path: Path, calls: CallLog, executor: str) -> None:
    table = make_table(tmp_path, rows=50_000, fragments=1)

    @geneva.udf(data_type=pa.int64(), num_cpus=CPUS)
    def y(x: pa.Array) -> pa.Array:
        calls(len(x))
        return x

    table.add_columns({"y": y})
    run(table, "y", executor)
    sizes = [int(k) for k in calls.keys]
    assert sizes[0] == 1  # a row may take a second, nobody knows yet
    assert sum(sizes) == 50_000
    assert len(sizes) < 60
    assert column(table, "y") == list(range(50_000))


@pytest.mark.parametrize("call_s", [0.25, 1.0])
def test_call_with_a_cost_of_its_own_gets_many_rows(
    tmp_path: Path, calls: CallLog, executor: str, call_s: float
) -> None:
    table = make_table(tmp_path, rows=20_000, fragments=1)

    @geneva.udf(data_type=pa.int64(), num_cpus=CPUS)
    def y(x: pa.Array) -> pa.Array:
        calls(len(x))
        time.sleep(call_s)
        return x

    table.add_columns({"y": y})
    run(table, "y", executor, concurrency=1)
    sizes = [int(k) for k in calls.keys]
    assert sizes[0] == 1
    assert sum(sizes) == 20_000
    assert len(sizes) <= 12


class OutOfMemoryError(RuntimeError):
    """What torch raises when a GPU is full; no `MemoryError`."""


def roomy(calls: CallLog, room: int, **settings: Any) -> geneva.UDF:
    """Make a UDF whose device has room for so many rows."""

    @geneva.udf(data_type=pa.int64(), num_cpus=CPUS, **settings)
    def y(x: pa.Array) -> pa.Array:
        calls(len(x))
        if len(x) > room:
            raise OutOfMemoryError(f"no room for {len(x)} rows")
        return pc.multiply(x, 2)

    return y


@pytest.mark.parametrize("on_error", ["fail", "null"])
def test_batch_that_outgrew_a_gpu_ends_the_job(
    tmp_path: Path, calls: CallLog, executor: str, on_error: str
) -> None:
    table = make_table(tmp_path, rows=20_000, fragments=4)
    table.add_columns({"y": roomy(calls, 1000)})
    result = run(table, "y", executor, on_error=on_error, concurrency=1)
    assert column(table, "y") == [2 * x for x in range(20_000)]
    sizes = [int(k) for k in calls.keys]
    assert sum(s for s in sizes if s <= 1000) == 20_000  # none of them twice
    assert 1 <= sum(s > 1000 for s in sizes) <= 8  # it is not tried again with every batch
    assert len(sizes) < 150  # what was cut before it was known does not make later ones smaller
    assert result.rows_computed == 20_000
    assert not result.failures
    assert_table_invariants(table)


def test_row_that_no_gpu_has_room_for_is_not_named(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=100, fragments=1)
    table.add_columns({"y": roomy(calls, 0)})
    with pytest.raises(geneva.GenevaError, match=r"row 0 .*no room for 1 rows"):
        run(table, "y", "local")


def test_batch_size_that_was_asked_for_is_halved_in_silence(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=4000, fragments=1)
    table.add_columns({"y": roomy(calls, 1000, batch_size=2000)})
    with pytest.raises(geneva.GenevaError, match="the batch of 2000 rows does"):
        run(table, "y", "local")


def test_batch_size_that_was_asked_for_is_not_kept(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = make_table(tmp_path, rows=100, fragments=2)

    @geneva.udf(data_type=pa.int64(), batch_size=20, num_cpus=CPUS)
    def y(x: pa.Array) -> pa.Array:
        calls(len(x))
        return x

    table.add_columns({"y": y})
    run(table, "y", executor)
    assert calls.counts == {"20": 4, "10": 2}
    calls.clear()
    run(table, "y", executor, batch_size=7, force=True)
    assert calls.counts == {"7": 14, "1": 2}
    calls.clear()
    run(table, "y", executor, batch_size=7, checkpoint_size=21, force=True)
    assert sum(int(k) * n for k, n in calls.counts.items()) == 100
    assert max(int(k) for k in calls.keys) == 7


def test_checkpoint_size_is_taken_for_the_batch_size(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=100, fragments=1)

    @geneva.udf(data_type=pa.int64())
    def y(x: pa.Array) -> pa.Array:
        calls(len(x))
        if len(calls) > 6:
            raise ValueError("enough")
        return x

    table.add_columns({"y": y})
    with pytest.raises(geneva.GenevaError, match="enough"):
        table.backfill("y", executor="local", concurrency=1, batch_size=5, checkpoint_size=25)
    assert set(calls.keys[:6]) == {"5"}
    assert checkpointed(table) == 30  # one record of 25, and of the next what was done by then


@pytest.mark.parametrize("stop", ["failure", "cancel"])
def test_batches_of_a_record_that_was_not_full_are_lost_by_an_orderly_stop(
    tmp_path: Path, calls: CallLog, stop: str
) -> None:
    table = make_table(tmp_path, rows=100, fragments=1)
    gate, resumed = Gate(tmp_path / "gate"), Gate(tmp_path / "resumed")

    @geneva.udf
    def y(x: int) -> int:
        calls(x)
        if x == 50 and stop == "failure" and not gate.is_open:
            raise ValueError("enough")
        if x == 50 and stop == "cancel":
            gate.wait()
        time.sleep(0.1 if x > 50 and not resumed.is_open else 0.0)
        return x

    table.add_columns({"y": y})
    sizes: dict[str, Any] = {"batch_size": 1, "checkpoint_size": 100}
    job = table.backfill_async("y", executor="local", concurrency=1, **sizes)
    if stop == "cancel":
        until(lambda: "50" in calls.keys)
        job.cancel()
        gate.open()
    with pytest.raises(geneva.GenevaError):
        job.wait(60)
    gate.open()
    resumed.open()
    done = len(calls) - (stop == "failure")
    assert 50 <= done < 100
    result = table.backfill("y", executor="local", concurrency=1, **sizes)
    assert (result.rows_replayed, result.rows_computed) == (done, 100)
    assert len(calls) == 100 + (stop == "failure")
    assert pairs(table, "x", "y") == {x: x for x in range(100)}


_BLOBS = """
import resource, sys, pathlib
import pyarrow as pa
import pyarrow.compute as pc
import geneva, lance

size = 1 << 20
folder = sys.argv[1]
def batches():
    for k in range(300):
        blob = bytes([k % 256]) * size
        columns = [pa.array([k]), pa.array([blob], pa.large_binary())]
        yield pa.record_batch(columns, names=["id", "blob"])
schema = pa.schema([("id", pa.int64()), ("blob", pa.large_binary())])
lance.write_dataset(pa.RecordBatchReader.from_batches(schema, batches()), folder + "/t.lance",
                    max_rows_per_file=300, max_rows_per_group=16)
table = geneva.connect(folder).open_table("t")

@geneva.udf(version="1")
def digest(blob: bytes) -> int:
    return blob[0] + len(blob)

@geneva.udf(version="1")
def copied(blob: bytes) -> bytes:
    return blob[::-1]

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

table.add_columns({"n": digest, "copy": copied})
before = peak()
for column in sys.argv[2:]:
    for where, rows in ((None, 300), ("id < 20", 20)):
        done = table.backfill(column, where=where, executor="local", concurrency=1)
        assert done.rows_computed == rows
print(peak() - before)
got = lance.dataset(folder + "/t.lance").to_table(columns=["id", "n"]).to_pylist()
if "n" in sys.argv[2:]:
    assert all(r["n"] == r["id"] % 256 + size for r in got)
"""


@pytest.mark.disk(reason="it measures memory over 300 MB that a server here would hold as well")
@pytest.mark.parametrize("name", ["n", "copy"], ids=["read", "read-and-write"])
def test_blobs_take_gigabytes(tmp_path: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(_BLOBS), str(tmp_path), name],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 900  # MB; when a fragment was held whole: 1,240
