"""Who is let in: nobody without a token, also on loopback, and nobody who only guesses."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from geneva.cli.commands import app
from geneva.connection import connect
from geneva.jobs.store.client import Client
from geneva.jobs.store.local_service import token_file, token_for
from geneva.jobs.store.store import Store
from geneva.service import limits
from geneva.service.app import create_app
from geneva.service.service_settings import Settings
from tests.service.test_pages import HERE, OURS, browser_for
from tests.service.test_rest import RUNS, bearer
from tests.support.services import Service
from tests.support.tables import make_table

TOKEN, EYE = "operators-token", "viewers-token"


@pytest.fixture
def db(tmp_path: Path) -> Path:
    make_table(tmp_path / "db", rows=2, fragments=1)
    return tmp_path / "db"


@pytest.fixture
def running(tmp_path: Path, db: Path) -> Iterator[Service]:
    service = Service(tmp_path / "state", db).start()
    yield service
    service.stop()


def address(service: Service) -> str:
    """The address that the service printed last."""
    return re.findall(r"(http://\S+/\?token=\S+)", service.log.read_text())[-1]


def test_nobody_is_let_in_on_loopback_without_the_accounts_token(running: Service):
    with httpx.Client(base_url=running.http.base_url, timeout=60) as stranger:
        assert stranger.get(RUNS).status_code == 401
        assert stranger.post(RUNS, json={"table": "t", "columns": ["y"]}).status_code == 401
        assert stranger.get("/metrics").status_code == 401
        assert stranger.get("/runs").headers["Location"].startswith("/login")
        assert stranger.get("/healthz").status_code == 200


def test_clients_of_the_same_account_need_no_settings(running: Service, db: Path):
    url = str(running.http.base_url)
    file = token_file(running.port)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert CliRunner().invoke(app, ["runs", "ls", "--url", url]).exit_code == 0
    assert Client(url.replace("127.0.0.1", "localhost")).pools()
    assert list(connect(str(db), jobs=url).jobs()) == []


def test_token_is_a_new_one_at_each_start_and_gone_at_the_end(tmp_path: Path, db: Path):
    service = Service(tmp_path / "state", db).start()
    first, client = service.token, Client(str(service.http.base_url))
    assert client.pools()
    service.kill()  # its file stays
    service.start()
    try:
        assert service.token != first
        assert client.pools()
        assert service.http.get(RUNS, headers=bearer(first)).status_code == 401
    finally:
        assert service.process is not None
        service.process.send_signal(signal.SIGTERM)
        service.process.wait(20)
        service.http.close()
    assert token_for(str(service.http.base_url)) is None


def test_address_lets_one_browser_in_and_is_used_up(running: Service):
    first = address(running)
    with (
        httpx.Client(base_url=running.http.base_url, timeout=60) as person,
        httpx.Client(timeout=60) as other,
    ):
        answer = person.get(first)
        assert answer.headers["Location"] == "/runs"
        assert "token" not in answer.headers["Location"]
        assert person.get("/runs").status_code == 200
        assert person.get(RUNS).status_code == 401  # a session is for pages only
        other.base_url = person.base_url
        other.get(first)
        assert other.get("/runs").status_code == 303
        other.get(address(running))  # the next one
        assert other.get("/runs").status_code == 200
        assert person.get(first).headers["Location"] == "/runs"  # as from a browser's history


def test_token_of_the_file_opens_the_pages_too(running: Service):
    with httpx.Client(base_url=running.http.base_url, timeout=60) as person:
        assert str(token_file(running.port)) in person.get("/login").text
        form = {"token": running.token, "next": "/pools"}
        origin = {"Origin": str(person.base_url).rstrip("/")}
        assert person.post("/login", data=form, headers=origin).headers["Location"] == "/pools"
        assert person.get("/runs").status_code == 200


def test_service_of_another_host_is_sent_no_token_of_this_one(running: Service):
    assert token_for(f"http://127.0.0.1:{running.port}") == running.token
    for url in (f"http://10.0.0.1:{running.port}", f"http://127.0.0.1.evil.example:{running.port}"):
        assert token_for(url) is None


# ----------------------------------------------------------------------------------------- guesses


def guarded(jobs: Store, tmp_path: Path, **more: Any) -> TestClient:
    tokens = {"operator_token": TOKEN, "viewer_token": EYE} | more
    return browser_for(jobs, tmp_path, **tokens)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until it is set."""
    clock = [1000.0]

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return clock[0]

    monkeypatch.setattr(limits, "time", Clock)
    return clock


@pytest.mark.parametrize("door", ["rest", "login"])
def test_guesses_are_slowed_and_counted(jobs: Store, tmp_path: Path, now: list[float], door: str):
    with guarded(jobs, tmp_path, requests_per_s=0) as http:

        def guess(token: str) -> int:
            if door == "rest":
                return http.get(RUNS, headers=bearer(token)).status_code
            form = {"token": token, "next": "/"}
            return http.post("/login", data=form, headers=OURS).status_code

        found = [guess(f"guess-{i}") for i in range(1500)]
        assert found.count(401) == 10
        assert found.count(429) == 1490
        assert guess(TOKEN) == 429  # else a guesser would see which one is right
        now[0] += 2
        assert guess("again") == 401
        now[0] += 2
        assert guess(TOKEN) in (200, 303)
        metrics = http.get("/metrics", headers=bearer(TOKEN)).text
        assert "geneva_wrong_tokens_total 11.0" in metrics


def test_refusal_of_a_guess_says_how_long_to_wait(jobs: Store, tmp_path: Path, now: list[float]):
    with guarded(jobs, tmp_path) as http:
        for i in range(10):
            http.get(RUNS, headers=bearer(f"{i}"))
        answer = http.get(RUNS, headers=bearer("x"))
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "2")
        assert answer.json()["type"] == "TooManyRequests"


def test_guesses_of_another_account_keep_the_own_token_out_at_no_time(
    jobs: Store, tmp_path: Path, now: list[float]
):
    with browser_for(jobs, tmp_path) as http:
        right = dict(http.headers)["authorization"].removeprefix("Bearer ")
        found = [http.get(RUNS, headers=bearer(f"{i}")).status_code for i in range(20)]
        assert found.count(401) == 10
        assert http.get(RUNS, headers=bearer(right)).status_code == 200
        assert http.get("/?token=guess").status_code == 303  # that browser has a session
        http.cookies.clear()
        assert http.get("/?token=guess").status_code == 429
        assert http.get("/", params={"token": http.app.state.door.code}).status_code == 303  # type: ignore[attr-defined]
        assert http.get("/runs").status_code == 200


def test_service_with_tokens_of_its_owner_has_no_address(jobs: Store, tmp_path: Path):
    with guarded(jobs, tmp_path) as http:
        code = http.app.state.door.code  # type: ignore[attr-defined]
        http.get("/", params={"token": code})
        assert http.get("/runs").status_code == 303


def test_right_tokens_are_not_counted(jobs: Store, tmp_path: Path, now: list[float]):
    with guarded(jobs, tmp_path, requests_per_s=0) as http:
        for _ in range(50):
            assert http.get(RUNS, headers=bearer(EYE)).status_code == 200
            assert http.get(RUNS).status_code == 401  # no token is no guess


@pytest.mark.parametrize("name", ["GENEVA_TOKEN", "GENEVA_VIEWER_TOKEN"])
def test_short_token_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setenv("GENEVA_TOKEN", TOKEN)
    monkeypatch.setenv(name, "short")
    done = CliRunner().invoke(app, ["serve", "--state", str(tmp_path / "s")])
    assert done.exit_code == 2
    assert name in done.output
    assert not (tmp_path / "s").exists()


# ---------------------------------------------------------------------------------------- sessions


def test_logging_out_ends_the_session_wherever_its_cookie_was_copied_to(
    jobs: Store, tmp_path: Path
):
    with guarded(jobs, tmp_path) as http, guarded(jobs, tmp_path) as replica:
        cookies = []
        for _ in range(2):
            http.cookies.clear()
            http.post("/login", data={"token": TOKEN, "next": "/"}, headers=OURS)
            cookies.append(dict(http.cookies))
        http.post("/logout", headers=OURS)
        for copy, status in zip(cookies, (200, 303), strict=True):
            for client in (http, replica):  # another process of the same service knows it too
                client.cookies.clear()
                client.cookies.update(copy)
                assert client.get("/runs").status_code == status


# ------------------------------------------------------------------------------------------- proxy


@pytest.mark.parametrize(("options", "believed"), [((), False), (("--proxy", "127.0.0.1"), True)])
def test_forwarded_addresses_are_believed_from_named_proxies_only(
    tmp_path: Path, db: Path, options: tuple[str, ...], believed: bool
):
    env = {"GENEVA_TOKEN": TOKEN, "FORWARDED_ALLOW_IPS": "*"}
    service = Service(tmp_path / "state", db, *options, env=env).start()
    try:
        found = [
            service.http.get(RUNS, headers=bearer("no") | {"X-Forwarded-For": f"10.0.0.{i}"})
            for i in range(15)
        ]
        assert (429 in [a.status_code for a in found]) is not believed
    finally:
        service.stop()


# -------------------------------------------------------------------------------------------- port


def test_no_scheduler_starts_where_the_port_is_taken(running: Service, tmp_path: Path, db: Path):
    command = [sys.executable, "-m", "geneva", "serve", "--port", str(running.port)]
    command += ["--db", str(db), "--state", str(tmp_path / "second")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ)
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{running.port}" in done.stderr
    assert "Traceback" not in done.stderr
    assert token_for(str(running.http.base_url)) == running.token


def test_application_without_a_token_is_open_to_nobody(jobs: Store, tmp_path: Path):
    made = create_app(Settings(jobs.database.url, tmp_path), jobs)
    with TestClient(made, HERE) as http:
        assert http.get(RUNS).status_code == 401
