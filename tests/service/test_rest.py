"""The REST interface: what it accepts, refuses and says, over a store without a scheduler."""

from __future__ import annotations

import json
import math
import re
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

import geneva
from geneva.engine.process import this_process
from geneva.errors import SettingError
from geneva.jobs.page import encode_cursor
from geneva.jobs.store.database import Database
from geneva.jobs.store.health import beat
from geneva.jobs.store.leases import Leases
from geneva.jobs.store.opening import upgrade
from geneva.jobs.store.queue import claim
from geneva.jobs.store.store import Store
from geneva.model.types import JobState, Progress
from geneva.service.app import create_app
from geneva.service.limits import Rate
from geneva.service.service_settings import Settings
from tests.service.conftest import Scene

BODY = {"table": "t", "columns": ["y"], "arguments": {"executor": "local"}}
RUNS = "/api/v1/runs"


ANYWHERE = {"allow_db": ("/", "magic://x")}


def client_for(jobs: Store, scene: Scene, **more: object) -> TestClient:
    settings = Settings(
        jobs.database.url, scene.path.parent / "s", db=str(scene.path), **ANYWHERE | more
    )
    app = create_app(settings, jobs)
    beat(jobs.database, "a scheduler")
    client = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
    if settings.operator_token is None:
        client.headers |= bearer(app.state.settings.operator_token)
    return client


@pytest.fixture
def http(jobs: Store, scene: Scene) -> Iterator[TestClient]:
    with client_for(jobs, scene) as client:
        yield client


def test_accepted_request_is_a_queued_run(http: TestClient, scene: Scene):
    answer = http.post(RUNS, json=BODY | {"priority": 2, "name": "first"})
    assert answer.status_code == 201
    run = answer.json()
    assert answer.headers["Location"] == f"{RUNS}/{run['id']}"
    assert http.get(answer.headers["Location"]).json() == run
    assert (run["state"], run["name"], run["priority"]) == ("QUEUED", "first", 2)
    assert run["db"] == str(scene.path)
    assert len(scene.calls) == 0


@pytest.mark.parametrize(
    ("change", "status", "kind", "said"),
    [
        ({"columns": ["nothing"]}, 422, "ColumnError", "nothing"),
        ({"columns": ["x"]}, 422, "ColumnError", "not computed"),
        ({"columns": []}, 422, "InvalidRequest", "columns"),
        ({"table": "nothing"}, 404, "TableError", "nothing"),
        ({"arguments": {"where": "x >"}}, 422, "WhereError", ""),
        ({"arguments": {"concurency": 1}}, 422, "SettingError", "'concurrency'"),
        ({"arguments": {"batch_size": 0}}, 422, "SettingError", "at least 1"),
        ({"arguments": {"executor": "magic"}}, 422, "SettingError", "'ray' or 'local'"),
        ({"arguments": {"progress": True}}, 422, "SettingError", "elsewhere"),
        ({"surprise": 1}, 422, "InvalidRequest", "surprise"),
        # Found by the fuzz: each of these made the service fail, or make a folder.
        ({"table": "::1"}, 404, "TableError", "Invalid table name"),
        ({"table": "t" * 241}, 422, "InvalidRequest", "240"),
        ({"db": "relative"}, 422, "SettingError", "absolute"),
        ({"db": "/" + "d" * 300}, 404, "TableError", "no database"),
        ({"db": "file:///not/there"}, 404, "TableError", "no database"),
        ({"db": "magic://x"}, 422, "SettingError", "cannot be opened"),
        ({"priority": True}, 422, "InvalidRequest", "integer"),
        ({"arguments": {"columns": "y"}}, 422, "InvalidRequest", "'columns'"),
        ({"arguments": {"params": [1]}}, 422, "InvalidRequest", "'params' must be an object"),
        ({"arguments": {"batch_size": 2**63}}, 422, "InvalidRequest", "64 bits"),
        ({"arguments": {"where": "x > 1\0"}}, 422, "InvalidRequest", "NUL"),
        (
            {"arguments": {"params": {"k": [[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]}}},
            422,
            "InvalidRequest",
            "20 deep",
        ),
    ],
)
def test_wrong_request_is_refused_with_what_is_wrong(
    http: TestClient, change: dict[str, object], status: int, kind: str, said: str
):
    answer = http.post(RUNS, json=BODY | change)
    problem = answer.json()
    assert (answer.status_code, problem["type"], problem["status"]) == (status, kind, status)
    assert answer.headers["content-type"] == "application/problem+json"
    assert said in problem["detail"]
    assert http.get(RUNS).json() == {"items": [], "next": None}


@pytest.mark.parametrize("number", ["NaN", "1e999"])
def test_number_that_is_no_json(http: TestClient, number: str):
    text = json.dumps(BODY | {"arguments": {"params": {"k": 0.5}}}).replace("0.5", number)
    answer = http.post(RUNS, content=text, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["type"]) == (422, "InvalidRequest")
    assert "finite" in answer.json()["detail"]


def test_numbers_beyond_a_column(http: TestClient):
    run = http.post(RUNS, json=BODY).json()
    assert http.get(f"{RUNS}/{run['id']}/events", params={"after": 2**53}).json()["items"] == []
    tasks = f"/api/v1/jobs/{run['jobs'][0]['id']}/tasks"
    answer = http.get(tasks, params={"cursor": encode_cursor("y", 2**40)})
    assert answer.status_code in (200, 422), answer.text  # SQLite's columns have no range


def test_cursor_that_no_page_gave(http: TestClient):
    job = http.post(RUNS, json=BODY).json()["jobs"][0]["id"]
    for path, key in (
        (RUNS, [math.nan, "x"]),
        (RUNS, [1.0, "\ud800"]),
        (RUNS, ["x", 1.0]),
        (f"/api/v1/jobs/{job}/tasks", ["y", 2**64]),
        (f"/api/v1/jobs/{job}/tasks", ["\0", 1]),
    ):
        answer = http.get(path, params={"cursor": encode_cursor(*key)})
        assert (answer.status_code, answer.json()["type"]) == (422, "SettingError"), key


def test_key_that_is_sent_again(http: TestClient):
    key = {"Idempotency-Key": "abc"}
    first = http.post(RUNS, json=BODY, headers=key).json()
    assert http.post(RUNS, json=BODY, headers=key).json()["id"] == first["id"]
    other = http.post(RUNS, json=BODY | {"priority": 1}, headers=key)
    assert (other.status_code, other.json()["type"]) == (409, "JobStateError")


def test_plan_says_what_a_run_would_do_and_stores_nothing(http: TestClient):
    asked = "/api/v1/plan?fragments=true"
    plan = http.post(asked, json=BODY | {"arguments": {"where": "x < 15"}}).json()
    assert [f["fragment_id"] for f in plan["fragments"]] == [0, 1, 2, 3]
    assert plan["rows_compute"] <= 40
    assert http.get(RUNS).json()["items"] == []


def test_verbs_follow_the_states(http: TestClient):
    run = http.post(RUNS, json=BODY).json()["id"]
    job = http.get(f"{RUNS}/{run}").json()["jobs"][0]["id"]
    for verb, state in (("pause", "PAUSED"), ("resume", "QUEUED")):
        assert http.post(f"{RUNS}/{run}/{verb}").json()["state"] == state
    assert http.patch(f"{RUNS}/{run}", json={"priority": 7}).json()["priority"] == 7
    assert http.post(f"{RUNS}/{run}/retry").status_code == 409
    assert http.delete(f"{RUNS}/{run}").status_code == 409
    assert http.post(f"/api/v1/jobs/{job}/cancel").json()["state"] == "CANCELLED"
    assert http.post(f"{RUNS}/{run}/resume").status_code == 409
    assert http.delete(f"{RUNS}/{run}").status_code == 204
    assert http.get(f"{RUNS}/{run}").json()["type"] == "NoSuchJobError"


def test_stream_tells_what_happened_and_goes_on_where_it_broke(http: TestClient, jobs: Store):
    run = http.post(RUNS, json=BODY).json()["id"]
    [claimed] = claim(jobs.database, this_process())
    Leases(jobs.database).finish(
        claimed, Progress(claimed.job_id, (), JobState.RUNNING), JobState.SUCCEEDED
    )
    whole = http.get(f"{RUNS}/{run}/stream").text
    ids = [int(n) for n in re.findall(r"^id: (\d+)\r?$", whole, re.MULTILINE)]
    assert ids == [1, 2, 3, 4]
    last = json.loads(re.findall(r"^data: (.*?)\r?$", whole, re.MULTILINE)[-1])
    assert (last["id"], last["state"]) == (run, "SUCCEEDED")
    rest = http.get(f"{RUNS}/{run}/stream", headers={"Last-Event-ID": "3"}).text
    assert re.findall(r"^id: (\d+)\r?$", rest, re.MULTILINE) == ["4"]
    assert http.get(f"{RUNS}/none/stream").status_code == 404


def test_lists_are_filtered_and_paged(http: TestClient):
    made = [http.post(RUNS, json=BODY | {"name": f"n{k}"}).json()["id"] for k in range(3)]
    http.post(f"{RUNS}/{made[0]}/cancel")
    queued = http.get(RUNS, params={"state": ["QUEUED", "PAUSED"]}).json()["items"]
    assert [r["id"] for r in queued] == [made[2], made[1]]
    assert [r["id"] for r in http.get(RUNS, params={"name": "n1"}).json()["items"]] == [made[1]]
    page = http.get(RUNS, params={"limit": 2, "sort": "created"}).json()
    assert [r["id"] for r in page["items"]] == made[:2]
    rest = http.get(RUNS, params={"limit": 2, "sort": "created", "cursor": page["next"]}).json()
    assert [r["id"] for r in rest["items"]] == made[2:]
    assert rest["next"] is None
    for wrong in ({"limit": 0}, {"limit": 1001}, {"state": "NONE"}, {"cursor": "x"}):
        assert http.get(RUNS, params=wrong).status_code == 422


def test_metrics_and_health(http: TestClient):
    http.post(RUNS, json=BODY)
    text = http.get("/metrics").text
    assert 'geneva_jobs{state="QUEUED"} 1.0' in text
    assert 'geneva_pool_queued{pool="default"} 1.0' in text
    assert 'geneva_http_requests_total{method="POST",route="/api/v1/runs",status="201"} 1.0' in text
    assert http.get("/healthz").json() == http.get("/readyz").json() == {"status": "ok"}
    http.put("/api/v1/pools/gpu", json={"slots": 2})
    http.put("/api/v1/pools", json={"slots": 9})
    pools = {p["name"]: p["slots"] for p in http.get("/api/v1/pools").json()}
    assert pools == {"": 9, "default": None, "gpu": 2}


def test_coverage_of_a_column(http: TestClient):
    asked = {"column": "y", "fragments": True}
    [found] = http.get("/api/v1/tables/t/coverage", params=asked).json()
    assert found["rows"] == 40
    assert len(found["per_fragment"]) == found["fragments"] == 4


def test_database_that_does_not_answer_is_said_so(http: TestClient, jobs: Store):
    with jobs.database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE pools RENAME TO gone")
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'other'")
    assert http.get("/api/v1/pools").json()["type"] == "ServiceError"
    for path in ("/api/v1/pools", "/readyz"):
        assert http.get(path).status_code == 503
    assert http.get("/healthz").status_code == 200


def test_schema_describes_every_route(http: TestClient):
    schema = http.get("/openapi.json").json()
    assert {"/api/v1/runs", "/api/v1/runs/{run_id}/cancel", "/api/v1/jobs"} <= set(schema["paths"])
    assert "Problem" in schema["components"]["schemas"]
    ids = []
    for path, verbs in schema["paths"].items():
        for verb, operation in verbs.items():
            ids.append(operation["operationId"])
            assert operation["summary"], (verb, path)
            assert operation["tags"], (verb, path)
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    assert [*answer["content"]] == ["application/problem+json"]
                elif status != "204":
                    assert all("schema" in c for c in answer["content"].values())
    assert len(ids) == len(set(ids))


# ------------------------------------------------------------------------------------------ access


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_tokens_say_who_may_look_and_who_may_steer(jobs: Store, scene: Scene):
    tokens = {"operator_token": "op", "viewer_token": "see"}
    with client_for(jobs, scene, host="0.0.0.0", **tokens) as http:
        for headers in ({}, bearer("wrong"), {"Authorization": "Basic op"}):
            answer = http.get(RUNS, headers=headers)
            assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert http.get(RUNS, headers=bearer("see")).status_code == 200
        assert http.post(RUNS, json=BODY, headers=bearer("see")).status_code == 403
        assert http.post(RUNS, json=BODY, headers=bearer("op")).status_code == 201
        assert http.get("/metrics").status_code == 401
        assert http.get("/healthz").status_code == 200


def test_viewer_may_look_at_everything_and_change_nothing(jobs: Store, scene: Scene):
    tokens = {"operator_token": "op", "viewer_token": "see"}
    with client_for(jobs, scene, **tokens) as http:
        for path, verbs in http.get("/openapi.json").json()["paths"].items():
            for verb in verbs:
                asked = http.request(verb, re.sub(r"\{\w+\}", "x", path), headers=bearer("see"))
                looks = verb == "get" or path.endswith("/plan")
                assert (asked.status_code == 403) is not looks, (verb, path)


def test_every_route_but_health_asks_for_a_token(jobs: Store, scene: Scene):
    with client_for(jobs, scene, operator_token="op") as http:
        for path, verbs in http.get("/openapi.json").json()["paths"].items():
            for verb in verbs:
                asked = http.request(verb, re.sub(r"\{\w+\}", "x", path), json={})
                open_to_all = path in ("/healthz", "/readyz")
                assert asked.status_code == (200 if open_to_all else 401), (verb, path)


def test_page_of_another_site_cannot_reach_a_service_without_tokens(http: TestClient):
    evil = {"Origin": "http://evil.example"}
    assert http.post(RUNS, json=BODY, headers=evil).status_code == 403
    assert http.get(RUNS, headers={"Host": "evil.example"}).status_code == 403
    assert http.get(RUNS, headers={"Origin": "http://127.0.0.1"}).status_code == 200
    assert http.get(RUNS).json()["items"] == []


def test_service_that_others_reach_needs_a_token(tmp_path: Path):
    with pytest.raises(SettingError, match="GENEVA_TOKEN"):
        Settings("sqlite:///x", tmp_path, host="0.0.0.0")
    with pytest.raises(SettingError, match="nobody could steer"):
        Settings("sqlite:///x", tmp_path, viewer_token="see")
    assert "secret" not in repr(Settings("sqlite:///x", tmp_path, operator_token="secret"))


def test_request_that_is_too_large(http: TestClient):
    for status, answer in (
        (413, http.post(RUNS, content=b"x" * 1_000_001)),
        (413, http.post(RUNS, content=(b"x" * 1000 for _ in range(1001)))),
        (414, http.get(RUNS, params={"name": "x" * 8200})),
        (431, http.get(RUNS, headers={"X-Large": "x" * 16_400})),
    ):
        assert (answer.status_code, answer.json()["type"]) == (status, "TooLarge")
        assert answer.headers["Connection"] == "close"
    for path in (f"{RUNS}?name=%00", f"{RUNS}/%00"):
        assert http.get(path).status_code == 400


def test_client_that_sends_too_many_waits_and_others_do_not():
    rate = Rate(per_s=10)
    assert [rate.wait_s("one", 100.0) for _ in range(20)] == [0.0] * 20
    assert rate.wait_s("one", 100.0) == pytest.approx(0.1)
    assert rate.wait_s("two", 100.0) == 0.0
    assert rate.wait_s("one", 100.11) == 0.0
    assert rate.wait_s("one", 100.11) > 0.0
    assert [rate.wait_s("one", 200.0) for _ in range(20)] == [0.0] * 20
    assert rate.wait_s("one", 200.0) > 0.0


def test_too_many_requests_are_refused_but_health_is_not(jobs: Store, scene: Scene):
    with client_for(jobs, scene, requests_per_s=0.01) as http:
        assert http.get(RUNS).status_code == 200
        answer = http.get(RUNS)
        assert (answer.status_code, answer.json()["type"]) == (429, "TooManyRequests")
        assert 1 <= int(answer.headers["Retry-After"]) <= 100
        assert http.get("/healthz").status_code == 200


def test_udf_is_not_loaded_by_the_service(http: TestClient, scene: Scene):
    @geneva.udf
    def bomb(x: int) -> int:
        return x

    scene.table.add_columns({"z": bomb})
    binding = scene.table.computed_columns()["z"]
    pickle = Path(scene.table.storage.uri) / "_backfill" / "udfs" / binding.pickle
    pickle.write_bytes(b"no pickle at all")
    assert http.post(RUNS, json=BODY | {"columns": ["z"]}).status_code == 201


def test_reads_that_wait_behind_slow_writes(tmp_path: Path, scene: Scene) -> None:
    file = tmp_path / "jobs.db"
    database = Database(f"sqlite:///{file}")
    upgrade(database)
    with (
        client_for(Store(database), scene) as http,
        closing(sqlite3.connect(file, isolation_level=None)) as other,
        ThreadPoolExecutor(50) as people,
    ):
        other.execute("BEGIN IMMEDIATE")  # all who write wait for this one
        writes = [people.submit(http.post, RUNS, json=BODY) for _ in range(50)]
        time.sleep(1)
        assert not any(w.done() for w in writes)
        for path in ("/healthz", RUNS, "/api/v1/jobs", "/metrics"):
            assert http.get(path).status_code == 200
        assert not any(w.done() for w in writes)
        other.execute("ROLLBACK")
        assert {w.result().status_code for w in writes} == {201}
    database.close()
