"""What a request may say, and what is refused with the reason, at every door alike."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

import geneva
from geneva.engine.control import Wanted
from geneva.engine.process import this_process
from geneva.errors import JobStateError, NoSuchJobError, SettingError, UdfError
from geneva.jobs.records import Keep, Submission
from geneva.jobs.store.models import JobRow, Run
from geneva.jobs.store.queue import claim
from geneva.jobs.store.store import Store
from tests.service.conftest import Scene
from tests.service.test_pages import OURS, browser_for, submit
from tests.service.test_rest import BODY, RUNS, bearer, client_for


@pytest.fixture
def jobs_url(tmp_path: Path) -> str:
    """One kind of database is enough."""
    return f"sqlite:///{tmp_path / 'jobs.db'}"


@pytest.fixture
def http(jobs: Store, scene: Scene) -> Iterator[TestClient]:
    with client_for(jobs, scene) as client:
        yield client


def run_of_two(jobs: Store) -> str:
    """Return a run with two jobs."""
    run = submit(jobs)
    with jobs.database.write() as session:
        first = session.get(JobRow, jobs.run(run).jobs[0].id)
        assert first is not None
        fields = {c.name: getattr(first, c.name) for c in JobRow.__table__.columns}
        session.add(JobRow(**fields | {"id": "second"}))
    return run


# --------------------------------------------------------------------------------------------- caps


def test_cap_of_a_run_of_several_jobs_is_set_and_lifted(jobs: Store, http: TestClient):
    run = run_of_two(jobs)
    for sent, cap in (
        ({"max_active": 1}, 1),
        ({"priority": 3}, 1),  # what is left out stays
        ({"max_active": None}, None),
    ):
        assert http.patch(f"{RUNS}/{run}", json=sent).json()["max_active"] == cap
    assert jobs.run(run).priority == 3


def test_cap_of_a_run_of_one_job_is_refused_with_the_reason(jobs: Store, http: TestClient):
    run = submit(jobs)
    answer = http.patch(f"{RUNS}/{run}", json={"max_active": 2})
    assert answer.status_code == 409
    assert "has one job" in answer.json()["detail"]
    with jobs.database.write() as session:  # as an earlier version took it
        found = session.get(Run, run)
        assert found is not None
        found.max_active = 5
    assert jobs.change(run, max_active=None).max_active is None
    answer = http.post(RUNS, json=BODY | {"max_active": 2})
    assert (answer.status_code, "one job" in answer.json()["detail"]) == (422, True)


def test_retried_job_counts_as_one_with_its_retry(jobs: Store):
    run = submit(jobs)
    jobs.want(run, Wanted.CANCEL)
    jobs.retry(run)
    with pytest.raises(JobStateError, match="has one job"):
        jobs.change(run, max_active=2)
    assert jobs.change(run, max_active=Keep.KEEP).max_active is None


def test_page_offers_a_cap_where_there_is_something_to_cap(jobs: Store, tmp_path: Path):
    with browser_for(jobs, tmp_path) as web:
        assert 'name="max_active"' not in web.get(f"/runs/{submit(jobs)}").text
        run = run_of_two(jobs)
        assert 'name="max_active"' in web.get(f"/runs/{run}").text
        for sent, cap in (("2", 2), ("", None)):
            form = {"priority": "0", "max_active": sent}
            assert web.post(f"/runs/{run}/change", data=form, headers=OURS).status_code == 303
            assert jobs.run(run).max_active == cap


# -------------------------------------------------------------------------------------------- pools


def test_pool_is_deleted_once_no_live_job_is_in_it(jobs: Store, http: TestClient):
    http.put("/api/v1/pools/a%2Fb c", json={"slots": 2})
    run = submit(jobs, pool="a/b c")
    answer = http.delete("/api/v1/pools/a%2Fb c")
    assert (answer.status_code, answer.json()["type"]) == (409, "JobStateError")
    jobs.want(run, Wanted.PAUSE)
    assert http.delete("/api/v1/pools/a%2Fb c").status_code == 409
    jobs.want(run, Wanted.CANCEL)
    assert http.delete("/api/v1/pools/a%2Fb c").status_code == 204
    assert [p.name for p in jobs.pools()] == ["", "default"]
    for name in ("a/b c", "default", ""):
        with pytest.raises(NoSuchJobError):
            jobs.delete_pool(name)


def test_pools_page_counts_all_and_shows_the_first(jobs: Store, tmp_path: Path):
    for i in range(530):
        submit(jobs, f"t{i}", pool="busy")
    for _ in range(3):
        submit(jobs, pool="later")
    jobs.set_pool("idle", 1)
    claim(jobs.database, this_process(), 25)
    with browser_for(jobs, tmp_path) as web:
        text = web.get("/pools").text
        busy, later = (
            re.search(rf'data-pool="{name}".*?</section>', text, re.S)[0]  # type: ignore[index]
            for name in ("busy", "later")
        )
        assert busy.count("<li>") == 40
        assert "and 5 more that run" in busy
        assert "and 485 more that wait" in busy
        assert later.count("<li>") == 3
        assert text.count('action="/pools/delete"') == 1
        web.post("/pools/delete", data={"pool": "idle"}, headers=OURS)
        assert "idle" not in web.get("/pools").text


# ------------------------------------------------------------------------------------ what is asked


def test_column_that_is_given_twice_is_refused(http: TestClient):
    for path in (RUNS, "/api/v1/plan"):
        answer = http.post(path, json=BODY | {"columns": ["y", "y"]})
        assert (answer.status_code, "'y' is given more than once" in answer.text) == (422, True)


def test_parameter_that_the_udf_does_not_have_is_refused_unloaded(http: TestClient, scene: Scene):
    @geneva.udf(params={"factor": 2})
    def times(x: int, factor: int) -> int:
        return factor * x

    scene.table.add_columns({"z": times})
    binding = scene.table.computed_columns()["z"]
    pickle = Path(scene.table.storage.uri) / "_backfill" / "udfs" / binding.pickle
    pickle.write_bytes(b"no pickle at all")
    asked: dict[str, Any] = BODY | {"columns": ["z"]}
    wrong = asked | {"arguments": {"executor": "local", "params": {"faktor": 3}}}
    answer = http.post(RUNS, json=wrong)
    assert (answer.status_code, answer.json()["type"]) == (422, "UdfError")
    assert "no params 'faktor'; it has 'factor'" in answer.json()["detail"]
    right = asked | {"arguments": {"executor": "local", "params": {"factor": 3}}}
    assert http.post(RUNS, json=right).status_code == 201
    with pytest.raises(UdfError, match="faktor"):
        scene.table.check_backfill("z", params={"faktor": 3})


def test_viewer_has_no_udf_loaded_in_the_service(jobs: Store, scene: Scene):
    with client_for(jobs, scene, operator_token="op", viewer_token="see") as http:
        asked = BODY | {"arguments": {"executor": "local", "params": {"a": 1}}}
        assert http.post("/api/v1/plan", json=BODY, headers=bearer("see")).status_code == 200
        assert http.post("/api/v1/plan", json=asked, headers=bearer("see")).status_code == 403
        assert http.post("/api/v1/plan", json=asked, headers=bearer("op")).status_code == 422


def test_one_plan_and_one_coverage(http: TestClient):
    paths = http.get("/openapi.json").json()["paths"]
    assert [p for p in paths if p.endswith("/plan")] == ["/api/v1/plan"]
    assert [p for p in paths if p.endswith("/coverage")] == ["/api/v1/tables/{name}/coverage"]
    brief = http.post("/api/v1/plan", json=BODY).json()
    whole = http.post("/api/v1/plan?fragments=true", json=BODY).json()
    assert brief["fragments"] == []
    assert sum(f["rows_compute"] for f in whole["fragments"]) == whole["rows_compute"] == 40
    assert {f["columns"][0] for f in whole["fragments"]} == {"y"}


def test_every_operation_refuses_query_parameters_that_it_does_not_have(http: TestClient):
    for path, verbs in http.get("/openapi.json").json()["paths"].items():
        for verb, operation in verbs.items():
            if path in ("/healthz", "/readyz"):
                continue
            body = {"json": BODY} if path.endswith(("/runs", "/plan")) else {}
            address = re.sub(r"\{\w+(:path)?\}", "x", path)
            answer = http.request(verb, address, params={"tabel": "t"}, **body)
            assert answer.status_code == 422, (verb, path, answer.text)
            assert "'tabel'" in answer.json()["detail"]
            known = [p["name"] for p in operation.get("parameters", ()) if p["in"] == "query"]
            assert all(name in answer.json()["detail"] for name in known)
    assert http.get(RUNS, params={"table": "t", "limit": 3}).status_code == 200
    assert http.get(f"{RUNS}?state=QUEUED&state=RUNNING").status_code == 200


def test_submission_with_a_cap_is_refused_before_the_table_is_opened():
    from geneva.service.admission import check_arguments

    with pytest.raises(SettingError, match="max_active"):
        check_arguments(Submission("/db", "t", ("y",), max_active=1))
