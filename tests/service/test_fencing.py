"""A driver that was given up for dead publishes nothing, whenever it wakes up."""

from __future__ import annotations

import threading
from pathlib import Path

import lance
import pytest
from sqlalchemy import text

import geneva
from geneva.engine.control import Control, Wanted
from geneva.engine.process import ProcessId, this_process
from geneva.errors import LeaseLostError, ServiceError, SettingError
from geneva.jobs.page import Wish
from geneva.jobs.records import Submission
from geneva.jobs.store import store_recorder as recording
from geneva.jobs.store.database import Database
from geneva.jobs.store.leases import Leases
from geneva.jobs.store.opening import open_store
from geneva.jobs.store.queue import claim
from geneva.jobs.store.store_recorder import StoreRecorder
from geneva.model.rows import RowClass, RowStatus
from geneva.model.types import JobState, Progress, Task
from geneva.service import driver
from geneva.service.opened_tables import Databases
from tests.service.conftest import Scene
from tests.support.backfills import until
from tests.support.tables import assert_table_invariants

ASKED = Submission(db="db", table="t", columns=("y",))
CLASS = RowClass(RowStatus.COMPUTED)
TASK = Task("key", 1, 0, 1, 0, 0, 1, (), None, None, None, CLASS)
ELSEWHERE = ProcessId("elsewhere", "another-boot", 1, "then")


def give_up_and_start_again(url: str) -> None:
    """Do what a scheduler does with a driver that it takes for dead."""
    with Database(url).write() as session:
        session.execute(text("UPDATE jobs SET epoch = epoch + 1, rows_computed = -7"))


def test_driver_whose_job_was_given_to_another_publishes_nothing(scene: Scene, tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    table = geneva.connect(str(scene.path), jobs=url).open_table("t")
    before = lance.dataset(table.storage.uri).version
    options = {"commit_granularity": 64, "concurrency": 1, "batch_size": 1}
    job = table.backfill_async("y", executor="local", progress=False, **options)
    until(lambda: len(scene.calls) == 25)  # two fragments are finished, none is committed
    store = open_store(url)
    until(lambda: store.jobs(Wish()).items[0].state is JobState.RUNNING)
    give_up_and_start_again(url)
    scene.gate.open()
    with pytest.raises(LeaseLostError, match="epoch 1"):
        job.wait(60)
    assert lance.dataset(table.storage.uri).version == before
    [record] = store.jobs(Wish()).items
    assert (record.state, record.rows_computed) == (JobState.RUNNING, -7)
    scene.calls.clear()
    result = scene.table.backfill("y", executor="local", progress=False)
    assert result.rows_computed == 40
    assert len(scene.calls) <= 15  # what the other one checkpointed is adopted, not computed
    assert_table_invariants(scene.table, {"y": lambda row: 2 * row["x"]})


def test_publication_waits_for_a_database_that_is_away_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    store = open_store(url)
    claim = store.begin_direct(ASKED, "t", ["y"], ELSEWHERE, 30, "job")
    monkeypatch.setattr(recording, "BEAT_S", 0.01)
    faults = iter([ServiceError("away"), ServiceError("away"), None])

    class Away(Leases):
        def check(self, claim: object) -> None:
            if (fault := next(faults)) is not None:
                raise fault

    recorder = StoreRecorder(store, claim, scheduled=True)
    recorder._leases = Away(store.database)
    recorder.may_publish()
    assert next(faults, "none left") == "none left"


def test_lease_of_a_driver_that_loads_its_udf_for_long_is_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = open_store(f"sqlite:///{tmp_path / 'jobs.db'}")
    leases = Leases(store.database)
    run = store.submit(ASKED, "t", ["y"])
    [claimed] = claim(store.database, this_process())
    job = leases.attach(claimed, this_process(), 0.0)

    def load(*_: object) -> None:
        until(lambda: not leases.held()[0].expired)
        until(lambda: "loading" in store.run(run.id).reason)
        raise SettingError("there is no such table")

    monkeypatch.setattr(Databases, "table", load)
    recorder = StoreRecorder(store, claimed, scheduled=True)
    assert driver._drive(recorder, job, Databases(())) == 1
    assert store.run(run.id).state is JobState.FAILED


def test_driver_leaves_at_once_only_before_its_first_task(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    store = open_store(url)
    for first in (None, TASK):
        job_id = f"job-{first is None}"
        claim = store.begin_direct(ASKED, "t", ["y"], ELSEWHERE, 30, job_id)
        left = threading.Event()
        recorder = StoreRecorder(store, claim, scheduled=True, leave=left.set)
        control = Control(job_id, ("y",), None, recorder)
        if first is not None:
            recorder.began(first)
        store.want_job(job_id, Wanted.PAUSE)
        recorder.start(control)
        until(lambda control=control: control.wanted is Wanted.CANCEL)
        recorder.close()
        assert left.is_set() == (first is None)


def test_lost_lease_stops_the_driver_at_its_next_beat(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    store = open_store(url)
    claim = store.begin_direct(ASKED, "t", ["y"], ELSEWHERE, 30, "job")
    recorder = StoreRecorder(store, claim, scheduled=True)
    control = Control("job", ("y",), None, recorder)
    recorder.start(control)
    give_up_and_start_again(url)
    recorder.observe(Progress("job", ("y",), JobState.RUNNING))
    until(lambda: recorder.lost)
    assert control.wanted == "cancel"
    recorder.close()
