"""A service opens the databases that it was started for, however others are spelled."""

from __future__ import annotations

import os
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import geneva
from geneva.engine.control import Wanted
from geneva.errors import NotServedError, SettingError
from geneva.jobs.records import Submission
from geneva.jobs.store.opening import open_store
from geneva.jobs.store.store import Store
from geneva.service.opened_tables import Databases, place_of
from tests.service.conftest import Scene
from tests.service.test_pages import browser_for
from tests.service.test_rest import client_for
from tests.support.services import Service
from tests.support.tables import make_table


@pytest.fixture
def secret(scene: Scene, tmp_path: Path) -> Path:
    """Another database of the host, with a sibling's name that begins as the served one does."""
    table = make_table(tmp_path / "db-secret", rows=2, fragments=1)
    table.add_columns({"y": geneva.udf(lambda x: x, data_type=pa.int64(), input_columns=["x"])})
    return tmp_path / "db-secret"


def spellings(served: Path, secret: Path) -> list[str]:
    """Return ways to say the other database."""
    (served / "link").symlink_to(secret)
    (served / "up").symlink_to(served.parent)
    plain = str(secret)
    return [
        plain,
        f"{plain}/",
        f"{served}/../{secret.name}",
        f"{served}/../db/../{secret.name}",
        f"{served}/link",
        f"{served}/up/{secret.name}",
        f"//{plain}",
        f"{served}/./../{secret.name}//",
        f"file://{plain}",
        f"file://localhost{plain}",
        f"FILE://{plain}",
        f"file:{plain}",
        f"file://{served}/../{secret.name}",
        f"file://{served}/%2e%2e/{secret.name}",
        f"file://{served}%2F..%2F{secret.name}",
        f"file://{quote(str(served / 'link'))}",
    ]


def doors(db: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Return every request that names a database whose tables are then looked at."""
    body = {"json": {"db": db, "table": "t", "columns": ["y"], "arguments": {"where": "x > 1"}}}
    chosen = {"params": {"db": db}}
    return [
        ("POST", "/api/v1/runs", body),
        ("POST", "/api/v1/plan", body),
        ("GET", "/api/v1/tables", chosen),
        ("GET", "/api/v1/tables/t", chosen),
        ("GET", "/api/v1/tables/t/coverage", chosen),
    ]


def test_every_door_refuses_other_databases_however_they_are_spelled(
    jobs: Store, scene: Scene, secret: Path
):
    with client_for(jobs, scene, allow_db=()) as http:
        for db in spellings(scene.path, secret):
            for method, path, options in doors(db):
                answer = http.request(method, path, **options)
                assert answer.status_code == 403, (db, method, path, answer.text)
                assert answer.json()["type"] == "NotServedError"
                assert "--allow-db" in answer.json()["detail"]
        for method, path, options in doors(str(scene.path)):
            assert http.request(method, path, **options).is_success


def test_pages_show_no_other_database(jobs: Store, scene: Scene, secret: Path):
    pages = ["/tables", "/tables/t", "/tables/t/coverage/y", "/submit", "/submit/columns"]
    with browser_for(jobs, scene.path.parent, allow_db=()) as client:
        for path in pages:
            answer = client.get(path, params={"db": str(secret), "table": "t"})
            assert "--allow-db" in answer.text, path
            assert 'value="column:' not in answer.text
        for path in ("/submit", "/submit/plan"):
            form = {"db": str(secret), "table": "t", "column:y": "on", "where": "x > 1"}
            answer = client.post(path, data=form, headers={"Origin": str(client.base_url)})
            assert "--allow-db" in answer.text, path


def test_table_that_is_a_link_out_of_its_database_is_refused(
    jobs: Store, scene: Scene, secret: Path
):
    (scene.path / "stolen.lance").symlink_to(secret / "t.lance")
    with client_for(jobs, scene, allow_db=()) as http:
        assert http.get("/api/v1/tables/stolen").status_code == 403
        assert http.get("/api/v1/tables/t").status_code == 200


def test_runs_of_other_databases_are_not_retried(jobs: Store, scene: Scene, secret: Path):
    """They may have been recorded by a caller, or by a service that was started for more."""
    run = jobs.submit(Submission(str(secret), "t", ("y",)), f"{secret}/t.lance", ["y"])
    jobs.want(run.id, Wanted.CANCEL)
    with client_for(jobs, scene, allow_db=()) as http:
        answer = http.post(f"/api/v1/runs/{run.id}/retry")
        assert (answer.status_code, answer.json()["type"]) == (403, "NotServedError")


@pytest.fixture
def strict(tmp_path: Path, scene: Scene) -> Iterator[Service]:
    running = Service(tmp_path / "state", scene.path).start()
    yield running
    scene.gate.open()
    running.stop()


def test_driver_runs_no_udf_of_another_database_whoever_queued_it(strict: Service, secret: Path):
    run = open_store(strict.url).submit(
        Submission(str(secret), "t", ("y",), arguments={"executor": "local"}),
        f"{secret}/t.lance",
        ["y"],
    )
    failed = strict.until(run.id, "FAILED")
    assert failed["jobs"][0]["error_type"] == "NotServedError"


NAMES = st.text(string.ascii_lowercase + "%.2eEfF/\\", max_size=12)


@given(prefix=st.sampled_from(["s3://bucket/a", "s3://bucket", "gs://b/a/b/"]), more=NAMES)
def test_uri_that_is_admitted_lies_in_a_prefix_for_whoever_decodes_it(prefix: str, more: str):
    try:
        place = Databases((prefix,)).admit(f"{prefix}{more}")
    except (NotServedError, SettingError):
        return
    scheme, _, path = place.partition("://")
    for _ in range(4):  # as often as anybody may decode
        parts = os.path.normpath(path).split("/")
        assert f"{scheme}://{'/'.join(parts)}/".startswith(f"{prefix.rstrip('/')}/")
        assert "\\" not in path
        path = unquote(path)


@pytest.mark.parametrize(
    ("prefix", "db"),
    [
        ("s3://bucket/a", "s3://bucket/ab"),
        ("s3://bucket/a", "s3://bucket/a/../b"),
        ("s3://bucket/a", "s3://bucket/a/%2e%2E/b"),
        ("s3://bucket/a", "s3://bucket/a/%252e%252e/b"),
        ("s3://bucket/a", "s3://bucket/a/x%2f..%2f..%2fb"),
        ("s3://bucket/a", "s3://bucket/a\\..\\b"),
        ("s3://bucket/a", "s3://bucket/A"),
        ("s3://bucket", "s3://bucket2"),
        ("s3://bucket", "s3://me@bucket/a"),
        ("s3://bucket", "s3://Bucket"),
        ("s3://bucket", "gs://bucket"),
        ("s3://bucket", "s3+ddb://bucket/a?ddbTableName=x"),
        ("s3://bucket/a", "s3://bucket/a/b?x=1"),
        ("s3://bucket/a", "s3://bucket/a#/b"),
        ("s3://bucket", "s3:bucket/a"),
        ("s3://bucket", "s3:///bucket/a"),
        ("s3://bucket", "s3://"),
        ("/data/a", "/data/ab"),
        ("/data/a", "/data/A"),
        ("/data/a", "/data"),
        ("/data/a", "file://elsewhere/data/a"),
        ("/data/a", "file:///data/a?x"),
        ("/data/a", "~/a"),
        ("/data/a", "/data/a\0"),
        ("/data/a", "memory://data/a"),
    ],
)
def test_what_is_not_in_a_prefix_is_refused(prefix: str, db: str):
    with pytest.raises((NotServedError, SettingError)):
        Databases((prefix,)).admit(db)


@pytest.mark.parametrize(
    ("prefix", "db", "place"),
    [
        ("s3://bucket/a/", "s3://bucket/a", "s3://bucket/a"),
        ("s3://bucket/a", "S3://bucket//a/b/", "s3://bucket/a/b"),
        ("s3://bucket/a?x=1", "s3://bucket/a?x=1", "s3://bucket/a?x=1"),
        ("/", "/data", "/data"),
        ("/data", "file:///data/b%20c", "/data/b c"),
        ("file:///data", "/data/", "/data"),
    ],
)
def test_what_is_in_a_prefix_has_one_name(prefix: str, db: str, place: str):
    assert Databases((prefix,)).admit(db) == place


def test_served_database_that_is_a_link_is_served(tmp_path: Path):
    (tmp_path / "v1").mkdir()
    (tmp_path / "current").symlink_to(tmp_path / "v1")
    served = Databases((str(tmp_path / "current"),))
    assert served.admit(str(tmp_path / "current")) == place_of(str(tmp_path / "v1"))
    assert served.admit(str(tmp_path / "v1" / "inner")) == str(tmp_path / "v1" / "inner")
