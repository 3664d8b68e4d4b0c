"""Nodes of a real cluster that vanish, are drained, join or see another disk during a backfill."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from geneva.errors import ResourceError, SharedPathError
from geneva.storage.lance import TableStorage
from geneva.storage.objects import LocalObjects
from tests.support.backfills import Gate, until
from tests.support.calls import CallLog
from tests.support.nodes import Nodes, NodesScene, in_child, scene

pytestmark = [pytest.mark.crash, pytest.mark.ray]

ROWS, FRAGMENTS, BATCH = 1200, 4, 2


def settle(stage: NodesScene, deaths: int = 1) -> int:
    """Check all that must hold afterwards, on threads; return the rows computed twice."""
    return replace(stage, arguments={"executor": "local"}).check_finished(deaths)


# --- nodes that vanish -------------------------------------------------------------------


def one_after_the_other_vanishes(stage: NodesScene, losses: int) -> None:
    with Nodes() as nodes:
        node = nodes.add()
        job = stage.begin(nodes, concurrency=2)
        for _ in range(losses):
            stage.wait_for_work_on(node)
            another = nodes.add()
            nodes.lose(node)
            node = another
        stage.wait_for_work_on(node)
        stage.gate.open()
        assert job.wait(200).rows_computed == ROWS


def test_more_lost_nodes_than_a_task_may_kill_workers_do_not_stop_the_job(tmp_path: Path) -> None:
    stage = scene(tmp_path, ROWS, fragments=2, appliers=2, batch=BATCH).build(pause_s=1.0)
    in_child(one_after_the_other_vanishes, stage, 4)
    settle(stage, deaths=4)


def all_vanish(stage: NodesScene) -> None:
    with Nodes() as nodes:
        only = nodes.add()
        job = stage.begin(nodes, concurrency=2)
        stage.wait_for_work_on(only)
        nodes.lose(only)
        until(lambda: not nodes.alive(only), 120)
        until(lambda: "1 CPU (the largest node has 0)" in job.progress().reason)
        stage.gate.open()
        nodes.add()
        assert job.wait(120).rows_computed == ROWS


def test_job_waits_for_another_node_when_all_are_lost(tmp_path: Path) -> None:
    stage = scene(tmp_path, ROWS, FRAGMENTS, appliers=2, batch=BATCH).build()
    in_child(all_vanish, stage)
    settle(stage)


def all_vanish_for_good(stage: NodesScene) -> None:
    with Nodes() as nodes:
        only = nodes.add()
        job = stage.begin(nodes, concurrency=2, resource_timeout=3)
        stage.wait_for_work_on(only)
        nodes.lose(only)
        with pytest.raises(ResourceError, match=r"asks for 1 CPU .* waited \d+ s"):
            job.wait(120)
        stage.gate.open()


def test_job_that_waited_too_long_for_a_node_ends_and_goes_on_later(tmp_path: Path) -> None:
    stage = scene(tmp_path, ROWS, FRAGMENTS, appliers=2, batch=BATCH).build()
    in_child(all_vanish_for_good, stage)
    settle(stage)


@dataclass(frozen=True)
class AssemblingStorage(TableStorage):
    """Says which node begins a column file, and waits there until a gate is open."""

    log: str = ""
    gate: str = ""

    def create_file(self, *args: Any, **kwargs: Any) -> Any:
        import ray

        CallLog(self.log)(ray.get_runtime_context().get_node_id())
        Gate(self.gate).wait(120)
        return super().create_file(*args, **kwargs)


def assembling_node_vanishes(stage: NodesScene) -> None:
    assembling, gate = CallLog(stage.path / "assembling.log"), Gate(stage.path / "assemble")
    storage = AssemblingStorage(stage.uri, log=assembling.path, gate=gate.path)
    stage.gate.open()
    with Nodes() as nodes:
        both = [nodes.add(), nodes.add()]
        job = stage.begin(nodes, storage, concurrency=4)
        until(lambda: len(assembling) == 1, 120)
        assert len(stage.calls) == ROWS, "all spans are done"
        (victim,) = [n for n in both if n.node_id == assembling.keys[0]]
        nodes.lose(victim)
        gate.open()
        result = job.wait(120)
        assert (result.rows_computed, len(stage.calls)) == (ROWS, ROWS)
        assert len(assembling) == 2
        assert assembling.keys[1] != victim.node_id


def test_losing_the_node_that_assembles_a_fragment_costs_no_call(tmp_path: Path) -> None:
    stage = scene(tmp_path, ROWS, fragments=1, appliers=4, batch=BATCH).build()
    in_child(assembling_node_vanishes, stage)
    assert settle(stage) == 0


def warm_appliers_vanish(stage: NodesScene) -> None:
    with Nodes() as nodes:
        first = nodes.add()
        job = stage.begin(nodes, concurrency=6)
        # More than may die while they start.
        until(lambda: job.progress().appliers_ready > 3, 120)
        stage.gate.open()
        assert job.wait(120).rows_computed == stage.rows
        second = nodes.add()
        nodes.lose(first)
        result = stage.begin(nodes, concurrency=6, force=True).wait(120)
        assert result.rows_computed == stage.rows
        assert stage.places.counts[second.node_id] > 0


def test_warm_appliers_that_died_with_their_node_do_not_fail_the_next_job(tmp_path: Path) -> None:
    stage = scene(tmp_path, ROWS, fragments=12, appliers=6, batch=BATCH).build(num_cpus=0.3)
    in_child(warm_appliers_vanish, stage)


# --- nodes that are drained --------------------------------------------------------------


def one_is_drained(stage: NodesScene) -> None:
    with Nodes() as nodes:
        going = nodes.add()
        job = stage.begin(nodes, concurrency=4)
        stage.wait_for_work_on(going)
        coming = nodes.add()
        stage.wait_for_work_on(coming)
        nodes.drain(going)
        # Nothing but idleness lets a drained node end before its time: its appliers have left.
        until(lambda: not nodes.alive(going), 60)
        done = stage.places.counts[going.node_id]
        stage.wait_for_work_on(coming)
        assert stage.places.counts[going.node_id] == done
        third = nodes.add()
        stage.wait_for_work_on(third)
        stage.gate.open()
        assert job.wait(120).rows_computed == ROWS


def test_drained_node_is_left_at_a_batch_boundary_and_replaced(tmp_path: Path) -> None:
    stage = scene(tmp_path, ROWS, fragments=8, appliers=2, batch=BATCH).build()
    in_child(one_is_drained, stage)
    assert settle(stage) == 0, "nothing was in flight when the appliers left"


# --- nodes that cannot hold an applier ---------------------------------------------------


def no_node_has_a_gpu(stage: NodesScene) -> None:
    with Nodes() as nodes:
        nodes.add()
        started = time.monotonic()
        with pytest.raises(ResourceError, match=r"asks for 1 GPU \(the largest node has 0\)"):
            stage.begin(nodes).wait(60)
        assert time.monotonic() - started < 60
        nodes.add(num_gpus=1)
        stage.gate.open()
        assert stage.begin(nodes).wait(120).rows_computed == ROWS


def test_gpu_that_no_node_has_is_refused_and_used_when_a_node_brings_it(tmp_path: Path) -> None:
    stage = scene(tmp_path, ROWS, FRAGMENTS, appliers=1, batch=BATCH).build(num_gpus=1)
    in_child(no_node_has_a_gpu, stage)
    assert settle(stage) == 0


# --- nodes that see another disk ---------------------------------------------------------


@dataclass(frozen=True)
class PerNodeStorage(TableStorage):
    """On some nodes another directory lies at the table's path, as with disks that are not shared.

    One machine has one disk; so a node is told by its environment to look elsewhere.
    """

    @property
    def objects(self) -> Any:
        elsewhere = os.environ.get("GENEVA_TEST_DISK")
        return LocalObjects(elsewhere) if elsewhere else super().objects


def path_is_not_shared(stage: NodesScene, of_another_table: bool) -> None:
    disk = stage.path / "other disk"
    (disk / "seen").mkdir(parents=True)
    if of_another_table:
        (disk / "seen" / uuid4().hex).touch()
    there = sorted(disk.rglob("*"))
    with Nodes() as nodes:
        nodes.add(env_vars={"GENEVA_TEST_DISK": str(disk)})
        job = stage.begin(nodes, PerNodeStorage(stage.uri), concurrency=2)
        with pytest.raises(SharedPathError, match=r"127.0.0.1 does not see .*t\.lance"):
            job.wait(120)
        assert len(stage.calls) == 0
        assert sorted(disk.rglob("*")) == there, "nothing was written there"


@pytest.mark.parametrize("of_another_table", [False, True])
def test_path_that_a_node_does_not_share_is_refused(tmp_path: Path, of_another_table: bool) -> None:
    stage = scene(tmp_path, ROWS, FRAGMENTS, appliers=2, batch=BATCH).build()
    in_child(path_is_not_shared, stage, of_another_table)
    stage.gate.open()
    assert settle(stage) == 0
