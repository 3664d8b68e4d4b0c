"""Pause, resume, cancel, retry: what is wanted happens, and the work is really stopped."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

import geneva
from geneva.storage.lance import TableStorage
from tests.service.conftest import Scene
from tests.service.test_deaths import SLOWLY, assert_done_once, until_row_25
from tests.support.backfills import until
from tests.support.services import Service, is_running
from tests.support.tables import column, pairs


@pytest.mark.crash
def test_pause_frees_the_process_and_resume_repeats_nothing(scene: Scene, service: Service):
    run = service.submit(arguments=SLOWLY)
    until_row_25(scene)
    driver = service.driver(run)
    service.steer(run, "pause")
    until(lambda: service.run(run)["state"] == "PAUSING")
    scene.gate.open()
    paused = service.until(run, "PAUSED")
    assert not is_running(driver)
    assert (paused["jobs"][0]["process"], len(scene.calls)) == ("", 26)
    assert "checkpointed" in paused["reason"]
    service.steer(run, "resume")
    service.until(run, "SUCCEEDED")
    assert_done_once(scene)


def test_cancel_leaves_nothing_running_and_keeps_checkpoints(scene: Scene, service: Service):
    run = service.submit(arguments=SLOWLY)
    until_row_25(scene)
    driver = service.driver(run)
    service.steer(run, "cancel")
    until(lambda: service.run(run)["state"] == "CANCELLING")
    scene.gate.open()
    service.until(run, "CANCELLED")
    assert not is_running(driver)
    assert len(scene.calls) == 26
    assert column(scene.table, "y")[:20] == [2 * i for i in range(20)]  # what was finished
    assert TableStorage(scene.table.storage.uri).objects.list("work") != []


@pytest.mark.crash
def test_retry_of_a_cancelled_job_takes_up_its_checkpoints(scene: Scene, service: Service):
    run = service.submit(arguments=SLOWLY)
    until_row_25(scene)
    service.steer(run, "cancel")
    until(lambda: service.run(run)["state"] == "CANCELLING")
    scene.gate.open()
    service.until(run, "CANCELLED")
    again = service.steer(run, "retry", 201)
    assert again["state"] == "QUEUED"
    service.until(run, "SUCCEEDED")
    assert_done_once(scene)
    assert [j["state"] for j in service.run(run)["jobs"]] == ["CANCELLED", "SUCCEEDED"]


@pytest.mark.crash
def test_driver_that_does_not_stop_is_killed(tmp_path: Path, scene: Scene):
    service = Service(tmp_path / "strict", scene.path, "--grace", "1").start()
    try:
        run = service.submit(arguments=SLOWLY)
        until_row_25(scene)
        driver = service.driver(run)
        service.steer(run, "cancel")
        service.until(run, "CANCELLED")  # the gate stays closed: the UDF hangs
        assert not is_running(driver)
        assert len(scene.calls) == 25
    finally:
        service.stop()


@pytest.mark.crash
def test_cancel_takes_effect_within_two_seconds_for_ordinary_batches(
    scene: Scene, service: Service
):
    @geneva.udf
    def slow(x: int) -> int:
        time.sleep(0.1)
        return x

    scene.table.add_columns({"z": slow})
    run = service.submit("z", arguments=SLOWLY)
    until(lambda: service.job(run)["rows_computed"] > 0)
    started = time.monotonic()
    service.steer(run, "cancel")
    service.until(run, "CANCELLED")
    print(f"cancelled after {time.monotonic() - started:.2f} s")


@pytest.mark.crash
def test_retry_computes_only_the_rows_that_failed(scene: Scene, service: Service, tmp_path: Path):
    calls, mended = scene.calls, tmp_path / "mended"

    @geneva.udf
    def picky(x: int) -> int:
        calls(x)
        if x % 10 == 3 and not mended.exists():
            raise ValueError(f"no {x}")
        return 2 * x

    scene.table.add_columns({"z": picky})
    run = service.submit("z", arguments={"executor": "local", "on_error": "null"})
    service.until(run, "PARTIAL")
    job = service.job(run)["id"]
    failures = service.ask("GET", f"/api/v1/jobs/{job}/failures")["items"]
    assert [(f["error"], f["message"]) for f in failures] == [
        ("ValueError", f"no {x}") for x in (3, 13, 23, 33)
    ]
    scene.calls.clear()
    mended.touch()
    service.steer(run, "retry", 201)
    service.until(run, "SUCCEEDED")
    assert sorted(int(k) for k in scene.calls.keys) == [3, 13, 23, 33]
    assert pairs(scene.table, "x", "z") == {i: 2 * i for i in range(40)}
    service.steer(run, "retry", 409)


@pytest.mark.crash
def test_job_that_failed_says_why_and_its_log_says_where(scene: Scene, service: Service):
    @geneva.udf
    def broken(x: int) -> int:
        raise ValueError("broken for good")

    scene.table.add_columns({"z": broken})
    run = service.submit("z")
    service.until(run, "FAILED")
    job = service.job(run)
    assert job["error_type"] == "UdfFailedError"
    assert "broken for good" in job["error"]
    log = service.http.get(f"/api/v1/jobs/{job['id']}/logs").text
    assert log.startswith("--- driver 1\n")
    assert "broken for good" in log
    service.ask("DELETE", f"/api/v1/runs/{run}", 204)
    service.ask("GET", f"/api/v1/runs/{run}", 404)


@pytest.mark.crash
def test_second_job_on_a_column_waits_for_the_first(scene: Scene, service: Service):
    first = service.submit(arguments=SLOWLY)
    until_row_25(scene)
    second = service.submit(arguments=SLOWLY)
    name = service.job(first)["id"]
    reason = f"waiting: column 'y' is being filled by job {name}"
    until(lambda: service.job(second)["reason"] == reason)
    scene.gate.open()
    service.until(second, "SUCCEEDED")
    assert_done_once(scene)
    assert service.run(first)["state"] == "SUCCEEDED"


@pytest.mark.crash
def test_hung_driver_is_killed_when_its_lease_runs_out(scene: Scene, service: Service):
    run = service.submit(arguments=SLOWLY)
    until_row_25(scene)
    driver = service.driver(run)
    os.kill(driver, signal.SIGSTOP)
    until(lambda: service.job(run)["epoch"] == 2, 120)
    assert not is_running(driver)
    scene.gate.open()
    service.until(run, "SUCCEEDED")
    assert_done_once(scene)
