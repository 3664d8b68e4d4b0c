"""The windows of a job are in its record while it works, and failed ones are retried alone."""

from __future__ import annotations

import json
import os
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner

import geneva
from geneva.cli.commands import app
from geneva.errors import UdfFailedError
from tests.service.conftest import Scene
from tests.support.backfills import Gate, until
from tests.support.calls import CallLog
from tests.support.services import Service
from tests.support.tables import make_table, pairs

SLOWLY = {"executor": "local", "concurrency": 1, "batch_size": 1, "checkpoint_size": 1}
BY_TEN = {"on": "x", "start": 0, "end": 40, "step": 10}


def windows_of(service: Service, run: str, **query: str) -> list[dict]:
    found: list[dict] = service.ask("GET", windows_path(service, run), params=query)["items"]
    return found


def windows_path(service: Service, run: str) -> str:
    return f"/api/v1/jobs/{service.job(run)['id']}/windows"


def facts(windows: list[dict], *names: str) -> list[tuple]:
    return [tuple(w[n] for n in names) for w in windows]


@pytest.fixture
def bad_scene(tmp_path: Path, calls: CallLog) -> geneva.Table:
    """A table whose UDF fails on x = 15 until a file is there."""
    table = make_table(tmp_path / "bad", rows=40, fragments=4)
    mended = tmp_path / "mended"

    @geneva.udf(input_columns=["x"])
    def double(x: int) -> int:
        calls(x)
        if x == 15 and not mended.exists():
            raise ValueError("no good")
        return 2 * x

    table.add_columns({"y": double})
    return table


def test_record_shows_each_window_while_the_job_works(scene: Scene, service: Service):
    windows = BY_TEN | {"order": "backward", "commit": "window"}
    run = service.submit(arguments=SLOWLY | {"windows": windows})
    until(lambda: len(scene.calls) == 15)  # x = 30 to 39, and 20 to 24
    until(lambda: "RUNNING" in dict(facts(windows_of(service, run), "key", "state")).values())
    until(lambda: windows_of(service, run)[0]["state"] == "COMMITTED")
    shown = facts(windows_of(service, run), "number", "key", "state", "rows_planned")
    assert shown == [
        (0, "30", "COMMITTED", 10),
        (1, "20", "RUNNING", 10),
        (2, "10", "PLANNED", 10),
        (3, "0", "PLANNED", 10),
    ]
    scene.gate.open()
    service.until(run, "SUCCEEDED")
    ended = windows_of(service, run)
    assert facts(ended, "state", "rows_computed") == [("COMMITTED", 10)] * 4
    assert all(w["seconds"] > 0 for w in ended)


def test_neighbours_that_were_skipped_for_one_reason_are_one_record(scene: Scene, service: Service):
    scene.gate.open()
    scene.table.backfill("y", executor="local", windows=geneva.Windows("x", start=0, end=30))
    run = service.submit(arguments=SLOWLY | {"windows": BY_TEN | {"end": 60}})
    service.until(run, "SUCCEEDED")
    states = facts(windows_of(service, run), "number", "key", "windows", "state", "reason")
    assert states == [
        (0, "0", 3, "SKIPPED", "nothing to compute"),
        (3, "30", 1, "COMMITTED", ""),
        (4, "40", 2, "SKIPPED", "nothing to compute"),
    ]


def test_pages_of_windows_are_cut_by_state_limit_and_cursor(scene: Scene, service: Service):
    scene.gate.open()
    run = service.submit(arguments=SLOWLY | {"windows": BY_TEN | {"step": 1}})
    service.until(run, "SUCCEEDED")
    path = windows_path(service, run)
    first = service.ask("GET", path, params={"limit": 30})
    rest = service.ask("GET", path, params={"cursor": first["next"]})
    keys = facts(first["items"] + rest["items"], "key")
    assert keys == [(str(k),) for k in range(40)]
    assert rest["next"] is None
    assert windows_of(service, run, state="FAILED") == []
    service.ask("GET", "/api/v1/jobs/nobody/windows", 404)
    service.ask("GET", path, 422, params={"state": "GONE"})


def test_driver_that_takes_over_has_the_windows_that_the_first_one_cut(
    tmp_path: Path, calls: CallLog, service: Service
):
    """Bounds that are relative are settled by the first driver, and its counts go on."""
    gate = Gate(tmp_path / "taking over")
    now = datetime.now(UTC)
    ts = [now - timedelta(hours=1 + k) for k in range(40)]
    data = pa.table({"x": range(40), "ts": pa.array(ts, pa.timestamp("us", "UTC"))})
    table = make_table(tmp_path / "other", data=data, fragments=4)

    @geneva.udf(input_columns=["x"])
    def double(x: int) -> int:
        if x == 25:
            gate.wait(120)
        calls(x)
        return 2 * x

    table.add_columns({"y": double})
    windows = {"on": "ts", "last": "3d", "step": "1h", "order": "backward", "commit": "window"}
    service.db = tmp_path / "other"
    run = service.submit(arguments=SLOWLY | {"windows": windows})
    until(lambda: len(calls) == 25)
    until(lambda: sum(w["state"] == "COMMITTED" for w in windows_of(service, run)) >= 20)
    before = windows_of(service, run)
    settled = service.job(run)["arguments"]["windows"]
    assert "last" not in settled
    assert settled["end"] > settled["start"]
    os.kill(service.driver(run), signal.SIGKILL)
    until(lambda: service.job(run)["epoch"] == 2)
    gate.open()
    service.until(run, "SUCCEEDED")
    after = windows_of(service, run)
    assert service.job(run)["arguments"]["windows"] == settled
    assert facts(after, "number", "key", "windows") == facts(before, "number", "key", "windows")
    assert facts(after, "rows_planned") == facts(before, "rows_planned")
    busy = [w for w in after if w["rows_planned"]]
    assert {w["state"] for w in busy} == {"COMMITTED"}
    assert facts(busy, "rows_computed") == facts(busy, "rows_planned")
    assert calls.counts == {str(i): 1 for i in range(40)}


def test_retry_of_windows_computes_the_failed_ones_alone(
    bad_scene: geneva.Table, calls: CallLog, tmp_path: Path, service: Service
):
    service.db = tmp_path / "bad"
    windows = BY_TEN | {"on_failure": "continue"}
    run = service.submit(arguments=SLOWLY | {"windows": windows, "on_error": "fail"})
    service.until(run, "FAILED")
    states = dict(facts(windows_of(service, run), "key", "state"))
    assert states == {"0": "COMMITTED", "10": "FAILED", "20": "COMMITTED", "30": "COMMITTED"}
    bad_scene.delete("x = 25")  # an up-to-date value of another window: no concern of the retry
    (tmp_path / "mended").touch()
    retried = service.ask("POST", f"{windows_path(service, run)}/retry", 201, json={})
    assert retried["name"] == "10 again"
    assert retried["jobs"][0]["arguments"]["windows"]["keys"] == ["10"]
    service.until(retried["id"], "SUCCEEDED")
    assert facts(windows_of(service, retried["id"]), "key", "state") == [("10", "COMMITTED")]
    assert pairs(bad_scene, "x", "y") == {i: 2 * i for i in range(40) if i != 25}
    assert {k: n for k, n in calls.counts.items() if n > 1} == {"15": 2}
    assert service.run(run)["state"] == "FAILED"


def test_what_cannot_be_retried_is_refused(scene: Scene, service: Service):
    scene.gate.open()
    run = service.submit(arguments=SLOWLY | {"windows": BY_TEN})
    service.until(run, "SUCCEEDED")
    path = f"{windows_path(service, run)}/retry"
    assert "no window of it failed" in service.ask("POST", path, 409, json={})["detail"]
    unknown = service.ask("POST", path, 404, json={"keys": ["45"]})
    assert "has no window '45'" in unknown["detail"]


def test_connection_lists_and_retries_the_windows_of_its_own_runs(
    bad_scene: geneva.Table, tmp_path: Path
):
    db = geneva.connect(tmp_path / "bad", jobs=f"sqlite:///{tmp_path / 'jobs.db'}")
    windows = geneva.Windows("x", start=0, end=40, step=10, on_failure="stop", commit="window")
    with pytest.raises(UdfFailedError):
        db.open_table("t").backfill("y", executor="local", on_error="fail", windows=windows)
    [run] = db.runs()
    shown = run.windows().select(["key", "state", "rows_computed"]).to_pylist()
    assert [(w["key"], w["state"]) for w in shown] == [
        ("0", "COMMITTED"),
        ("10", "FAILED"),
        ("20", "PLANNED"),
        ("30", "PLANNED"),
    ]
    counted = db.sql_jobs("SELECT state, count(*) AS n FROM windows GROUP BY state ORDER BY state")
    assert counted.to_pylist() == [
        {"state": "COMMITTED", "n": 1},
        {"state": "FAILED", "n": 1},
        {"state": "PLANNED", "n": 2},
    ]
    retried = run.retry_windows(["10", "20"])
    assert (retried.record().name, retried.state) == ("2 windows again", "QUEUED")


def test_shell_lists_the_windows_of_a_run(scene: Scene, service: Service):
    scene.gate.open()
    run = service.submit(arguments=SLOWLY | {"windows": BY_TEN})
    service.until(run, "SUCCEEDED")
    words = ["runs", "windows", run, "--url", str(service.http.base_url)]
    lines = CliRunner().invoke(app, words).stdout.splitlines()
    assert lines[0].split() == ["window", "state", "rows", "planned", "failed", "seconds"]
    assert [line.split()[:3] for line in lines[1:]] == [
        [str(k), "COMMITTED", "10"] for k in (0, 10, 20, 30)
    ]
    failed = CliRunner().invoke(app, [*words, "--state", "failed", "--json"])
    assert json.loads(failed.stdout) == {"windows": []}
    unknown = CliRunner().invoke(app, [*words, "--state", "gone"])
    assert "no window is ever 'gone'; the states are PLANNED, RUNNING" in unknown.output
