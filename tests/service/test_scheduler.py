"""What a scheduler does beside starting drivers: it deletes old records, and ends what is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from geneva.engine.control import Wanted
from geneva.engine.process import identify, this_process
from geneva.errors import JobStateError, LeaseLostError
from geneva.jobs.records import Submission
from geneva.jobs.store.leases import Held, Leases
from geneva.jobs.store.queue import QueueClaim, claim
from geneva.jobs.store.store import Store
from geneva.model.types import JobState, Progress
from geneva.service.scheduler import Scheduler
from geneva.service.service_settings import DRIVER_CLAIM, Settings
from tests.support.backfills import until

ASKED = Submission(db="db", table="t", columns=("y",))


def settings(jobs: Store, tmp_path: Path, **more: Any) -> Settings:
    return Settings(jobs.database.url, tmp_path / "state", **more)


def test_records_and_logs_of_old_runs_are_deleted_now_and_then(jobs: Store, tmp_path: Path):
    chosen = settings(jobs, tmp_path, keep_s=-1)
    jobs.submit(ASKED, "db/t.lance", ["y"])
    [claimed] = claim(jobs.database, this_process())
    log = chosen.logs / claimed.job_id / "1.log"
    log.parent.mkdir(parents=True)
    log.touch()
    scheduler = Scheduler(chosen)
    scheduler._forget()
    assert log.exists()  # it has not ended
    nothing = Progress(claimed.job_id, (), JobState.RUNNING)
    Leases(jobs.database).finish(claimed, nothing, JobState.SUCCEEDED)
    scheduler._forget()
    assert log.exists()  # it was done a moment ago
    scheduler._forget_at = 0.0
    scheduler._forget()
    assert not log.parent.exists()
    assert jobs.counts()[0] == {}


def test_logs_of_runs_that_another_host_has_forgotten_stay(jobs: Store, tmp_path: Path):
    chosen = settings(jobs, tmp_path, keep_s=3600)
    known = jobs.submit(ASKED, "db/t.lance", ["y"]).jobs[0].id
    for name in (known, "forgotten", "young"):
        (chosen.logs / name).mkdir(parents=True)
        if name != "young":
            os.utime(chosen.logs / name, (0, 0))
    Scheduler(chosen)._forget()
    assert {p.name for p in chosen.logs.iterdir()} == {known, "young"}


def test_job_is_not_given_back_while_processes_of_its_driver_live(jobs: Store, tmp_path: Path):
    jobs.submit(ASKED, "db/t.lance", ["y"])
    ended = subprocess.Popen([sys.executable, "-c", ""])
    gone = identify(ended.pid)
    [claimed] = claim(jobs.database, gone)
    mark = {DRIVER_CLAIM: f"{claimed.job_id}:{claimed.epoch}"}
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    worker = subprocess.Popen(command, env=os.environ | mark)
    other = subprocess.Popen(command, env=os.environ | {DRIVER_CLAIM: f"{claimed.job_id}:7"})
    try:
        ended.wait()
        scheduler = Scheduler(settings(jobs, tmp_path))
        [held] = Leases(jobs.database).held()
        assert held.owner.gone
        scheduler._bury(held, "it is gone")
        assert jobs.job(claimed.job_id).state == JobState.STARTING
        until(lambda: worker.poll() is not None)
        scheduler._bury(held, "it is gone")
        assert jobs.job(claimed.job_id).state == JobState.QUEUED
        assert other.poll() is None
    finally:
        for process in (worker, other):
            process.kill()
            process.wait()


def test_scheduler_that_starts_no_driver_is_not_killed_by_another(jobs: Store, tmp_path: Path):
    """Its claim is its own: it is no driver that does not stop."""
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    other = subprocess.Popen(command, start_new_session=True)
    try:
        run = jobs.submit(ASKED, "db/t.lance", ["y"])
        [claimed] = claim(jobs.database, identify(other.pid))
        jobs.want(run.id, Wanted.CANCEL)
        with jobs.database.write() as session:
            session.execute(text("UPDATE jobs SET stop_asked_s = 1"))
        Scheduler(settings(jobs, tmp_path)).tick()
        assert jobs.run(run.id).state is JobState.CANCELLED
        with pytest.raises(LeaseLostError):
            Leases(jobs.database).attach(claimed, this_process(), 30)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_job_that_cannot_be_looked_at_keeps_no_other_waiting(
    jobs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    gone = identify(ended.pid)
    bad, good = (jobs.submit(ASKED, f"db/t{k}.lance", ["y"]) for k in range(2))
    assert len(claim(jobs.database, gone)) == 2
    ended.wait()
    scheduler = Scheduler(settings(jobs, tmp_path))
    bury = scheduler._leases.bury

    def broken(job: Held, how: str) -> JobState | None:
        if job.job_id == bad.jobs[0].id:
            raise JobStateError("it cannot be buried")
        return bury(job, how)

    monkeypatch.setattr(scheduler._leases, "bury", broken)
    scheduler.tick()
    assert jobs.run(good.id).state is JobState.QUEUED


def test_job_whose_driver_could_not_be_started_is_queued_again(jobs: Store, tmp_path: Path):
    run = jobs.submit(ASKED, "db/t.lance", ["y"])
    chosen = settings(jobs, tmp_path)
    chosen.state.mkdir()
    chosen.logs.touch()  # no folder for its log can be made there
    scheduler = Scheduler(chosen)
    scheduler.tick()
    [held] = Leases(jobs.database).held()
    assert held.owner == this_process()
    scheduler.tick()  # it may be about to start
    assert jobs.run(run.id).state is JobState.STARTING
    with jobs.database.write() as session:
        session.execute(text("UPDATE jobs SET lease_until_s = 1"))
    [held] = Leases(jobs.database).held()
    scheduler._look_at(held)
    assert jobs.run(run.id).state is JobState.QUEUED
    assert "could not be started" in jobs.run(run.id).reason


def test_no_more_drivers_run_on_a_host_than_may(
    jobs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    runs = [jobs.submit(ASKED, f"db/t{k}.lance", ["y"]) for k in range(3)]
    scheduler = Scheduler(settings(jobs, tmp_path, max_drivers=1))
    started: list[QueueClaim] = []
    monkeypatch.setattr(scheduler, "_start", started.append)
    for number in (1, 2, 3):
        for _ in range(2):
            scheduler.tick()
            assert len(started) == number
            waiting = [r for r in runs if jobs.run(r.id).state is JobState.QUEUED]
            assert len(waiting) == 3 - number
            assert all("--max-drivers" in jobs.run(r.id).reason for r in waiting)
        done = Progress(started[-1].job_id, ("y",), JobState.RUNNING)
        Leases(jobs.database).finish(started[-1], done, JobState.SUCCEEDED)
