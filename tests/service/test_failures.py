"""Failures in groups, over all runs and of one, and the retry of one group."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

import geneva
from geneva.engine.control import Wanted
from geneva.errors import JobError
from geneva.jobs.store.failed_rows import shape_of
from geneva.jobs.store.store import Store
from tests.service.conftest import Scene
from tests.service.test_jobs_cli import call
from tests.service.test_rest import client_for
from tests.support.backfills import Gate
from tests.support.calls import CallLog
from tests.support.services import Service
from tests.support.tables import column, make_table

FAILURES = "/api/v1/failures"
ODD = [x for x in range(40) if x % 10 == 3]  # one row of each fragment
LARGE = [x for x in range(40) if x >= 37]


@pytest.fixture
def scene(tmp_path: Path, calls: CallLog) -> Scene:
    """A table whose UDF fails in two ways until the gate is open."""
    table = make_table(tmp_path / "db", rows=40, fragments=4)
    gate = Gate(tmp_path / "gate")

    @geneva.udf
    def picky(x: int) -> int:
        calls(x)
        if not gate.is_open and x % 10 == 3:
            raise ValueError(f"odd row {x} in 'part-{x}'")
        if not gate.is_open and x >= 37:
            raise OverflowError("too large")
        return 2 * x

    table.add_columns({"y": picky})
    return Scene(tmp_path / "db", table, calls, gate)


@pytest.fixture
def http(jobs: Store, scene: Scene) -> Iterator[TestClient]:
    with client_for(jobs, scene) as client:
        yield client


def fail(jobs: Store, scene: Scene, **arguments: Any) -> str:
    """Backfill with failing rows, recorded; return the run."""
    table = geneva.connect(str(scene.path), jobs=jobs.database.url).open_table("t")
    result = table.backfill("y", executor="local", on_error="null", **arguments)
    return str(jobs.job(result.job_id).run_id)


def listed(http: TestClient, **wish: str) -> list[tuple[str, str, int, int]]:
    found = http.get(FAILURES, params=wish).json()
    assert found["complete"]
    assert found["rows"] == sum(g["rows"] for g in found["items"])
    return [(g["error"], g["shape"], g["rows"], g["retrying"]) for g in found["items"]]


def groups(http: TestClient, **wish: str) -> dict[str, Any]:
    return {g["error"]: g for g in http.get(FAILURES, params=wish).json()["items"]}


VALUE = ("ValueError", "odd row # in '…'")
OVERFLOW = ("OverflowError", "too large")


def test_failures_are_grouped_by_what_they_have_in_common(
    http: TestClient, jobs: Store, scene: Scene
):
    run = fail(jobs, scene)
    assert listed(http) == listed(http, run=run) == [(*VALUE, 4, 0), (*OVERFLOW, 3, 0)]
    group = http.get(FAILURES).json()["items"][0]
    assert (group["table"], group["column"], group["fragments"]) == ("t", "y", 4)
    assert group["runs"] == [run]
    sample = group["samples"][1]
    assert (sample["run_id"], sample["failure"]["row"]) == (run, 3)
    assert sample["failure"]["input"] == "x=13"
    assert sample["failure"]["message"] == "odd row 13 in 'part-13'"
    assert listed(http, table="other") == listed(http, column="z") == []
    assert http.get(FAILURES, params={"run": "none"}).status_code == 404


def test_row_that_failed_twice_is_one_row(http: TestClient, jobs: Store, scene: Scene):
    first = fail(jobs, scene)
    second = fail(jobs, scene, retry_failed=True)
    assert listed(http) == [(*VALUE, 4, 0), (*OVERFLOW, 3, 0)]
    assert http.get(FAILURES).json()["items"][0]["runs"] == [second]
    assert listed(http, run=first) == [(*VALUE, 4, 0), (*OVERFLOW, 3, 0)]


def test_retry_of_a_group_is_limited_to_its_rows(http: TestClient, jobs: Store, scene: Scene):
    run = fail(jobs, scene, where="x >= 10", num_frags=4)
    group = groups(http, run=run)["ValueError"]
    answer = http.post(f"{FAILURES}/{group['key']}/retry", params={"run": run})
    assert answer.status_code == 201
    retry = answer.json()
    assert answer.headers["Location"] == f"/api/v1/runs/{retry['id']}"
    [job] = retry["jobs"]
    assert (retry["state"], retry["cause"], job["cause"]) == ("QUEUED", "retry", "retry")
    assert job["arguments"] == {
        "executor": "local",
        "on_error": "null",
        "where": "x >= 10",
        "retry_failed": True,
        "force": False,
        "only": [[1, 3, 4], [2, 3, 4], [3, 3, 4]],
    }
    assert listed(http) == [(*OVERFLOW, 3, 0), (*VALUE, 3, 3)]
    again = http.post(f"{FAILURES}/{group['key']}/retry")
    assert (again.status_code, again.json()["type"]) == (409, "JobStateError")
    jobs.want(retry["id"], Wanted.CANCEL)
    assert listed(http) == [(*OVERFLOW, 3, 0), (*VALUE, 3, 0)]


def test_job_that_stopped_at_a_failure_is_continued_as_a_whole(
    http: TestClient, jobs: Store, scene: Scene
):
    table = geneva.connect(str(scene.path), jobs=jobs.database.url).open_table("t")
    with pytest.raises(JobError):
        table.backfill("y", executor="local")
    [group] = http.get(FAILURES).json()["items"]
    [job] = http.post(f"{FAILURES}/{group['key']}/retry").json()["jobs"]
    assert job["arguments"] == {"executor": "local"}


def test_group_that_is_gone_is_not_retried(http: TestClient):
    answer = http.post(f"{FAILURES}/0123456789abcdef/retry")
    assert (answer.status_code, answer.json()["type"]) == (404, "NoSuchJobError")
    assert "look at the list again" in answer.json()["detail"]


def test_handle_shows_its_failures_and_retries_a_group(jobs: Store, scene: Scene):
    run = fail(jobs, scene)
    handle = geneva.connect(str(scene.path), jobs=jobs.database.url).runs()[run]
    found = handle.failures()
    assert [(g.error, g.rows) for g in found.items] == [("ValueError", 4), ("OverflowError", 3)]
    retry = handle.retry(found.items[1].key)
    assert retry.id != run
    assert retry.record().jobs[0].arguments["only"] == [[3, 7, 10]]
    assert [g.retrying for g in handle.failures().items] == [0, 3]
    assert handle.retry().id == run  # as a whole, it goes on itself


def test_served_retry_computes_its_rows_and_no_others(service: Service, scene: Scene):
    arguments = {"executor": "local", "on_error": "null"}
    run = service.submit(arguments=arguments)
    service.until(run, "PARTIAL")
    groups = {g["error"]: g for g in call(service, "failures", run)["items"]}
    shown = call(service, "failures", run, as_json=False)
    assert "ValueError: odd row # in '…'\n  4 rows of t.y\n  fragment 0 row 3 (x=3): odd" in shown
    rows = call(service, "failures", run, "--rows", as_json=False).splitlines()
    assert len(rows) == 7
    assert "y fragment 3 row 9 (x=39): OverflowError: too large" in rows
    scene.gate.open()
    scene.calls.clear()
    key = groups["ValueError"]["key"]
    assert f"geneva runs retry {run} --group {key}" in shown
    retry = call(service, "retry", run, "--group", key)
    service.until(retry["id"], "SUCCEEDED")
    call(service, "retry", run, "--group", key, code=2)
    assert sorted(int(k) for k in scene.calls.keys) == ODD
    assert column(scene.table, "y") == [None if x in LARGE else 2 * x for x in range(40)]
    left = service.ask("GET", f"{FAILURES}?run={run}")["items"]
    assert [g["error"] for g in left] == ["OverflowError"]


@pytest.mark.parametrize(
    ("message", "shape"),
    [
        ("row 12 of 400\nand more", "row # of #"),
        ("no file '/a/b.jpg'", "no file '…'"),
        ("cannot open /data/x/1.jpg: gone", "cannot open /…: gone"),
        ("id 0xdeadbeef, 550e8400-e29b-41d4-a716-446655440000", "id #, #"),
        ("it's 5 o'clock", "it's # o'clock"),
        ("", ""),
    ],
)
def test_what_messages_have_in_common(message: str, shape: str):
    assert shape_of(message) == shape
