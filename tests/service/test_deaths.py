"""Whatever dies, a job that was accepted is finished, and no row is computed twice."""

from __future__ import annotations

import os
import signal

import pytest

from tests.service.conftest import BOTH_STORES, Scene
from tests.support.backfills import until
from tests.support.services import Service
from tests.support.tables import assert_table_invariants, pairs

pytestmark = BOTH_STORES

# One row per call and per checkpoint: the row that a kill interrupts was not computed.
SLOWLY = {"executor": "local", "concurrency": 1, "batch_size": 1, "checkpoint_size": 1}


def assert_done_once(scene: Scene) -> None:
    assert pairs(scene.table, "x", "y") == {i: 2 * i for i in range(40)}
    assert scene.calls.counts == {str(i): 1 for i in range(40)}
    assert_table_invariants(scene.table, {"y": lambda row: 2 * row["x"]})


def until_row_25(scene: Scene) -> None:
    until(lambda: len(scene.calls) == 25)


def test_killed_driver_is_replaced_and_nothing_is_computed_twice(scene: Scene, service: Service):
    run = service.submit(arguments=SLOWLY)
    until_row_25(scene)
    until(lambda: service.run(run)["state"] == "RUNNING")
    os.kill(service.driver(run), signal.SIGKILL)
    until(lambda: service.job(run)["epoch"] == 2)
    scene.gate.open()
    ended = service.until(run, "SUCCEEDED")
    assert_done_once(scene)
    states = service.states(run)
    assert states[:6] == ["QUEUED", "STARTING", "RUNNING", "RECOVERING", "QUEUED", "STARTING"]
    assert states[-1] == "SUCCEEDED"
    assert ended["jobs"][0]["rows_computed"] == 40


def test_killed_service_does_not_take_the_job_down(scene: Scene, own_service: Service):
    service = own_service
    run = service.submit(arguments=SLOWLY)
    until_row_25(scene)
    driver = service.driver(run)
    service.kill()
    scene.gate.open()
    until(lambda: len(scene.calls) == 40)
    service.start()
    service.until(run, "SUCCEEDED")
    assert_done_once(scene)
    assert service.started == {driver}


@pytest.mark.crash
def test_service_and_driver_killed_together(scene: Scene, own_service: Service):
    service = own_service
    run = service.submit(arguments=SLOWLY)
    until_row_25(scene)
    driver = service.driver(run)
    service.kill()
    os.kill(driver, signal.SIGKILL)
    scene.gate.open()
    service.start()
    service.until(run, "SUCCEEDED")
    assert_done_once(scene)


@pytest.mark.crash
@pytest.mark.ray
def test_driver_killed_with_its_own_ray(scene: Scene, service: Service):
    run = service.submit(arguments=SLOWLY | {"executor": "ray"}, ray={"num_cpus": 1})
    until(lambda: len(scene.calls) == 25, 120)
    until(lambda: service.run(run)["state"] == "RUNNING")
    os.kill(service.driver(run), signal.SIGKILL)
    until(lambda: service.job(run)["epoch"] == 2)
    scene.gate.open()
    service.until(run, "SUCCEEDED", timeout_s=200)
    assert pairs(scene.table, "x", "y") == {i: 2 * i for i in range(40)}
    made = scene.calls.counts
    # The applier outlives its driver for a moment: the row in its hands may be computed twice.
    assert set(made) == {str(i) for i in range(40)}
    assert {k for k, n in made.items() if n > 1} <= {"25"}
