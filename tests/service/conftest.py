"""A table with a computed column, and a service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from playwright.sync_api import Browser, Page, expect

import geneva
from geneva.jobs.store.database import Database
from geneva.jobs.store.opening import upgrade
from geneva.jobs.store.store import Store
from tests.support.backfills import Gate
from tests.support.browser import Visitor, browser, program
from tests.support.calls import CallLog
from tests.support.postgres import programs, server
from tests.support.services import Service
from tests.support.tables import make_table

Visit = Callable[..., Page]
expect.set_options(timeout=60_000)


@dataclass(frozen=True)
class Scene:
    """A table t of 40 rows in 4 fragments, with y = 2 * x.

    The UDF waits at x = 25 until ``gate`` is open.
    """

    path: Path
    table: geneva.Table
    calls: CallLog
    gate: Gate


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL server of this test run."""
    folder = programs()
    if folder is None:
        pytest.skip("no PostgreSQL here (on Debian and Ubuntu: apt install postgresql)")
    with server(folder) as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.services)])
def jobs_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of jobs: what holds in one kind must hold in the other."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.db'}"
    return new_database(request.getfixturevalue("postgres"))


def new_database(base: str) -> str:
    """Make an empty database of a PostgreSQL server; return its URL."""
    name = f"t{uuid4().hex[:12]}"
    with psycopg.connect(f"{base}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{base}/{name}"


@pytest.fixture
def jobs(jobs_url: str) -> Iterator[Store]:
    database = Database(jobs_url)
    upgrade(database)
    yield Store(database)
    database.close()


@pytest.fixture
def scene(tmp_path: Path, calls: CallLog) -> Scene:
    table = make_table(tmp_path / "db", rows=40, fragments=4)
    gate = Gate(tmp_path / "gate")

    @geneva.udf
    def double(x: int) -> int:
        if x == 25:
            gate.wait(120)
        calls(x)
        return 2 * x

    table.add_columns({"y": double})
    return Scene(tmp_path / "db", table, calls, gate)


@pytest.fixture(scope="session", autouse=True)
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Services of the tests write their tokens down where those of this account are not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("account")))
        yield


@pytest.fixture(scope="session")
def shared_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    running = Service(folder / "state", folder, "--allow-db", "/").start()
    yield running
    running.stop()


BOTH_STORES = pytest.mark.parametrize(
    "service_url", ["sqlite", pytest.param("postgres", marks=pytest.mark.crash)], indirect=True
)
"""For tests that start processes: on PostgreSQL they run with the crash tests only."""


@pytest.fixture
def service_url(request: pytest.FixtureRequest) -> str | None:
    """The database of a service, or ``None`` for a file of its own."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return None
    url = new_database(request.getfixturevalue("postgres"))
    upgrade(Database(url))
    return url


@pytest.fixture
def service(request: pytest.FixtureRequest, scene: Scene, service_url: str | None) -> Any:
    """The service of this test run, for a test's own table; on PostgreSQL one of its own."""
    return request.getfixturevalue("lent_service" if service_url is None else "own_service")


@pytest.fixture
def lent_service(shared_service: Service, scene: Scene) -> Iterator[Service]:
    shared_service.db = scene.path
    yield shared_service
    scene.gate.open()
    shared_service.cancel_all()


@pytest.fixture
def own_service(tmp_path: Path, scene: Scene, service_url: str | None) -> Iterator[Service]:
    """A service that a test may kill."""
    running = Service(tmp_path / "state", scene.path, jobs=service_url).start()
    yield running
    scene.gate.open()
    running.stop()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    path = program()
    if path is None:
        pytest.skip("NO BROWSER TEST RAN: there is no Chromium here (apt install chromium)")
    with browser(path) as started:
        yield started


@pytest.fixture
def visit(chromium: Browser, service: Service) -> Iterator[Visit]:
    """Open a page of the service; what it loads and logs is checked at the end."""
    visitors: list[Visitor] = []

    def go(path: str, **options: Any) -> Page:
        visitor = Visitor(chromium, f"http://127.0.0.1:{service.port}", service.token, **options)
        visitors.append(visitor)
        visitor.page.goto(path)
        return visitor.page

    yield go
    for visitor in visitors:
        visitor.close()
        visitor.check()
