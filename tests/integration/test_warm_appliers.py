"""Appliers that one job leaves to the next one, in whatever state."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pytest
import ray

import geneva
from geneva.appliers.ray import actors as ray_executor
from geneva.appliers.ray import warm
from tests.support.backfills import CPUS, times, until
from tests.support.calls import CallLog
from tests.support.tables import database, make_table, pairs

ROWS = 80


class SlowToLoad:
    """What a UDF holds; its second unpickling outside of this process takes its time."""

    def __init__(self, folder: Path, driver: int) -> None:
        self.folder, self.driver = folder, driver

    def __reduce__(self) -> tuple[Any, ...]:
        return _load, (self.folder, self.driver)


def _load(folder: Path, driver: int) -> SlowToLoad:
    if os.getpid() != driver:
        before = len(list(folder.iterdir()))
        (folder / uuid4().hex).touch()
        time.sleep(1.5 if before == 1 else 0.0)
    return SlowToLoad(folder, driver)


@pytest.mark.ray
def test_applier_that_still_starts_when_a_job_ends_keeps_its_settings_for_the_next(
    tmp_path: Path, calls: CallLog, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_executor, "_REST_S", 60.0)  # what starts is kept, however slow we are
    (tmp_path / "loads").mkdir()
    held = SlowToLoad(tmp_path / "loads", os.getpid())

    @geneva.udf(num_cpus=CPUS)
    def double(x: int) -> int:
        assert held.folder
        calls(x)
        if x >= ROWS // 2:
            time.sleep(0.15)
        return 2 * x

    table = make_table(tmp_path, rows=ROWS, fragments=16)
    table.add_columns({"a": double})
    for where in (f"x < {ROWS // 2}", f"x >= {ROWS // 2}"):
        table.backfill("a", where=where, executor="ray", concurrency=2)
    assert pairs(table, "x", "a") == {x: 2 * x for x in range(ROWS)}
    assert calls.counts == {x: 1 for x in map(str, range(ROWS))}


@pytest.mark.ray
def test_other_settings_load_the_model_of_a_warm_applier_a_second_time(
    tmp_path: Path, calls: CallLog, ray_cluster: None
) -> None:
    @geneva.udf(num_cpus=CPUS)
    class Model:
        def __init__(self, calls: CallLog) -> None:
            calls(os.getpid())

        def __call__(self, x: int) -> int:
            return 2 * x

    table = make_table(tmp_path, rows=10, fragments=1)
    table.add_columns({"a": Model(calls)})
    for options in ({}, {"on_error": "null"}, {"intra_applier_concurrency": 2}):
        table.backfill("a", executor="ray", concurrency=1, force=True, **options)
    assert list(calls.counts.values()) == [1]


@pytest.fixture
def neighbour(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An actor that leaves room for one applier; another one waits, until the actor is killed."""
    monkeypatch.setattr(ray_executor, "_REST_S", 60.0)  # what starts is kept, however slow we are
    monkeypatch.setattr(warm, "others_wait", bool)  # and not ended for its own wait for a place
    warm.release_idle()

    @ray.remote(num_cpus=2 - CPUS)
    class Neighbour:
        def ready(self) -> None: ...

    actor = Neighbour.remote()
    ray.get(actor.ready.remote())
    yield actor
    ray.kill(actor)


@pytest.mark.ray
def test_applier_that_starts_after_its_table_was_made_anew_serves_the_new_one(
    tmp_path: Path, neighbour: Any
) -> None:
    seen = tmp_path / "seen"
    seen.mkdir()

    @geneva.udf(num_cpus=CPUS)
    def double(x: int) -> int:
        if x >= ROWS:
            (seen / str(os.getpid())).touch()
            until(lambda: len(list(seen.iterdir())) == 2)
        return 2 * x

    def fill(first: int) -> None:
        table = make_table(tmp_path, fragments=8, data=pa.table({"x": range(first, first + ROWS)}))
        table.add_columns({"a": double})
        table.backfill("a", executor="ray", concurrency=2)
        assert pairs(table, "x", "a") == {x: 2 * x for x in range(first, first + ROWS)}

    connection = geneva.connect(database(tmp_path))
    fill(0)
    connection.drop_table("t")
    ray.kill(neighbour)
    fill(ROWS)


@pytest.mark.ray
def test_applier_that_starts_after_its_table_has_gone_says_nothing(
    tmp_path: Path, neighbour: Any, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("ray").addHandler(caplog.handler)
    connection = geneva.connect(database(tmp_path))
    table = make_table(tmp_path, fragments=8)
    table.add_columns({"a": times(CallLog(tmp_path / "calls"))})
    table.backfill("a", executor="ray", concurrency=2)
    connection.drop_table("t")
    ray.kill(neighbour)
    late = warm.POOL.take(warm.POOL._idle[-1].key, 2)[-1]
    assert not late.ready
    ray.get(late.handle.cancel.remote(-1))  # it has started, and soon its job is begun
    time.sleep(1.0)
    warm.end(late)
    logging.getLogger("ray").removeHandler(caplog.handler)
    assert not caplog.records
