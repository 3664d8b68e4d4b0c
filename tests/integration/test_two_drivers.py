"""Several drivers fill one column at once: each fragment is computed by one, and none hangs."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import geneva
from geneva.engine.claims import FOLDER, Claim
from geneva.engine.clean import clean
from geneva.engine.process import ProcessId, this_process
from geneva.errors import JobCancelledError, JobTimeoutError
from geneva.model.types import JobState, Progress
from geneva.storage.lance import Snapshot, TableStorage
from tests.support.backfills import Gate, times, until, xs
from tests.support.calls import CallLog
from tests.support.crashing import Scene, kill
from tests.support.tables import assert_table_invariants, column, make_table, pairs
from tests.support.writers import Once, unaware

BATCH, APPLIERS = 5, 2
ELSEWHERE = ProcessId("elsewhere", "another-boot", 1, "1")
DOUBLED = {"y": lambda row: 2 * row["x"]}


def scene(path: Path, fragments: int, drivers: int, pause_s: float = 0.02) -> Scene:
    arguments = {"executor": "local", "batch_size": BATCH, "concurrency": APPLIERS}
    made = Scene(path, 10 * fragments, fragments, BATCH * APPLIERS, arguments)
    return made.build(pause_s, together=drivers)


def complete(stage: Scene) -> bool:
    return pairs(stage.table(), "x", "y") == {i: 2 * i for i in range(stage.rows)}


def claims(storage: TableStorage) -> list[str]:
    return storage.objects.list(FOLDER)


def put_claim(table: geneva.Table, claim: Claim) -> str:
    incarnation = table.computed_columns()["y"].incarnation
    path = f"{FOLDER}/{incarnation}/other.json"
    table.storage.objects.put(path, claim.dumps())
    return path


def other(fragments: list[int], process: ProcessId = ELSEWHERE, lease_s: float = 3600.0) -> Claim:
    return Claim("otherjob", process, lease_s, 0, frozenset(fragments), frozenset())


@pytest.fixture
def table(tmp_path: Path, calls: CallLog) -> geneva.Table:
    """Four fragments of ten rows; y = 2 x is to be computed."""
    made = make_table(tmp_path, rows=40, fragments=4)
    made.add_columns({"y": times(calls)})
    return made


def backfill(table: geneva.Table, **options: Any) -> geneva.BackfillResult:
    return table.backfill("y", **{"executor": "local", "concurrency": 1} | options)


# --- processes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "drivers",
    [2, pytest.param(3, marks=pytest.mark.crash), pytest.param(4, marks=pytest.mark.crash)],
)
def test_drivers_started_at_once_compute_rows_twice(tmp_path: Path, drivers: int) -> None:
    # No call ends before all have made one, so this also shows that each gets something to do.
    stage = scene(tmp_path, fragments=20, drivers=drivers)
    children = [stage.start_child() for _ in range(drivers)]
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0] * drivers
    assert complete(stage)
    assert set(stage.calls.counts.values()) == {1}
    assert claims(stage.storage) == []
    stage.check_finished(deaths=0)


def test_fragments_of_a_killed_driver_are_lost_or_computed_from_the_start(tmp_path: Path) -> None:
    stage = scene(tmp_path, fragments=20, drivers=2, pause_s=0.1)
    dying, living = stage.start_child(), stage.start_child()
    stage.wait_for_calls(stage.rows // 2)
    kill(dying)
    living.join(120)
    assert living.exitcode == 0
    assert complete(stage)  # by the one that lived, before anybody ran a third one
    assert claims(stage.storage) == []
    stage.check_finished(deaths=1)


@pytest.mark.crash
@pytest.mark.parametrize("seed", range(6))
def test_random_deaths_among_drivers_stop_the_others_or_repeat_work(
    tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    stage = scene(tmp_path, fragments=24, drivers=1, pause_s=0.05)
    children = [stage.start_child() for _ in range(4)]
    for child in chance.sample(children, 3):
        stage.wait_for_calls(chance.randrange(stage.rows * 3 // 4))
        kill(child)
    for child in children:
        child.join(120)
    assert sorted(child.exitcode for child in children)[-1] == 0
    assert complete(stage)
    assert claims(stage.storage) == []
    stage.check_finished(deaths=3)


def test_stopped_driver_holds_its_fragments_for_ever(tmp_path: Path) -> None:
    stage = scene(tmp_path, fragments=12, drivers=2, pause_s=0.1)
    stopped, living = stage.start_child(), stage.start_child()
    stage.wait_for_calls(stage.rows // 4)
    os.kill(stopped.pid, signal.SIGSTOP)
    try:
        shorten_lease(stage, stopped.pid)
        living.join(120)
        assert living.exitcode == 0
        assert complete(stage)
    finally:
        os.kill(stopped.pid, signal.SIGCONT)
    stopped.join(120)
    assert stopped.exitcode == 0  # it finds its work done when it wakes
    assert claims(stage.storage) == []
    # What it had begun goes on beside the other one: up to a fragment for each of its appliers.
    replace(stage, in_flight=APPLIERS * 10).check_finished(deaths=1)


def shorten_lease(stage: Scene, pid: int) -> None:
    """Rewrite a stopped driver's claim, so that a test need not wait for a real lease."""
    objects = stage.storage.objects
    for path in claims(stage.storage):
        claim = Claim.loads(objects.get(path))
        if claim is not None and claim.process.pid == pid:
            objects.put(path, replace(claim, lease_s=0.5).dumps())
            return
    raise AssertionError(f"process {pid} has no claim")


# --- claims of drivers that are gone ------------------------------------------------------


def ended_process() -> ProcessId:
    code = "from geneva.engine.process import this_process as t; import dataclasses, json;"
    code += "print(json.dumps(dataclasses.asdict(t())))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return ProcessId(**json.loads(done.stdout))


@pytest.mark.parametrize(
    "who", [ended_process, lambda: replace(this_process(), started="1")], ids=["ended", "reused"]
)
def test_claim_of_an_ended_process_of_this_host_is_waited_for(
    table: geneva.Table, who: Callable[[], ProcessId]
) -> None:
    put_claim(table, other([0, 1, 2, 3], who()))
    assert backfill(table, timeout=30).rows_computed == 40
    assert claims(table.storage) == []


def test_claim_of_another_host_outlives_its_lease(table: geneva.Table) -> None:
    put_claim(table, other([0, 1, 2, 3], lease_s=0.5))
    told: list[Progress] = []
    result = backfill(table, progress=told.append, timeout=30)
    assert result.rows_computed == 40
    assert claims(table.storage) == []
    assert "other backfills of the column" in str(result)
    reasons = {p.reason for p in told}
    waited = "waiting for 4 fragments that are computed by job otherjob (process 1 on elsewhere)"
    assert waited in reasons


def test_damaged_claim_stops_a_backfill(table: geneva.Table) -> None:
    path = put_claim(table, other([0]))
    for content in (b"", b"{", b"[]", b'{"job_id": 1}'):
        table.storage.objects.put(path, content)
        backfill(table, num_frags=1, timeout=30)
    assert column(table, "y") == [2 * x for x in range(40)]


@pytest.mark.disk(reason="a store's client does not tell the age of an object")
def test_clean_leaves_claims_of_dead_drivers(table: geneva.Table) -> None:
    path = put_claim(table, other([0]))
    assert clean(table.storage).leftovers == 0
    assert claims(table.storage) == [path]
    os.utime(table.storage.path / "_backfill" / path, (0, 0))
    assert clean(table.storage).leftovers == 1
    assert claims(table.storage) == []


# --- claims of drivers that live ----------------------------------------------------------


def test_wait_for_another_driver_ignores_the_timeout(table: geneva.Table, calls: CallLog) -> None:
    path = put_claim(table, other([1]))
    with pytest.raises(JobTimeoutError):
        backfill(table, timeout=5)
    assert xs(calls) == [*range(10), *range(20, 40)]
    assert column(table, "y").count(None) == 10  # the rest is committed
    table.storage.objects.delete(path)
    backfill(table)
    assert xs(calls) == list(range(10, 20))
    assert_table_invariants(table, DOUBLED)


def test_wait_for_another_driver_cannot_be_steered(table: geneva.Table, calls: CallLog) -> None:
    path = put_claim(table, other([0, 1, 2, 3]))
    job = table.backfill_async("y", executor="local", concurrency=1)
    until(lambda: "otherjob" in job.progress().reason)
    job.pause()
    until(lambda: job.state is JobState.PAUSED)
    assert claims(table.storage) == [path]
    job.resume()
    until(lambda: "otherjob" in job.progress().reason)
    job.cancel()
    with pytest.raises(JobCancelledError):
        job.wait(30)
    assert len(calls) == 0
    assert claims(table.storage) == [path]


@dataclass(frozen=True)
class LateStorage(TableStorage):
    """Lets somebody act after the driver has planned and claimed, before it begins."""

    meddle: Once | None = None

    def is_latest(self, snapshot: Snapshot) -> bool:
        assert self.meddle is not None
        self.meddle()
        return super().is_latest(snapshot)


def test_what_was_filled_between_plan_and_claim_is_computed_again(
    table: geneva.Table, calls: CallLog, tmp_path: Path
) -> None:
    uri = table.storage.uri
    fill = Once(uri, str(tmp_path / "filled"), lambda uri: backfill(unaware(uri), num_frags=3))
    late = geneva.Table(table, storage=LateStorage(uri, meddle=fill))
    assert backfill(late, timeout=30).rows_computed == 10
    assert xs(calls) == list(range(40))
    assert_table_invariants(table, DOUBLED)


def test_num_frags_counts_fragments_of_other_drivers(table: geneva.Table, calls: CallLog) -> None:
    put_claim(table, other([0, 1]))
    result = backfill(table, num_frags=2, timeout=30)
    assert (result.fragments_committed, result.fragments_left) == (2, 2)
    assert xs(calls) == list(range(20, 40))


def test_paused_job_keeps_its_fragments_from_others(tmp_path: Path, calls: CallLog) -> None:
    gate = Gate(tmp_path / "gate")

    @geneva.udf(batch_size=1)
    def double(x: int) -> int:
        calls(x)
        if x == 5:
            gate.wait()
        return 2 * x

    table = make_table(tmp_path, rows=40, fragments=4)
    table.add_columns({"y": double})
    job = table.backfill_async("y", executor="local", concurrency=1)
    until(lambda: len(calls) == 6)
    job.pause()
    gate.open()
    until(lambda: job.state is JobState.PAUSED)
    backfill(table, timeout=30)
    job.resume()
    assert job.wait(30).state is JobState.SUCCEEDED
    assert xs(calls) == list(range(40))
    assert column(table, "y") == [2 * x for x in range(40)]


def test_filters_at_once_overwrite_each_others_rows(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=40, fragments=4)
    table.add_columns({"y": times(calls)})
    jobs = [
        table.backfill_async("y", where=f"x % 2 = {k}", executor="local", concurrency=1)
        for k in range(2)
    ]
    assert [job.wait(60).rows_computed for job in jobs] == [20, 20]
    assert xs(calls) == list(range(40))
    assert column(table, "y") == [2 * x for x in range(40)]
    assert backfill(table).rows_computed == 0
    assert_table_invariants(table, DOUBLED)


@pytest.mark.ray
def test_drivers_on_ray_compute_rows_twice(
    tmp_path: Path, calls: CallLog, ray_cluster: None
) -> None:
    table = make_table(tmp_path, rows=80, fragments=8)
    table.add_columns({"y": times(calls)})
    jobs = [table.backfill_async("y", executor="ray", concurrency=2) for _ in range(2)]
    assert sum(job.wait(120).rows_computed for job in jobs) == 80
    assert xs(calls) == list(range(80))
    assert_table_invariants(table, DOUBLED)
