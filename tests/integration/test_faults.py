"""Disks, files, clocks and tables that fail: a clear error, whole versions, and the same command
goes on when the cause is gone, without computing a recorded batch again."""

from __future__ import annotations

import datetime as dt
import errno
import gc
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest

import geneva
from geneva.appliers import units
from geneva.column import pickles
from geneva.column.checkpoint.journal import replay
from geneva.column.checkpoint.key import logs_by_key
from geneva.column.file import ColumnFileName
from geneva.engine.clean import Cleaned, clean
from geneva.errors import (
    CorruptFileError,
    JobCancelledError,
    StorageError,
    TableChangedError,
    TooManyFailuresError,
    UdfFailedError,
)
from geneva.storage import lance as lance_storage
from geneva.storage.lance import TableStorage
from geneva.storage.values import Replacement
from tests.support.backfills import Gate, until
from tests.support.calls import CallLog
from tests.support.crashing import Scene
from tests.support.faults import FaultyStorage
from tests.support.tables import assert_table_invariants, make_table, pairs

pytestmark = pytest.mark.disk(reason="full disks and torn files")

LOCAL: dict[str, Any] = {"executor": "local", "progress": False}
ONE: dict[str, Any] = LOCAL | {"concurrency": 1, "commit_granularity": 1}
RESUME = "run the same command again when the cause is gone"


@pytest.fixture(autouse=True)
def _every_batch_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "_HELD_S", 0.0)


def ours(table: geneva.Table) -> set[str]:
    return {n for n in table.storage.list_files() if ColumnFileName.parse(n) is not None}


def _times(factor: int, x: int) -> int:
    return factor * x


def check_nothing_is_left(table: geneva.Table) -> None:
    """No checkpoint, no file that no version names, no torn write."""
    gc.collect()  # what Lance was writing goes with its writer, which tracebacks hold on to
    found = clean(table.storage, 0)
    assert (found.logs, found.files, found.leftovers) == (0, 0, 0), str(found)


def recorded(table: geneva.Table, data_type: pa.DataType) -> int:
    """Count the rows that checkpoints hold."""
    objects = table.storage.objects
    keys = logs_by_key(objects.list("work"))
    found = [replay(objects, logs, (data_type,), with_failed=False) for logs in keys.values()]
    return sum(len(r.rows) for r in found)


def check_readers_see_whole_fragments(table: geneva.Table, value: Callable[[int], Any]) -> None:
    for fragment in lance.dataset(table.storage.uri).get_fragments():
        rows = fragment.to_table(columns=["x", "y"])
        found, xs = rows["y"].to_pylist(), rows["x"].to_pylist()
        assert found in ([None] * len(xs), [value(x) for x in xs])


# --- full disks -----------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own that can be filled, and made larger or read-only."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this process may not mount a disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True, capture_output=True)


def content(x: int) -> bytes:
    return np.random.default_rng(x).bytes(10_000)


def blobs(calls: CallLog) -> geneva.UDF:
    @geneva.udf
    def blob(x: int) -> bytes:
        calls(x)
        return bytes(np.random.default_rng(x).bytes(10_000))

    return blob


def test_full_disk_is_an_error_and_the_command_goes_on_when_there_is_room(
    small_disk: Path, calls: CallLog
) -> None:
    table = make_table(small_disk, rows=400, fragments=4)
    table.add_columns({"y": blobs(calls)})
    arguments = ONE | {"concurrency": 2, "batch_size": 10}
    for size in ("2m", "3m"):
        remount(small_disk, f"size={size}")
        with pytest.raises(StorageError, match=f"No space left on device.*{RESUME}") as caught:
            table.backfill("y", **arguments)
        assert table.storage.uri in str(caught.value)
        check_readers_see_whole_fragments(table, content)
    del caught  # it holds on to what Lance was writing
    before, committed = len(calls), sum(v is not None for v in pairs(table, "x", "y").values())
    to_compute = 400 - committed - recorded(table, pa.binary())
    assert 0 < to_compute < 400
    remount(small_disk, "size=64m")
    table.backfill("y", **arguments)
    assert pairs(table, "x", "y") == {x: content(x) for x in range(400)}
    assert len(calls) - before == to_compute
    assert len(calls) - 400 <= 2 * 2 * 3 * 10  # failures, appliers, batches in flight of each
    check_nothing_is_left(table)
    assert_table_invariants(table)


_LIMITED = """
import resource, signal, sys
import geneva
from geneva.errors import StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))
try:
    geneva.connect(sys.argv[1]).open_table("t").backfill(
        "y", executor="local", concurrency=1, batch_size=10, progress=False
    )
except StorageError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [300_000, pytest.param(800_000, marks=pytest.mark.crash)])
def test_file_that_may_not_grow_is_an_error_and_its_records_count(
    tmp_path: Path, calls: CallLog, limit: int
) -> None:
    """Below the size of the journal, and between it and that of the column file."""
    table = make_table(tmp_path, rows=100, fragments=1)
    table.add_columns({"y": blobs(calls)})
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(tmp_path), str(limit)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search(f"File too large.*{RESUME}", done.stdout), done.stdout
    before, kept = len(calls), recorded(table, pa.binary())
    assert kept >= 10 * (limit // 110_000)
    table.backfill("y", **ONE, batch_size=10)
    assert len(calls) - before == 100 - kept
    assert pairs(table, "x", "y") == {x: content(x) for x in range(100)}
    check_nothing_is_left(table)


_WRITES = {
    *("put", "create_log", "append", "sync", "create_file", "write", "close"),
    *("sync_files", "before publish", "sync_version"),
}


@dataclass(frozen=True)
class FullDisk(FaultyStorage):
    """Refuses every write from one storage call on."""

    def tick(self, name: str) -> None:
        with open(self.counter, "ab") as f:
            f.write(b".")
        if self.calls >= self.fail_at and name in _WRITES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{self.uri} ({name})")


def backfill_refused(table: geneva.Table, arguments: dict[str, Any]) -> bool:
    """Backfill; return whether that was refused, as it should be."""
    try:
        table.backfill("y", progress=False, **arguments)
    except StorageError as error:
        message = str(error)
    else:
        return False
    assert re.search(f"No space left on device.*{RESUME}", message), message
    return True


def full_disk(tmp_path: Path, step: int) -> int:
    arguments = {"executor": "local", "batch_size": 2, "concurrency": 1, "commit_granularity": 1}
    scene = Scene(tmp_path, 24, 3, 2, arguments).build()
    refused = 0
    for n in range(1, scene.storage_calls() + 1, step):
        scene.reset()
        storage = FullDisk(scene.uri, counter=str(scene.counter), fail_at=n)
        refused += backfill_refused(scene.table(storage), arguments)
        # One applier computes three batches ahead of the one that could not be recorded.
        Scene(tmp_path, 24, 3, 8, arguments).check_finished(deaths=1)
    return refused


def test_write_refused_by_a_full_disk_loses_and_repeats_nothing(tmp_path: Path) -> None:
    assert full_disk(tmp_path, step=11)


@pytest.mark.crash
@pytest.mark.timeout(600)
def test_every_write_refused_by_a_full_disk_loses_and_repeats_nothing(tmp_path: Path) -> None:
    assert full_disk(tmp_path, step=1)


def test_full_disk_stops_the_job_before_other_fragments_are_computed_in_vain(
    tmp_path: Path, calls: CallLog
) -> None:
    table = make_table(tmp_path, rows=200, fragments=20)

    @geneva.udf
    def same(x: int) -> int:
        calls(x)
        return x

    table.add_columns({"y": same})
    storage = FullDisk(table.storage.uri, counter=str(tmp_path / "n"), fail_at=1)
    with pytest.raises(StorageError, match="No space left"):
        geneva.Table(table, storage=storage).backfill("y", **ONE, batch_size=10)
    assert len(calls) <= 10


# --- folders that cannot be written to -----------------------------------------------------------


def test_read_only_table_can_be_planned_and_counted_but_not_written_to(
    small_disk: Path, calls: CallLog
) -> None:
    table = make_table(small_disk, rows=20, fragments=2)
    table.add_columns({"y": blobs(calls)})
    remount(small_disk, "ro")
    assert table.plan_backfill("y").rows_compute == 20
    assert table.coverage("y").totals["missing"] == 20
    for write in (
        lambda: table.backfill("y", **ONE),
        lambda: table.add_columns({"z": blobs(calls)}),
        lambda: table.alter_columns({"path": "y", "udf": blobs(calls)}),
    ):
        with pytest.raises(StorageError, match=f"Read-only file system.*{RESUME}"):
            write()
    computed = len(calls)
    remount(small_disk, "rw")
    table.backfill("y", **ONE)
    assert pairs(table, "x", "y") == {x: content(x) for x in range(20)}
    assert len(calls) <= 20 + computed
    check_nothing_is_left(table)


_FEW_FILES = """
import os, resource, sys
import geneva
from geneva.errors import StorageError
table = geneva.connect(sys.argv[1]).open_table("t")
table.backfill("z", executor="local", progress=False)  # Lance starts its threads, or panics
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
open_now = len(os.listdir("/proc/self/fd"))
for more in range(12):
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + more, hard))
    try:
        table.backfill(
            "y", executor="local", concurrency=1, commit_granularity=1, batch_size=5, progress=False
        )
        break
    except StorageError as error:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert "oo many open files" in str(error), str(error)
        print(more)
"""


def test_too_few_open_files_are_an_error_that_says_so(tmp_path: Path) -> None:
    table = make_table(tmp_path, rows=20, fragments=2)

    @geneva.udf
    def blob(x: int) -> bytes:  # opens no file itself
        return bytes(np.random.default_rng(x).bytes(10_000))

    table.add_columns({"y": blob, "z": blob})
    done = subprocess.run(
        [sys.executable, "-c", _FEW_FILES, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout, "there were always enough"
    table.backfill("y", **ONE)
    assert pairs(table, "x", "y") == {x: content(x) for x in range(20)}


# --- tables that vanish -----------------------------------------------------------------------


def test_column_file_does_not_bring_back_its_table(tmp_path: Path) -> None:
    """However late the table goes: between a look and a write there is always a moment."""
    storage = make_table(tmp_path, rows=10, fragments=1).storage
    folder, schema = Path(storage.uri), pa.schema([("y", pa.int64())])
    snapshot = storage.open()
    early, late = (storage.create_file(snapshot, f"{n}.lance", schema) for n in ("early", "late"))
    for writer in (early, late):
        writer.write(pa.record_batch({"y": [1]}))
    shutil.rmtree(folder / "_versions")  # where removal of a table stands
    with pytest.raises(FileNotFoundError, match=f"table {folder} is gone"):
        early.close({})
    assert [p.name for p in (folder / "data").glob("*.lance") if "early" in p.name] == []
    shutil.rmtree(folder)
    with pytest.raises(OSError, match="late"):
        late.close({})
    (folder / "data").mkdir(parents=True)  # as Lance does for a file that it opens
    with pytest.raises(FileNotFoundError, match=f"table {folder} is gone"):
        storage.create_file(snapshot, "later.lance", schema)
    assert not folder.exists()


@pytest.mark.parametrize("at", [0, 5, 25, 39])
def test_table_that_vanishes_under_a_job_stays_away(tmp_path: Path, at: int) -> None:
    table = make_table(tmp_path, rows=40, fragments=4)
    uri = table.storage.uri

    @geneva.udf
    def drops(x: int) -> int:
        while x == at and os.path.exists(uri):  # the job may write while it is removed
            shutil.rmtree(uri, ignore_errors=True)
        return x

    table.add_columns({"y": drops})
    with pytest.raises(TableChangedError, match=f"table {uri} is gone"):
        table.backfill("y", **ONE, batch_size=5)
    assert not Path(uri).exists(), [str(p) for p in Path(uri).rglob("*")]
    for ask in (table.computed_columns, lambda: table.backfill("y", **ONE)):
        with pytest.raises(TableChangedError, match=f"table {uri} is gone"):
            ask()
    assert not Path(uri).exists()


def test_table_that_lost_its_data_but_not_its_versions_is_called_damaged(tmp_path: Path) -> None:
    table = make_table(tmp_path, rows=40, fragments=4)

    @geneva.udf
    def double(x: int) -> int:
        return 2 * x

    table.add_columns({"y": double})
    shutil.rmtree(table.storage.path / "data")
    with pytest.raises(TableChangedError, match=r"files of version 2 .* are gone"):
        table.backfill("y", **ONE)


# --- damaged files ------------------------------------------------------------------------------


def stopped(path: Path, calls: CallLog, rows: int = 40) -> geneva.Table:
    """Return a table of one fragment of which all rows but the last five are recorded."""
    table = make_table(path, rows=rows, fragments=1)
    broken = path / "broken"
    broken.touch()
    name = str(broken)

    @geneva.udf
    def double(x: int) -> int:
        if x == rows - 5 and os.path.exists(name):
            raise RuntimeError("stop here")
        calls(x)
        return 2 * x

    table.add_columns({"y": double})
    with pytest.raises(UdfFailedError):
        table.backfill("y", **ONE, batch_size=5)
    broken.unlink()
    return table


def test_damaged_byte_of_a_journal_costs_the_batches_behind_it_and_no_wrong_value(
    tmp_path: Path, calls: CallLog
) -> None:
    table = stopped(tmp_path, calls)
    (log,) = table.storage.objects.list("work")
    whole = bytes(table.storage.objects.read_log(log))
    path = table.storage.path / "_backfill" / log
    shutil.copytree(table.storage.uri, tmp_path / "kept")
    frame = len(whole) // 7
    for at in range(3, len(whole), len(whole) // 12):
        shutil.rmtree(table.storage.uri)
        shutil.copytree(tmp_path / "kept", table.storage.uri)
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        calls.clear()
        table.backfill("y", **ONE, batch_size=5)
        assert sorted(int(x) for x in calls.keys) == list(range(at // frame * 5, 40))
        assert pairs(table, "x", "y") == {x: 2 * x for x in range(40)}
        check_nothing_is_left(table)


@dataclass(frozen=True)
class NoCommits(FaultyStorage):
    """Fails at each commit, when the column files are complete."""

    def tick(self, name: str) -> None:
        if name == "before publish":
            raise OSError(errno.EIO, os.strerror(errno.EIO), self.uri)


@pytest.mark.parametrize("keep", [0, 1, 200, -1])
def test_truncated_column_file_is_not_adopted(tmp_path: Path, calls: CallLog, keep: int) -> None:
    table = stopped(tmp_path, calls)
    with pytest.raises(StorageError, match=f"Input/output error.*{RESUME}"):
        geneva.Table(table, storage=NoCommits(table.storage.uri)).backfill("y", **ONE)
    assert len(calls) == 40
    (name,) = ours(table)
    path = table.storage.path / "data" / name
    path.write_bytes(path.read_bytes()[:keep])
    result = table.backfill("y", **ONE)
    assert (len(calls), result.rows_replayed) == (40, 40)
    assert pairs(table, "x", "y") == {x: 2 * x for x in range(40)}
    assert ours(table) > {name}, "nobody may remove a file that another job may have made"
    assert clean(table.storage, 0).files == 1
    check_nothing_is_left(table)


@pytest.mark.parametrize("held_s", [0.0, 60.0])
@pytest.mark.parametrize("resumed", ["fail", "null", "few"])
def test_column_file_that_is_adopted_hides_who_failed(
    tmp_path: Path, calls: CallLog, monkeypatch: pytest.MonkeyPatch, resumed: str, held_s: float
) -> None:
    monkeypatch.setattr(units, "_HELD_S", held_s)
    table = make_table(tmp_path, rows=40, fragments=1)

    @geneva.udf
    def double(x: int) -> int:
        calls(x)
        if x == 3:
            raise ValueError("three")
        return 2 * x

    table.add_columns({"y": double})
    uncommitted = geneva.Table(table, storage=NoCommits(table.storage.uri))
    with pytest.raises(StorageError, match="Input/output error"):
        uncommitted.backfill("y", on_error="null", **ONE)
    if resumed == "fail":
        with pytest.raises(UdfFailedError, match="three"):
            table.backfill("y", **ONE)
        assert calls.counts["3"] == 2
        return
    if resumed == "few":
        with pytest.raises(TooManyFailuresError, match="three"):
            table.backfill("y", on_error="null", max_failures=0, **ONE)
    else:
        result = table.backfill("y", on_error="null", **ONE)
        assert (result.rows_failed, result.failures["message"].to_pylist()) == (1, ["three"])
    assert set(calls.counts.values()) == {1}


def test_truncated_committed_file_is_named_and_can_be_computed_again(
    tmp_path: Path, calls: CallLog
) -> None:
    table = stopped(tmp_path, calls)
    table.backfill("y", **ONE)
    (name,) = ours(table)
    path = table.storage.path / "data" / name
    path.write_bytes(path.read_bytes()[:300])
    assert name in str(table.plan_backfill("y"))
    assert table.backfill("y", where="x >= 0 and x < 20", **ONE).rows_computed == 20
    assert table.backfill("y", **ONE).rows_computed == 20
    assert pairs(table, "x", "y") == {x: 2 * x for x in range(40)}


def test_footer_that_could_not_be_read_once_makes_stale_values_trusted(
    tmp_path: Path, calls: CallLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = stopped(tmp_path, calls)
    table.backfill("y", where="x < 20", **ONE)

    @geneva.udf
    def triple(x: int) -> int:
        return 3 * x

    table.alter_columns({"path": "y", "udf": triple})
    shutil.rmtree(table.storage.path / "_backfill" / "ledger")
    (name,) = ours(table)
    reader = lance_storage.LanceFileReader

    def full(uri: str, **options: Any) -> Any:
        if uri.endswith(name):  # what Lance says when the process has too many files open
            raise OSError(f"Unable to open file {uri}: Too many open files (os error 24), x.rs:1:2")
        return reader(uri, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lance_storage, "LanceFileReader", full)
        with pytest.raises(StorageError, match=f"Too many open files.*{RESUME}"):
            table.backfill("y", **ONE)
    assert table.backfill("y", **ONE).rows_computed == 40
    assert pairs(table, "x", "y") == {x: 3 * x for x in range(40)}


@pytest.mark.parametrize("torn", [b"", b"\0" * 900, None], ids=["empty", "zeros", "half"])
def test_torn_version_is_named_and_the_one_before_it_continues(
    tmp_path: Path, calls: CallLog, torn: bytes | None
) -> None:
    table = stopped(tmp_path, calls)
    table.backfill("y", **ONE)
    newest = min((table.storage.path / "_versions").glob("*.manifest"))
    newest.write_bytes(newest.read_bytes()[:-30] if torn is None else torn)

    def fresh() -> geneva.Table:
        return geneva.connect(str(tmp_path)).open_table("t")

    for ask in (
        lambda: fresh().backfill("y", **ONE),
        lambda: fresh().computed_columns(),
        lambda: clean(table.storage, 0),
    ):
        with pytest.raises(CorruptFileError, match=f"{newest} is incomplete. Move that file away"):
            ask()
    newest.unlink()
    assert fresh().backfill("y", **ONE).rows_computed == 40
    assert pairs(table, "x", "y") == {x: 2 * x for x in range(40)}


def test_torn_older_version_counts_as_one_that_was_cleaned_up(
    tmp_path: Path, calls: CallLog
) -> None:
    table = stopped(tmp_path, calls)
    table.backfill("y", **ONE)
    older = sorted((table.storage.path / "_versions").glob("*.manifest"))[1]
    older.write_bytes(b"")
    with pytest.raises(TableChangedError, match=f"is gone: a power failure tore {older}"):
        table.storage.open(table.storage.open().version - 1)
    with pytest.raises(CorruptFileError, match=f"{older} is incomplete"):
        clean(table.storage, 0)
    assert table.backfill("y", **ONE).rows_computed == 0


# --- clocks -----------------------------------------------------------------------------------


def test_clock_that_jumps_changes_nothing_but_what_clean_takes(
    tmp_path: Path, calls: CallLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance, real = random.Random(1), time.time
    monkeypatch.setattr(time, "time", lambda: real() + chance.uniform(-1, 1) * 3e8)
    table = stopped(tmp_path, calls)
    for path in table.storage.path.rglob("*"):
        when = real() + chance.uniform(-1, 1) * 3e8
        os.utime(path, (when, when))
    result = table.backfill("y", **ONE)
    assert (result.rows_computed, result.rows_replayed) == (40, 35)
    assert calls.counts == {str(x): 1 for x in range(40)}
    assert pairs(table, "x", "y") == {x: 2 * x for x in range(40)}
    check_nothing_is_left(table)


def test_clean_calls_a_table_without_rows_damaged(tmp_path: Path) -> None:
    table = geneva.connect(str(tmp_path)).create_table("t", schema=pa.schema({"x": pa.int64()}))
    assert clean(table.storage, 0) == Cleaned()
    shutil.rmtree(tmp_path / "t.lance")
    with pytest.raises(StorageError, match="No such file"):
        clean(table.storage, 0)


def test_clean_takes_ages_from_the_clock(tmp_path: Path, calls: CallLog) -> None:
    table = stopped(tmp_path, calls)
    (log,) = table.storage.objects.list("work")
    path = table.storage.path / "_backfill" / log
    for age, taken in ((-3600, 0), (3600, 0), (8 * 24 * 3600, 1)):
        os.utime(path, (time.time() - age,) * 2)
        assert clean(table.storage, dry_run=True).logs == taken


# --- clean beside jobs -----------------------------------------------------------------------


def abandoned(table: geneva.Table) -> str:
    """Leave a complete column file that was never committed, and make all of it old."""
    with pytest.raises(StorageError):
        geneva.Table(table, storage=NoCommits(table.storage.uri)).backfill("y", **ONE)
    (name,) = ours(table)
    for path in table.storage.path.rglob("*"):
        os.utime(path, (0, 0))
    return name


@dataclass(frozen=True)
class Cleaner(TableStorage):
    """Has something else happen just before the first checkpoint is removed."""

    meanwhile: Callable[[], Any] = lambda: None

    @property
    def objects(self) -> Any:
        inner = super().objects
        remove, happened = inner.delete, []

        def delete(path: str) -> None:
            if not happened:
                happened.append(self.meanwhile())
            remove(path)

        inner.delete = delete  # type: ignore[method-assign]
        return inner


def test_file_that_is_committed_while_clean_runs_is_removed(tmp_path: Path, calls: CallLog) -> None:
    table = stopped(tmp_path, calls)
    name = abandoned(table)
    cleaner = Cleaner(table.storage.uri, meanwhile=lambda: table.backfill("y", **ONE))
    assert clean(cleaner).files == 0
    assert calls.counts == {str(x): 1 for x in range(40)}
    assert ours(table) == {name}
    assert pairs(table, "x", "y") == {x: 2 * x for x in range(40)}
    assert_table_invariants(table)


def test_work_that_a_job_has_taken_up_is_removed(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=40, fragments=2)
    gate = Gate(tmp_path / "gate")
    gate.open()

    @geneva.udf
    def double(x: int) -> int:
        calls(x)
        gate.wait()
        return 2 * x

    table.add_columns({"y": double})
    name = abandoned(table)
    Path(gate.path).unlink()
    calls.clear()
    job = table.backfill_async("y", **LOCAL, concurrency=1)
    until(lambda: "20" in calls.keys)  # the first fragment is adopted, and not committed
    for age_s in (0, 3600):
        found = clean(table.storage, age_s)
        assert (found.logs, found.files) == (0, 0)
    gate.open()
    assert job.wait(60).rows_replayed == 20
    assert set(calls.keys) == {str(x) for x in range(20, 40)}
    assert name in ours(table)
    check_nothing_is_left(table)


# --- columns that were dropped ---------------------------------------------------------------


def records(table: geneva.Table) -> dict[str, list[str]]:
    """Return what is recorded of columns, by folder."""
    return {f: table.storage.objects.list(f) for f in ("ledger", "force", "udfs")}


def age(table: geneva.Table) -> None:
    for path in table.storage.path.rglob("*"):
        os.utime(path, (0, 0))


@pytest.fixture
def dropped(tmp_path: Path, calls: CallLog) -> geneva.Table:
    """A table with a column y, and one that was filled and dropped; the tag ``had`` has both."""
    table = make_table(tmp_path, rows=40, fragments=2)
    table.add_columns({"y": doubled(calls)})
    table.backfill("y", **ONE)
    table.add_columns({"z": geneva.udf(data_type=pa.int64(), input_columns=["x"])(lambda x: -x)})
    table.backfill("z", **ONE)
    table.backfill("z", force=True, num_frags=1, **ONE)  # not completed: its token stays
    dataset = lance.dataset(table.storage.uri)
    dataset.tags.create("had", dataset.version)
    table.drop_columns(["z"])
    assert {k: len(v) for k, v in records(table).items()} == {"ledger": 2, "force": 1, "udfs": 2}
    return table


def doubled(calls: CallLog) -> geneva.UDF:
    @geneva.udf
    def double(x: int) -> int:
        calls(x)
        return 2 * x

    return double


def forget_old_versions(table: geneva.Table) -> None:
    lance.dataset(table.storage.uri).cleanup_old_versions(
        older_than=dt.timedelta(0), error_if_tagged_old_versions=False
    )


def test_records_of_a_dropped_column_stay_for_ever(dropped: geneva.Table, calls: CallLog) -> None:
    lance.dataset(dropped.storage.uri).tags.delete("had")
    forget_old_versions(dropped)
    assert clean(dropped.storage).records == 0  # too young
    age(dropped)
    before = records(dropped)
    assert clean(dropped.storage, dry_run=True).records == 3
    assert records(dropped) == before
    done = clean(dropped.storage)
    assert done.records == 3
    assert done.record_bytes > 0
    assert {k: len(v) for k, v in records(dropped).items()} == {"ledger": 1, "force": 0, "udfs": 1}
    calls.clear()
    assert dropped.backfill("y", **ONE).rows_computed == 0
    dropped.add([{"x": 99, "s": "new"}])
    assert dropped.backfill("y", **ONE).rows_computed == 1
    assert calls.keys == ["99"]


def test_tag_of_a_version_that_has_a_dropped_column_loses_its_udf(dropped: geneva.Table) -> None:
    forget_old_versions(dropped)
    age(dropped)
    before = records(dropped)
    for seconds in (0, 3600):
        assert clean(dropped.storage, seconds).records == 0
    assert records(dropped) == before
    lance.dataset(dropped.storage.uri, version="had").restore()
    table = geneva.connect(dropped.storage.path.parent).open_table("t")
    assert table.backfill("z", **ONE).rows_computed == 0
    table.add([{"x": 99, "s": "new"}])
    assert table.backfill("z", **ONE).rows_computed == 1
    assert pairs(table, "x", "z")[99] == -99
    assert_table_invariants(table)


def test_udf_that_is_about_to_be_bound_is_removed(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=4, fragments=1)
    sha = pickles.store(table.storage, doubled(calls))
    assert clean(table.storage, 0).records == 0
    assert records(table)["udfs"] == [f"udfs/{sha}"]
    age(table)
    assert clean(table.storage, 0).records == 1
    assert records(table)["udfs"] == []


@dataclass(frozen=True)
class Looked(TableStorage):
    """Has something else happen each time that clean looks what versions there are."""

    meanwhile: Callable[[], Any] = lambda: None

    def open(self, version: int | None = None) -> Any:
        snapshot = super().open(version)
        self.meanwhile()
        return snapshot


@pytest.mark.parametrize("whole", [True, False])
def test_udf_that_is_bound_again_while_clean_runs_is_removed(
    tmp_path: Path, calls: CallLog, whole: bool
) -> None:
    table = make_table(tmp_path, rows=4, fragments=1)
    udf = doubled(calls)
    pickles.store(table.storage, udf)
    age(table)
    looks = []

    def bind() -> None:
        looks.append(1)
        if len(looks) == 2:  # after the versions were listed for the last time
            if whole:
                table.add_columns({"y": udf})
            else:
                pickles.store(table.storage, udf)

    assert clean(Looked(table.storage.uri, meanwhile=bind), 0).records == 0
    assert len(looks) == 2
    if not whole:
        table.add_columns({"y": udf})
    assert table.backfill("y", **ONE).rows_computed == 4


def test_file_of_one_column_that_is_committed_as_another(tmp_path: Path) -> None:
    table = make_table(tmp_path, rows=10, fragments=1)
    for name, factor in (("a", 2), ("b", 3)):
        table.add_columns({name: geneva.udf(partial(_times, factor), name=name, version="1")})
    table.backfill("b", **LOCAL)
    storage, snapshot = table.storage, table.storage.open()
    (name,) = ours(table)
    with pytest.raises(CorruptFileError, match=f"{name} is of fields"):
        storage.publish(snapshot, [Replacement(0, name)], ["a"])
    assert storage.open().version == snapshot.version
    assert pairs(table, "x", "a") == dict.fromkeys(range(10))


# --- what a job leaves -----------------------------------------------------------------------


def test_job_that_is_cancelled_after_a_compaction_hands_on_what_it_computed(
    tmp_path: Path, calls: CallLog
) -> None:
    table = make_table(tmp_path, rows=40, fragments=4)
    uri, gate = table.storage.uri, Gate(tmp_path / "gate")

    @geneva.udf
    def double(x: int) -> int:
        calls(x)
        if x == 39:
            gate.wait()
        return 2 * x

    table.add_columns({"y": double})
    job = table.backfill_async("y", **LOCAL, concurrency=1, batch_size=10)
    until(lambda: "39" in calls.keys)
    lance.dataset(uri).optimize.compact_files(target_rows_per_fragment=1000)
    job.cancel()
    gate.open()
    with pytest.raises(JobCancelledError):
        job.wait(60)
    assert table.backfill("y", **LOCAL).rows_computed == 40
    assert pairs(table, "x", "y") == {x: 2 * x for x in range(40)}
    assert set(calls.counts.values()) == {1}
    check_nothing_is_left(table)
