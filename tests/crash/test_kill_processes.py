"""SIGKILL of the driver, of one applier and of all of them, midway; then the same command."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import geneva
from tests.support.crashing import Scene, kill, kill_pids

BATCH, APPLIERS = 2, 2
ROWS, FRAGMENTS = 80, 4


def scene(path: Path, executor: str, ray: dict[str, Any] | None = None) -> Scene:
    arguments = {
        "executor": executor,
        "batch_size": BATCH,
        "concurrency": APPLIERS,
        "commit_granularity": 1,
    }
    made = Scene(path, ROWS, FRAGMENTS, BATCH * APPLIERS, arguments, ray or {})
    return made.build(pause_s=0.1)


@pytest.fixture
def own_ray() -> Iterator[dict[str, Any]]:
    """Options of a Ray that a child starts for itself; it dies with the child."""
    folder = tempfile.mkdtemp(prefix="gv-kill-")
    yield {"address": "local", "num_cpus": 2, "_temp_dir": folder, "log_to_driver": False}
    shutil.rmtree(folder, ignore_errors=True)


def test_killed_driver_loses_only_the_batches_in_flight(tmp_path: Path) -> None:
    stage = scene(tmp_path, "local")
    child = stage.start_child()
    stage.wait_for_calls(ROWS // 2)
    kill(child)
    stage.check_finished(deaths=1)


def test_driver_killed_twice_loses_only_the_batches_in_flight(tmp_path: Path) -> None:
    stage = scene(tmp_path, "local")
    for wanted in (ROWS // 4, ROWS // 2):
        child = stage.start_child()
        stage.wait_for_calls(wanted)
        kill(child)
    stage.check_finished(deaths=2)


@pytest.mark.ray
def test_killed_driver_on_ray_loses_only_the_batches_in_flight(
    tmp_path: Path, own_ray: dict[str, Any], ray_cluster: None
) -> None:
    stage = scene(tmp_path, "ray", own_ray)
    child = stage.start_child()
    stage.wait_for_calls(ROWS // 2)
    kill(child)
    stage.wait_until_quiet()
    stage.check_finished(deaths=1)


@pytest.mark.ray
@pytest.mark.parametrize("victims", ["one", "all"])
def test_killed_appliers_are_replaced_within_the_job(
    tmp_path: Path, ray_cluster: None, victims: str
) -> None:
    stage = scene(tmp_path, "ray")
    job = stage.table().backfill_async("y", progress=False, **stage.arguments)
    stage.wait_for_calls(ROWS // 4)
    pids = sorted({int(p) for p in stage.pids.keys})
    chosen = set(pids if victims == "all" else pids[:1])
    kill_pids(chosen)
    result = job.wait(120)
    assert isinstance(result, geneva.BackfillResult)
    assert result.rows_computed == ROWS
    again = stage.check_finished(deaths=1)
    assert again <= len(chosen) * BATCH
    assert {int(p) for p in stage.pids.keys} - chosen, "somebody else must have gone on"


@pytest.mark.ray
def test_applier_killed_again_and_again_stops_no_other_fragment(
    tmp_path: Path, ray_cluster: None
) -> None:
    stage = scene(tmp_path, "ray")
    job = stage.table().backfill_async("y", progress=False, **stage.arguments)
    killed: set[int] = set()
    for wanted in (ROWS // 5, ROWS // 2):
        stage.wait_for_calls(wanted)
        victim = int(stage.pids.keys[-1])
        kill_pids({victim})
        killed.add(victim)
    assert job.wait(120).rows_computed == ROWS
    assert stage.check_finished(deaths=2) <= len(killed) * BATCH
