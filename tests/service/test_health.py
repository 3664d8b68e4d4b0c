"""A service says when it cannot do its work, and why; a database that it cannot use is named."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from geneva.errors import CorruptFileError, OperatorError, ServiceError
from geneva.jobs.records import Submission
from geneva.jobs.store import health as health_of
from geneva.jobs.store import opening
from geneva.jobs.store.health import beat, health
from geneva.jobs.store.opening import open_store
from geneva.jobs.store.store import Store
from geneva.service.scheduler import Scheduler
from geneva.service.service_settings import Settings
from tests.service.test_pages import browser_for


@pytest.fixture
def jobs_url(tmp_path: Path) -> str:
    """A file, which can be taken away."""
    return f"sqlite:///{tmp_path / 'jobs.db'}"


def web(jobs: Store, tmp_path: Path) -> TestClient:
    return browser_for(jobs, tmp_path)


def test_service_without_a_scheduler_is_not_ready(jobs: Store, tmp_path: Path):
    with web(jobs, tmp_path) as http:
        with jobs.database.write() as session:
            session.execute(text("DELETE FROM schedulers"))
        http.app.state.places._health.clear()  # type: ignore[attr-defined]
        answer = http.get("/readyz")
        assert (answer.status_code, answer.json()["type"]) == (503, "ServiceError")
        assert "no scheduler" in answer.json()["detail"]
        assert "no scheduler" in http.get("/runs").text
        assert "geneva_ready 0.0" in http.get("/metrics").text
        assert http.get("/healthz").status_code == 200
        Scheduler(Settings(jobs.database.url, tmp_path / "s")).tick()
        http.app.state.places._health.clear()  # type: ignore[attr-defined]
        assert http.get("/readyz").json() == {"status": "ok"}
        assert 'id="trouble"' not in http.get("/runs").text
        assert "geneva_ready 1.0" in http.get("/metrics").text
        assert "geneva_scheduler_silence_seconds" in http.get("/metrics").text


def test_scheduler_that_fell_silent_is_named(jobs: Store, monkeypatch: pytest.MonkeyPatch):
    beat(jobs.database, "the one in process 7 on far")
    assert health(jobs.database).reason == ""
    monkeypatch.setattr(health_of, "SILENT_S", -1.0)
    assert "process 7 on far was last" in health(jobs.database).reason


def test_tick_that_fails_is_no_sign_of_life(
    jobs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    scheduler = Scheduler(Settings(jobs.database.url, tmp_path / "s"))

    def fail(*_: object) -> None:
        raise ServiceError("away")

    monkeypatch.setattr(scheduler, "_claims", fail)
    scheduler.try_to_tick()
    assert "no scheduler" in health(jobs.database).reason


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_database_that_is_away_is_503_with_the_reason(jobs: Store, tmp_path: Path, how: str):
    file = tmp_path / "jobs.db"
    with web(jobs, tmp_path) as http:
        assert http.get("/readyz").status_code == 200
        http.app.state.places._health.clear()  # type: ignore[attr-defined]
        file.rename(tmp_path / "elsewhere")
        if how == "replaced":
            file.write_bytes(b"another file")
        answer = http.get("/readyz")
        assert answer.status_code == 503
        assert str(file) in answer.json()["detail"]
        metrics = http.get("/metrics")
        assert (metrics.status_code, "geneva_ready 0.0" in metrics.text) == (200, True)


def test_postgres_that_is_away_is_named(tmp_path: Path):
    with pytest.raises(ServiceError, match=r"postgresql.*127\.0\.0\.1:1/"):
        open_store("postgresql://me:secret@127.0.0.1:1/d")


# ------------------------------------------------------------------------------ what cannot be used


def test_database_of_a_newer_geneva_is_named(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    store = open_store(url)
    with store.database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(OperatorError, match="9999, of a newer geneva"):
        open_store(url)
    assert "9999" in health(store.database).reason


@pytest.mark.parametrize("version", ["0001", "0005", "0006"])
def test_database_of_a_development_version_is_named_and_left_as_it_is(tmp_path: Path, version: str):
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    store = open_store(url)
    with store.database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = :v"), {"v": version})
    with pytest.raises(OperatorError, match=f"{version}, of a geneva from before .* move it away"):
        open_store(url)
    assert version in health(store.database).reason
    with store.database.read() as session:
        assert session.execute(text("SELECT version_num FROM alembic_version")).scalar() == version


def test_database_of_this_version_is_opened_as_it_is(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    run = open_store(url).submit(Submission("/db", "t", ("y",)), "/db/t.lance", ["y"])
    assert open_store(url).run(run.id).table == "t"


@pytest.mark.parametrize(
    "content", [b"no database at all, but text\n" * 100, b"SQLite format 3\0" * 90]
)
def test_file_that_is_no_database_is_named_and_left_as_it_is(tmp_path: Path, content: bytes):
    file = tmp_path / "jobs.db"
    file.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"jobs\.db is no database of jobs"):
        open_store(f"sqlite:///{file}")
    assert file.read_bytes() == content


def test_folder_in_the_place_of_the_database_is_named(tmp_path: Path):
    with pytest.raises(ServiceError, match="unable to open"):
        open_store(f"sqlite:///{tmp_path}")


def test_locked_database_is_named_after_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(opening, "_OPENING_S", 0.2)
    file = tmp_path / "jobs.db"
    open_store(f"sqlite:///{file}")
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        with pytest.raises(ServiceError, match=r"jobs\.db, is locked"):
            open_store(f"sqlite:///{file}")
        assert time.monotonic() - began < 30


@pytest.mark.parametrize("command", ["serve", "scheduler"])
def test_service_over_a_file_that_is_no_database_ends_with_a_message(tmp_path: Path, command: str):
    file = tmp_path / "jobs.db"
    file.write_bytes(b"garbage" * 1000)
    words = [sys.executable, "-m", "geneva", command, "--jobs", f"sqlite:///{file}"]
    words += ["--state", str(tmp_path / "state")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 4
    assert f"{file} is no database of jobs" in done.stderr
    assert "Traceback" not in done.stderr
