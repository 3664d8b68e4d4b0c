"""A Ray cluster whose nodes join and vanish during a backfill, and one after another one."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.nodes import Nodes, NodesScene, in_child, scene

ROWS, FRAGMENTS, BATCH = 1200, 4, 2


def one_joins_and_one_vanishes(stage: NodesScene) -> None:
    with Nodes() as nodes:
        first = nodes.add(cpus=1)
        job = stage.begin(nodes, concurrency=2)
        stage.wait_for_work_on(first)
        second = nodes.add(cpus=1)
        stage.wait_for_work_on(second)
        nodes.lose(first)
        computed = len(stage.calls)
        stage.gate.open()
        result = job.wait(120)
        assert result.rows_computed == ROWS
        assert len(stage.calls) > computed, "somebody else must have gone on"
        assert set(stage.places.keys) == {first.node_id, second.node_id}


@pytest.mark.ray
def test_node_that_joins_works_and_one_that_vanishes_loses_only_batches_in_flight(
    tmp_path: Path,
) -> None:
    stage = scene(tmp_path, ROWS, FRAGMENTS, appliers=1, batch=BATCH).build()
    in_child(one_joins_and_one_vanishes, stage)
    replace(stage, arguments={"executor": "local"}).check_finished()


def connects_anew(stage: NodesScene) -> None:
    import ray

    for _ in range(2):
        # The folder is short, as Ray's sockets need it, and the user's, not Geneva's, as is Ray.
        with tempfile.TemporaryDirectory(prefix="gv-ray-", ignore_cleanup_errors=True) as folder:
            ray.init("local", num_cpus=1, include_dashboard=False, _temp_dir=folder)
            result = stage.table().backfill("y", executor="ray", concurrency=1, force=True)
            assert result.rows_computed == stage.rows
            ray.shutdown()


@pytest.mark.slow
@pytest.mark.ray
def test_warm_appliers_of_an_earlier_connection_to_ray_are_called(tmp_path: Path) -> None:
    in_child(connects_anew, scene(tmp_path, 20, 1, appliers=1).build(pause_s=0.0))
