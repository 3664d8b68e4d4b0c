"""Pause, resume, cancel, retry: what is wanted happens, and the work is really stopped."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

import geneva
from geneva.engine.process import marked
from geneva.service.service_settings import DRIVER_CLAIM
from geneva.storage.lance import TableStorage
from tests.service.conftest import BOTH_STORES, Scene
from tests.service.test_deaths import SLOWLY, assert_done_once, until_row_25
from tests.support.backfills import until
from tests.support.services import Service, is_running
from tests.support.tables import column, pairs

pytestmark = BOTH_STORES


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
    assert paused["jobs"][0]["rows_computed"] == 26
    assert "checkpointed" in paused["reason"]
    service.steer(run, "resume")
    seen = [26]
    until(lambda: seen.append(service.job(run)["rows_computed"]) or service.run(run)["ended_at"])
    assert seen == sorted(seen)
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
    assert len(scene.calls) == service.job(run)["rows_computed"] == 26
    assert column(scene.table, "y")[:20] == [2 * i for i in range(20)]  # what was finished
    assert TableStorage(scene.table.storage.uri).objects.list("work") != []


@pytest.mark.crash
def test_forced_run_that_is_cancelled_while_paused_begins_anew(scene: Scene, service: Service):
    forced = SLOWLY | {"force": True}
    run = service.submit(arguments=forced)
    until_row_25(scene)
    service.steer(run, "pause")
    until(lambda: service.run(run)["state"] == "PAUSING")
    scene.gate.open()
    service.until(run, "PAUSED")
    service.steer(run, "cancel")
    service.until(run, "CANCELLED")
    scene.calls.clear()
    service.until(service.submit(arguments=forced), "SUCCEEDED")
    assert scene.calls.counts == {str(i): 1 for i in range(40)}


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
def test_driver_that_does_not_stop_is_killed(tmp_path: Path, scene: Scene, service_url: str | None):
    service = Service(tmp_path / "strict", scene.path, "--grace", "1", jobs=service_url).start()
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
    log = service.ask("GET", f"/api/v1/jobs/{job['id']}/logs/driver")["text"]
    assert f"job {job['id']}, driver 1: " in log
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


@pytest.mark.crash
def test_jobs_on_apart_fragments_of_one_column_run_at_once(scene: Scene, service: Service):
    held = service.submit(arguments=SLOWLY | {"fragments": [2]})
    until(lambda: len(scene.calls) == 5)  # x = 25 is in it
    meets = service.submit(arguments=SLOWLY | {"fragments": [2, 3]})
    apart = service.submit(arguments=SLOWLY | {"fragments": [0, 1]})
    service.until(apart, "SUCCEEDED")
    assert service.run(held)["state"] == "RUNNING"
    assert len(scene.calls) == 25
    scene.gate.open()
    service.until(held, "SUCCEEDED")
    service.until(meets, "SUCCEEDED")
    assert_done_once(scene)


@pytest.mark.crash
def test_run_does_what_its_plan_said(scene: Scene, service: Service):
    scene.table.backfill("y", executor="local", where="x < 5")
    scene.table.delete("x = 38")
    body = {"table": "t", "columns": ["y"], "db": str(scene.path)}
    scene.gate.open()
    for chosen in (
        {"num_frags": 1, "order": "backward"},
        {"where": "x % 2 = 0", "fragments": [1, 2]},
        {},
    ):
        arguments = {"executor": "local", **chosen}
        asked = {"json": body | {"arguments": arguments}}
        plan = service.ask("POST", "/api/v1/plan?fragments=true", **asked)
        run = service.submit(arguments=arguments)
        service.until(run, "SUCCEEDED")
        job = service.job(run)
        assert job["rows_computed"] == plan["rows_compute"]
        tasks = service.ask("GET", f"/api/v1/jobs/{job['id']}/tasks")["items"]
        told = {f["fragment_id"]: f["rows_compute"] for f in plan["fragments"] if f["this_call"]}
        done = {t["fragment_id"]: t["rows_computed"] for t in tasks if t["state"] == "COMMITTED"}
        assert done == told
        rest = {t["fragment_id"] for t in tasks} - set(done)
        assert rest == {f["fragment_id"] for f in plan["fragments"]} - set(told)


@pytest.mark.crash
def test_retry_of_a_failed_job_leaves_finished_fragments_alone(
    scene: Scene, service: Service, tmp_path: Path
):
    calls, mended = scene.calls, tmp_path / "mended"

    @geneva.udf
    def picky(x: int) -> int:
        calls(x)
        if x == 23 and not mended.exists():
            raise ValueError("no 23")
        return 2 * x

    scene.table.add_columns({"z": picky})
    run = service.submit("z", arguments=SLOWLY)
    service.until(run, "FAILED")
    first = {int(k) for k in scene.calls.keys}
    assert set(range(24)) <= first
    assert len(first) == len(scene.calls) <= 24 + 5  # and what was in flight when it failed
    scene.calls.clear()
    mended.touch()
    service.steer(run, "retry", 201)
    service.until(run, "SUCCEEDED")
    assert sorted(int(k) for k in scene.calls.keys) == sorted({23} | set(range(40)) - first)
    assert pairs(scene.table, "x", "z") == {i: 2 * i for i in range(40)}


@pytest.mark.crash
@pytest.mark.parametrize("verb", ["pause", "cancel"])
@pytest.mark.parametrize("executor", ["local", pytest.param("ray", marks=pytest.mark.ray)])
def test_how_long_a_pause_or_a_cancel_takes(
    scene: Scene, service: Service, verb: str, executor: str
):
    @geneva.udf(num_cpus=0.5)
    def slow(x: int) -> int:
        time.sleep(0.1)
        return x

    scene.table.add_columns({"z": slow})
    more = {"ray": {"num_cpus": 1}} if executor == "ray" else {}
    run = service.submit("z", arguments=SLOWLY | {"executor": executor}, **more)
    until(lambda: service.job(run)["rows_computed"] > 0, 120)
    driver = service.driver(run)
    started = time.monotonic()
    service.steer(run, verb)
    service.until(run, {"pause": "PAUSED", "cancel": "CANCELLED"}[verb])
    print(f"{verb} on {executor} after {time.monotonic() - started:.2f} s")
    assert not is_running(driver)
    assert service.job(run)["fragments_committed"] < 4
    service.steer(run, "resume" if verb == "pause" else "retry", 200 if verb == "pause" else 201)
    service.until(run, "SUCCEEDED", timeout_s=200)
    assert column(scene.table, "z") == list(range(40))


@pytest.mark.crash
@pytest.mark.ray
def test_workers_of_a_driver_that_is_killed_are_gone_before_anybody_is_told(
    tmp_path: Path, scene: Scene, service_url: str | None
):
    service = Service(tmp_path / "strict", scene.path, "--grace", "1", jobs=service_url).start()
    try:
        arguments = SLOWLY | {"executor": "ray"}
        run = service.submit(arguments=arguments, ray={"num_cpus": 1})
        until(lambda: len(scene.calls) == 25, 200)
        claim = f"{service.job(run)['id']}:1"
        assert len(marked(DRIVER_CLAIM, claim)) > 3  # the driver, its Ray, the applier
        service.steer(run, "cancel")
        service.until(run, "CANCELLED", timeout_s=120)  # the gate stays closed: the UDF hangs
        assert marked(DRIVER_CLAIM, claim) == []
    finally:
        service.stop()


@pytest.mark.crash
def test_priority_and_caps_are_changed_while_jobs_run(scene: Scene, service: Service):
    @geneva.udf
    def next_one(x: int) -> int:
        return x + 1

    scene.table.add_columns({"a": next_one, "b": next_one})
    service.ask("PUT", "/api/v1/pools", 204, json={"slots": 1})
    try:
        first = service.submit(arguments=SLOWLY)
        until_row_25(scene)
        waiting = [service.submit(c) for c in ("a", "b")]
        until(lambda: "1 of 1 slots" in service.job(waiting[1])["reason"])
        service.ask("PATCH", f"/api/v1/runs/{waiting[1]}", json={"priority": 9})
        scene.gate.open()
        for run in (first, *waiting):
            service.until(run, "SUCCEEDED")
        started = [service.job(run)["started_at"] for run in waiting]
        assert started[1] < started[0]
    finally:
        service.ask("PUT", "/api/v1/pools", 204, json={"slots": None})
