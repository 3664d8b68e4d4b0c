"""Tables, coverage, plans and failures over REST."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

import geneva
from geneva.jobs.page import Wish
from geneva.jobs.store.past import Past
from geneva.jobs.store.store import Store
from geneva.service import catalog
from geneva.service.opened_tables import Databases
from tests.service.conftest import Scene
from tests.service.test_rest import client_for

PLAN = "/api/v1/plan"
TABLES = "/api/v1/tables"
BODY = {"table": "t", "columns": ["y"], "arguments": {"executor": "local"}}


@pytest.fixture
def http(jobs: Store, scene: Scene) -> Iterator[TestClient]:
    scene.gate.open()
    with client_for(jobs, scene) as client:
        yield client


def body(**arguments: Any) -> dict[str, Any]:
    return BODY | {"arguments": {"executor": "local"} | arguments}


# ------------------------------------------------------------------------------------------ tables


def test_tables_of_a_database_by_name(http: TestClient, scene: Scene):
    db = geneva.connect(str(scene.path))
    for name in ("b", "a", "u"):
        db.create_table(name, [{"k": 1}])
    (scene.path / "b.lance" / "_versions").rename(scene.path / "b.lance" / "gone")
    first = http.get(TABLES, params={"limit": 3}).json()
    assert [t["name"] for t in first["items"]] == ["a", "b", "t"]
    assert first["items"][1]["error"]
    assert (first["items"][2]["rows"], first["items"][2]["fragments"]) == (40, 4)
    rest = http.get(TABLES, params={"limit": 3, "cursor": first["next"]}).json()
    assert ([t["name"] for t in rest["items"]], rest["next"]) == (["u"], None)
    assert http.get(TABLES, params={"cursor": "x"}).status_code == 422


def test_table_says_how_its_columns_are_computed(http: TestClient):
    found = http.get(f"{TABLES}/t").json()
    columns = {c["name"]: c for c in found["columns"]}
    assert (columns["x"]["type"], columns["x"]["bound"]) == ("int64", None)
    assert columns["y"]["bound"]["udf"] == "double"
    assert columns["y"]["bound"]["inputs"] == ["x"]
    missing = http.get(f"{TABLES}/nothing")
    assert (missing.status_code, missing.json()["type"]) == (404, "TableError")
    assert "'nothing'" in missing.json()["detail"]


def test_coverage_counts_what_is_there_and_names_the_last_job(http: TestClient, scene: Scene):
    @geneva.udf
    def plus(y: int) -> int:
        return y + 1

    scene.table.add_columns({"z": plus})
    scene.table.backfill("y", executor="local", where="x < 10")
    run = http.post("/api/v1/runs", json=BODY).json()
    y, z = http.get(f"{TABLES}/t/coverage").json()
    assert (y["column"]["name"], y["rows"], y["computed"], y["missing"]) == ("y", 40, 10, 30)
    assert (y["fragments"], y["fragments_done"], y["pieces"]) == (4, 1, [1, 0, 0, 0])
    assert y["last_job"]["run_id"] == run["id"]
    assert (z["missing"], z["waiting"], z["last_job"]) == (40, 30, None)
    assert [z] == http.get(f"{TABLES}/t/coverage", params={"column": "z"}).json()
    for column, kind in (("x", "not computed"), ("nothing", "no column")):
        refused = http.get(f"{TABLES}/t/coverage", params={"column": column})
        assert (refused.status_code, refused.json()["type"]) == (422, "ColumnError")
        assert kind in refused.json()["detail"]


def test_coverage_is_counted_once_for_a_version(
    http: TestClient, scene: Scene, monkeypatch: pytest.MonkeyPatch
):
    counted: list[int] = []
    whole = catalog.coverage

    def count(*args: Any) -> Any:
        counted.append(args[3].version)
        return whole(*args)

    monkeypatch.setattr(catalog, "coverage", count)
    for _ in range(3):
        http.get(f"{TABLES}/t/coverage")
    scene.table.backfill("y", executor="local")
    for _ in range(3):
        [y] = http.get(f"{TABLES}/t/coverage").json()
    assert y["computed"] == 40
    assert len(counted) == len(set(counted)) == 2


def test_table_that_was_made_anew_is_the_new_one(http: TestClient, scene: Scene):
    assert http.get(f"{TABLES}/t").json()["rows"] == 40
    db = geneva.connect(str(scene.path))
    db.drop_table("t")
    assert http.get(f"{TABLES}/t").status_code == 404
    db.create_table("t", [{"x": 1}])
    assert http.get(f"{TABLES}/t").json()["rows"] == 1


def test_table_of_the_same_version_that_was_made_anew_is_the_old_one(
    http: TestClient, scene: Scene
):
    db = geneva.connect(str(scene.path))
    for names in (["a"], ["b", "c"]):
        db.create_table("u", [dict.fromkeys(names, 1)])
        assert [c["name"] for c in http.get(f"{TABLES}/u").json()["columns"]] == names
        db.drop_table("u")


def test_look_at_a_database_makes_one(http: TestClient, scene: Scene):
    none = scene.path / "none"
    for path, status in ((none, 404), ("none", 422)):
        assert http.get(TABLES, params={"db": str(path)}).status_code == status
    assert not none.exists()


def test_coverage_remembers_files_that_are_used_no_more(http: TestClient, scene: Scene):
    for k in range(4):
        scene.table.backfill("y", executor="local", where=f"x % 5 = {k}")
        http.get(f"{TABLES}/t/coverage")
    app: Any = http.app
    [entry] = app.state.places.catalog._covered._entries.values()
    known = entry.value.ledger
    assert len(known._maps | known._texts) == 4


def test_storage_options_that_were_exchanged_are_used_still(
    jobs: Store, scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    options = tmp_path / "options.toml"
    options.touch(0o600)
    monkeypatch.setenv("GENEVA_STORAGE_OPTIONS", str(options))
    watched = catalog.Catalog(str(scene.path), Databases((str(scene.path),)), Past(jobs.database))
    for token in ("one", "two"):
        options.write_text(f'["{scene.path}"]\naws_session_token = "{token}"')
        storage, _ = watched.open(str(scene.path), "t")
        assert storage.options == {"aws_session_token": token}


def test_tables_and_plans_load_no_udf(http: TestClient, scene: Scene):
    binding = scene.table.computed_columns()["y"]
    pickle = Path(scene.table.storage.uri) / "_backfill" / "udfs" / binding.pickle
    pickle.write_bytes(b"no pickle at all")
    assert http.get(f"{TABLES}/t/coverage").status_code == 200
    assert http.post(PLAN, json=body(where="x < 5")).status_code == 200


# ------------------------------------------------------------------------------------------- plans


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"where": "x < 15"},
        {"where": "x % 2 = 0 AND y IS NULL"},
        {"num_frags": 2},
        {"force": True},
        {"only": [[0, 2, 5], [2, 0, 1], [9, 0, 1]]},
    ],
)
def test_plan_is_what_the_run_does(http: TestClient, scene: Scene, arguments: dict[str, Any]):
    scene.table.backfill("y", executor="local", where="x >= 30")
    planned = http.post(PLAN, json=body(**arguments)).json()
    result = scene.table.backfill("y", executor="local", **arguments)
    assert planned["exact"]
    assert planned["rows_compute"] == result.rows_computed
    assert planned["fragments_compute"] == result.fragments_committed
    [column] = planned["columns"]
    assert column["writes"]["fragments"] == result.fragments_committed
    assert column["writes"]["rows"] == 10 * result.fragments_committed
    assert sum(g["fragments"] for g in column["groups"]) == 4


def test_plan_of_columns_that_follow_from_each_other(http: TestClient, scene: Scene):
    @geneva.udf
    def plus(y: int) -> int:
        return y + 1

    scene.table.add_columns({"z": plus})
    planned = http.post(PLAN, json=BODY | {"columns": ["z", "y"]}).json()
    y, z = planned["columns"]
    assert (y["columns"], y["rows_compute"], y["exact"]) == (["y"], 40, True)
    assert (z["columns"], z["rows_waiting"], z["exact"]) == (["z"], 40, False)
    assert "y is computed before: up to 40 more rows" in z["notes"][0]
    assert not planned["exact"]


def test_plan_guesses_the_time_from_earlier_jobs(http: TestClient, scene: Scene, jobs: Store):
    assert http.post(PLAN, json=BODY).json()["seconds"] is None
    recorded = geneva.connect(str(scene.path), jobs=jobs.database.url).open_table("t")
    recorded.backfill("y", executor="local", where="x < 20")
    planned = http.post(PLAN, json=BODY).json()
    estimate = planned["columns"][0]["estimate"]
    assert estimate["basis"] == "1 earlier job of y"
    assert planned["seconds"] == pytest.approx(20 / estimate["rows_per_s"])
    [job] = jobs.jobs(Wish()).items
    assert job.metrics["appliers"] == 4  # one a fragment, of the 8 that it asked for
    for concurrency, factor in ((8, 1), (4, 1), (1, 4)):
        [column] = http.post(PLAN, json=body(concurrency=concurrency)).json()["columns"]
        rate = column["estimate"]["rows_per_s"]
        assert rate == pytest.approx(estimate["rows_per_s"] / factor)
        assert ("scaled to concurrency 1" in column["estimate"]["basis"]) == (factor == 4)


def test_plan_says_how_much_more_is_written_than_was_asked_for(http: TestClient):
    [column] = http.post(PLAN, json=body(where="x = 3 OR x = 12")).json()["columns"]
    assert (column["writes"]["rows"], column["writes"]["amplification"]) == (20, 10.0)
    assert (column["writes"]["bytes"], column["writes"]["bytes_asked"]) == (160, 16)


def test_plan_that_may_not_take_long_is_an_estimate(http: TestClient):
    whole = http.post(PLAN, json=body(where="x < 20")).json()
    quick = http.post(PLAN, params={"within_s": 1e-9}, json=body(where="x < 20")).json()
    assert (whole["exact"], whole["rows_compute"]) == (True, 20)
    assert not quick["exact"]
    assert 0 <= quick["rows_compute"] <= 40


@pytest.mark.parametrize(
    ("where", "wrong"),
    [
        ("x = = 2", "="),
        ("x > 1 AND", ""),
        ("x > 1\n  AND nope = 2", "nope"),
        ("s = 'a' AND foo(x) > 1", "foo"),
        ("x > 'abc'", "'abc'"),
        ("s > 'abc", "'abc"),
        ("random() > 0.5", "random"),
    ],
)
def test_wrong_filter_is_refused_with_its_place(http: TestClient, where: str, wrong: str):
    for path in (PLAN, "/api/v1/runs"):
        refused = http.post(path, json=body(where=where))
        assert (refused.status_code, refused.json()["type"]) == (422, "WhereError")
        start, stop = refused.json()["span"]
        assert where[start:stop] == wrong
        assert start > 0 or where.startswith(wrong)


def test_filter_that_is_wrong_as_a_whole_has_no_place(http: TestClient):
    refused = http.post(PLAN, json=body(where="x + 1")).json()
    assert "true or false" in refused["detail"]
    assert "span" not in refused


@pytest.mark.parametrize("only", [3, "abc", [[1, 2]], [[0, -1, 3]], [[0, 1, "2"]], [None]])
def test_rows_that_make_no_sense_are_refused(http: TestClient, only: Any):
    refused = http.post(PLAN, json=body(only=only))
    assert (refused.status_code, refused.json()["type"]) == (422, "SettingError")
    assert "(fragment, start, stop)" in refused.json()["detail"]
