"""Calls of backfill that a connection records, or has a service carry out."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner

import geneva
from geneva.cli.commands import app
from geneva.errors import JobCancelledError, SettingError, UdfFailedError
from geneva.jobs.backfills import JobsPlace
from tests.service.conftest import Scene
from tests.support.backfills import until
from tests.support.services import Service
from tests.support.tables import column

LOCAL = {"executor": "local", "progress": False}


def recorded(scene: Scene, jobs: str) -> geneva.Connection:
    return geneva.connect(str(scene.path), jobs=jobs)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'history.db'}"


def test_call_that_leaves_no_record(scene: Scene, url: str):
    scene.gate.open()
    db = recorded(scene, url)
    result = db.open_table("t").backfill("y", where="x < 20", **LOCAL)
    assert result.rows_computed == 20
    found = recorded(scene, url).jobs().to_arrow().to_pylist()  # history survives the connection
    assert len(found) == 1
    assert found[0]["id"] == result.job_id
    assert (found[0]["state"], found[0]["mode"]) == ("SUCCEEDED", "direct")
    assert (found[0]["rows_computed"], found[0]["columns"]) == (20, ["y"])
    assert found[0]["arguments"] == '{"where": "x < 20", "executor": "local"}'
    counted = db.sql_jobs("SELECT state, count(*) AS n FROM tasks GROUP BY state ORDER BY state")
    assert counted.to_pylist() == [{"state": "COMMITTED", "n": 2}, {"state": "SKIPPED", "n": 2}]


def test_columns_that_share_a_read_are_recorded_each(scene: Scene, url: str):
    @geneva.udf
    def next_one(x: int) -> int:
        return x + 1

    scene.gate.open()
    db = recorded(scene, url)
    table = db.open_table("t")
    table.add_columns({"z": next_one})
    table.backfill(["y", "z"], **LOCAL)
    counted = db.sql_jobs(
        'SELECT "column", state, count(*) AS n, sum(rows_computed) AS r FROM tasks '
        'GROUP BY "column", state ORDER BY "column"'
    )
    assert counted.to_pylist() == [
        {"column": c, "state": "COMMITTED", "n": 4, "r": 40} for c in ("y", "z")
    ]
    [job] = db.jobs().to_arrow().to_pylist()
    assert (job["columns"], job["state"]) == (["y", "z"], "SUCCEEDED")
    assert (job["rows_computed"], job["fragments_committed"]) == (80, 8)


def test_shell_leaves_the_same_record(scene: Scene):
    scene.gate.open()
    folder = scene.path / "_geneva"  # where a service would keep it; it is no table
    url = f"sqlite:///{folder / 'jobs.db'}"
    words = ["backfill", "t", "y", "--db", str(scene.path), "--jobs", url, "--executor", "local"]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    db = recorded(scene, url)
    [run] = db.runs()
    assert (run.state, run.record().jobs[0].rows_computed) == ("SUCCEEDED", 40)
    [job] = db.jobs()
    assert (job, db.jobs()[job.id].run_id) == (run.record().jobs[0], run.id)
    assert db.runs(states=["SUCCEEDED"]).to_arrow()["id"].to_pylist() == [run.id]
    assert [*db.runs(states=["FAILED"])] == [*db.jobs(table="other")] == []
    assert db.list_tables().tables == ["t"]


def test_failed_call_says_why_and_where(scene: Scene, url: str):
    @geneva.udf
    def odd(x: int) -> int:
        if x == 7:
            raise ValueError("seven")
        return x

    db = recorded(scene, url)
    table = db.open_table("t")
    table.add_columns({"z": odd})
    with pytest.raises(UdfFailedError):
        table.backfill("z", **LOCAL)
    result = table.backfill("z", on_error="null", **LOCAL)
    assert result.rows_failed == 1
    jobs = db.sql_jobs("SELECT state, error_type, rows_failed FROM jobs ORDER BY created_at")
    assert jobs.to_pylist() == [
        {"state": "FAILED", "error_type": "UdfFailedError", "rows_failed": 0},
        {"state": "PARTIAL", "error_type": "", "rows_failed": 1},
    ]
    failures = db.sql_jobs("SELECT DISTINCT error, message, input FROM failures")
    assert failures.to_pylist() == [{"error": "ValueError", "message": "seven", "input": "x=7"}]


def test_request_that_is_wrong_leaves_no_record(scene: Scene, url: str):
    db = recorded(scene, url)
    with pytest.raises(geneva.GenevaError):
        db.open_table("t").backfill("nothing", **LOCAL)
    assert isinstance(db.jobs().to_arrow(), pa.Table)
    assert db.jobs().to_arrow().num_rows == 0
    assert db.sql_jobs("SELECT * FROM runs").num_rows == 0


def test_connection_without_a_record_says_how_to_have_one(scene: Scene):
    with pytest.raises(SettingError, match="sqlite:///file"):
        geneva.connect(str(scene.path)).runs()


def test_recorded_call_is_steered_through_the_record(scene: Scene, url: str):
    db = recorded(scene, url)
    options = {"batch_size": 1, "concurrency": 1}
    job = db.open_table("t").backfill_async("y", **LOCAL, **options)
    until(lambda: len(scene.calls) >= 20)
    [run] = db.runs()
    run.pause()
    until(lambda: job._control.wanted == "pause")
    scene.gate.open()
    until(lambda: run.state == "PAUSED")
    run.resume()
    assert job.wait(60).rows_computed == 40
    assert run.wait(10).state == "SUCCEEDED"
    assert scene.calls.counts == {str(i): 1 for i in range(40)}


def test_service_carries_out_what_a_connection_asks(scene: Scene, service: Service):
    scene.gate.open()
    db = recorded(scene, str(service.http.base_url))
    result = db.open_table("t").backfill("y", **LOCAL)
    assert (result.rows_computed, result.fragments_committed) == (40, 4)
    assert column(scene.table, "y") == [2 * i for i in range(40)]
    [run] = db.runs(table="t")
    assert run.state == "SUCCEEDED"
    assert db.jobs().to_arrow()["mode"].to_pylist() == ["service"]
    job = run.record().jobs[0].id
    counted = db.sql_jobs(f"SELECT sum(rows_computed) AS n FROM tasks WHERE job_id = '{job}'")
    assert counted.to_pylist() == [{"n": 40}]
    with pytest.raises(geneva.GenevaError, match="nothing"):
        db.open_table("t").backfill("nothing", **LOCAL)


def test_windows_of_a_call_that_a_service_carries_out_are_told_to_the_caller(
    scene: Scene, service: Service
):
    scene.gate.open()
    db = recorded(scene, str(service.http.base_url))
    asked = geneva.Windows("x", start=0, end=20, step=5, order="backward")
    result = db.open_table("t").backfill("y", windows=asked, **LOCAL)
    assert [(w.key, w.state, w.rows_computed) for w in result.windows] == [
        (key, "COMMITTED", 5) for key in ("15", "10", "5", "0")
    ]
    assert result.rows_computed == 20
    recorded_arguments = db.jobs().to_arrow()["arguments"][0].as_py()
    assert '"windows": {"on": "x"' in recorded_arguments
    with pytest.raises(SettingError, match="the types are date, datetime, integer, values"):
        db.open_table("t").backfill("y", windows={"on": "x", "type": "week"}, **LOCAL)


@pytest.mark.crash
def test_caller_that_waits_hears_of_a_cancel(scene: Scene, service: Service):
    db = recorded(scene, str(service.http.base_url))
    options = {"batch_size": 1, "concurrency": 1}
    job = db.open_table("t").backfill_async("y", **LOCAL, **options)
    until(lambda: len(scene.calls) == 25)
    job.cancel()
    until(lambda: db.runs()[job.id].state == "CANCELLING")
    scene.gate.open()
    with pytest.raises(JobCancelledError, match=job.id):
        job.wait(60)
    assert db.runs()[job.id].state == "CANCELLED"
    assert len(scene.calls) == 26


def test_interrupt_of_a_call_that_a_service_carries_out_says_how_to_go_on(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
):
    class Far:
        url = "http://far:1"

        def submit(self, asked: object) -> object:
            return type("Run", (), {"id": "r1"})()

        def run(self, run_id: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setattr(JobsPlace, "client", Far())
    table = recorded(scene, "http://far:1").open_table("t")
    with pytest.raises(KeyboardInterrupt) as interrupted:
        table.backfill("y", **LOCAL)
    said = str(interrupted.value)
    assert "run r1 goes on in the service at http://far:1" in said
    assert "geneva runs watch r1 --url http://far:1" in said
    assert "geneva runs cancel r1 --url http://far:1" in said
    done = CliRunner().invoke(
        app, ["backfill", "t", "y", "--db", str(scene.path), "--jobs", "http://far:1"]
    )
    assert done.exit_code == 130
    assert "run r1 goes on" in done.output
