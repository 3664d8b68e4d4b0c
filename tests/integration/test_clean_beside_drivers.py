"""Cleanups without a minimum age beside drivers: what a live driver needs stays, all else goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

import geneva
from geneva.column.file import ColumnFileName
from geneva.engine import claims, presence
from geneva.engine.clean import clean
from geneva.engine.process import ProcessId, this_process
from geneva.errors import UdfFailedError
from geneva.model.types import JobState
from geneva.storage.lance import Snapshot, TableStorage
from tests.support.backfills import CPUS, Gate, until
from tests.support.calls import CallLog
from tests.support.crashing import Scene, kill
from tests.support.tables import assert_table_invariants, make_table, pairs

pytestmark = pytest.mark.disk(reason="the other process is given a path")

ONE_BY_ONE: dict[str, Any] = {"batch_size": 1, "commit_granularity": 1}
_CLEANER = """
import os, sys
from geneva.engine.clean import clean
from geneva.storage.lance import TableStorage
while os.getppid() == int(sys.argv[3]):
    try:
        said = str(clean(TableStorage(sys.argv[1]), 0))
    except Exception as error:
        said = f"error: {error!r}"
    with open(sys.argv[2], "a") as told:
        print(said, file=told)
"""


@contextmanager
def cleaned(table: geneva.Table, path: Path) -> Iterator[Callable[[], int]]:
    """Let another process clean without a pause; yield what counts its rounds."""
    told = path / "cleanups"
    told.touch()

    def rounds() -> int:
        return len(told.read_text().splitlines())

    arguments = [table.storage.uri, str(told), str(os.getpid())]
    cleaner = subprocess.Popen([sys.executable, "-c", _CLEANER, *arguments])
    try:
        until(lambda: rounds() > 0 or cleaner.poll() is not None)
        yield rounds
    finally:
        cleaner.kill()
        cleaner.wait()
    assert rounds() > 3
    assert "error" not in told.read_text()


def doubling(calls: CallLog, name: str = "", seconds: float = 0.03) -> geneva.UDF:
    @geneva.udf(num_cpus=CPUS, name=f"doubling{name}")
    def double(x: int) -> int:
        import time

        calls(f"{name}{x}")
        time.sleep(seconds)
        return 2 * x

    return double


def check(table: geneva.Table, column: str, rows: int) -> None:
    assert pairs(table, "x", column) == {x: 2 * x for x in range(rows)}
    assert_table_invariants(table)


def test_every_call_of_a_driver_is_made_once_beside_cleanups(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = make_table(tmp_path, rows=60, fragments=6)
    table.add_columns({"y": doubling(calls)})
    with cleaned(table, tmp_path):
        result = table.backfill("y", executor=executor, concurrency=2, **ONE_BY_ONE)
    assert result.state is JobState.SUCCEEDED
    assert calls.counts == {str(x): 1 for x in range(60)}
    check(table, "y", 60)


def test_drivers_of_other_processes_share_a_column_beside_cleanups(tmp_path: Path) -> None:
    arguments = {"executor": "local", "batch_size": 5, "concurrency": 1, "commit_granularity": 1}
    stage = Scene(tmp_path / "scene", 80, 8, 5, arguments).build(0.1, together=2)
    with cleaned(stage.table(), tmp_path):
        drivers = [stage.start_child() for _ in range(2)]
        try:
            for driver in drivers:
                driver.join(120)
            assert [d.exitcode for d in drivers] == [0, 0]
        finally:
            for driver in drivers:
                kill(driver)
    assert stage.calls.counts == {str(x): 1 for x in range(80)}
    check(stage.table(), "y", 80)


def test_checkpoints_of_a_paused_job_outlive_cleanups(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=40, fragments=2)
    table.add_columns({"y": doubling(calls)})
    with cleaned(table, tmp_path) as rounds:
        job = table.backfill_async("y", executor="local", concurrency=1, **ONE_BY_ONE)
        until(lambda: len(calls) >= 10)
        job.pause()
        until(lambda: job.state is JobState.PAUSED)
        before = rounds()
        until(lambda: rounds() >= before + 3)
        job.resume()
        assert job.wait(60).state is JobState.SUCCEEDED
    assert calls.counts == {str(x): 1 for x in range(40)}
    check(table, "y", 40)


def test_checkpoints_of_columns_that_share_a_read_outlive_cleanups(
    tmp_path: Path, calls: CallLog
) -> None:
    table = make_table(tmp_path, rows=30, fragments=3)
    table.add_columns({n: doubling(calls, n) for n in "abc"})
    with cleaned(table, tmp_path):
        table.backfill(["a", "b", "c"], executor="local", concurrency=1, **ONE_BY_ONE)
    assert calls.counts == {f"{n}{x}": 1 for n in "abc" for x in range(30)}
    for name in "abc":
        check(table, name, 30)


# --- drivers that begin while a cleanup is under way -----------------------------------------


@dataclass(frozen=True)
class Slow(TableStorage):
    """Has something happen before a version is looked at, once."""

    meanwhile: Callable[[], Any] = lambda: None
    happened: list[Any] = field(default_factory=list, compare=False)

    def open(self, version: int | None = None) -> Snapshot:
        if not self.happened:
            self.happened.append(None)
            self.meanwhile()
        return TableStorage(self.uri).open(version)


def test_driver_that_begins_during_a_cleanup_keeps_its_claim_and_its_checkpoints(
    tmp_path: Path, calls: CallLog
) -> None:
    table = make_table(tmp_path, rows=40, fragments=2)
    mended, gate = Gate(tmp_path / "mended"), Gate(tmp_path / "gate")
    resumed = Gate(tmp_path / "resumed")

    @geneva.udf
    def double(x: int) -> int:
        if x == 15:
            if not mended.is_open:
                raise ValueError("not yet")
            resumed.open()
            gate.wait()
        calls(x)
        return 2 * x

    table.add_columns({"y": double})
    options: dict[str, Any] = {"executor": "local", "concurrency": 1, "batch_size": 1}
    with pytest.raises(UdfFailedError):
        table.backfill("y", **options)
    assert calls.counts.keys() >= {str(x) for x in range(15)}
    mended.open()
    orphan = ColumnFileName("0" * 8, "0" * 16, True, 1).text()
    (table.storage.path / "data" / orphan).write_bytes(b"of a job that is gone")
    jobs = []

    def begin() -> None:
        jobs.append(table.backfill_async("y", **options))
        until(lambda: resumed.is_open)

    try:
        found = clean(Slow(table.storage.uri, meanwhile=begin), 0)
        assert (found.logs, found.files, found.leftovers) == (0, 1, 0)
        assert len(table.storage.objects.list(claims.FOLDER)) == 1
    finally:
        gate.open()
    assert jobs[0].wait(60).state is JobState.SUCCEEDED
    assert calls.counts == {str(x): 1 for x in range(40)}
    check(table, "y", 40)


# --- who is at work --------------------------------------------------------------------------


def put_presence(table: geneva.Table, process: ProcessId, at_s: float) -> None:
    columns = [table.computed_columns()["y"].incarnation]
    body = {"process": asdict(process), "columns": columns, "at_s": at_s}
    table.storage.objects.put(f"{presence.FOLDER}/1.json", json.dumps(body).encode())


def put_log(table: geneva.Table) -> Path:
    log = f"work/{table.computed_columns()['y'].incarnation}/0123.abcd.log"
    table.storage.objects.put(log, b"GVJ1")
    return table.storage.path / "_backfill" / log


@pytest.mark.parametrize(
    ("where", "silent_s", "stays"),
    [("here", 0, True), ("here", 7200, True), ("elsewhere", 600, True), ("elsewhere", 7200, False)],
)
def test_process_counts_as_alive_while_it_is_there_or_spoke_within_the_hour(
    tmp_path: Path, calls: CallLog, where: str, silent_s: float, stays: bool
) -> None:
    table = make_table(tmp_path, rows=4, fragments=1)
    table.add_columns({"y": doubling(calls)})
    log, torn = put_log(table), table.storage.path / "data" / ".tmp_half.lance"
    torn.write_bytes(b"half")
    there = this_process() if where == "here" else ProcessId("x", "another-boot", 1, "1")
    put_presence(table, there, time.time() - silent_s)
    clean(table.storage, 0)
    kept = bool(table.storage.objects.list(presence.FOLDER))
    assert (log.exists(), torn.exists(), kept) == (stays, stays, stays)


def test_call_that_ended_or_was_killed_protects_nothing(tmp_path: Path) -> None:
    arguments = {"executor": "local", "batch_size": 5, "concurrency": 1}
    stage = Scene(tmp_path / "scene", 40, 2, 5, arguments).build(0.1)
    driver = stage.start_child()
    stage.wait_for_calls(15)
    assert clean(stage.storage, 0).logs == 0
    kill(driver)
    assert clean(stage.storage, 0).logs > 0
    assert stage.storage.objects.list(presence.FOLDER) == []
    assert stage.storage.objects.list(claims.FOLDER) == []
    stage.backfill()
    assert stage.storage.objects.list(presence.FOLDER) == []


def test_small_file_that_is_being_written_is_not_torn_within_the_hour(tmp_path: Path) -> None:
    table = make_table(tmp_path, rows=4, fragments=1)
    half = table.storage.path / "_backfill" / "ledger" / ".tmp-x"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"{")
    assert clean(table.storage, 0).leftovers == 0
    os.utime(half, (time.time() - 7200,) * 2)
    assert clean(table.storage, 0).leftovers == 1
    assert not half.exists()
